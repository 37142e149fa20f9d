"""Which jobs must be started, signalled, killed or forgotten? Assigned beside observed; pure.

Takes the assignment's jobs, what is seen of every job workload on this machine, and the monotonic time. Never starts anything.
Order of the rules for one attempt:
  1. assigned, nothing known            -> Start (or NotStarted when its end is already asked for)
  2. assigned, running, end asked for   -> Signal once; Kill when the grace is over
  3. not assigned, running              -> Signal TERM, then Kill: the server holds it for ended, so its cores are given away
  4. not assigned, not running          -> Forget: the server has committed its end
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

import msgspec

from steelyard.model.ids import AttemptId
from steelyard.wire.agent import AssignedJob

#: how long work that nobody assigns any more may take to end after SIGTERM
UNASSIGNED_GRACE_S = 10.0


class JobSeen(msgspec.Struct, frozen=True):
    """What the agent knows of one attempt's workload."""

    #: starting, running, ended, not-started, unknown
    phase: str
    #: when the agent first sent a signal to end it (monotonic ns)
    signalled_ns: int | None = None


class Start(msgspec.Struct, frozen=True):
    job: AssignedJob


class NotStarted(msgspec.Struct, frozen=True):
    attempt: AttemptId


class Signal(msgspec.Struct, frozen=True):
    attempt: AttemptId
    signum: int


class Kill(msgspec.Struct, frozen=True):
    attempt: AttemptId


class Forget(msgspec.Struct, frozen=True):
    attempt: AttemptId


JobAction = Start | NotStarted | Signal | Kill | Forget


def decide_jobs(
    assigned: Mapping[AttemptId, AssignedJob], seen: Mapping[AttemptId, JobSeen], now_ns: int
) -> tuple[list[JobAction], int | None]:
    """Actions in a deterministic order, and the monotonic ns at which the next grace period ends (None: nothing pending)."""
    actions: list[JobAction] = []
    deadlines: list[int] = []

    def end(attempt: AttemptId, state: JobSeen, signum: int, grace_s: float) -> None:
        if state.signalled_ns is None:
            actions.append(Signal(attempt, signum))
            return
        deadline = state.signalled_ns + round(grace_s * 1e9)
        if signum == signal.SIGKILL or now_ns >= deadline:
            actions.append(Kill(attempt))
        else:
            deadlines.append(deadline)

    for attempt, job in sorted(assigned.items()):
        state = seen.get(attempt)
        if state is None:
            actions.append(Start(job) if job.stop_signal is None else NotStarted(attempt))
        elif state.phase == "running" and job.stop_signal is not None:
            end(attempt, state, job.stop_signal, job.stop_grace_s)
    for attempt, state in sorted(seen.items()):
        if attempt in assigned:
            continue
        if state.phase == "running":
            end(attempt, state, signal.SIGTERM, UNASSIGNED_GRACE_S)
        elif state.phase != "starting":
            actions.append(Forget(attempt))
    return actions, min(deadlines, default=None)


def decide_shared_cpus(machine_cpus: tuple[int, ...], exclusive: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The common cpuset: every CPU that no exclusive workload holds. Never empty: placement keeps one core shared, and if the
    records say otherwise, sharing wins over an empty set that the kernel would refuse."""
    taken = {cpu for cpus in exclusive for cpu in cpus}
    return tuple(cpu for cpu in machine_cpus if cpu not in taken) or machine_cpus
