"""Which jobs must be started, signalled, frozen, killed or forgotten? Assigned beside observed; pure.

Takes the assignment's jobs, what is seen of every attempt on this machine, and the monotonic time. Never starts anything. Time
limits are decided here too, so that they hold while the server is away. Order of the rules for one attempt:
  1. assigned, nothing known            -> Start (or NotStarted when its end is already asked for)
  2. assigned, alive, must end          -> Thaw where it is frozen, Signal once per signal asked for; Kill when the grace is over
     a. a rank of it ended badly        -> all others end within `GANG_GRACE_S`, however long a later stop would give them
     b. its end is asked for            -> with the signal and the grace that were asked for
     c. the function woke whose devices it was lent -> with its own signal and grace, as when it gives way to a job
     d. it ran into one of its limits   -> TERM
     and where such a function woke, all of these are killed when the function must have its devices back
  3. assigned, alive, not as suspended as it should be -> Freeze or Thaw
  4. assigned, running, the time for its warning has come -> Warn, once
  5. not assigned, alive                -> Signal TERM, then Kill: the server holds it for ended, so its cores are given away
  6. not assigned, not alive            -> Forget: the server has committed its end
"""

from __future__ import annotations

import signal
from collections.abc import Container, Iterable, Mapping

import msgspec

from steelyard.model.ids import AttemptId
from steelyard.model.job import JobSpec
from steelyard.model.reason import Reason
from steelyard.wire.agent import AssignedJob

#: how long work that nobody assigns any more may take to end after SIGTERM
UNASSIGNED_GRACE_S = 10.0
#: the same for work that ran into one of its limits
LIMIT_GRACE_S = 10.0
#: the same for the ranks that are left of a broken gang: with the kill all are gone within 5 s
GANG_GRACE_S = 3.0
#: between two looks at the heartbeat file of a job that has a limit on it
BEAT_LOOK_NS = 1_000_000_000

RUNNING, SUSPENDED = "running", "suspended"
ALIVE = (RUNNING, SUSPENDED)


class JobSeen(msgspec.Struct, frozen=True):
    """What the agent knows of one attempt."""

    #: starting, running, suspended, ended, not-started, unknown
    phase: str
    #: when the agent last sent a signal to end it (monotonic ns), and which
    signalled_ns: int | None = None
    signalled: int | None = None
    #: how long it has run; while it was frozen does not count
    ran_ns: int = 0
    #: has it ever touched its heartbeat file, and for how long of `ran_ns` has it not
    touched: bool = False
    silent_ns: int = 0
    #: the warning before its end was sent
    warned: bool = False
    #: the limit that it ran into, once it is being ended for that
    limit: Reason | None = None
    #: of a gang: a rank ended badly before anybody wanted it to end
    broken: bool = False
    #: a function has woken whose devices it was lent: killed then (monotonic ns), whatever else it is being ended for
    kill_at_ns: int | None = None


class Start(msgspec.Struct, frozen=True):
    job: AssignedJob


class NotStarted(msgspec.Struct, frozen=True):
    attempt: AttemptId


class Signal(msgspec.Struct, frozen=True):
    """To end it."""

    attempt: AttemptId
    signum: int
    #: why, where the agent alone wants it
    limit: Reason | None = None


class Warn(msgspec.Struct, frozen=True):
    attempt: AttemptId
    signum: int
    #: only to what `srun` started in it
    steps_only: bool = False


class Freeze(msgspec.Struct, frozen=True):
    attempt: AttemptId


class Thaw(msgspec.Struct, frozen=True):
    attempt: AttemptId
    #: it goes on only to be ended
    to_end: bool = False


class Kill(msgspec.Struct, frozen=True):
    attempt: AttemptId


class Forget(msgspec.Struct, frozen=True):
    attempt: AttemptId


JobAction = Start | NotStarted | Signal | Warn | Freeze | Thaw | Kill | Forget


class _End(msgspec.Struct, frozen=True):
    signum: int
    grace_s: float
    limit: Reason | None = None


def decide_jobs(
    assigned: Mapping[AttemptId, AssignedJob], seen: Mapping[AttemptId, JobSeen], now_ns: int
) -> tuple[list[JobAction], int | None]:
    """Actions in a deterministic order, and the monotonic ns at which to decide again although nothing happened (None: never).
    Deciding again once the actions are carried out gives the deadlines that they began."""
    actions: list[JobAction] = []
    deadlines: list[int] = []
    for attempt, job in sorted(assigned.items()):
        state = seen.get(attempt)
        if state is None:
            actions.append(Start(job) if job.stop_signal is None else NotStarted(attempt))
        elif state.phase in ALIVE:
            _decide_alive(job, state, now_ns, actions, deadlines)
    for attempt, state in sorted(seen.items()):
        if attempt in assigned:
            continue
        if state.phase in ALIVE:
            _end(attempt, state, _End(signal.SIGTERM, UNASSIGNED_GRACE_S), now_ns, actions, deadlines)
        elif state.phase != "starting":
            actions.append(Forget(attempt))
    return actions, min(deadlines, default=None)


def decide_ahead(
    assigned: Iterable[AssignedJob], known: Container[AttemptId], waiting: Container[AttemptId]
) -> tuple[list[AssignedJob], list[AssignedJob]]:
    """What need not wait until the assignment is on disk, parts of gangs on several machines: those that begin, of the attempts
    that are prepared and are `waiting` for that; and new ones that are only prepared for now."""
    parts = [(job, job.place) for job in assigned if job.place is not None]
    begins = [job for job, place in parts if place.port and job.attempt in waiting]
    # secrets of the new assignment are asked for when it is carried out
    ready = [job for job, place in parts if not place.port and job.stop_signal is None and not job.spec.secrets]
    return begins, [job for job in ready if job.attempt not in known]


def _decide_alive(job: AssignedJob, state: JobSeen, now_ns: int, actions: list[JobAction], deadlines: list[int]) -> None:
    wanted = _why_end(job, state)
    if wanted is not None:
        _end(job.attempt, state, wanted, now_ns, actions, deadlines)
    elif job.suspended:
        if state.phase == RUNNING:
            actions.append(Freeze(job.attempt))
    elif state.phase == SUSPENDED:
        actions.append(Thaw(job.attempt))
    else:
        _watch(job, state, now_ns, actions, deadlines)


def _why_end(job: AssignedJob, state: JobSeen) -> _End | None:
    if state.broken:
        return _End(signal.SIGKILL if job.stop_signal == signal.SIGKILL else signal.SIGTERM, GANG_GRACE_S)
    if job.stop_signal is not None:
        return _End(job.stop_signal, job.stop_grace_s)
    if state.limit is Reason.PREEMPTED or (state.limit is None and state.kill_at_ns is not None):
        asked = job.spec.preemption
        return _End(asked.signal, asked.grace_s, Reason.PREEMPTED)
    limit = state.limit or (find_limit(job.spec, state) if state.phase == RUNNING else None)
    return None if limit is None else _End(signal.SIGTERM, LIMIT_GRACE_S, limit)


def find_limit(spec: JobSpec, state: JobSeen) -> Reason | None:
    """Which of its limits has it run into? A heartbeat is expected from the start on, unless there is a start timeout: then from
    the first one on."""
    if spec.max_duration_s is not None and state.ran_ns >= _ns(spec.max_duration_s):
        return Reason.MAX_DURATION
    if spec.start_timeout_s is not None and not state.touched:
        return Reason.START_TIMEOUT if state.ran_ns >= _ns(spec.start_timeout_s) else None
    if spec.heartbeat_timeout_s is not None and state.silent_ns >= _ns(spec.heartbeat_timeout_s):
        return Reason.HEARTBEAT_TIMEOUT
    return None


def _end(attempt: AttemptId, state: JobSeen, wanted: _End, now_ns: int, actions: list[JobAction], deadlines: list[int]) -> None:
    if state.phase == SUSPENDED:
        # frozen, it would answer nothing but SIGKILL
        actions.append(Thaw(attempt, to_end=True))
    if state.signalled_ns is None or state.signalled != wanted.signum:
        actions.append(Signal(attempt, wanted.signum, wanted.limit))
        return
    deadline = state.signalled_ns + _ns(wanted.grace_s)
    if state.kill_at_ns is not None:
        deadline = min(deadline, state.kill_at_ns)
    if wanted.signum == signal.SIGKILL or now_ns >= deadline:
        actions.append(Kill(attempt))
    else:
        deadlines.append(deadline)


def _watch(job: AssignedJob, state: JobSeen, now_ns: int, actions: list[JobAction], deadlines: list[int]) -> None:
    """It runs and may go on: warn it when it is time, and say when the next limit would be reached."""
    spec = job.spec
    if spec.max_duration_s is not None:
        limit_ns = _ns(spec.max_duration_s)
        deadlines.append(now_ns + limit_ns - state.ran_ns)
        if spec.warn is not None and not state.warned:
            warn_ns = limit_ns - _ns(spec.warn.before_s)
            if state.ran_ns >= warn_ns:
                actions.append(Warn(job.attempt, spec.warn.signal, spec.warn.steps_only))
            else:
                deadlines.append(now_ns + warn_ns - state.ran_ns)
    if watches_beats(spec):
        deadlines.append(now_ns + BEAT_LOOK_NS)


def watches_beats(spec: JobSpec) -> bool:
    """Is anybody to look at its heartbeat file?"""
    return spec.start_timeout_s is not None or spec.heartbeat_timeout_s is not None


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def decide_shared_cpus(machine_cpus: tuple[int, ...], exclusive: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The common cpuset: every CPU that no exclusive workload holds. Never empty: placement keeps one core shared, and if the
    records say otherwise, sharing wins over an empty set that the kernel would refuse."""
    taken = {cpu for cpus in exclusive for cpu in cpus}
    return tuple(cpu for cpu in machine_cpus if cpu not in taken) or machine_cpus
