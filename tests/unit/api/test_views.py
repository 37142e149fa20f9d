"""What callers see of rows, and of rows whose agent is lost."""

from __future__ import annotations

import msgspec
import pytest

from steelyard.api.problems import make_problem, status_of
from steelyard.api.views import function_view, job_view, key_view
from steelyard.config import Settings
from steelyard.errors import (
    Conflict,
    EdgeFailed,
    NoRoom,
    NotFound,
    Refused,
    SteelyardError,
    StoreDamaged,
    Unauthorized,
    Unreachable,
)
from steelyard.model.function import ApiKey, Function, FunctionSpec, FunctionState
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan
from steelyard.wire.api import Problem

SETTINGS = Settings(1, "127.0.0.1", 7600, "127.0.0.1", 7680, 64000, 64000, "root", 0)
JOB = Job(
    JobId("j-000001"), DEFAULT_PROJECT, Owner("root", 0), 3, 1, JobSpec("x", ("true",), "/"), JobState.RUNNING, 0, Plan((2, 3))
)
FUNCTION = Function(
    FunctionName("hello"), DEFAULT_PROJECT, Owner("root", 0), 1, 2, FunctionSpec(), 1_500_000, FunctionState.SLEEPING, 2
)


def test_a_lost_agent_leaves_a_jobs_state_and_says_that_nobody_can_tell_more() -> None:
    assert job_view(JOB).reason is None
    lost = job_view(JOB, agent_lost=True)
    assert (lost.state, lost.reason) == ("RUNNING", "agent-unreachable")
    for state in (JobState.QUEUED, JobState.SUCCEEDED):
        assert job_view(msgspec.structs.replace(JOB, state=state), agent_lost=True).reason is None


def test_a_lost_agent_makes_functions_unknown() -> None:
    assert function_view(FUNCTION, SETTINGS).state == "SLEEPING"
    lost = function_view(FUNCTION, SETTINGS, agent_lost=True)
    assert (lost.state, lost.reason, lost.routed_revision) == ("UNKNOWN", "agent-unreachable", 2)


def test_addresses_times_and_cpus() -> None:
    view = function_view(FUNCTION, SETTINGS)
    assert (view.url, view.deployed_at) == ("http://127.0.0.1:7680/hello/", "1970-01-01T00:00:01.500000Z")
    assert job_view(JOB).cpus == (2, 3)


def test_a_secret_is_shown_only_on_purpose() -> None:
    key = ApiKey("k", DEFAULT_PROJECT, Owner("root", 0), 1, "sk-1", 0)
    assert key_view(key).secret is None and key_view(key, with_secret=True).secret == "sk-1"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused("x"), 422),
        (NotFound("x"), 404),
        (Conflict("x"), 409),
        (Unauthorized("x"), 401),
        (NoRoom("x", code="disk-full"), 507),
        (NoRoom("x", code="queue-full"), 429),
        (Unreachable("x"), 503),
        (EdgeFailed("x"), 502),
        (StoreDamaged("x"), 500),
        (SteelyardError("x"), 500),
        (Refused("x", code="idempotency-key-reused"), 422),
    ],
)
def test_statuses(error: SteelyardError, status: int) -> None:
    assert status_of(error) == status


def test_a_problem_has_the_shape_of_its_specification() -> None:
    problem = msgspec.json.decode(make_problem(404, "not-found", "There is no job x."), type=Problem)
    assert problem == Problem("urn:steelyard:problem:not-found", "Not Found", 404, "There is no job x.", "not-found")
