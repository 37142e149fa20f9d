"""What follows a failed attempt, and how a job gives way: retries by reason, backoff, preemption, suspension."""

from __future__ import annotations

import msgspec
import pytest

from steelyard.lifecycle.attempt import BACKOFF_MAX_S, apply_attempt, lose_job
from steelyard.lifecycle.job import hold_job, preempt_job, reprioritise_job, resume_job, start_job, stop_job
from steelyard.model.batch import Preemption, PreemptMode, RetryOn, RetryRule
from steelyard.model.ids import DEFAULT_PROJECT, AttemptId, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan
from steelyard.model.reason import Reason
from steelyard.wire.agent import AttemptState

NOW = 1_700_000_000_000_000
OTHER = JobId("j-000002")


def make_job(state: JobState = JobState.RUNNING, spec: dict[str, object] | None = None, **fields: object) -> Job:
    job = Job(
        id=JobId("j-000001"),
        project=DEFAULT_PROJECT,
        owner=Owner("root", 0),
        generation=7,
        attempt=1,
        spec=msgspec.structs.replace(JobSpec("x", ("true",), "/"), **(spec or {})),
        state=state,
        submitted_at=NOW,
        plan=Plan(),
        started_at=NOW,
    )
    return msgspec.structs.replace(job, **fields)


def ended(job: Job, **fields: object) -> Job:
    """The job after its attempt was reported as ended."""
    change = apply_attempt(job, msgspec.structs.replace(AttemptState(AttemptId(job.attempt_id), "ended"), **fields), NOW)
    assert change is not None and not change.error
    return change.job


def rules(*each: tuple[RetryOn, int, float]) -> dict[str, object]:
    return {"retry": tuple(RetryRule(*rule) for rule in each)}


@pytest.mark.parametrize(
    ("report", "retried"),
    [
        ({"exit_code": 3}, RetryOn.ERROR),
        ({"signal": 9}, RetryOn.ERROR),
        ({"exit_code": 1, "reason": Reason.HEARTBEAT_TIMEOUT}, RetryOn.ERROR),
        ({"signal": 9, "reason": Reason.OOM_KILLED}, RetryOn.OOM),
    ],
)
@pytest.mark.parametrize("rule", list(RetryOn))
def test_an_end_is_retried_only_by_the_rule_for_its_reason(rule: RetryOn, report: dict[str, object], retried: RetryOn) -> None:
    after = ended(make_job(spec=rules((rule, 1, 10.0))), **report)
    if rule is not retried:
        assert after.state is JobState.FAILED
        return
    assert (after.state, after.reason, after.not_before) == (JobState.QUEUED, Reason.BACKOFF, NOW + 10_000_000)
    assert (after.restarts, after.retried, after.plan, after.started_at) == (1, {rule.value: 1}, None, None)
    again = start_job(after, Plan()).job
    assert ended(again, **report).state is JobState.FAILED, "one further attempt was allowed"


def test_the_wait_doubles_up_to_an_hour() -> None:
    job, waits = make_job(spec=rules((RetryOn.ERROR, 20, 10.0))), []
    for _ in range(12):
        after = ended(job, exit_code=1)
        assert after.not_before is not None
        waits.append((after.not_before - NOW) / 1e6)
        job = start_job(after, Plan()).job
    assert waits[:4] == [10, 20, 40, 80] and waits[-1] == BACKOFF_MAX_S


@pytest.mark.parametrize("report", [{"exit_code": 0}, {"signal": 15, "reason": Reason.MAX_DURATION}])
def test_success_and_the_end_of_its_time_are_never_retried(report: dict[str, object]) -> None:
    everything = rules(*((on, 5, 0.0) for on in RetryOn))
    assert ended(make_job(spec=everything), **report).state.terminal


def test_a_user_who_stops_a_job_gets_no_further_attempt() -> None:
    stopping = stop_job(make_job(spec=rules((RetryOn.ERROR, 5, 0.0))), 15, 10, NOW)
    assert stopping is not None
    assert ended(stopping.job, signal=15).state is JobState.STOPPED


def test_a_lost_node_is_retried_by_its_rule_alone() -> None:
    assert lose_job(make_job(), "gone", NOW).job.state is JobState.FAILED
    after = lose_job(make_job(spec=rules((RetryOn.NODE_LOST, 1, 5.0))), "gone", NOW).job
    assert (after.state, after.restarts) == (JobState.QUEUED, 1)


def test_the_report_of_a_retried_attempt_is_taken_once() -> None:
    job = make_job(spec=rules((RetryOn.ERROR, 5, 0.0)))
    after = ended(job, exit_code=1)
    assert apply_attempt(after, AttemptState(AttemptId(job.attempt_id), "ended", exit_code=1), NOW) is None


@pytest.mark.parametrize(
    ("mode", "code", "state"),
    [
        (PreemptMode.REQUEUE, 143, JobState.QUEUED),
        (PreemptMode.REQUEUE, 0, JobState.SUCCEEDED),
        (PreemptMode.CANCEL, 143, JobState.STOPPED),
    ],
)
def test_a_preempted_job_gives_way_as_it_said(mode: PreemptMode, code: int, state: JobState) -> None:
    asked = preempt_job(make_job(spec={"preemption": Preemption(mode, signal=10, grace_s=7.0)}), OTHER, NOW)
    assert asked is not None
    assert (asked.job.state, asked.job.stop_signal, asked.job.stop_grace_s) == (JobState.STOPPING, 10, 7.0)
    assert preempt_job(asked.job, OTHER, NOW) is None, "it is on its way out already"
    after = ended(asked.job, exit_code=code)
    assert after.state is state
    if state is JobState.QUEUED:
        assert (after.stop_signal, after.stop_reason, after.restarts, after.not_before) == (None, None, 1, NOW)


def test_preemption_is_limited_where_a_rule_says_so() -> None:
    job = make_job(spec=rules((RetryOn.PREEMPTED, 0, 0.0)))
    asked = preempt_job(job, OTHER, NOW)
    assert asked is not None
    assert ended(asked.job, signal=15).state is JobState.FAILED


def test_a_user_may_stop_what_is_being_preempted() -> None:
    asked = preempt_job(make_job(), OTHER, NOW)
    assert asked is not None
    stopped = stop_job(asked.job, 15, 30.0, NOW)
    assert stopped is not None and stopped.job.stop_reason is Reason.STOPPED_BY_USER
    assert ended(stopped.job, signal=15).state is JobState.STOPPED


def test_a_suspended_job_waits_where_it_is_and_goes_on() -> None:
    asked = preempt_job(make_job(spec={"preemption": Preemption(PreemptMode.SUSPEND)}), OTHER, NOW)
    assert asked is not None and asked.job.state is JobState.SUSPENDED
    for phase in ("running", "suspended"):
        assert apply_attempt(asked.job, AttemptState(AttemptId("j-000001.1"), phase, started_at=NOW), NOW) is None
    resumed = resume_job(asked.job, NOW + 5_000_000).job
    assert (resumed.state, resumed.suspended_s, resumed.suspended_at) == (JobState.RUNNING, 5.0, None)
    assert apply_attempt(resumed, AttemptState(AttemptId("j-000001.1"), "suspended", started_at=NOW), NOW) is None
    assert ended(asked.job, exit_code=0).state is JobState.SUCCEEDED


def test_holding_and_priority() -> None:
    queued = make_job(JobState.QUEUED, plan=None)
    held = hold_job(queued, True)
    assert held is not None and (held.job.held, held.job.reason) == (True, Reason.HELD)
    assert hold_job(held.job, True) is None
    free = hold_job(held.job, False)
    assert free is not None and (free.job.held, free.job.reason) == (False, None)
    assert hold_job(make_job(), True) is None
    raised = reprioritise_job(queued, 90)
    assert raised is not None and raised.job.priority == 90
    assert reprioritise_job(raised.job, 90) is None


GAVE_WAY = {"reason": Reason.PREEMPTED, "detail": "gave way to the function f, which woke", "signal": 15}


def test_what_gave_way_to_a_function_is_queued_again_like_what_gave_way_to_a_job() -> None:
    after = ended(make_job(), **GAVE_WAY)
    assert (after.state, after.reason, after.not_before, after.restarts) == (JobState.QUEUED, Reason.PREEMPTED, NOW, 1)
    assert after.retried == {"preempted": 1} and "function f" in after.detail
    assert ended(make_job(spec=rules((RetryOn.PREEMPTED, 0, 0.0))), **GAVE_WAY).state is JobState.FAILED


def test_what_is_cancelled_by_preemption_ends_for_good_when_a_function_wakes() -> None:
    after = ended(make_job(spec={"preemption": Preemption(PreemptMode.CANCEL)}), **GAVE_WAY)
    assert (after.state, after.reason) == (JobState.STOPPED, Reason.PREEMPTED) and "function f" in after.detail


def test_a_stop_that_its_user_asked_for_wins_over_a_function_that_wakes() -> None:
    change = stop_job(make_job(), 15, 10.0, NOW)
    assert change is not None
    assert (ended(change.job, **GAVE_WAY).state, ended(change.job, **GAVE_WAY).reason) == (
        JobState.STOPPED,
        Reason.STOPPED_BY_USER,
    )
    report = AttemptState(AttemptId(change.job.attempt_id), "not-started", reason=Reason.PREEMPTED)
    never = apply_attempt(change.job, report, NOW)
    assert never is not None and never.job.state is JobState.STOPPED
