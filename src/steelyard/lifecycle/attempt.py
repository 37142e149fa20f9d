"""What does an agent's word about an attempt make of its job, and does another attempt follow?

`apply_attempt` takes a job and what was seen of an attempt, and returns a `Change`, or None when the job says so already. What an
older attempt reports late is history, never state (R3). Whether a failed attempt is followed by another one is decided here too,
by the job's own rules (`JobSpec.retry`). Never reads the clock: `now` is an argument.
"""

from __future__ import annotations

from typing import Protocol

from steelyard.lifecycle.job import Change, move, requeue_job
from steelyard.model.batch import PreemptMode, RankEnd, RetryOn
from steelyard.model.job import Job, JobState
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason
from steelyard.model.usage import Usage

#: attempts of a job that verifiably never started; then it fails
ATTEMPTS_MAX = 3
#: the wait before another attempt doubles up to this
BACKOFF_MAX_S = 3600.0

#: ends that no rule of the user's asks for another attempt of
_FINAL = frozenset({Reason.MAX_DURATION, Reason.START_FAILED, Reason.STOPPED_BY_USER, Reason.CANCELLED_IN_SLURM})


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
    @property
    def usage(self) -> Usage | None: ...
    @property
    def ranks(self) -> tuple[RankEnd, ...]: ...


def apply_attempt(job: Job, seen: AttemptFacts, now: int) -> Change | None:
    """What the agent sees of an attempt becomes the job's state. None when the job already says so."""
    if job.attempt == 0 or seen.attempt != job.attempt_id:
        if seen.phase in ("ended", "not-started"):
            code = "unknown" if seen.exit_code is None and seen.signal is None else _exit_code(seen)
            return Change(job, f"late report of {seen.attempt}: {seen.phase}, exit code {code}; kept as history")
        return None
    match seen.phase:
        case "starting" | "running" | "suspended":
            return _apply_alive(job, seen)
        case "ended":
            return _apply_ended(job, seen, now)
        case "not-started":
            return _apply_not_started(job, seen, now)
        case "unknown":
            reason = seen.reason or Reason.EXIT_UNKNOWN
            if reason is Reason.NODE_LOST:
                return None if job.state in (JobState.FAILED, JobState.QUEUED) else lose_job(job, seen.detail, now)
            if job.state is JobState.UNKNOWN and job.reason is reason and job.detail == seen.detail:
                return None
            return move(job, JobState.UNKNOWN, reason.value, reason=reason, detail=seen.detail)
        case _:
            return Change(job, f"the agent reported an unknown phase {seen.phase!r} of {seen.attempt}", error=True)


def _apply_alive(job: Job, seen: AttemptFacts) -> Change | None:
    state = JobState.STARTING if seen.phase == "starting" else JobState.RUNNING
    if job.suspended_at is not None and state is JobState.RUNNING:
        # whether it is frozen yet is the agent's business: it was asked to be
        state = JobState.SUSPENDED
    if job.stop_signal is not None:
        state = JobState.STOPPING
    started_at = seen.started_at if seen.started_at is not None else job.started_at
    late = seen.wakeup_breaches > job.wakeup_breaches
    if job.state is state and job.started_at == started_at and not late:
        return None
    reason, detail = (None, "") if job.state is not state else (job.reason, job.detail)
    breaches, worst_us = max(job.wakeup_breaches, seen.wakeup_breaches), max(job.wakeup_worst_us, seen.wakeup_worst_us)
    return move(
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
    if job.state in (JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED):
        # said before; a queued one waits for its next attempt
        return None
    exit_code = _exit_code(seen)
    reason = seen.reason or _end_reason(seen)
    why = reason.value
    if seen.wakeup_breaches > job.wakeup_breaches:
        why += f"; {_late_text(job, seen)}"
    facts: dict[str, object] = {
        "wakeup_breaches": max(job.wakeup_breaches, seen.wakeup_breaches),
        "wakeup_worst_us": max(job.wakeup_worst_us, seen.wakeup_worst_us),
        "exit_code": exit_code,
        "peak_memory_bytes": seen.peak_memory_bytes,
        "proof": seen.proof,
        "usage": seen.usage,
        "ranks": seen.ranks,
    }
    detail = seen.detail or explain_end(reason, seen.signal, exit_code)
    succeeded = exit_code == 0 and reason is Reason.EXITED
    if job.stop_reason is Reason.PREEMPTED and not succeeded:
        reason, detail = Reason.PREEMPTED, job.detail
    elif job.stop_signal is not None and job.stop_reason is not Reason.PREEMPTED:
        # the user wanted it to end and it ended: how it took the signal is told by the exit code
        reason = Reason.STOPPED_BY_USER
    again = None if succeeded else retry_at(job, reason, now)
    if again is not None:
        return _try_again(job, reason, detail, again, why, facts)
    if reason in (Reason.STOPPED_BY_USER, Reason.CANCELLED_IN_SLURM) or (
        reason is Reason.PREEMPTED and job.spec.preemption.mode is PreemptMode.CANCEL
    ):
        state = JobState.STOPPED
    else:
        state = JobState.SUCCEEDED if succeeded else JobState.FAILED
    return move(
        job,
        state,
        why,
        reason=reason,
        detail=detail,
        started_at=seen.started_at if seen.started_at is not None else job.started_at,
        ended_at=seen.ended_at if seen.ended_at is not None else now,
        **facts,
    )


def retry_at(job: Job, reason: Reason, now: int) -> int | None:
    """When the next attempt may start after one that ended for `reason` (wall time, microseconds); None: there is none."""
    if reason is Reason.PREEMPTED and job.spec.preemption.mode is PreemptMode.CANCEL:
        return None
    if reason in _FINAL:
        return None
    kind = _retry_kind(reason)
    rule = next((rule for rule in job.spec.retry if rule.on is kind), None)
    if rule is None:
        # giving way is no fault of the job's: without a rule it is queued again as often as need be
        return now if kind is RetryOn.PREEMPTED else None
    used = job.retried.get(kind.value, 0)
    if used >= rule.times:
        return None
    return now + round(min(BACKOFF_MAX_S, rule.backoff_s * 2.0 ** min(used, 60)) * 1e6)


def _retry_kind(reason: Reason) -> RetryOn:
    match reason:
        case Reason.NODE_LOST:
            return RetryOn.NODE_LOST
        case Reason.PREEMPTED:
            return RetryOn.PREEMPTED
        case Reason.OOM_KILLED:
            return RetryOn.OOM
        case _:
            return RetryOn.ERROR


def _try_again(job: Job, reason: Reason, detail: str, at: int, why: str, facts: dict[str, object]) -> Change:
    kind = _retry_kind(reason).value
    preempted = reason is Reason.PREEMPTED
    # to which job it gives way was told when it was asked to; to which function, its agent tells now
    gave_way = "gave way" if job.stop_reason is Reason.PREEMPTED or not detail else detail
    told = gave_way if preempted else f"failed: {detail or reason.value}"
    sentence = f"attempt {job.attempt} {told}; another one follows"
    return requeue_job(
        job,
        f"{why}, another attempt follows",
        reason if preempted else Reason.BACKOFF,
        sentence,
        not_before=at,
        restarts=job.restarts + 1,
        retried={**job.retried, kind: job.retried.get(kind, 0) + 1},
        **facts,
    )


def _apply_not_started(job: Job, seen: AttemptFacts, now: int) -> Change | None:
    reason = seen.reason or Reason.NOT_STARTED
    if job.state in (JobState.QUEUED, JobState.FAILED, JobState.STOPPED):
        return None
    if job.stop_reason is Reason.PREEMPTED:
        return requeue_job(job, f"{seen.attempt} never started", Reason.PREEMPTED, job.detail)
    if reason is Reason.PREEMPTED and job.stop_signal is None:
        # the function whose place it was lent has woken: no fault of the job's, however often it happens
        return requeue_job(job, f"{seen.attempt} never started: {seen.detail}", reason, seen.detail)
    if job.stop_signal is not None:
        return move(
            job,
            JobState.STOPPED,
            "never started",
            reason=Reason.STOPPED_BY_USER,
            detail="stopped before it started",
            ended_at=now,
        )
    if reason in (Reason.NOT_STARTED, Reason.DEVICE_GONE) and job.attempt - job.restarts < ATTEMPTS_MAX:
        return requeue_job(
            job,
            f"{seen.attempt} never started, another attempt follows",
            reason,
            seen.detail or "the attempt never started; it will be tried again",
        )
    return move(job, JobState.FAILED, reason.value, reason=reason, detail=seen.detail, ended_at=now)


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


def explain_end(reason: Reason, signal: int | None, exit_code: int | None) -> str:
    """A sentence for people; "" where there is none to say."""
    match reason:
        case Reason.KILLED_BY_SIGNAL:
            return f"the command was ended by signal {signal}"
        case Reason.EXITED_NONZERO:
            return f"the command exited with code {exit_code}"
        case Reason.MAX_DURATION:
            return "it was ended at its --max-duration; ask for more"
        case Reason.OOM_KILLED:
            return "the kernel ended it because it used more memory than its limit; ask for more with --memory"
        case Reason.EXIT_UNKNOWN:
            return "it ended while nobody could read its exit code"
        case _:
            return ""


def lose_job(job: Job, detail: str, now: int) -> Change:
    """The machine restarted and its agent knows nothing of the attempt: it ended with the old boot."""
    again = retry_at(job, Reason.NODE_LOST, now)
    if again is not None and job.stop_reason is not Reason.STOPPED_BY_USER:
        return _try_again(job, Reason.NODE_LOST, detail, again, Reason.NODE_LOST.value, {})
    return move(job, JobState.FAILED, Reason.NODE_LOST.value, reason=Reason.NODE_LOST, detail=detail, ended_at=now)
