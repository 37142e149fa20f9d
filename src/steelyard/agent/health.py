"""What of this machine may be used now?

Looks at its health, takes out of use what is CRITICAL, and puts back what passed a check.

Level-triggered: each look reads everything anew; a new line in the kernel's log only makes it look sooner. What is held, the
kept topology and what checks have answered are on disk before anybody is told (temp + fsync + rename), so that neither a
restart nor a reboot puts a sick device back. All judgement is in `lifecycle/` (`health`, `drift`, `node`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path

import msgspec

from steelyard.clock import Clock
from steelyard.config import write_file
from steelyard.errors import Conflict, SteelyardError
from steelyard.host.health.kernel_log import matters, observe_kernel_log
from steelyard.host.health.observe import observe_health
from steelyard.host.health.probe import probe_disk, probe_gpu, probe_nic, probe_node, probe_nvme, probe_pci
from steelyard.lifecycle.drift import check_drift, tells_less, topology_hash
from steelyard.lifecycle.health import forgive, judge_health
from steelyard.lifecycle.health_topology import judge_topology
from steelyard.lifecycle.node import (
    Hold,
    Move,
    NodeHealth,
    NodeState,
    apply_check,
    apply_health,
    apply_restart,
    apply_use,
    ask_check,
)
from steelyard.model.health import NODE, Finding, Health, Severity
from steelyard.model.health_facts import HealthFacts
from steelyard.model.topology import Topology
from steelyard.wire.agent import HealthEvent

log = logging.getLogger(__name__)

FILE = "health.json"
#: a full look (tools are asked); the kernel's log is looked at when it has something new
FULL_LOOK_S = 300.0
#: between two looks at a log that keeps saying what matters, and at most after several in a row
LOG_LOOK_S, LOG_LOOK_MAX_S = 2.0, 10.0
#: records read at once
DRAIN_MAX = 100
NO_PROBE = "No active check is known for it, or it is not there any more."
EVENTS_MAX = 1000
EVENTS_PER_REPORT = 100


class Kept(msgspec.Struct, frozen=True):
    """The file."""

    node: NodeHealth = NodeHealth()
    topology: Topology | None = None
    hash: str = ""


class HealthEdge:
    """The real machine; tests put another in its place."""

    def __init__(self, folder: Path, observe_topology: Callable[[], Topology] | None = None) -> None:
        self._folder, self._observe_topology = folder, observe_topology

    def facts(self) -> HealthFacts:
        return observe_health()

    def log(self) -> HealthFacts:
        return observe_kernel_log()

    def topology(self) -> Topology | None:
        try:
            return None if self._observe_topology is None else self._observe_topology()
        except (SteelyardError, OSError, ValueError) as err:
            log.warning("the topology could not be read: %s", err)
            return None

    def probe(self, subject: str, known: Topology | None) -> Finding:
        """The active check of one part."""
        if subject == NODE:
            return probe_node(self._folder)
        if known is not None and any(gpu.id == subject for gpu in known.gpus):
            return probe_gpu(subject)
        if known is not None and any(disk.id == subject for disk in known.nvme):
            return probe_nvme(subject)
        if known is not None and any(subject in (nic.id, nic.name) for nic in known.nics):
            return probe_nic(subject)
        return probe_disk(subject) or probe_pci(subject) or Finding("probe", subject, Severity.UNKNOWN, NO_PROBE)


def read_kept(file: Path) -> Kept | None:
    """None where there is no record yet. Raises OSError, and msgspec's errors for a damaged one."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Kept)
    except FileNotFoundError:
        return None


class HealthKeeper:
    """`in_use` names the devices that work has now, and `node` while any work runs."""

    def __init__(
        self,
        folder: Path,
        boot_id: str,
        clock: Clock,
        in_use: Callable[[], Collection[str]],
        changed: Callable[[], None],
        edge: HealthEdge,
    ) -> None:
        self._file, self._clock, self._in_use, self._changed, self._edge = folder / FILE, clock, in_use, changed, edge
        self._events: deque[HealthEvent] = deque(maxlen=EVENTS_MAX)
        self._serial = 0
        self._seen = Health()
        self._tasks: set[asyncio.Task[None]] = set()
        self._boot_id = boot_id
        self._kept = self._load()

    def _load(self) -> Kept:
        try:
            return read_kept(self._file) or Kept()
        except (msgspec.MsgspecError, OSError) as err:
            # What was held is not known any more: nothing is used until a check has passed.
            log.error("%s can't be trusted (%s): the machine is drained until `steelyard check --readmit node`", self._file, err)
            lost = Finding("state", NODE, Severity.CRITICAL, "The record of what is out of use was damaged.", blocks=(NODE,))
            return Kept(NodeHealth((Hold((NODE,), NodeState.DRAINED, (lost,), self._clock.now_us()),)))

    # -- what others ask

    @property
    def node(self) -> NodeHealth:
        return self._kept.node

    @property
    def seen(self) -> Health:
        """The newest look, with what active checks have answered set apart."""
        return forgive(self._seen, self.node.answered)

    def events(self) -> tuple[HealthEvent, ...]:
        """For the report: what has not been acknowledged."""
        return tuple(self._events)[:EVENTS_PER_REPORT]

    def drop_events(self, serial: int) -> None:
        """The server has those up to this one."""
        while self._events and self._events[0].serial <= serial:
            self._events.popleft()

    def record(self, text: str) -> None:
        """A line of history."""
        log.info("%s", text)
        self._serial = max(self._serial + 1, self._clock.now_us())
        self._events.append(HealthEvent(self._serial, self._clock.now_us(), text))
        self._changed()

    # -- looking

    def begin(self) -> None:
        """The agent has started: what an earlier one was checking has not passed."""
        self._take(apply_restart(self.node, self._boot_id))

    async def run(self) -> None:
        """Until cancelled."""
        self.begin()
        fd = _open_log()
        wake = asyncio.Event()
        if fd is not None:
            asyncio.get_running_loop().add_reader(fd, _drain_log, fd, wake)
        try:
            while True:
                await self._look_safely(log_only=False)
                pause_s = LOG_LOOK_S
                due = self._clock.mono_ns() + FULL_LOOK_S * 1e9
                while (left := (due - self._clock.mono_ns()) / 1e9) > 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(left):
                            await wake.wait()
                        wake.clear()
                        await self._look_safely(log_only=True)
                        await asyncio.sleep(pause_s)
                        pause_s = min(2 * pause_s, LOG_LOOK_MAX_S) if wake.is_set() else LOG_LOOK_S
        finally:
            if fd is not None:
                asyncio.get_running_loop().remove_reader(fd)
                os.close(fd)

    async def _look_safely(self, *, log_only: bool) -> None:
        """The last line of defence: a look that breaks must not end the agent. What is held stays held."""
        try:
            await self.look(log_only=log_only)
        except Exception:
            log.exception("a look at the machine's health failed")

    async def look(self, *, log_only: bool = False) -> None:
        """Once, now."""
        facts = await asyncio.to_thread(self._edge.log if log_only else self._edge.facts)
        findings = judge_health(facts).findings
        if not log_only:
            drift, fresh = await asyncio.to_thread(self._compare)
            findings = (*findings, *drift)
            if fresh is not None:
                self._keep(msgspec.structs.replace(self._kept, topology=fresh, hash=topology_hash(fresh)))
            self._seen = Health(findings)
        seen = forgive(Health(findings), self.node.answered)
        self._take(apply_health(self.node, seen, self._in_use(), self._clock.now_us()))
        self.on_use()

    def _compare(self) -> tuple[tuple[Finding, ...], Topology | None]:
        """(drift, the topology to keep instead of the kept one, if any)"""
        kept, seen = self._kept.topology, self._edge.topology()
        if seen is None:
            return (Finding("drift", NODE, Severity.UNKNOWN, "The machine's topology could not be read."),), None
        links = judge_topology(seen)
        if kept is None:
            return (Finding("drift", NODE, Severity.INFO, "The hardware was seen for the first time, and is kept."), *links), seen
        if topology_hash(seen) == self._kept.hash:
            return (*check_drift(seen, seen), *links), None
        drift = check_drift(kept, seen)
        harmless = all(finding.severity.rank <= Severity.INFO.rank for finding in drift)
        return (*drift, *links), seen if harmless and not tells_less(kept, seen) else None

    def on_use(self) -> None:
        """Work has ended, or may have."""
        if any(hold.state is NodeState.DRAINING for hold in self.node.holds):
            self._take(apply_use(self.node, self._in_use()))

    # -- putting back

    def readmit(self, subject: str) -> None:
        """Begin an active check. Raises Conflict where there is nothing to check, or not yet. Asked again, it goes on."""
        hold = self.node.hold(subject)
        if hold is not None and hold.state is NodeState.CHECKING:
            return
        self.on_use()
        move = ask_check(self.node, subject)
        if isinstance(move, str):
            raise Conflict(move, code="no-check")
        self._take(move)
        self._spawn(self._check(subject))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check(self, subject: str) -> None:
        hold = self.node.hold(subject)
        assert hold is not None
        findings: tuple[Finding, ...] = ()
        newest = -1
        try:
            findings, newest = await asyncio.to_thread(self._observe_check, hold)
        except Exception as err:
            # A check that breaks has not passed; the hold must not stay CHECKING for ever.
            findings = (Finding("probe", subject, Severity.UNKNOWN, f"The check itself failed ({type(err).__name__}: {err})."),)
        self._take(apply_check(self.node, subject, findings, newest))

    def _observe_check(self, hold: Hold) -> tuple[tuple[Finding, ...], int]:
        facts = self._edge.facts()
        newest = max((each.newest for each in facts.logs), default=-1)
        # Lines that stand in the log already are why it is held; the probe answers them. Newer ones are looked at again below.
        answered = {**self.node.answered, **dict.fromkeys(hold.blocks, newest)}
        drift, _ = self._compare()
        probes = tuple(self._edge.probe(each, self._kept.topology) for each in hold.blocks)
        later = judge_health(self._edge.log()).findings
        seen = forgive(Health((*judge_health(facts).findings, *drift, *later)), answered)
        return (*probes, *select_findings(hold, seen, newest)), newest

    async def keep_hardware(self) -> None:
        """Take the machine as it is as the kept state: what only drift held is put back. By hand, for a change that is meant."""
        seen = await asyncio.to_thread(self._edge.topology)
        if seen is None:
            raise Conflict("The machine's topology could not be read, so that there is nothing to keep.", code="no-topology")
        self._keep(msgspec.structs.replace(self._kept, topology=seen, hash=topology_hash(seen)))
        self.record("the hardware as it is now was kept by hand")
        only_drift = {hold.subject for hold in self.node.holds if all(each.check == "drift" for each in hold.findings)}
        holds = tuple(hold for hold in self.node.holds if hold.subject not in only_drift)
        for subject in sorted(only_drift):
            self.record(f"{subject}: back in use by hand (the change of hardware is meant)")
        self._keep(msgspec.structs.replace(self._kept, node=msgspec.structs.replace(self.node, holds=holds)))
        self._spawn(self.look())

    # -- the record

    def _take(self, move: Move) -> None:
        if move.health != self.node:
            self._keep(msgspec.structs.replace(self._kept, node=move.health))
        for event in move.events:
            self.record(event)

    def _keep(self, kept: Kept) -> None:
        self._kept = kept
        try:
            write_file(self._file, msgspec.json.encode(kept))
        except OSError as err:
            # It holds in memory, and the next change writes all of it; work must not end because of a full disk.
            log.error("%s could not be written: %s", self._file, err)
        self._changed()


def select_findings(hold: Hold, seen: Health, newest: int) -> tuple[Finding, ...]:
    """What of a new look bears on this hold: whatever blocks the same, and the checks that took it out, said again of the same
    subject. Log lines up to `newest` are answered by the probe."""
    named = {(finding.check, finding.subject) for finding in hold.findings}
    return tuple(
        finding
        for finding in seen.findings
        if (finding.blocking and set(finding.blocks) & set(hold.blocks))
        or ((finding.check, finding.subject) in named and (finding.sequence is None or finding.sequence > newest))
    )


def _open_log() -> int | None:
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(fd, 0, os.SEEK_END)
    except OSError:
        return None
    return fd


def _drain_log(fd: int, wake: asyncio.Event) -> None:
    """Only whether something came that matters: the look reads the log for itself, which is too dear for every line of a noisy
    kernel. What is left after `DRAIN_MAX` calls again."""
    try:
        for _ in range(DRAIN_MAX):
            record = os.read(fd, 8192)
            if not record:
                return
            if matters(record):
                wake.set()
    except BlockingIOError:
        return
    except OSError:
        wake.set()  # lines were lost before they could be read: they may have mattered
