"""What has become of a pilot, and of its pool? What the cluster's queue says of it and who is heard in, the next state out. Pure.

A pilot goes SUBMITTED, WAITING, STARTING, READY, DRAINING, ENDED; any of them may be skipped, none is gone back to.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from msgspec.structs import replace

from steelyard.errors import Refused
from steelyard.model.hostlist import expand_hostlist
from steelyard.model.pool import Pilot, PilotState, Pool, PoolSpec
from steelyard.model.slurm import PENDING, RUNNING, QueueEntry

#: an allocation that runs and whose agent is not heard for so long is given back
START_S = 300.0
#: after a pilot that never took work: doubled with each further one in a row
BACKOFF_S, BACKOFF_MAX_S = 10.0, 600.0
#: an allocation is taken to be that old when its agent is heard
ARRIVES_S = 60.0

#: Slurm's states that say why an allocation ended
_ENDS = {
    "TIMEOUT": "its time limit was reached",
    "DEADLINE": "its time limit was reached",
    "PREEMPTED": "it was preempted in Slurm",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node could not be booted",
    "OUT_OF_MEMORY": "it ran out of memory",
    "CANCELLED": "it was cancelled in Slurm",
}


def apply_entry(pilot: Pilot, entry: QueueEntry, words: str, now: int) -> Pilot:
    """`words`: the last that its program said, for one that ended."""
    if entry.state not in PENDING | RUNNING:
        ours = pilot.state is PilotState.DRAINING and entry.state == "CANCELLED"
        return end_pilot(replace(pilot, number=str(entry.job)), "" if ours else _ENDS.get(entry.state, ""), words, now)
    if entry.state in PENDING:
        waits = replace(pilot, number=str(entry.job))
        if pilot.state in (PilotState.SUBMITTED, PilotState.WAITING):
            return replace(waits, state=PilotState.WAITING, detail=entry.reason)
        return waits
    # of one that is ending Slurm tells the end of it, and no limit
    ends_at = pilot.ends_at if entry.state == "COMPLETING" else entry.ends_at
    node = _find_node(pilot, entry)
    if not node:
        return end_pilot(replace(pilot, number=str(entry.job)), _ENDS["NODE_FAIL"], words, now)
    runs = replace(pilot, number=str(entry.job), node=node, started_at=entry.started_at, ends_at=ends_at)
    if pilot.state in (PilotState.SUBMITTED, PilotState.WAITING):
        return replace(runs, state=PilotState.STARTING, detail="")
    return runs


def _find_node(pilot: Pilot, entry: QueueEntry) -> str:
    """Its own of its allocation's nodes; "" where the cluster has taken that out of it, since it failed."""
    if not pilot.allocation:
        return entry.nodes
    try:
        nodes = expand_hostlist(entry.nodes, "squeue") if entry.nodes else ()
    except Refused:
        nodes = ()
    # of one that is ending Slurm tells those nodes alone that have not ended
    if not nodes or entry.state != "RUNNING":
        return pilot.node or entry.nodes or "?"
    if not pilot.node:
        return nodes[pilot.place] if pilot.place < len(nodes) else ""
    return pilot.node if pilot.node in nodes else ""


def greet_pilot(pilot: Pilot, hostname: str, now: int) -> Pilot:
    """Its agent is heard."""
    if not pilot.state.coming:
        return pilot
    # a node of several is known by the name that the cluster has for it
    node = pilot.node or ("" if pilot.allocation else hostname)
    return replace(pilot, state=PilotState.READY, detail="", ready_at=now, node=node)


def drain_pilot(pilot: Pilot, why: str) -> Pilot:
    """Nothing new on it. What was said first stays."""
    if pilot.state in (PilotState.DRAINING, PilotState.ENDED):
        return pilot
    return replace(pilot, state=PilotState.DRAINING, detail=why)


def end_pilot(pilot: Pilot, why: str, words: str, now: int) -> Pilot:
    """Its allocation is over. One that never took work has the reason in what its program said last."""
    if pilot.state is PilotState.DRAINING:
        why = why or pilot.detail
    elif pilot.ready_at is None and words:
        why = f"{why}: {words}" if why else words
    return replace(pilot, state=PilotState.ENDED, detail=why, ended_at=now)


def find_drain(pilot: Pilot, pool: Pool, now: int) -> str:
    """Why it has to go now; "" where it has not."""
    if pilot.ends_at is not None and ends_within(pilot, pool, 0.0, now):
        return f"its time limit comes at {datetime.fromtimestamp(pilot.ends_at / 1e6, UTC):%H:%M:%S} UTC"
    if pilot.state is PilotState.STARTING and pilot.started_at is not None and now - pilot.started_at > START_S * 1e6:
        return f"it has run for {START_S:.0f} s and its agent was not heard"
    return ""


def ends_within(pilot: Pilot, pool: Pool, before_s: float, now: int) -> bool:
    """Does it drain by that time because its limit is near? One with a short limit takes work for half of it."""
    if pilot.ends_at is None or pilot.started_at is None:
        return False
    whole_s = (pilot.ends_at - pilot.started_at) / 1e6
    return now >= pilot.ends_at - min(pool.spec.drain_s + before_s, whole_s / 2) * 1e6


def known_end(pilot: Pilot, asked_s: float | None) -> int | None:
    """Wall time before which its allocation is certainly not over; None: it has no end. `asked_s`: how long it was asked for; its
    agent may be heard before the cluster was asked when it will be over."""
    if pilot.ends_at is not None or pilot.started_at is not None:
        return pilot.ends_at
    return pilot.submitted_at + round((asked_s or 0.0) * 1e6)


def longest_work_s(spec: PoolSpec) -> float | None:
    """What a new machine has time for: some of its allocation is over before it takes work. None: nobody knows a limit."""
    limit_s = spec.max_duration_s
    return None if limit_s is None else limit_s - min(ARRIVES_S, limit_s / 10)


def judge_pool(pool: Pool, before: Pilot, pilot: Pilot, now: int) -> Pool:
    """The pool after that step of one of its pilots. Ends of pilots that never took work are counted, until one does."""
    if pilot.state is PilotState.READY and before.state is not PilotState.READY:
        return replace(pool, failures=0, not_before=None, complaint="")
    if pilot.living or pilot.ready_at is not None or (before.state is PilotState.DRAINING and before.started_at is None):
        return pool
    return fail_pool(pool, f"Pilot {pilot.id} ended before it took work" + (f": {pilot.detail}" if pilot.detail else ""), now)


def fail_pool(pool: Pool, complaint: str, now: int) -> Pool:
    wait_s = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(pool.failures, 10))
    return replace(pool, failures=pool.failures + 1, not_before=now + round(wait_s * 1e6), complaint=complaint)


def explain_coming(pool: Pool, pilots: Iterable[Pilot]) -> str:
    """What a pool without a machine that takes work waits for, for people; "" where nothing is on its way."""
    for state in (PilotState.STARTING, PilotState.WAITING, PilotState.SUBMITTED):
        first = next((pilot for pilot in pilots if pilot.pool == pool.name and pilot.state is state), None)
        if first is not None:
            words = {
                PilotState.STARTING: f"starts on {first.node}",
                PilotState.WAITING: f"waits in Slurm's queue: {first.detail or 'it was just submitted'}",
                PilotState.SUBMITTED: "is being asked for",
            }
            return f"its machine {first.id} {words[state]}"
    return f"no machine comes to pool {pool.name}: {pool.complaint}" if pool.complaint else ""
