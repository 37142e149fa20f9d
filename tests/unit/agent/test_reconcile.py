"""Does the agent do the right thing for every pair of assigned and seen?"""

from __future__ import annotations

import signal

import pytest

from steelyard.agent.reconcile import Forget, JobSeen, Kill, NotStarted, Signal, Start, decide_jobs, decide_shared_cpus
from steelyard.model.ids import AttemptId, JobId, ProjectName
from steelyard.model.job import JobSpec, Owner, Plan
from steelyard.wire.agent import AssignedJob

A = AttemptId("j-1.1")
SECOND = 1_000_000_000


def make_job(stop_signal: int | None = None, grace_s: float = 10.0) -> AssignedJob:
    return AssignedJob(
        attempt=A,
        job=JobId("j-1"),
        project=ProjectName("default"),
        owner=Owner("ada", 1000),
        spec=JobSpec(name="a", argv=("true",), cwd="/"),
        plan=Plan(),
        stop_signal=stop_signal,
        stop_grace_s=grace_s,
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
