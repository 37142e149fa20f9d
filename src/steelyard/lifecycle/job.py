"""May this job change like that, and what does it look like afterwards?

Every function takes a job (and what was asked) and returns a `Change`, or None when there is nothing to say. All state changes of
jobs go through `TRANSITIONS`: what is not in that table leaves the job as it was and is returned as an error event (R7). What
agents report is read by `attempt.py`. Never reads the clock: `now` is an argument.
"""

from __future__ import annotations

import msgspec

from steelyard.model.batch import ArrayPlace, PreemptMode
from steelyard.model.ids import OWN_MACHINE, JobId, ProjectName
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan
from steelyard.model.part import Part, Parts
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
    # RUNNING -> QUEUED: the attempt failed, and another one follows
    JobState.RUNNING: frozenset(
        {
            JobState.QUEUED,
            JobState.SUSPENDED,
            JobState.STOPPING,
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.STOPPED,
            JobState.UNKNOWN,
        }
    ),
    JobState.SUSPENDED: frozenset(
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
    # STOPPING -> QUEUED: it gave way to another job; -> SUCCEEDED: it was asked to, and finished all the same
    JobState.STOPPING: frozenset({JobState.QUEUED, JobState.SUCCEEDED, JobState.STOPPED, JobState.FAILED, JobState.UNKNOWN}),
    # UNKNOWN comes back as whatever the agent sees once it can see again
    JobState.UNKNOWN: frozenset(
        {
            JobState.QUEUED,
            JobState.STARTING,
            JobState.RUNNING,
            JobState.SUSPENDED,
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


class Change(msgspec.Struct, frozen=True):
    """What follows for a job. With `error` (illegal transition) or a late report, `job` is the one that was passed in."""

    job: Job
    #: one line of history
    event: str
    error: bool = False


def make_job(id_: JobId, spec: JobSpec, owner: Owner, project: ProjectName, now: int, array: ArrayPlace | None = None) -> Job:
    """A new one, that waits."""
    return Job(
        id=id_,
        project=project,
        owner=owner,
        generation=1,
        attempt=0,
        spec=spec,
        state=JobState.QUEUED,
        submitted_at=now,
        priority=spec.priority,
        array=array,
        held=spec.held,
        not_before=spec.begin_at,
    )


def start_job(job: Job, plan: Plan | None, why: str = "placed") -> Change:
    """A new attempt with the next number, placed as `plan` says; None: by whoever it is handed over to."""
    attempt = job.attempt + 1
    others = () if plan is None else tuple(part.machine for part in plan.others)
    return move(
        job,
        JobState.STARTING,
        why,
        attempt=attempt,
        away=job.away if plan is None or plan.machine == OWN_MACHINE else {**job.away, attempt: plan.machine},
        spread={**job.spread, attempt: others} if others else job.spread,
        parts=Parts(tuple(Part() for _ in plan.parts)) if plan is not None and others else None,
        plan=plan,
        reason=None,
        detail="",
        not_before=None,
        exit_code=None,
        wakeup_breaches=0,
        wakeup_worst_us=0,
        proof=None,
        usage=None,
        ranks=(),
    )


def wait_elsewhere(job: Job, detail: str) -> Change | None:
    """Say why an attempt waits in the queue that it was handed over to; None when it says so already."""
    if job.state is not JobState.STARTING or job.detail == detail:
        return None
    return Change(next_of(job, reason=Reason.SLURM_QUEUE, detail=detail), detail)


def requeue_job(job: Job, why: str, reason: Reason, detail: str, *, not_before: int | None = None, **fields: object) -> Change:
    """Its attempt is over and another one follows. Of what the attempt left in the row only exit code and usage stay."""
    return move(
        job,
        JobState.QUEUED,
        why,
        plan=None,
        reason=reason,
        detail=detail,
        not_before=not_before,
        started_at=None,
        stop_signal=None,
        stop_reason=None,
        suspended_s=0.0,
        suspended_at=None,
        **fields,
    )


def hold_job(job: Job, held: bool) -> Change | None:
    """Keep a waiting job from starting, or let it go on waiting for its turn. None where that changes nothing."""
    if job.state is not JobState.QUEUED or job.held is held:
        return None
    if held:
        return Change(next_of(job, held=True, reason=Reason.HELD, detail="held; `steelyard release` lets it start"), "held")
    return Change(next_of(job, held=False, reason=None, detail=""), "released")


def reprioritise_job(job: Job, priority: int) -> Change | None:
    """Another place in the queue; of a running job, another standing among those that may be preempted."""
    if job.state.terminal or job.priority == priority:
        return None
    return Change(next_of(job, priority=priority), f"priority {job.priority} -> {priority}")


def preempt_job(job: Job, by: JobId, now: int) -> Change | None:
    """It gives way to `by`, as its own `preemption` says. None when it is on its way out already."""
    asked = job.spec.preemption
    if job.state is not JobState.RUNNING:
        return None
    detail = f"gives way to {by}"
    if asked.mode is PreemptMode.SUSPEND:
        return move(job, JobState.SUSPENDED, detail, reason=Reason.PREEMPTED, detail=detail, suspended_at=now)
    return move(
        job,
        JobState.STOPPING,
        detail,
        reason=Reason.PREEMPTED,
        detail=detail,
        stop_signal=asked.signal,
        stop_grace_s=asked.grace_s,
        stop_reason=Reason.PREEMPTED,
    )


def resume_job(job: Job, now: int) -> Change:
    """A suspended job goes on where it was."""
    frozen_s = max(0.0, (now - (job.suspended_at or now)) / 1e6)
    return move(
        job,
        JobState.RUNNING,
        "resumed",
        reason=None,
        detail="",
        suspended_at=None,
        suspended_s=job.suspended_s + frozen_s,
    )


def refuse_job(job: Job, reason: Reason, detail: str, now: int) -> Change:
    """A queued job that can never start."""
    return move(job, JobState.FAILED, reason.value, reason=reason, detail=detail, ended_at=now)


def explain_wait(job: Job, reason: Reason, detail: str) -> Change | None:
    """Say why a queued job waits; None when it says so already."""
    if job.state is not JobState.QUEUED or (job.reason is reason and job.detail == detail):
        return None
    return Change(next_of(job, reason=reason, detail=detail), f"waits: {reason.value}")


def stop_job(job: Job, signal: int, grace_s: float, now: int) -> Change | None:
    """The user wants it to end. A queued job ends at once, a running one when the agent says so; a job in a terminal state, or
    already asked with the same signal and grace, stays as it is. A second stop may name a harder signal."""
    asked = (job.stop_signal, job.stop_grace_s, job.stop_reason)
    if job.state.terminal or asked == (signal, grace_s, Reason.STOPPED_BY_USER):
        return None
    wish = {"stop_signal": signal, "stop_grace_s": grace_s, "stop_reason": Reason.STOPPED_BY_USER}
    if job.state is JobState.QUEUED:
        detail = "stopped while it waited; it never ran" if job.attempt == 0 else "stopped while it waited for another attempt"
        return move(
            job,
            JobState.STOPPED,
            "stop asked",
            reason=Reason.STOPPED_BY_USER,
            detail=detail,
            ended_at=now,
            **wish,
        )
    if job.state in (JobState.STOPPING, JobState.UNKNOWN):
        return Change(next_of(job, **wish), f"stop asked with signal {signal}")
    return move(job, JobState.STOPPING, f"stop asked with signal {signal}", **wish)


def in_doubt(job: Job) -> bool:
    """Did the machine restart under it, and nothing has been heard of it since?"""
    return job.state is JobState.UNKNOWN and job.reason is Reason.NODE_LOST


def doubt_job(job: Job, detail: str) -> Change | None:
    """The machine restarted under a job that had been handed out: whether it ran on is unknown until the agent reports."""
    if job.state not in (JobState.STARTING, JobState.RUNNING, JobState.SUSPENDED, JobState.STOPPING):
        return None
    return move(job, JobState.UNKNOWN, Reason.NODE_LOST.value, reason=Reason.NODE_LOST, detail=detail)


def move(job: Job, state: JobState, why: str, **fields: object) -> Change:
    """`job` with another state, or an error event when the table forbids it. The same state is allowed (facts were added)."""
    if state is not job.state and state not in TRANSITIONS[job.state]:
        text = f"illegal transition {job.state.value} -> {state.value} of attempt {job.attempt} ignored"
        return Change(job, f"{text} ({why})" if why else text, error=True)
    text = f"{job.state.value} -> {state.value}" if state is not job.state else state.value
    return Change(next_of(job, state=state, **fields), f"{text} ({why})" if why else text)


def next_of(job: Job, **fields: object) -> Job:
    return msgspec.structs.replace(job, generation=job.generation + 1, **fields)
