"""Pools on a virtual clock: the loop as it is, a queue that is played, jobs that wait, faults at any moment."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_world import MACHINE, OWNER
from steelyard.clock import VirtualClock
from steelyard.control.live import LiveJobs
from steelyard.control.pools import SETTLE_NS, PoolsLoop
from steelyard.control.queue_looks import QueueLooks
from steelyard.control.reports import greet
from steelyard.control.watch import Watch
from steelyard.engine.fake import FakeEngine
from steelyard.lifecycle.job import start_job
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, JobId, MachineId
from steelyard.model.job import Job, JobSpec, JobState, Plan, Resources
from steelyard.model.pool import NodeShape, Pilot, PilotState, Pool, PoolSpec
from steelyard.store import Tx
from steelyard.store.memory import MemoryStore

SPEC = PoolSpec("train", 0, 3, NodeShape(cpus=2), idle_s=30.0, drain_s=60.0)
P1 = MachineId("train-1")


class World:
    """A server's loop of pools, and everybody else that it meets."""

    def __init__(self, spec: PoolSpec = SPEC) -> None:
        self.clock, self.store, self.engine = VirtualClock(), MemoryStore(), FakeEngine()
        self.dropped: list[MachineId] = []
        self.attached = True
        self.restart()
        self.write(Pool(spec, DEFAULT_PROJECT, OWNER, 1, self.clock.now_us()))
        self._jobs = 0

    def restart(self) -> None:
        """Another server in the place of this one."""
        live = LiveJobs()
        self.loop = PoolsLoop(
            self.store, self.clock, Watch(), live, self, lambda job: None,
            lambda: self.engine if self.attached else None, QueueLooks(self.clock), lambda pool, pilot: pilot.id.encode(),
        )  # fmt: skip

    # as the hub

    def drop(self, machine: MachineId) -> None:
        self.dropped.append(machine)

    # what happens

    def write(self, pool: Pool) -> None:
        asyncio.run(self.store.write(lambda tx: tx.put_pool(pool)))

    def turn(self, seconds: float = 2.0) -> None:
        self.clock.advance(seconds)
        self.engine.now = self.clock.now_us()
        asyncio.run(self.loop.activate())

    def submit(self, cpus: float = 1.0, max_duration_s: float | None = None) -> Job:
        self._jobs += 1
        spec = JobSpec("x", ("true",), "/", resources=Resources(cpus), pool="train", max_duration_s=max_duration_s)
        job = Job(JobId(f"j-{self._jobs}"), DEFAULT_PROJECT, OWNER, 1, 0, spec, JobState.QUEUED, self._jobs)
        asyncio.run(self.store.write(lambda tx: tx.put_job(job)))
        return job

    def place(self, job: Job, machine: MachineId) -> Job:
        started = start_job(job, Plan(machine=machine)).job
        asyncio.run(self.store.write(lambda tx: tx.put_job(started)))
        return started

    def finish(self, job: Job) -> None:
        done = msgspec.structs.replace(job, generation=job.generation + 1, state=JobState.SUCCEEDED)
        asyncio.run(self.store.write(lambda tx: tx.put_job(done)))

    def begin_allocation(self, nodes: str, *pilots: MachineId) -> None:
        """It runs on `nodes`, and the agents of `pilots` are heard."""
        self.engine.run(P1, nodes=nodes)
        for pilot in pilots:
            self.hear(pilot)

    def begin(self, pilot: MachineId, duration_s: float | None = None) -> None:
        """Its allocation runs, and its agent is heard."""
        self.engine.run(pilot, duration_s)
        self.hear(pilot)

    def hear(self, pilot: MachineId) -> None:
        asyncio.run(greet(self.store, msgspec.structs.replace(MACHINE, id=pilot, pool="train"), self.clock.now_us()))

    # what is seen

    @property
    def pilots(self) -> dict[str, PilotState]:
        return {pilot.id: pilot.state for pilot in asyncio.run(self.store.read(lambda tx: tx.pilots(ended=True)))}

    def pilot(self, name: MachineId = P1) -> Pilot:
        found = asyncio.run(self.store.read(lambda tx: tx.pilot(name)))
        assert found is not None
        return found

    @property
    def pool(self) -> Pool | None:
        return asyncio.run(self.store.read(lambda tx: tx.pool("train")))

    def job(self, job: Job) -> Job:
        found = asyncio.run(self.store.read(lambda tx: tx.job(job.id)))
        assert found is not None
        return found


def test_a_job_that_waits_brings_a_machine_and_an_idle_one_is_given_back() -> None:
    world = World()
    world.turn()
    assert world.pilots == {}
    job = world.submit()
    world.turn()
    assert (world.pilots, world.engine.submitted) == ({P1: PilotState.SUBMITTED}, [P1])
    assert world.engine.passes == {P1: b"train-1"}
    world.turn()
    assert (world.pilot().state, world.pilot().detail, world.pilot().number) == (PilotState.WAITING, "Priority", "1")
    world.begin(P1)
    world.turn()
    assert world.pilot().state is PilotState.READY
    running = world.place(job, P1)
    for _ in range(30):
        world.turn()
    assert world.pilot().state is PilotState.READY
    world.finish(running)
    world.turn()
    world.turn(31)
    assert (world.pilot().state, world.pilot().detail) == (PilotState.DRAINING, "nothing ran on it for 30 s")
    machine = asyncio.run(world.store.read(lambda tx: tx.machine(P1)))
    assert machine is not None and machine.draining == world.pilot().detail
    for _ in range(3):
        world.turn()
    assert (world.pilot().state, world.dropped, world.engine.passes) == (PilotState.ENDED, [P1], {})
    assert asyncio.run(world.store.read(lambda tx: tx.machines())) == []
    assert world.engine.submitted == [P1]


def test_what_an_idle_one_has_no_time_for_brings_another_and_what_none_would_have_brings_none() -> None:
    world = World()
    first = world.submit()
    world.turn()
    world.begin(P1, 600)
    world.turn()
    world.finish(world.place(first, P1))
    for _ in range(10):
        world.turn(10)
    world.submit(max_duration_s=590)
    world.turn()
    assert len(world.engine.submitted) == 2
    world.submit(max_duration_s=5000)
    world.turn()
    assert len(world.engine.submitted) == 2, "none stays that long"


def test_work_that_was_placed_while_it_began_to_drain_is_waited_for() -> None:
    world = World()
    job = world.submit()
    world.turn()
    world.begin(P1)
    world.turn()
    held = msgspec.structs.replace(job, generation=2, held=True)
    asyncio.run(world.store.write(lambda tx: tx.put_job(held)))
    world.turn()
    world.turn(31)
    assert world.pilot().state is PilotState.DRAINING
    running = world.place(held, P1)
    for _ in range(5):
        world.turn()
    assert world.pilot().state is PilotState.DRAINING
    world.finish(running)
    for _ in range(3):
        world.turn()
    assert world.pilot().state is PilotState.ENDED


def test_a_machine_whose_functions_have_left_stays_until_they_have_answered() -> None:
    world = World()
    job = world.submit()
    world.turn()
    world.begin(P1)
    world.turn()

    def answer(*names: str) -> None:
        def note(tx: Tx) -> None:
            machine = tx.machine(P1)
            assert machine is not None
            tx.put_machine(msgspec.structs.replace(machine, finishing=tuple(map(FunctionName, names))))

        asyncio.run(world.store.write(note))

    answer("hello")
    world.finish(job)
    world.turn()
    world.write(msgspec.structs.replace(world.pool, generation=2, deleting=True))
    for _ in range(5):
        world.turn()
    assert world.pilot().state is PilotState.DRAINING
    answer()
    for _ in range(3):
        world.turn()
    assert world.pilot().state is PilotState.ENDED


def test_it_drains_before_its_limit_and_is_replaced_in_advance() -> None:
    world = World(msgspec.structs.replace(SPEC, nodes_min=1, nodes_max=2))
    world.turn()
    world.begin(P1, duration_s=1000.0)
    running = world.place(world.submit(), P1)
    world.turn()
    assert world.pilots == {P1: PilotState.READY}
    world.turn(1000 - 60 - 60)
    assert world.pilots == {P1: PilotState.READY, "train-2": PilotState.SUBMITTED}
    world.begin(MachineId("train-2"))
    world.turn(60)
    assert world.pilots == {P1: PilotState.DRAINING, "train-2": PilotState.READY}
    assert world.job(running).state is JobState.STARTING
    world.engine.say(P1, "TIMEOUT")
    world.turn()
    assert world.pilots == {P1: PilotState.ENDED, "train-2": PilotState.READY}
    lost = world.job(running)
    assert (lost.state, lost.reason) == (JobState.FAILED, "node-lost")


def test_one_that_is_cancelled_takes_its_work_along_and_is_replaced() -> None:
    world = World(msgspec.structs.replace(SPEC, nodes_min=1))
    world.turn()
    world.begin(P1)
    world.turn()
    running = world.place(world.submit(), P1)
    world.engine.say(P1, "CANCELLED")
    world.turn()
    assert (world.pilot().detail, world.job(running).reason) == ("it was cancelled in Slurm", "node-lost")
    assert world.pilots == {P1: PilotState.ENDED, "train-2": PilotState.SUBMITTED}
    # it had worked: nothing keeps its successor waiting
    assert world.pool is not None and world.pool.failures == 0


def test_an_answer_that_was_lost_is_found_again_and_nothing_is_asked_twice() -> None:
    world = World()
    world.engine.next_submit = "lost"
    world.submit()
    world.turn()
    for _ in range(20):
        world.turn()
    assert world.engine.submitted == [P1]
    assert world.pilot().number == "1"


def test_one_that_never_arrived_is_asked_for_again_when_that_is_certain() -> None:
    world = World()
    world.engine.next_submit = "never"
    world.submit()
    world.turn()
    world.turn(SETTLE_NS / 1e9 - 3)
    assert world.engine.submitted == []
    world.turn(5)
    world.turn(5)
    assert world.engine.submitted == [P1]
    assert world.pilots == {P1: PilotState.WAITING} or world.pilots == {P1: PilotState.SUBMITTED}


def test_what_slurm_refuses_is_said_and_tried_later_and_later() -> None:
    world = World()
    world.submit()
    world.engine.next_submit = "no"
    world.turn()
    assert (world.pilot().state, world.pilot().detail) == (PilotState.ENDED, "Slurm says: no")
    assert world.pool is not None and (world.pool.failures, world.pool.complaint) == (1, "Slurm says: no")
    world.turn()
    assert len(world.pilots) == 1
    world.turn(10)
    world.turn()
    assert world.pilots["train-2"] is PilotState.WAITING
    world.begin(MachineId("train-2"))
    world.turn()
    assert world.pool is not None and (world.pool.failures, world.pool.complaint) == (0, "")


def test_one_that_ends_before_its_agent_is_heard_says_why() -> None:
    world = World()
    world.submit()
    world.turn()
    world.turn()
    world.engine.words[P1] = "There is no python"
    world.engine.say(P1, "FAILED")
    world.turn()
    assert world.pool is not None
    assert world.pool.complaint == "Pilot train-1 ended before it took work: There is no python"


def test_a_silent_slurm_changes_nothing_and_a_new_server_finds_all_again() -> None:
    world = World()
    job = world.submit()
    world.turn()
    world.begin(P1)
    world.turn()
    running = world.place(job, P1)
    world.engine.away = True
    for _ in range(5):
        world.turn(30)
    assert (world.pilot().state, world.loop.silent) == (PilotState.READY, "the queue does not answer")
    world.restart()
    for _ in range(5):
        world.turn(30)
    world.engine.away = False
    for _ in range(3):
        world.turn(30)
    assert (world.pilots, world.job(running).state) == ({P1: PilotState.READY}, JobState.STARTING)
    assert world.engine.submitted == [P1]


def test_a_deleted_pool_gives_everything_back_and_goes() -> None:
    world = World(msgspec.structs.replace(SPEC, nodes_min=2))
    world.turn()
    world.begin(P1)
    world.turn()
    pool = world.pool
    assert pool is not None
    world.write(msgspec.structs.replace(pool, generation=pool.generation + 1, deleting=True))
    for _ in range(4):
        world.turn()
    assert world.pool is None
    assert set(world.pilots.values()) == {PilotState.ENDED}
    assert len(world.engine.submitted) == 2


PAIRS = msgspec.structs.replace(SPEC, nodes_max=4, nodes_per_allocation=2)
P2 = MachineId("train-2")


def test_an_allocation_of_two_comes_works_and_goes_as_one() -> None:
    world = World(PAIRS)
    job = world.submit()
    world.turn()
    assert world.engine.submitted == [P1]
    assert world.engine.passes == {P1: b"train-1", P2: b"train-2"}
    world.begin_allocation("n[1-2]", P1, P2)
    world.turn()
    assert world.pilots == {P1: PilotState.READY, P2: PilotState.READY}
    assert (world.pilot().node, world.pilot(P2).node, world.pilot(P2).number) == ("n1", "n2", "1")
    machines = asyncio.run(world.store.read(lambda tx: tx.machines()))
    assert {machine.allocation for machine in machines} == {P1}
    running = world.place(job, P2)
    for _ in range(30):
        world.turn()
    assert world.pilots == {P1: PilotState.READY, P2: PilotState.READY}, "half of it works"
    world.finish(running)
    world.turn()
    world.turn(31)
    assert world.pilots == {P1: PilotState.DRAINING, P2: PilotState.DRAINING}
    for _ in range(3):
        world.turn()
    assert world.pilots == {P1: PilotState.ENDED, P2: PilotState.ENDED}
    assert (world.engine.submitted, world.dropped) == ([P1], [P1, P2])


def test_a_node_that_fails_takes_its_own_work_along_and_the_rest_of_its_allocation_drains() -> None:
    world = World(PAIRS)
    jobs = [world.submit(), world.submit()]
    world.turn()
    world.begin_allocation("n[1-2]", P1, P2)
    world.turn()
    first, second = (world.place(job, pilot) for job, pilot in zip(jobs, (P1, P2), strict=True))
    world.engine.run(P1, nodes="n2")
    world.turn()
    assert world.pilots == {P1: PilotState.ENDED, P2: PilotState.DRAINING}
    assert (world.pilot().detail, world.pilot(P2).detail) == ("its node failed", "its allocation has lost train-1")
    assert (world.job(first).reason, world.job(second).state) == ("node-lost", JobState.STARTING)
    world.finish(second)
    for _ in range(3):
        world.turn()
    assert world.pilots == {P1: PilotState.ENDED, P2: PilotState.ENDED}


def test_an_allocation_that_never_takes_work_counts_once() -> None:
    world = World(PAIRS)
    world.submit()
    world.turn()
    world.turn()
    world.engine.say(P1, "FAILED")
    world.turn()
    assert world.pool is not None and world.pool.failures == 1
    world.engine.next_submit = "no"
    world.turn(11)
    assert world.pool.failures == 2 and world.pilots["train-4"] is PilotState.ENDED


def test_without_a_cluster_nothing_is_asked_for() -> None:
    world = World(msgspec.structs.replace(SPEC, nodes_min=1))
    world.attached = False
    for _ in range(3):
        world.turn()
    assert world.pilots == {}


events = st.lists(
    st.tuples(st.sampled_from(["turn", "long", "submit", "begin", "place", "finish", "end", "away", "back", "restart", "lost",
                               "never", "no", "node"]), st.integers(0, 5)),
    max_size=60,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(events, st.integers(0, 2), st.sampled_from([1, 2]))
def test_whatever_happens_no_pilot_is_asked_for_twice_and_never_too_many_live(
    story: list[tuple[str, int]], least: int, together: int
) -> None:
    spec = PoolSpec("train", least * together, 3 * together, NodeShape(cpus=2), nodes_per_allocation=together)
    world = World(msgspec.structs.replace(spec, idle_s=30.0, drain_s=60.0))
    of: dict[str, MachineId] = {}
    queued: list[Job] = []
    running: list[Job] = []
    for what, which in story:
        living = sorted(name for name, state in world.pilots.items() if state is not PilotState.ENDED)
        pilot = MachineId(living[which % len(living)]) if living else None
        of |= {} if pilot is None else {pilot: world.pilot(pilot).queue_id}
        entry = None if pilot is None else world.engine.entry(of[pilot])
        match what:
            case "turn":
                world.turn()
            case "long":
                world.turn(40)
            case "submit":
                queued.append(world.submit())
            case "begin" if pilot is not None and entry is not None and entry.state in ("PENDING", "RUNNING"):
                if entry.state == "PENDING":
                    world.engine.run(of[pilot], 200.0, "n[1-2]" if together > 1 else "n1")
                world.hear(pilot)
            case "node" if pilot is not None and entry is not None and entry.state == "RUNNING" and together > 1:
                world.engine.run(of[pilot], 200.0, "n2")
            case "place" if pilot is not None and queued:
                machine = asyncio.run(world.store.read(lambda tx, pilot=pilot: tx.machine(pilot)))
                if machine is not None and not machine.draining:
                    running.append(world.place(queued.pop(), pilot))
            case "finish" if running:
                job = world.job(running.pop(which % len(running)))
                if not job.state.terminal and job.state is not JobState.QUEUED:
                    world.finish(job)
            case "end" if pilot is not None and entry is not None and entry.state in ("PENDING", "RUNNING"):
                world.engine.say(of[pilot], ["CANCELLED", "TIMEOUT", "NODE_FAIL"][which % 3])
            case "away" | "back":
                world.engine.away = what == "away"
            case "restart":
                world.restart()
            case "lost" | "never" | "no":
                world.engine.next_submit = what
            case _:
                pass
        living = [name for name, state in world.pilots.items() if state is not PilotState.ENDED]
        assert len(living) <= spec.nodes_max
        assert max(Counter(world.engine.submitted).values(), default=1) == 1
        # a pilot with work on it is given back by nobody but the cluster
        for job in running:
            seen = world.job(job)
            if seen.state is JobState.STARTING:
                found = world.engine.entry(of[seen.machine])
                assert found is None or found.state not in ("COMPLETED",)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_pilot_that_is_not_wanted_any_more_leaves_the_queue_gently_at_first(state: str) -> None:
    world = World()
    job = world.submit()
    world.turn()
    if state == "RUNNING":
        world.begin(P1)
    world.turn()
    world.finish(job)
    world.turn()
    world.turn(31)
    for _ in range(3):
        world.turn()
    entry = world.engine.entry(P1)
    assert entry is not None and entry.state == ("CANCELLED" if state == "PENDING" else "COMPLETED")
