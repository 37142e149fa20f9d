"""Dependencies stand as sbatch's would."""

from __future__ import annotations

import pytest

from steelyard.model.batch import DependencyKind as Kind
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.scheduling.snapshot import Standing
from steelyard.scheduling.standing import judge

MET, WAITS, NEVER = Standing.MET, Standing.WAITS, Standing.NEVER


def make_job(state: JobState, attempt: int = 1) -> Job:
    return Job(JobId("j"), DEFAULT_PROJECT, Owner("u", 1), 1, attempt, JobSpec("x", ("true",), "/"), state, 0)


@pytest.mark.parametrize(
    ("states", "ok", "not_ok", "any_", "started"),
    [
        ((JobState.QUEUED,), WAITS, WAITS, WAITS, WAITS),
        ((JobState.RUNNING,), WAITS, WAITS, WAITS, MET),
        ((JobState.SUCCEEDED,), MET, NEVER, MET, MET),
        ((JobState.FAILED,), NEVER, MET, MET, MET),
        ((JobState.STOPPED,), NEVER, MET, MET, MET),
        ((JobState.SUCCEEDED, JobState.RUNNING), WAITS, WAITS, WAITS, MET),
        ((JobState.FAILED, JobState.RUNNING), NEVER, WAITS, WAITS, MET),
        ((JobState.FAILED, JobState.SUCCEEDED), NEVER, MET, MET, MET),
        ((JobState.SUCCEEDED, JobState.SUCCEEDED), MET, NEVER, MET, MET),
        ((JobState.UNKNOWN,), WAITS, WAITS, WAITS, MET),
    ],
)
def test_how_it_stands(states: tuple[JobState, ...], ok: Standing, not_ok: Standing, any_: Standing, started: Standing) -> None:
    jobs = [make_job(state, attempt=0 if state is JobState.QUEUED else 1) for state in states]
    assert [judge(kind, jobs) for kind in (Kind.OK, Kind.NOT_OK, Kind.ANY, Kind.STARTED)] == [ok, not_ok, any_, started]
