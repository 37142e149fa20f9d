"""What is handed over to a cluster runs once, whatever is lost on the way; what the cluster says becomes the job's state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from steelyard.clock import VirtualClock
from steelyard.control.direct import LOOK_S, SETTLE_NS, DirectLoop
from steelyard.control.live import LiveJobs
from steelyard.control.queue_looks import SILENT_LOOKS, QueueLooks
from steelyard.control.watch import Watch
from steelyard.engine.fake import FakeEngine, Fate
from steelyard.lifecycle.job import Change, stop_job
from steelyard.model.batch import ArrayPlace, Dependency, DependencyKind, Gang, RetryOn, RetryRule
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.model.reason import Reason
from steelyard.store.memory import MemoryStore

SETTLE_S = SETTLE_NS / 1e9
PATIENT = ("patient",)


class World:
    def __init__(self) -> None:
        self.store, self.clock, self.watch = MemoryStore(), VirtualClock(), Watch()
        self.engine: FakeEngine | None = FakeEngine({("bad",): Fate(7), PATIENT: Fate(0, ignores=frozenset({15}))})
        self.restart()

    @property
    def cluster(self) -> FakeEngine:
        assert self.engine is not None
        return self.engine

    def restart(self) -> None:
        """A new server on the same store."""
        self.live = LiveJobs()
        looks = QueueLooks(self.clock)
        self.loop = DirectLoop(self.store, self.clock, self.watch, self.live, lambda: self.engine, looks)

    def submit(self, *argv: str, id_: str = "j-000001", array: ArrayPlace | None = None, **more: object) -> JobId:
        spec = replace(JobSpec("x", argv or ("true",), "/", direct=True), **more)
        job = Job(JobId(id_), DEFAULT_PROJECT, Owner("u", 1), 1, 0, spec, JobState.QUEUED, 0, array=array)
        asyncio.run(self.store.write(lambda tx: tx.put_job(job)))
        return job.id

    def job(self, id_: str = "j-000001") -> Job:
        found = asyncio.run(self.store.read(lambda tx: tx.job(JobId(id_))))
        assert found is not None
        return found

    def change(self, how: Callable[[Job], Change | None], id_: str = "j-000001") -> None:
        change = how(self.job(id_))
        assert change is not None
        asyncio.run(self.store.write(lambda tx: tx.put_job(change.job)))

    def stop(self, grace_s: float = 10.0) -> None:
        self.change(lambda job: stop_job(job, 15, grace_s, self.clock.now_us()))

    def go(self, seconds: float = LOOK_S + 0.1) -> Job:
        """Time passes, the loop looks."""
        self.clock.advance(seconds)
        asyncio.run(self.loop.activate())
        return self.job()


@pytest.fixture
def world() -> World:
    return World()


def test_a_job_is_handed_over_waits_runs_and_ends(world: World) -> None:
    world.submit()
    assert world.go().state is JobState.STARTING
    waiting = world.go()
    assert (waiting.reason, waiting.detail) == (Reason.SLURM_QUEUE, "job 1 in Slurm's queue: Priority")
    world.cluster.begin(waiting)
    assert world.go().state is JobState.RUNNING
    world.cluster.end(waiting)
    ended = world.go()
    assert (ended.state, ended.exit_code, ended.attempt) == (JobState.SUCCEEDED, 0, 1)
    assert world.cluster.submitted == ["j-000001.1"]


def test_looking_costs_one_request_a_second_for_any_number_of_jobs(world: World) -> None:
    for number in range(50):
        world.submit(id_=f"j-{number:06d}")
    world.go()
    before = world.cluster.looks
    for _ in range(100):
        world.go(0.1)
    assert world.cluster.looks - before <= 10 + 1


def test_a_lost_answer_is_found_again_by_the_attempts_id(world: World) -> None:
    world.submit()
    world.cluster.next_submit = "lost"
    world.go()
    assert world.go().reason is Reason.SLURM_QUEUE
    world.go(SETTLE_S * 2)
    assert world.cluster.submitted == ["j-000001.1"]


def test_what_never_arrived_is_handed_over_again_once_that_is_certain(world: World) -> None:
    world.submit()
    world.cluster.next_submit = "never"
    world.go()
    world.go(SETTLE_S / 2)
    assert world.cluster.submitted == []
    world.go(SETTLE_S)
    assert world.cluster.submitted == ["j-000001.1"]


def test_a_new_server_hands_nothing_over_twice(world: World) -> None:
    world.submit()
    world.go()
    world.restart()
    world.go()
    world.go(SETTLE_S * 2)
    assert world.cluster.submitted == ["j-000001.1"]
    world.cluster.begin(world.job())
    assert world.go().state is JobState.RUNNING


def test_a_server_that_died_before_it_handed_over_does_so_after_its_restart(world: World) -> None:
    world.submit()
    world.cluster.next_submit = "never"
    world.go()
    world.restart()
    assert world.go().state is JobState.STARTING
    world.go(SETTLE_S)
    assert world.cluster.submitted == ["j-000001.1"]


def test_what_ended_and_was_forgotten_while_the_server_was_away_is_read_from_its_records(world: World) -> None:
    world.submit("bad")
    world.go()
    world.cluster.begin(world.job())
    world.go()
    world.cluster.end(world.job())
    world.cluster.forget(world.job())
    world.restart()
    world.go()
    ended = world.go(SETTLE_S)
    assert (ended.state, ended.exit_code) == (JobState.FAILED, 7)


def test_a_cluster_that_lost_its_state_makes_the_end_unknown_and_nothing_runs_again(world: World) -> None:
    world.submit()
    world.go()
    world.cluster.begin(world.job())
    world.go()
    world.cluster.forget(world.job())
    assert world.go().state is JobState.RUNNING
    ended = world.go(SETTLE_S)
    assert (ended.state, ended.reason) == (JobState.FAILED, Reason.EXIT_UNKNOWN)
    assert world.cluster.submitted == ["j-000001.1"]


def test_a_silent_cluster_makes_jobs_unknown_until_it_speaks(world: World) -> None:
    world.submit()
    world.go()
    world.cluster.begin(world.job())
    world.go()
    world.cluster.away = True
    for _ in range(SILENT_LOOKS):
        silent = world.go()
    assert (silent.state, silent.reason) == (JobState.UNKNOWN, Reason.SLURM_SILENT)
    world.cluster.away = False
    assert world.go().state is JobState.RUNNING


def test_a_refusal_fails_the_job_with_the_queues_words(world: World) -> None:
    world.submit()
    world.cluster.next_submit = "no"
    ended = world.go()
    assert (ended.state, ended.reason, ended.detail) == (JobState.FAILED, Reason.START_FAILED, "Slurm says: no")


def test_one_that_waits_leaves_the_queue_at_once(world: World) -> None:
    world.submit()
    world.go()
    world.go()
    world.stop()
    world.go()
    ended = world.go()
    assert (ended.state, ended.detail) == (JobState.STOPPED, "stopped before it started")


def test_one_that_was_never_taken_is_stopped_without_being_handed_over(world: World) -> None:
    world.submit()
    world.cluster.next_submit = "never"
    world.go()
    world.stop()
    assert world.go(SETTLE_S * 2).state is JobState.STOPPED
    assert world.cluster.submitted == []


def test_a_signal_comes_first_and_force_after_the_grace(world: World) -> None:
    world.submit(*PATIENT)
    world.go()
    world.cluster.begin(world.job())
    world.go()
    world.stop(grace_s=5.0)
    assert world.go().state is JobState.STOPPING
    assert world.go(2.0).state is JobState.STOPPING
    world.go(5.0)
    ended = world.go()
    assert (ended.state, ended.exit_code) == (JobState.STOPPED, 137)


def test_a_failed_attempt_is_followed_by_another_where_rules_say_so(world: World) -> None:
    world.submit("bad", retry=(RetryRule(RetryOn.ERROR, 1, 0.0),))
    world.go()
    world.cluster.begin(world.job())
    world.cluster.end(world.job())
    assert world.go().state is JobState.QUEUED
    assert world.go().attempt == 2
    assert world.cluster.submitted == ["j-000001.1", "j-000001.2"]


def test_a_gang_tells_how_each_rank_ended(world: World) -> None:
    world.submit("bad", gang=Gang(nodes=3))
    world.go()
    world.cluster.begin(world.job())
    world.cluster.end(world.job())
    assert [(end.rank, end.exit_code) for end in world.go().ranks] == [(0, 7), (1, 7), (2, 7)]


def test_dependencies_and_limits_of_arrays_are_kept_here(world: World) -> None:
    first, second = (ArrayPlace(JobId("j-000002"), index, 2, 0, 1, at_once=1) for index in (0, 1))
    world.submit(id_="j-000002_0", array=first)
    world.submit(id_="j-000002_1", array=second)
    world.submit(after=(Dependency(JobId("j-000002"), DependencyKind.OK),))
    assert world.go().reason is Reason.DEPENDENCY
    assert world.cluster.submitted == ["j-000002_0.1"]
    assert world.job("j-000002_1").reason is Reason.ARRAY_LIMIT
    for each in ("j-000002_0", "j-000002_1"):
        world.cluster.begin(world.job(each))
        world.cluster.end(world.job(each))
        world.go()
        world.go()
    assert world.cluster.submitted == ["j-000002_0.1", "j-000002_1.1", "j-000001.1"]


def test_without_a_cluster_jobs_wait_and_say_why(world: World) -> None:
    world.engine = None
    world.submit()
    waiting = world.go()
    assert (waiting.state, waiting.reason) == (JobState.QUEUED, Reason.SLURM_SILENT)


def test_an_element_that_left_the_queue_without_a_trace_because_we_said_so_is_stopped(world: World) -> None:
    world.submit(id_="j-000001", array=ArrayPlace(JobId("j-000009"), 0, 1, 0, 0))
    world.go()
    assert world.go().reason is Reason.SLURM_QUEUE
    world.stop()
    world.go()
    world.cluster.forget(world.job())
    stopped = world.go()
    assert (stopped.state, stopped.started_at) == (JobState.STOPPED, None)


def test_one_of_which_there_was_no_news_for_long_is_stopped_and_ends_like_any_other(world: World) -> None:
    for id_ in ("j-000001", "j-000002"):
        world.submit(*PATIENT, id_=id_)
    for _ in range(3):
        world.go()
    for id_ in ("j-000001", "j-000002"):
        world.cluster.begin(world.job(id_))
    for _ in range(3):
        assert world.go().state is JobState.RUNNING
    world.stop(grace_s=1.0)
    world.cluster.end(world.job("j-000002"))
    assert world.go().state is JobState.STOPPING
    assert world.job("j-000002").state is JobState.SUCCEEDED
    world.go()
    assert world.go().state is JobState.STOPPED
