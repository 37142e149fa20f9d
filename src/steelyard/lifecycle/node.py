"""What of this machine may be used, and what has to happen before more may be?

Health findings, ends of work and active checks in, the next `NodeHealth` out. Pure. A subject is the machine (`node`), a
device, a memory node, or two devices together (`a+b`). All changes go through `TRANSITIONS`: CRITICAL takes a subject out of
use by itself, and only a passed active check puts it back. That its log line has scrolled away, the finding is gone, the agent
or the machine restarted: none of that does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

import msgspec

from steelyard.model.health import NODE, Finding, Health, Severity
from steelyard.model.job import Plan


class NodeState(StrEnum):
    READY = "READY"
    #: something of the machine is out of use, the rest works (only of the machine as a whole)
    DEGRADED = "DEGRADED"
    #: nothing new starts on it; what runs there goes on to its end
    DRAINING = "DRAINING"
    #: nothing runs on it; it waits for an active check
    DRAINED = "DRAINED"
    #: an active check runs on it
    CHECKING = "CHECKING"


#: what may follow for one subject
TRANSITIONS: dict[NodeState, frozenset[NodeState]] = {
    NodeState.READY: frozenset({NodeState.DRAINING, NodeState.DRAINED}),
    # not READY: work that ends on it says nothing about what was wrong
    NodeState.DRAINING: frozenset({NodeState.DRAINED}),
    NodeState.DRAINED: frozenset({NodeState.CHECKING}),
    # READY only with a passed check in hand; DRAINED when it failed or the agent died during it
    NodeState.CHECKING: frozenset({NodeState.READY, NodeState.DRAINED}),
}


class Hold(msgspec.Struct, frozen=True):
    """One subject that is out of use."""

    #: what may not be used: one id, or two that may not be used together
    blocks: tuple[str, ...]
    state: NodeState
    #: what took it out, newest last (at most 20)
    findings: tuple[Finding, ...]
    #: microseconds since the epoch
    since: int
    #: what the last active check found, when it did not pass
    checked: tuple[Finding, ...] = ()

    @property
    def subject(self) -> str:
        return "+".join(self.blocks)


class NodeHealth(msgspec.Struct, frozen=True):
    """Everything that must outlive the agent; kept on its disk."""

    holds: tuple[Hold, ...] = ()
    #: subject -> number of the last line of this boot's kernel log that a passed active check has answered
    answered: dict[str, int] = {}
    #: the boot that `answered` belongs to
    boot_id: str = ""

    def hold(self, subject: str) -> Hold | None:
        return next((hold for hold in self.holds if hold.subject == subject), None)

    @property
    def state(self) -> NodeState:
        """Of the machine as a whole."""
        whole = self.hold(NODE)
        if whole is not None:
            return whole.state
        return NodeState.DEGRADED if self.holds else NodeState.READY

    @property
    def blocked(self) -> tuple[str, ...]:
        """Devices, memory nodes or `node` that nothing new may be placed on, in order."""
        return tuple(sorted(hold.blocks[0] for hold in self.holds if len(hold.blocks) == 1))

    @property
    def blocked_pairs(self) -> tuple[tuple[str, str], ...]:
        """Devices that nothing new may use together."""
        return tuple(sorted((hold.blocks[0], hold.blocks[1]) for hold in self.holds if len(hold.blocks) == 2))


def plan_blocked(blocked: Collection[str], pairs: Collection[tuple[str, str]], plan: Plan) -> bool:
    """Would this plan use what is out of use? Checked once more when a plan is committed; placement keeps off it before."""
    devices = {*plan.gpus, *plan.nics, *(f"numa:{node}" for node in plan.memory_nodes), NODE}
    devices |= {f"cpu:{cpu}" for cpu in plan.cpus}
    return bool(devices & set(blocked)) or any(a in devices and b in devices for a, b in pairs)


class Move(msgspec.Struct, frozen=True):
    """What follows, and what to write into the history."""

    health: NodeHealth
    events: tuple[str, ...] = ()


FINDINGS_MAX = 20


def apply_health(node: NodeHealth, seen: Health, in_use: Collection[str], now: int) -> Move:
    """Take out of use what is CRITICAL. `in_use`: the devices that work runs on, and `node` when any runs."""
    holds = {hold.subject: hold for hold in node.holds}
    events: list[str] = []
    for finding in seen.findings:
        if not finding.blocking:
            continue
        blocks = tuple(sorted(finding.blocks))
        subject = "+".join(blocks)
        before = holds.get(subject)
        if before is None:
            state = NodeState.DRAINING if any(each in in_use for each in blocks) else NodeState.DRAINED
            holds[subject] = Hold(blocks, state, (finding,), now)
            events.append(f"{subject}: READY -> {state.value} ({finding.check}: {finding.sentence})")
        elif not any(_same(finding, known) for known in before.findings):
            holds[subject] = msgspec.structs.replace(before, findings=(*before.findings, finding)[-FINDINGS_MAX:])
            events.append(f"{subject}: {before.state.value} ({finding.check}: {finding.sentence})")
    return Move(msgspec.structs.replace(node, holds=tuple(holds[key] for key in sorted(holds))), tuple(events))


def apply_use(node: NodeHealth, in_use: Collection[str]) -> Move:
    """What was draining is drained once nothing runs on it any more."""
    moved = node
    events: list[str] = []
    for hold in node.holds:
        if hold.state is NodeState.DRAINING and not any(each in in_use for each in hold.blocks):
            step = _move(moved, hold.subject, NodeState.DRAINED, "nothing runs on it any more")
            moved, events = step.health, [*events, *step.events]
    return Move(moved, tuple(events))


def apply_restart(node: NodeHealth, boot_id: str) -> Move:
    """The agent starts: a check that it was in the middle of has not passed, and another boot counts its log lines anew."""
    moved = node
    events: list[str] = []
    for hold in node.holds:
        if hold.state is NodeState.CHECKING:
            step = _move(moved, hold.subject, NodeState.DRAINED, "the agent restarted during its check")
            moved, events = step.health, [*events, *step.events]
    if moved.boot_id != boot_id:
        moved = msgspec.structs.replace(moved, boot_id=boot_id, answered={})
    return Move(moved, tuple(events))


def ask_check(node: NodeHealth, subject: str) -> Move | str:
    """Begin an active check; a sentence when that can't be."""
    hold = node.hold(subject)
    if hold is None:
        held = ", ".join(each.subject for each in node.holds)
        return f"{subject} is in use already; nothing holds it." + (f" Out of use: {held}." if held else "")
    if hold.state is NodeState.DRAINING:
        return f"{subject} is draining: work still runs on it. Stop that work, or wait for its end."
    if hold.state is NodeState.CHECKING:
        return f"{subject} is being checked already."
    return _move(node, subject, NodeState.CHECKING, "active check")


def apply_check(node: NodeHealth, subject: str, findings: Sequence[Finding], answered: int) -> Move:
    """The active check of `subject` came to these findings. It passed when it looked (something is PASS) and nothing of it is
    UNKNOWN, WARNING or CRITICAL. `answered`: the last line of the kernel's log that stood there before the check began."""
    bad = [finding for finding in findings if finding.severity.rank > Severity.INFO.rank]
    if bad or not any(finding.severity is Severity.PASS for finding in findings):
        why = (
            "; ".join(f"{each.check} {each.severity.value}: {each.sentence}" for each in bad[:3]) or "nothing could be looked at"
        )
        step = _move(node, subject, NodeState.DRAINED, f"the active check did not pass: {why}")
        holds = tuple(
            msgspec.structs.replace(each, checked=tuple(findings)[:FINDINGS_MAX]) if each.subject == subject else each
            for each in step.health.holds
        )
        return Move(msgspec.structs.replace(step.health, holds=holds), step.events)
    hold = node.hold(subject)
    step = _move(node, subject, NodeState.READY, "the active check passed")
    if hold is None or step.health is node:
        return step
    marks = {each: max(answered, node.answered.get(each, -1)) for each in hold.blocks}
    return Move(msgspec.structs.replace(step.health, answered={**step.health.answered, **marks}), step.events)


def _move(node: NodeHealth, subject: str, state: NodeState, why: str) -> Move:
    """Another state for one subject; an illegal one leaves all as it was and is said in the history."""
    hold = node.hold(subject)
    before = NodeState.READY if hold is None else hold.state
    if hold is None or state not in TRANSITIONS[before]:
        return Move(node, (f"{subject}: illegal transition {before.value} -> {state.value} ignored ({why})",))
    others = tuple(each for each in node.holds if each.subject != subject)
    moved = () if state is NodeState.READY else (msgspec.structs.replace(hold, state=state),)
    holds = tuple(sorted((*others, *moved), key=lambda each: each.subject))
    return Move(msgspec.structs.replace(node, holds=holds), (f"{subject}: {before.value} -> {state.value} ({why})",))


def _same(a: Finding, b: Finding) -> bool:
    """The same thing said again: counts and evidence may have grown."""
    return (a.check, a.subject, a.remedy, a.sentence.partition("(")[0]) == (
        b.check,
        b.subject,
        b.remedy,
        b.sentence.partition("(")[0],
    )
