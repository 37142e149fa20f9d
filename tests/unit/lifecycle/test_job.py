"""Jobs change only as the table allows, and what agents report becomes state exactly once."""

from __future__ import annotations

import msgspec
import pytest

from steelyard.lifecycle.attempt import ATTEMPTS_MAX, apply_attempt, lose_job
from steelyard.lifecycle.job import (
    TRANSITIONS,
    doubt_job,
    explain_wait,
    refuse_job,
    start_job,
    stop_job,
)
from steelyard.model.ids import DEFAULT_PROJECT, AttemptId, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan, Resources
from steelyard.model.reason import Reason
from steelyard.wire.agent import AttemptState

NOW = 1_700_000_000_000_000


def make_job(state: JobState = JobState.RUNNING, **fields: object) -> Job:
    job = Job(
        id=JobId("j-000001"),
        project=DEFAULT_PROJECT,
        owner=Owner("root", 0),
        generation=7,
        attempt=0 if state is JobState.QUEUED else 1,
        spec=JobSpec("x", ("true",), "/"),
        state=state,
        submitted_at=NOW,
        plan=None if state is JobState.QUEUED else Plan(),
    )
    return msgspec.structs.replace(job, **fields)


def seen(phase: str, **fields: object) -> AttemptState:
    return msgspec.structs.replace(AttemptState(AttemptId("j-000001.1"), phase), **fields)


ENDED = [
    # report -> state, reason, exit code
    (seen("ended", exit_code=0), JobState.SUCCEEDED, Reason.EXITED, 0),
    (seen("ended", exit_code=3), JobState.FAILED, Reason.EXITED_NONZERO, 3),
    (seen("ended", signal=9), JobState.FAILED, Reason.KILLED_BY_SIGNAL, 137),
    (seen("ended", signal=9, reason=Reason.OOM_KILLED), JobState.FAILED, Reason.OOM_KILLED, 137),
    (seen("ended"), JobState.FAILED, Reason.EXIT_UNKNOWN, None),
    (seen("ended", reason=Reason.EXIT_UNKNOWN), JobState.FAILED, Reason.EXIT_UNKNOWN, None),
    (seen("not-started", reason=Reason.START_FAILED), JobState.FAILED, Reason.START_FAILED, None),
    (seen("unknown", reason=Reason.NODE_LOST), JobState.FAILED, Reason.NODE_LOST, None),
]


@pytest.mark.parametrize(("report", "state", "reason", "code"), ENDED)
@pytest.mark.parametrize("before", [JobState.STARTING, JobState.RUNNING, JobState.UNKNOWN])
def test_an_ended_attempt_ends_its_job(
    before: JobState, report: AttemptState, state: JobState, reason: Reason, code: int | None
) -> None:
    job = make_job(before)
    change = apply_attempt(job, msgspec.structs.replace(report, ended_at=NOW + 5, peak_memory_bytes=4096), NOW + 9)
    assert change is not None and not change.error
    assert (change.job.state, change.job.reason, change.job.exit_code) == (state, reason, code)
    assert change.job.generation == job.generation + 1
    if report.phase == "ended":
        assert change.job.ended_at == NOW + 5 and change.job.peak_memory_bytes == 4096


@pytest.mark.parametrize(("report", "state", "reason", "code"), ENDED)
def test_the_same_report_again_changes_nothing(report: AttemptState, state: JobState, reason: Reason, code: int | None) -> None:
    change = apply_attempt(make_job(), report, NOW)
    if report.phase == "not-started":
        change = apply_attempt(make_job(JobState.STARTING), report, NOW)
    assert change is not None
    assert apply_attempt(change.job, report, NOW + 1) is None


@pytest.mark.parametrize(
    ("before", "phase", "after"),
    [
        (JobState.STARTING, "starting", None),
        (JobState.STARTING, "running", JobState.RUNNING),
        (JobState.UNKNOWN, "starting", JobState.STARTING),
        (JobState.UNKNOWN, "running", JobState.RUNNING),
        (JobState.STARTING, "unknown", JobState.UNKNOWN),
        (JobState.RUNNING, "unknown", JobState.UNKNOWN),
    ],
)
def test_a_live_attempt_is_followed(before: JobState, phase: str, after: JobState | None) -> None:
    change = apply_attempt(make_job(before), seen(phase), NOW)
    assert (None if change is None else change.job.state) is after


def test_unknown_says_why_and_comes_back_without_its_reason() -> None:
    doubt = apply_attempt(make_job(), seen("unknown", detail="the spawner died"), NOW)
    assert doubt is not None
    assert (doubt.job.state, doubt.job.reason, doubt.job.detail) == (
        JobState.UNKNOWN,
        Reason.EXIT_UNKNOWN,
        "the spawner died",
    )
    back = apply_attempt(doubt.job, seen("running"), NOW)
    assert back is not None
    assert (back.job.state, back.job.reason, back.job.detail) == (JobState.RUNNING, None, "")


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED])
@pytest.mark.parametrize("phase", ["starting", "running", "unknown"])
def test_a_terminal_state_is_never_overwritten(state: JobState, phase: str) -> None:
    job = make_job(state)
    change = apply_attempt(job, seen(phase), NOW)
    assert change is not None and change.error
    assert change.job is job
    assert "illegal" in change.event


def test_a_running_job_never_goes_back_to_starting() -> None:
    job = make_job()
    change = apply_attempt(job, seen("starting"), NOW)
    assert change is not None and change.error and change.job is job


def test_a_phase_nobody_knows_is_an_error_event() -> None:
    job = make_job()
    change = apply_attempt(job, seen("dancing"), NOW)
    assert change is not None and change.error and change.job is job


def test_late_results_of_an_older_attempt_are_history() -> None:
    job = make_job(attempt=2)
    change = apply_attempt(job, seen("ended", exit_code=0), NOW)
    assert change is not None and not change.error
    assert change.job is job and "late report" in change.event
    assert apply_attempt(job, seen("running"), NOW) is None


def test_a_queued_job_ignores_reports_of_attempts_it_never_had() -> None:
    job = make_job(JobState.QUEUED)
    assert apply_attempt(job, seen("running"), NOW) is None


def test_an_attempt_that_never_started_is_followed_by_another() -> None:
    job = make_job(JobState.STARTING)
    change = apply_attempt(job, seen("not-started"), NOW)
    assert change is not None
    assert (change.job.state, change.job.attempt, change.job.plan) == (JobState.QUEUED, 1, None)
    assert apply_attempt(change.job, seen("not-started"), NOW) is None
    again = start_job(change.job, Plan())
    assert (again.job.state, again.job.attempt, again.job.reason) == (JobState.STARTING, 2, None)
    last = make_job(JobState.STARTING, attempt=ATTEMPTS_MAX)
    report = msgspec.structs.replace(seen("not-started"), attempt=last.attempt_id)
    end = apply_attempt(last, report, NOW)
    assert end is not None and end.job.state is JobState.FAILED and end.job.reason is Reason.NOT_STARTED
    ran_before = msgspec.structs.replace(last, restarts=ATTEMPTS_MAX - 1)
    again = apply_attempt(ran_before, report, NOW)
    assert again is not None and again.job.state is JobState.QUEUED, "attempts that ran don't count"


def test_an_attempt_whose_device_went_away_is_planned_anew() -> None:
    gone = msgspec.structs.replace(seen("not-started"), reason=Reason.DEVICE_GONE, detail="0000:0f:00.0 went away")
    change = apply_attempt(make_job(JobState.STARTING), gone, NOW)
    assert change is not None
    assert (change.job.state, change.job.plan, change.job.reason) == (JobState.QUEUED, None, Reason.DEVICE_GONE)
    assert "0000:0f:00.0" in change.job.detail


def test_what_was_asked_to_stop_ends_as_stopped_with_its_exit_code() -> None:
    asked = stop_job(make_job(), 15, 3.0, NOW)
    assert asked is not None and asked.job.state is JobState.STOPPING and asked.job.stop_signal == 15
    assert apply_attempt(asked.job, seen("running"), NOW) is None
    end = apply_attempt(asked.job, seen("ended", signal=15), NOW)
    assert end is not None
    assert (end.job.state, end.job.reason, end.job.exit_code) == (JobState.STOPPED, Reason.STOPPED_BY_USER, 143)


def test_stop_ends_a_waiting_job_at_once_and_never_touches_an_ended_one() -> None:
    change = stop_job(make_job(JobState.QUEUED), 15, 10, NOW)
    assert change is not None
    assert (change.job.state, change.job.ended_at, change.job.exit_code) == (JobState.STOPPED, NOW, None)
    for state in TRANSITIONS:
        if state.terminal:
            assert stop_job(make_job(state), 15, 10, NOW) is None


def test_a_second_stop_may_name_a_harder_signal() -> None:
    first = stop_job(make_job(), 15, 10.0, NOW)
    assert first is not None
    assert stop_job(first.job, 15, 10.0, NOW) is None
    second = stop_job(first.job, 9, 0.0, NOW)
    assert second is not None and (second.job.state, second.job.stop_signal) == (JobState.STOPPING, 9)


def test_stopping_an_unknown_job_leaves_it_unknown_until_the_agent_speaks() -> None:
    change = stop_job(make_job(JobState.UNKNOWN), 15, 10.0, NOW)
    assert change is not None and change.job.state is JobState.UNKNOWN and change.job.stop_signal == 15
    back = apply_attempt(change.job, seen("running"), NOW)
    assert back is not None and back.job.state is JobState.STOPPING


def test_a_stop_before_the_start_is_a_stopped_job() -> None:
    asked = stop_job(make_job(JobState.STARTING), 15, 10.0, NOW)
    assert asked is not None
    end = apply_attempt(asked.job, seen("not-started"), NOW)
    assert end is not None and end.job.state is JobState.STOPPED


def test_a_restarted_machine_puts_a_job_in_doubt_and_then_ends_it() -> None:
    doubt = doubt_job(make_job(), "restarted")
    assert doubt is not None and (doubt.job.state, doubt.job.reason) == (JobState.UNKNOWN, Reason.NODE_LOST)
    lost = lose_job(doubt.job, "gone", NOW)
    assert (lost.job.state, lost.job.reason, lost.job.ended_at) == (JobState.FAILED, Reason.NODE_LOST, NOW)
    for state in (JobState.QUEUED, JobState.UNKNOWN, JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED):
        assert doubt_job(make_job(state), "restarted") is None


def test_waiting_is_explained_once() -> None:
    job = make_job(JobState.QUEUED)
    change = explain_wait(job, Reason.NO_CORES_LEFT, "2 asked, 1 free")
    assert change is not None and change.job.state is JobState.QUEUED and change.job.reason is Reason.NO_CORES_LEFT
    assert explain_wait(change.job, Reason.NO_CORES_LEFT, "2 asked, 1 free") is None
    assert explain_wait(make_job(), Reason.NO_CORES_LEFT, "") is None


def test_a_job_that_can_never_fit_fails_without_having_run() -> None:
    change = refuse_job(make_job(JobState.QUEUED), Reason.CORES_BEYOND_MACHINE, "this machine has 2 cores", NOW)
    assert (change.job.state, change.job.attempt, change.job.ended_at) == (JobState.FAILED, 0, NOW)


def test_every_state_is_in_the_table_and_terminal_ones_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert {state for state, following in TRANSITIONS.items() if not following} == {state for state in JobState if state.terminal}


@pytest.mark.parametrize("state", list(JobState))
@pytest.mark.parametrize("phase", ["starting", "running", "ended", "not-started", "unknown"])
@pytest.mark.parametrize("stop", [None, 15])
def test_no_report_ever_leaves_the_table(state: JobState, phase: str, stop: int | None) -> None:
    job = make_job(state, stop_signal=stop, attempt=1)
    change = apply_attempt(job, seen(phase), NOW)
    if change is None or change.job is job:
        return
    assert change.job.state is state or change.job.state in TRANSITIONS[state]
    assert not state.terminal


def test_a_breached_promise_is_an_event_and_the_same_count_is_not_told_twice() -> None:
    job = make_job(spec=JobSpec("x", ("true",), "/", resources=Resources(max_wakeup_us=200)), started_at=NOW)
    late = AttemptState(AttemptId("j-000001.1"), "running", started_at=NOW, wakeup_breaches=3, wakeup_worst_us=740)
    change = apply_attempt(job, late, NOW)
    assert change is not None and change.job.wakeup_breaches == 3 and change.job.wakeup_worst_us == 740
    assert "max_wakeup_us 200 breached: 3 wake-ups" in change.event
    assert apply_attempt(change.job, late, NOW) is None
    ended = msgspec.structs.replace(late, phase="ended", exit_code=0, wakeup_breaches=4)
    final = apply_attempt(change.job, ended, NOW)
    assert final is not None and final.job.wakeup_breaches == 4 and "4 wake-ups" in final.event
