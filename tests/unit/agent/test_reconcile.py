"""Does the agent do the right thing for every pair of assigned and seen?"""

from __future__ import annotations

import signal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.agent.reconcile import (
    ALIVE,
    GANG_GRACE_S,
    Forget,
    Freeze,
    JobSeen,
    Kill,
    NotStarted,
    Signal,
    Start,
    Thaw,
    Warn,
    decide_jobs,
    decide_shared_cpus,
)
from steelyard.model import batch
from steelyard.model.ids import AttemptId, JobId, ProjectName
from steelyard.model.job import JobSpec, Owner, Plan
from steelyard.model.reason import Reason
from steelyard.wire.agent import AssignedJob

A = AttemptId("j-1.1")
SECOND = 1_000_000_000


def make_job(stop_signal: int | None = None, grace_s: float = 10.0, *, suspended: bool = False, **spec: Any) -> AssignedJob:
    return AssignedJob(
        attempt=A,
        job=JobId("j-1"),
        project=ProjectName("default"),
        owner=Owner("ada", 1000),
        spec=JobSpec(name="a", argv=("true",), cwd="/", **spec),
        plan=Plan(),
        stop_signal=stop_signal,
        stop_grace_s=grace_s,
        suspended=suspended,
    )


@pytest.mark.parametrize(
    ("assigned", "seen", "now_ns", "wanted", "next_ns"),
    [
        (make_job(), None, 0, [Start(make_job())], None),
        (make_job(15), None, 0, [NotStarted(A)], None),
        (make_job(), JobSeen("starting"), 0, [], None),
        (make_job(15), JobSeen("starting"), 0, [], None),
        (make_job(), JobSeen("running"), 0, [], None),
        (make_job(15), JobSeen("running"), 0, [Signal(A, 15)], None),
        (make_job(15), JobSeen("running", signalled_ns=0, signalled=15), 9 * SECOND, [], 10 * SECOND),
        (make_job(15), JobSeen("running", signalled_ns=0, signalled=15), 10 * SECOND, [Kill(A)], None),
        (make_job(9), JobSeen("running", signalled_ns=0, signalled=9), 0, [Kill(A)], None),
        (make_job(), JobSeen("ended"), 0, [], None),
        (make_job(), JobSeen("unknown"), 0, [], None),
        (make_job(), JobSeen("not-started"), 0, [], None),
        (None, JobSeen("ended"), 0, [Forget(A)], None),
        (None, JobSeen("unknown"), 0, [Forget(A)], None),
        (None, JobSeen("starting"), 0, [], None),
        (None, JobSeen("running"), 0, [Signal(A, signal.SIGTERM)], None),
        (None, JobSeen("running", signalled_ns=0, signalled=15), 10 * SECOND, [Kill(A)], None),
    ],
)
def test_one_attempt(assigned, seen, now_ns, wanted, next_ns):
    actions, deadline = decide_jobs({A: assigned} if assigned else {}, {A: seen} if seen else {}, now_ns)
    assert actions == wanted
    assert deadline == next_ns


def test_an_attempt_that_is_known_is_never_started_again():
    for phase in ("starting", "running", "ended", "not-started", "unknown"):
        actions, _ = decide_jobs({A: make_job()}, {A: JobSeen(phase)}, 0)
        assert not any(isinstance(action, Start) for action in actions)


def test_shared_cpus_are_what_exclusive_work_leaves_and_never_nothing():
    assert decide_shared_cpus((0, 1, 2, 3), [(2,), (3,)]) == (0, 1)
    assert decide_shared_cpus((0, 1), [(0, 1)]) == (0, 1)


def running(ran_s: float = 0.0, **fields: Any) -> JobSeen:
    return JobSeen("running", ran_ns=round(ran_s * SECOND), **fields)


WARNED = make_job(max_duration_s=60.0, warn=batch.Warn(10, 20.0))
BEATING = make_job(start_timeout_s=30.0, heartbeat_timeout_s=5.0)
NOW = 1000 * SECOND


@pytest.mark.parametrize(
    ("job", "seen", "wanted", "next_s"),
    [
        # the end is asked for again, harder
        (make_job(15), running(signalled_ns=NOW, signalled=2), [Signal(A, 15)], None),
        (make_job(9), running(signalled_ns=NOW, signalled=15), [Signal(A, 9)], None),
        (make_job(9), running(signalled_ns=NOW, signalled=9), [Kill(A)], None),
        # a broken gang, also one that is to end anyway
        (make_job(), running(broken=True), [Signal(A, 15)], None),
        (make_job(), running(broken=True, signalled_ns=NOW, signalled=15), [], GANG_GRACE_S),
        (make_job(15, 60.0), running(broken=True, signalled_ns=NOW, signalled=15), [], GANG_GRACE_S),
        (make_job(9), running(broken=True, signalled_ns=NOW, signalled=15), [Signal(A, 9)], None),
        (make_job(), running(broken=True, signalled_ns=NOW - 3 * SECOND, signalled=15), [Kill(A)], None),
        # limits
        (WARNED, running(10), [], 30),
        (WARNED, running(40), [Warn(A, 10)], 20),
        (WARNED, running(40, warned=True), [], 20),
        (WARNED, running(60, warned=True), [Signal(A, 15, Reason.MAX_DURATION)], None),
        (WARNED, running(60, limit=Reason.MAX_DURATION, signalled_ns=NOW, signalled=15), [], 10),
        (WARNED, running(60, limit=Reason.MAX_DURATION), [Signal(A, 15, Reason.MAX_DURATION)], None),
        (BEATING, running(29), [], 1),
        (BEATING, running(30), [Signal(A, 15, Reason.START_TIMEOUT)], None),
        (BEATING, running(29, silent_ns=29 * SECOND), [], 1),
        (BEATING, running(31, touched=True, silent_ns=4 * SECOND), [], 1),
        (BEATING, running(31, touched=True, silent_ns=5 * SECOND), [Signal(A, 15, Reason.HEARTBEAT_TIMEOUT)], None),
        (make_job(heartbeat_timeout_s=5.0), running(5, silent_ns=5 * SECOND), [Signal(A, 15, Reason.HEARTBEAT_TIMEOUT)], None),
        # suspension: no limit is reached meanwhile, and an end that is wanted comes first
        (make_job(suspended=True), running(), [Freeze(A)], None),
        (make_job(suspended=True), JobSeen("suspended"), [], None),
        (make_job(), JobSeen("suspended"), [Thaw(A)], None),
        (make_job(suspended=True, max_duration_s=1.0), JobSeen("suspended", ran_ns=9 * SECOND), [], None),
        (make_job(15, suspended=True), JobSeen("suspended"), [Thaw(A, True), Signal(A, 15)], None),
        (make_job(15, suspended=True), running(), [Signal(A, 15)], None),
        (make_job(suspended=True), JobSeen("suspended", broken=True), [Thaw(A, True), Signal(A, 15)], None),
        (None, JobSeen("suspended"), [Thaw(A, True), Signal(A, 15)], None),
    ],
)
def test_ends_limits_and_suspension(job, seen, wanted, next_s):
    actions, deadline = decide_jobs({A: job} if job else {}, {A: seen}, NOW)
    assert actions == wanted
    assert deadline == (None if next_s is None else NOW + next_s * SECOND)


@given(
    st.builds(
        make_job,
        st.sampled_from([None, 2, 15, 9]),
        suspended=st.booleans(),
        max_duration_s=st.none() | st.floats(0.1, 20),
        heartbeat_timeout_s=st.none() | st.floats(0.1, 20),
        start_timeout_s=st.none() | st.floats(0.1, 20),
    ),
    st.booleans(),
    st.sampled_from(ALIVE),
)
def test_whoever_carries_the_actions_out_is_done_soon_and_wakes_when_it_matters(job: AssignedJob, broken: bool, phase: str):
    """Nothing is asked for over and over, an end is followed through, and what has a limit is looked at in time."""
    now, seen = NOW, JobSeen(phase, broken=broken)
    ended = False
    for _ in range(200):
        actions, deadline = decide_jobs({A: job}, {A: seen}, now)
        for action in actions:
            match action:
                case Signal(_, signum, limit):
                    seen = replace(seen, signalled_ns=now, signalled=signum, limit=seen.limit or limit)
                case Freeze(_):
                    seen = replace(seen, phase="suspended")
                case Thaw(_):
                    seen = replace(seen, phase="running")
                case Kill(_):
                    ended = True
                case _:
                    raise AssertionError(action)
        if ended:
            break
        if not actions:
            if deadline is None:
                break
            assert now < deadline
            if seen.phase == "running":
                seen = replace(seen, ran_ns=seen.ran_ns + deadline - now, silent_ns=seen.silent_ns + deadline - now)
            now = deadline
    limited = not job.suspended and (job.spec.max_duration_s or job.spec.heartbeat_timeout_s or job.spec.start_timeout_s)
    assert ended == bool(job.stop_signal or broken or limited)
    assert ended or (seen.phase == "suspended") == job.suspended
    assert now <= NOW + 31 * SECOND


def replace(seen: JobSeen, **fields: Any) -> JobSeen:
    return msgspec.structs.replace(seen, **fields)
