"""May this job change like that, and what does it look like afterwards?

Every function takes a job (and what was asked or seen) and returns a `Change`, or None when there is nothing to say. All state
changes of jobs go through `TRANSITIONS`: what is not in that table leaves the job as it was and is returned as an error event
(R7). What an older attempt reports late is history, never state (R3). Never reads the clock: `now` is an argument.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from steelyard.model.job import Job, JobState, Plan
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason

#: state -> the states that may follow it. Terminal states are followed by nothing.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    # QUEUED -> FAILED: the machine changed, and the job can never fit it any more
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.STOPPED, JobState.FAILED}),
    # STARTING -> QUEUED: the agent proved that nothing was started (R4), so that a new attempt is safe
    JobState.STARTING: frozenset(
        {
            JobState.QUEUED,
            JobState.RUNNING,
            JobState.STOPPING,
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.STOPPED,
            JobState.UNKNOWN,
        }
    ),
    JobState.RUNNING: frozenset({JobState.STOPPING, JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED, JobState.UNKNOWN}),
    JobState.STOPPING: frozenset({JobState.STOPPED, JobState.FAILED, JobState.UNKNOWN}),
    # UNKNOWN comes back as whatever the agent sees once it can see again
    JobState.UNKNOWN: frozenset(
        {
            JobState.QUEUED,
            JobState.STARTING,
            JobState.RUNNING,
            JobState.STOPPING,
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.STOPPED,
        }
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.STOPPED: frozenset(),
}

#: an attempt that verifiably never started is tried again this often in all; then the job fails
ATTEMPTS_MAX = 3


class AttemptFacts(Protocol):
    """What an agent reports of one attempt (`wire.agent.AttemptState` has this shape; wire stands above this row)."""

    @property
    def attempt(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def reason(self) -> Reason | None: ...
    @property
    def detail(self) -> str: ...
    @property
    def started_at(self) -> int | None: ...
    @property
    def ended_at(self) -> int | None: ...
    @property
    def exit_code(self) -> int | None: ...
    @property
    def signal(self) -> int | None: ...
    @property
    def peak_memory_bytes(self) -> int | None: ...
    @property
    def proof(self) -> Proof | None: ...
    @property
    def wakeup_breaches(self) -> int: ...
    @property
    def wakeup_worst_us(self) -> int: ...


class Change(msgspec.Struct, frozen=True):
    """What follows for a job. With `error` (illegal transition) or a late report, `job` is the one that was passed in."""

    job: Job
    #: one line of history
    event: str
    error: bool = False


def start_job(job: Job, plan: Plan) -> Change:
    """A new attempt with the next number, placed as `plan` says."""
    return _move(
        job,
        JobState.STARTING,
        "placed",
        attempt=job.attempt + 1,
        plan=plan,
        reason=None,
        detail="",
        wakeup_breaches=0,
        wakeup_worst_us=0,
    )


def refuse_job(job: Job, reason: Reason, detail: str, now: int) -> Change:
    """A queued job that can never start."""
    return _move(job, JobState.FAILED, reason.value, reason=reason, detail=detail, ended_at=now)


def explain_wait(job: Job, reason: Reason, detail: str) -> Change | None:
    """Say why a queued job waits; None when it says so already."""
    if job.state is not JobState.QUEUED or (job.reason is reason and job.detail == detail):
        return None
    return Change(_next(job, reason=reason, detail=detail), f"waits: {reason.value}")


def stop_job(job: Job, signal: int, grace_s: float, now: int) -> Change | None:
    """The user wants it to end. A queued job ends at once, a running one when the agent says so; a job in a terminal state, or
    already asked with the same signal and grace, stays as it is. A second stop may name a harder signal."""
    if job.state.terminal or (job.stop_signal == signal and job.stop_grace_s == grace_s):
        return None
    if job.state is JobState.QUEUED:
        detail = "stopped while it waited; it never ran" if job.attempt == 0 else "stopped while it waited for another attempt"
        return _move(
            job,
            JobState.STOPPED,
            "stop asked",
            reason=Reason.STOPPED_BY_USER,
            detail=detail,
            ended_at=now,
            stop_signal=signal,
            stop_grace_s=grace_s,
        )
    if job.state in (JobState.STOPPING, JobState.UNKNOWN):
        return Change(_next(job, stop_signal=signal, stop_grace_s=grace_s), f"stop asked with signal {signal}")
    return _move(job, JobState.STOPPING, f"stop asked with signal {signal}", stop_signal=signal, stop_grace_s=grace_s)


def doubt_job(job: Job, detail: str) -> Change | None:
    """The machine restarted under a job that had been handed out: whether it ran on is unknown until the agent reports."""
    if job.state not in (JobState.STARTING, JobState.RUNNING, JobState.STOPPING):
        return None
    return _move(job, JobState.UNKNOWN, Reason.NODE_LOST.value, reason=Reason.NODE_LOST, detail=detail)


def lose_job(job: Job, detail: str, now: int) -> Change:
    """The machine restarted and its agent knows nothing of the attempt: it ended with the old boot."""
    return _move(job, JobState.FAILED, Reason.NODE_LOST.value, reason=Reason.NODE_LOST, detail=detail, ended_at=now)


def apply_attempt(job: Job, seen: AttemptFacts, now: int) -> Change | None:
    """What the agent sees of an attempt becomes the job's state. None when the job already says so."""
    if job.attempt == 0 or seen.attempt != job.attempt_id:
        if seen.phase in ("ended", "not-started"):
            code = "unknown" if seen.exit_code is None and seen.signal is None else _exit_code(seen)
            return Change(job, f"late report of {seen.attempt}: {seen.phase}, exit code {code}; kept as history")
        return None
    match seen.phase:
        case "starting" | "running":
            return _apply_alive(job, seen)
        case "ended":
            return _apply_ended(job, seen, now)
        case "not-started":
            return _apply_not_started(job, seen, now)
        case "unknown":
            reason = seen.reason or Reason.EXIT_UNKNOWN
            if reason is Reason.NODE_LOST:
                return None if job.state is JobState.FAILED else lose_job(job, seen.detail, now)
            if job.state is JobState.UNKNOWN and job.reason is reason and job.detail == seen.detail:
                return None
            return _move(job, JobState.UNKNOWN, reason.value, reason=reason, detail=seen.detail)
        case _:
            return Change(job, f"the agent reported an unknown phase {seen.phase!r} of {seen.attempt}", error=True)


def _apply_alive(job: Job, seen: AttemptFacts) -> Change | None:
    state = JobState.RUNNING if seen.phase == "running" else JobState.STARTING
    if job.stop_signal is not None:
        state = JobState.STOPPING
    started_at = seen.started_at if seen.started_at is not None else job.started_at
    late = seen.wakeup_breaches > job.wakeup_breaches
    if job.state is state and job.started_at == started_at and not late:
        return None
    reason, detail = (None, "") if job.state is not state else (job.reason, job.detail)
    breaches, worst_us = max(job.wakeup_breaches, seen.wakeup_breaches), max(job.wakeup_worst_us, seen.wakeup_worst_us)
    return _move(
        job,
        state,
        _late_text(job, seen) if late else "",
        started_at=started_at,
        reason=reason,
        detail=detail,
        wakeup_breaches=breaches,
        wakeup_worst_us=worst_us,
    )


def _late_text(job: Job, seen: AttemptFacts) -> str:
    promise, count = job.spec.resources.max_wakeup_us, seen.wakeup_breaches
    return f"max_wakeup_us {promise} breached: {count} wake-ups were later so far, the worst by {seen.wakeup_worst_us} us"


def _apply_ended(job: Job, seen: AttemptFacts, now: int) -> Change | None:
    exit_code = _exit_code(seen)
    reason = seen.reason or _end_reason(seen)
    if job.stop_signal is not None:
        # the user wanted it to end and it ended: how it took the signal is told by the exit code
        state, reason = JobState.STOPPED, Reason.STOPPED_BY_USER
    elif exit_code == 0 and reason is Reason.EXITED:
        state = JobState.SUCCEEDED
    else:
        state = JobState.FAILED
    if job.state is state:
        return None
    why = reason.value
    if seen.wakeup_breaches > job.wakeup_breaches:
        why += f"; {_late_text(job, seen)}"
    return _move(
        job,
        state,
        why,
        reason=reason,
        wakeup_breaches=max(job.wakeup_breaches, seen.wakeup_breaches),
        wakeup_worst_us=max(job.wakeup_worst_us, seen.wakeup_worst_us),
        detail=seen.detail or _end_detail(reason, seen, exit_code),
        exit_code=exit_code,
        started_at=seen.started_at if seen.started_at is not None else job.started_at,
        ended_at=seen.ended_at if seen.ended_at is not None else now,
        peak_memory_bytes=seen.peak_memory_bytes,
        proof=seen.proof,
    )


def _apply_not_started(job: Job, seen: AttemptFacts, now: int) -> Change | None:
    reason = seen.reason or Reason.NOT_STARTED
    if job.state in (JobState.QUEUED, JobState.FAILED, JobState.STOPPED):
        return None
    if job.stop_signal is not None:
        return _move(
            job,
            JobState.STOPPED,
            "never started",
            reason=Reason.STOPPED_BY_USER,
            detail="stopped before it started",
            ended_at=now,
        )
    if reason in (Reason.NOT_STARTED, Reason.DEVICE_GONE) and job.attempt < ATTEMPTS_MAX:
        return _move(
            job,
            JobState.QUEUED,
            f"{seen.attempt} never started, another attempt follows",
            plan=None,
            reason=reason,
            detail=seen.detail or "the attempt never started; it will be tried again",
        )
    return _move(job, JobState.FAILED, reason.value, reason=reason, detail=seen.detail, ended_at=now)


def _exit_code(seen: AttemptFacts) -> int | None:
    """The command's own code, or 128 + signal as shells say it; None where the exit record was lost."""
    if seen.signal is not None:
        return 128 + seen.signal
    return seen.exit_code


def _end_reason(seen: AttemptFacts) -> Reason:
    if seen.signal is not None:
        return Reason.KILLED_BY_SIGNAL
    if seen.exit_code is None:
        return Reason.EXIT_UNKNOWN
    return Reason.EXITED if seen.exit_code == 0 else Reason.EXITED_NONZERO


def _end_detail(reason: Reason, seen: AttemptFacts, exit_code: int | None) -> str:
    match reason:
        case Reason.KILLED_BY_SIGNAL:
            return f"the command was ended by signal {seen.signal}"
        case Reason.EXITED_NONZERO:
            return f"the command exited with code {exit_code}"
        case Reason.OOM_KILLED:
            return "the kernel ended it because it used more memory than its limit; ask for more with --memory"
        case Reason.EXIT_UNKNOWN:
            return "it ended while nobody could read its exit code"
        case _:
            return ""


def _move(job: Job, state: JobState, why: str, **fields: object) -> Change:
    """`job` with another state, or an error event when the table forbids it. The same state is allowed (facts were added)."""
    if state is not job.state and state not in TRANSITIONS[job.state]:
        text = f"illegal transition {job.state.value} -> {state.value} of attempt {job.attempt} ignored"
        return Change(job, f"{text} ({why})" if why else text, error=True)
    text = f"{job.state.value} -> {state.value}" if state is not job.state else state.value
    return Change(_next(job, state=state, **fields), f"{text} ({why})" if why else text)


def _next(job: Job, **fields: object) -> Job:
    return msgspec.structs.replace(job, generation=job.generation + 1, **fields)
