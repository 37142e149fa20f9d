"""The life of gangs on several machines of a pool under faults on the virtual clock: all of one starts or none, and all end.

Server and agents are killed at any step, links are cut, machines are lost with all that runs on them and others come. What is
real and what is played is as in `test_batch_half.py`; each machine has a kernel, a disk and an agent of its own.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from queues import small_machine
from sim_agent import Disk, Kernel, ModelAgent
from sim_world import ROUNDS_MAX, World
from steelyard.control import ASSIGNMENT, JOBS, REPORTS
from steelyard.control.live import HOLDING
from steelyard.control.machines import lose_machine
from steelyard.control.reports import greet
from steelyard.errors import SteelyardError
from steelyard.lifecycle.job import stop_job
from steelyard.model.batch import Gang, Launcher, Preemption, PreemptMode, RetryOn, RetryRule
from steelyard.model.ids import DEFAULT_PROJECT, JobId, MachineId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Resources
from steelyard.model.pool import Pilot, PilotState, Pool, PoolSpec
from steelyard.placement.room import Room
from steelyard.wire.agent import Assignment, Report

MACHINES = 3
MACHINE = small_machine(cores_per_node=2, gpus=2)
#: how long what is left of a gang may run once all of it is heard
PARTLY_US = 5_000_000


class Place:
    """A machine, its agent, and the server's line to that."""

    def __init__(self, world: PoolWorld, id_: MachineId) -> None:
        self.id = id_
        self.machine = replace(MACHINE, id=id_, pool="p", hostname=id_, gateway="10.0.0.1:1")
        self.kernel = Kernel(world.clock, Disk(), has_groups=False)
        self.agent: ModelAgent | None = ModelAgent(self.kernel, id_)
        self.link_up = True
        self.connected = False
        self.assignment: Assignment | None = None
        self.to_agent: deque[Assignment] = deque()
        self.to_server: deque[Report] = deque()
        self.report: Report | None = None

    def disconnect(self) -> None:
        self.connected, self.report = False, None
        self.to_agent.clear()
        self.to_server.clear()

    @property
    def moving(self) -> bool:
        agent = self.agent
        return bool(self.to_server) or (
            agent is not None and (agent.busy or (self.connected and (agent.changed or bool(self.to_agent))))
        )


class PoolHub:
    """`Hub` for several."""

    def __init__(self, world: PoolWorld) -> None:
        self._world = world
        for place in world.places.values():
            place.disconnect()
            place.assignment = None

    def newest_reports(self) -> dict[MachineId, Report]:
        return {place.id: place.report for place in self._world.places.values() if place.report is not None}

    def acknowledge(self, machine: MachineId, report: Report) -> None:
        place = self._world.places.get(machine)
        if place is not None and place.report is report:
            place.report = None

    def offer(self, machine: MachineId, assignment: Assignment) -> None:
        place = self._world.places.get(machine)
        if place is not None:
            place.assignment = assignment
            if place.connected:
                place.to_agent.append(assignment)

    def holds(self, machine: MachineId, assignment: Assignment) -> bool:
        place = self._world.places.get(machine)
        return place is not None and place.assignment is assignment

    def drop(self, machine: MachineId) -> None:
        self._world.places.pop(machine, None)


class PoolWorld(World):
    """Without a machine of its own."""

    def __init__(self) -> None:
        self.places: dict[MachineId, Place] = {}
        self.made = 0
        super().__init__()
        self.agent = None
        pool = Pool(PoolSpec("p", nodes_max=MACHINES), DEFAULT_PROJECT, Owner("u", 1), 1, 0)
        self.run(self.truth.write(lambda tx: tx.put_pool(pool)))
        for _ in range(MACHINES):
            self.add_machine()

    def make_hub(self) -> Any:
        return PoolHub(self)

    def start_agent(self) -> None:
        """There is none here."""

    def add_machine(self) -> None:
        self.made += 1
        id_ = MachineId(f"p-{self.made}")
        pilot = Pilot(id_, "p", DEFAULT_PROJECT, Owner("u", 1), 1, PilotState.READY, 0, started_at=0)
        self.run(self.truth.write(lambda tx: tx.put_pilot(pilot)))
        self.places[id_] = Place(self, id_)

    def lose(self, place: Place) -> None:
        """Its allocation has ended, and everything on it."""
        place.kernel.reboot()
        place.kernel.processes.clear()
        del self.places[place.id]

        def commit(tx: Any) -> None:
            pilot = tx.pilot(place.id)
            tx.put_pilot(replace(pilot, generation=pilot.generation + 1, state=PilotState.ENDED))
            lose_machine(tx, place.id, "it ended", self.clock.now_us())

        self.run(self.truth.write(commit))
        self.wanted |= {JOBS, ASSIGNMENT}

    def connect_to(self, place: Place) -> None:
        if place.connected or not place.link_up or place.agent is None:
            return
        try:
            if self.run(greet(self.store, replace(place.machine, boot_id=place.kernel.boot_id), self.clock.now_us())):
                place.assignment = None
        except SteelyardError:
            place.assignment = None
            return
        place.connected = True
        if place.assignment is not None:
            place.to_agent.append(place.assignment)
        place.agent.changed = True
        self.wanted |= {JOBS, ASSIGNMENT}

    def step_at(self, place: Place, what: str) -> None:
        agent = place.agent
        match what:
            case "send" if agent is not None and place.connected and agent.changed:
                place.to_server.append(agent.report())
            case "report" if place.to_server:
                place.report = place.to_server.popleft()
                self.wanted.add(REPORTS)
            case "assign" if place.to_agent and agent is not None:
                agent.accept(place.to_agent.popleft())
            case "agent" if agent is not None:
                agent.work(1)
            case _:
                self.connect_to(place)

    def settle(self) -> None:
        for _ in range(ROUNDS_MAX):
            for place in list(self.places.values()):
                place.kernel.run_out()
                if place.agent is not None:
                    place.agent.work()
                    if place.agent.next_ns is not None and place.agent.next_ns <= self.clock.mono_ns():
                        place.agent.step()
                for what in ("connect", "send", "report"):
                    self.step_at(place, what)
            if self.wanted:
                self.activate(min(self.wanted))
            for place in list(self.places.values()):
                self.step_at(place, "assign")
            if not self.wanted and not any(place.moving for place in self.places.values()):
                return
        raise AssertionError(f"the loops run hot: {self.wanted}")

    def next_events(self) -> list[int | None]:
        ends = [place.kernel.next_end() for place in self.places.values()]
        looks = [place.agent.next_ns for place in self.places.values() if place.agent is not None]
        return [*ends, *(-(-at // 1000) for at in looks if at is not None)]


launchers = st.sampled_from([Launcher.NONE, Launcher.TORCHRUN])
specs = st.fixed_dictionaries(
    {
        "resources": st.builds(
            lambda cpus, kind: Resources(cpus, exclusive=kind == "whole" and cpus == 1.0, preemptible=kind == "gives way"),
            st.sampled_from([0.5, 1.0]),
            st.sampled_from(["shared", "whole", "gives way"]),
        ),
        "gang": st.none()
        | st.builds(Gang, st.integers(2, 3), st.integers(1, 2), st.sampled_from([Launcher.NONE, Launcher.TORCHRUN])),
        "priority": st.sampled_from([10, 50, 50, 90]),
        "max_duration_s": st.sampled_from([None, None, 4.0, 20.0]),
        "retry": st.sampled_from([(), (), (RetryRule(RetryOn.NODE_LOST, 3, 0.0),), (RetryRule(RetryOn.ERROR, 1, 3.0),)]),
        "preemption": st.builds(
            Preemption, st.sampled_from(PreemptMode), st.just(15), st.sampled_from([0.0, 5.0]), st.sampled_from([0.0, 10.0])
        ),
        "env": st.fixed_dictionaries(
            {
                "RUN": st.sampled_from(["0", "0.5", "5", "12", "50"]),
                "CODE": st.sampled_from(["0", "0", "0", "3"]),
                "TERM": st.sampled_from(["obeys", "obeys", "ignores"]),
            }
        ),
    }
)
which = st.integers(0, 30)
steps = st.tuples(
    st.sampled_from(["jobs", "assignment", "reports", "send", "report", "assign", "agent", "agent", "connect"]), which
)


class Gangs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = PoolWorld()
        self.known: list[JobId] = []
        #: attempt -> since when a rank of it has failed and others run, while everybody hears everybody
        self.partly: dict[str, int] = {}
        self.settles = True

    @rule(fields=specs)
    def submit(self, fields: dict[str, Any]) -> None:
        self.known += self.world.submit(JobSpec("x", ("true",), "/", pool="p", **fields))
        self._settle()

    @rule(at=which, signum=st.sampled_from([15, 15, 9]), grace_s=st.sampled_from([0.0, 5.0]))
    @precondition(lambda self: self.known)
    def stop(self, at: int, signum: int, grace_s: float) -> None:
        job = self.known[at % len(self.known)]
        self.world.change(job, lambda row: stop_job(row, signum, grace_s, self.world.clock.now_us()))
        self._settle()

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(order=st.lists(steps, min_size=1, max_size=16))
    def go_on_in_part(self, order: list[tuple[str, int]]) -> None:
        """One thing after the other, in whatever order; nothing else happens."""
        for what, at in order:
            if what in self.world.loops:
                self.world.activate(what)
            else:
                self.world.step_at(self._place(at), what)
            self.check()

    @rule(settles=st.booleans())
    def stop_settling(self, settles: bool) -> None:
        self.settles = settles

    @rule()
    def kill_server(self) -> None:
        self.world.start_server()
        self._settle()

    @rule(at=which, work=st.integers(0, 6))
    def kill_agent(self, at: int, work: int) -> None:
        place = self._place(at)
        if place.agent is not None:
            place.agent.work(work)
            place.agent = None
            place.disconnect()
        self._settle()

    @rule(at=which, work=st.integers(0, 6))
    def kill_spawner(self, at: int, work: int) -> None:
        """In the middle of what the agent starts, or while nobody is there."""
        place = self._place(at)
        if place.agent is not None:
            place.agent.work(work)
        place.kernel.kill_spawner()
        self._settle()

    @rule(at=which)
    def start_agent(self, at: int) -> None:
        place = self._place(at)
        if place.agent is None:
            place.agent = ModelAgent(place.kernel, place.id)
        self._settle()

    @rule(at=which, up=st.booleans())
    def cut_link(self, at: int, up: bool) -> None:
        place = self._place(at)
        place.link_up = up
        if not up:
            place.disconnect()
        self._settle()

    @rule(at=which)
    def lose_machine(self, at: int) -> None:
        self.world.lose(self._place(at))
        self.world.add_machine()
        self._settle()

    @rule(at=which, one=which)
    def kill_process(self, at: int, one: int) -> None:
        kernel = self._place(at).kernel
        if kernel.processes:
            kernel.signal(sorted(kernel.processes)[one % len(kernel.processes)], 9)
        self._settle()

    @rule(before=st.integers(0, 2), after=st.integers(0, 2))
    def break_store(self, before: int, after: int) -> None:
        self.world.store.before, self.world.store.after = before, after

    # -- what must hold

    @invariant()
    def check(self) -> None:
        world = self.world
        jobs = {job.id: job for job in world.read(lambda tx: tx.jobs())}
        assert not [event for event in world.read(lambda tx: tx.events("job", None, 100_000)) if "illegal" in event.text], "R7"
        attempts: dict[str, JobId] = {}
        for place in world.places.values():
            assert all(count == 1 for count in place.kernel.starts.values()), f"I2: {place.kernel.starts}"
            room, here = Room(MACHINE), {each.attempt: each for each in place.kernel.processes.values()}
            for attempt, process in here.items():
                attempts[attempt] = process.job.job
                row = jobs[process.job.job]
                assert row.state in HOLDING and row.attempt_id == attempt, f"{attempt} runs and its place is given away: {row}"
                assert place.id in row.machines, f"{attempt} runs where it is not placed"
                assert row.parts is None or row.parts.go, f"{attempt} runs before all of it was prepared"
                if row.suspended_at is None and not process.frozen:
                    assert room.check(row.spec.demand, process.job.plan) == (), f"I4: {attempt}"
                    room.take(row.spec.demand, process.job.plan)
        assert all(count == 1 for count in Counter(attempts.values()).values()), f"two attempts of a job at a time: {attempts}"
        self._check_partly(jobs)

    def _check_partly(self, jobs: dict[JobId, Job]) -> None:
        world, now = self.world, self.world.clock.now_us()
        heard = all(place.agent is not None and place.connected for place in world.places.values())
        if not heard or not self.settles or world.store.before or world.store.after:
            self.partly.clear()
            return
        failed = {
            name.rpartition(".")[0] if name.count(".") > 1 else name
            for place in world.places.values()
            for name, exited in place.kernel.disk.exits.items()
            if exited.exit_code != 0
        }
        running = {each.attempt for place in world.places.values() for each in place.kernel.processes.values()}
        broken = {job.attempt_id for job in jobs.values() if job.spec.gang is not None and job.stop_signal is None}
        mine = failed & running & broken
        self.partly = {attempt: self.partly.get(attempt, now) for attempt in mine}
        over = [attempt for attempt, since in self.partly.items() if now - since > PARTLY_US]
        assert not over, f"gangs go on in part: {over}"

    def teardown(self) -> None:
        """All faults are over and there is time: everything comes to its end."""
        world = self.world
        try:
            world.store.before = world.store.after = 0
            for place in world.places.values():
                place.link_up = True
                if place.agent is None:
                    place.agent = ModelAgent(place.kernel, place.id)
            for _ in range(60):
                world.advance(60.0)
                self.check()
                if all(job.state.terminal for job in world.read(lambda tx: tx.jobs())):
                    break
            world.advance(60.0)
            for job in world.read(lambda tx: tx.jobs()):
                assert job.state.terminal, f"{job.id} is left {job.state}: {job.reason} {job.detail} {world.jobs.why(job.id)}"
                assert job.parts is None
            for place in world.places.values():
                assert place.agent is not None and not place.agent.attempts and not place.kernel.processes
                assert not place.kernel.disk.intents and not place.kernel.disk.exits, "I6"
        finally:
            world.loop.close()

    def _place(self, at: int) -> Place:
        return list(self.world.places.values())[at % len(self.world.places)]

    def _settle(self) -> None:
        if self.settles:
            self.world.settle()


TestGangs = Gangs.TestCase
TestGangs.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)


def test_a_gang_of_three_runs_on_three_machines_and_ends() -> None:
    world = PoolWorld()
    env = {"RUN": "5", "CODE": "0", "TERM": "obeys"}
    (job,) = world.submit(JobSpec("x", ("true",), "/", pool="p", gang=Gang(3, 2), resources=Resources(0.5), env=env))
    world.settle()
    row = world.read(lambda tx: tx.job(job))
    assert row is not None and row.state is JobState.RUNNING and len(set(row.machines)) == 3
    assert sorted(name for place in world.places.values() for name in place.kernel.processes) == [
        f"{job}.1.{at}" for at in range(6)
    ]
    world.advance(10.0)
    row = world.read(lambda tx: tx.job(job))
    assert row is not None and row.state is JobState.SUCCEEDED
    world.loop.close()


def submit_pair(world: PoolWorld) -> JobId:
    env = {"RUN": "5", "CODE": "0", "TERM": "obeys"}
    (job,) = world.submit(JobSpec("x", ("true",), "/", pool="p", gang=Gang(2, 2), resources=Resources(0.5), env=env))
    return job


def hand_out(world: PoolWorld, job: JobId) -> tuple[Place, Place]:
    """Both machines are told to prepare."""
    for place in world.places.values():
        world.connect_to(place)
    for loop in (JOBS, ASSIGNMENT):
        world.activate(loop)
    row = world.read(lambda tx: tx.job(job))
    assert row is not None
    first, second = (world.places[machine] for machine in row.machines)
    for place in (first, second):
        while place.to_agent:
            world.step_at(place, "assign")
    return first, second


def restart(place: Place, *, spawner: bool = False) -> None:
    place.agent = None
    place.disconnect()
    if spawner:
        place.kernel.kill_spawner()
    place.agent = ModelAgent(place.kernel, place.id)


@pytest.mark.parametrize("spawner", [False, True])
@pytest.mark.parametrize("steps", range(7))
def test_an_agent_that_is_killed_while_it_waits_prepares_once_more(steps: int, spawner: bool) -> None:
    """At each step of writing what it intends, with its spawner or without: nothing of it has begun, and the gang is not lost."""
    world = PoolWorld()
    job = submit_pair(world)
    first, second = hand_out(world, job)
    assert first.agent is not None
    for _ in range(steps):
        world.step_at(first, "agent")
    restart(first, spawner=spawner)
    for place in (first, second):
        assert not place.kernel.processes
    world.settle()
    row = world.read(lambda tx: tx.job(job))
    assert row is not None and (row.state, row.attempt) == (JobState.RUNNING, 1)
    assert sorted(first.kernel.processes) == [f"{job}.1.0", f"{job}.1.1"]
    assert sorted(second.kernel.processes) == [f"{job}.1.2", f"{job}.1.3"]
    world.loop.close()


def test_a_spawner_that_is_killed_while_a_gang_waits_costs_it_nothing() -> None:
    world = PoolWorld()
    job = submit_pair(world)
    first, _ = hand_out(world, job)
    for _ in range(4):
        world.step_at(first, "agent")
    assert len(first.kernel.disk.intents) == 2
    first.kernel.kill_spawner()
    world.settle()
    row = world.read(lambda tx: tx.job(job))
    assert row is not None and (row.state, row.attempt) == (JobState.RUNNING, 1)
    world.loop.close()


@pytest.mark.parametrize("spawner", [False, True])
@pytest.mark.parametrize("steps", range(8))
def test_an_agent_that_is_killed_after_the_word_to_begin_runs_no_rank_twice(steps: int, spawner: bool) -> None:
    world = PoolWorld()
    job = submit_pair(world)
    first, second = hand_out(world, job)
    for place in (first, second):
        for _ in range(5):
            world.step_at(place, "agent")
        for what in ("send", "report"):
            world.step_at(place, what)
    world.activate(REPORTS)
    world.activate(ASSIGNMENT)
    world.step_at(first, "assign")
    for _ in range(steps):
        world.step_at(first, "agent")
    ran = set(first.kernel.processes)
    restart(first, spawner=spawner)
    world.settle()
    world.advance(60.0)
    row = world.read(lambda tx: tx.job(job))
    assert row is not None and row.state.terminal
    for place in world.places.values():
        assert all(count == 1 for count in place.kernel.starts.values()), "I2"
    if len(ran) == 2 and not spawner:
        assert (row.state, row.attempt) == (JobState.SUCCEEDED, 1)
    world.loop.close()


def test_a_part_that_is_prepared_is_told_again_to_a_server_that_was_restarted() -> None:
    """It is not stored before all are: of what one server heard the next one knows nothing."""
    world = PoolWorld()
    job = submit_pair(world)
    first, second = hand_out(world, job)
    for what in ("agent", "send", "report"):
        world.step_at(first, what)
    before = world.read(lambda tx: tx.job(job))
    world.activate(REPORTS)
    assert world.read(lambda tx: tx.job(job)) == before, "nothing is stored for the first of two"
    world.start_server()
    for what in ("agent", "send", "report"):
        world.step_at(second, what)
    world.settle()
    row = world.read(lambda tx: tx.job(job))
    assert row is not None and (row.state, row.attempt) == (JobState.RUNNING, 1)
    world.loop.close()


def test_a_part_that_is_prepared_anew_is_not_taken_for_one_that_is() -> None:
    """Its agent was killed after it had told so, and has told since that it is not."""
    world = PoolWorld()
    job = submit_pair(world)
    first, second = hand_out(world, job)
    for what in ("agent", "send", "report", "reports"):
        world.activate(what) if what in world.loops else world.step_at(first, what)
    restart(first)
    for what in ("connect", "send", "report", "reports"):
        world.activate(what) if what in world.loops else world.step_at(first, what)
    for what in ("agent", "send", "report", "reports"):
        world.activate(what) if what in world.loops else world.step_at(second, what)
    row = world.read(lambda tx: tx.job(job))
    assert row is not None and row.parts is not None and not row.parts.go
    world.settle()
    row = world.read(lambda tx: tx.job(job))
    assert row is not None and (row.state, row.attempt) == (JobState.RUNNING, 1)
    world.loop.close()
