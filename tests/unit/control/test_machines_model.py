"""The loops over several machines that come, restart, fall silent and go for good, against rules that are checked anew each time.

Model agents keep what they were assigned and run it at their own pace. What must hold: an attempt runs on one machine and at most
once, another attempt only starts when the one before can't run any more, no machine holds more than it has, and everything ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from control_world import MACHINE, World, attempt, make_pilot, make_world
from steelyard.control.live import HOLDING
from steelyard.control.machines import lose_machine
from steelyard.control.reports import greet
from steelyard.lifecycle.job import stop_job
from steelyard.model.batch import RetryOn, RetryRule
from steelyard.model.ids import OWN_MACHINE, JobId, MachineId
from steelyard.model.job import Job, JobSpec, JobState, Resources
from steelyard.model.machine import Machine
from steelyard.wire.agent import AssignedJob, AttemptState, Report

T = TypeVar("T")
CORES = 2.0


class ModelAgent:
    """What one machine has been told and what it runs. Its disk outlives a restart, its processes don't."""

    def __init__(self, place: MachineId) -> None:
        self.place = place
        self.boot = 1
        self.running: dict[str, AssignedJob] = {}
        #: exit records
        self.ended: dict[str, AttemptState] = {}
        self.assigned: set[str] = set()

    def take(self, jobs: tuple[AssignedJob, ...], started: list[tuple[str, MachineId]]) -> None:
        self.assigned = {job.attempt for job in jobs}
        for job in jobs:
            if job.attempt in self.running and job.stop_signal is not None:
                del self.running[job.attempt]
                self.ended[job.attempt] = attempt(job.attempt, "ended", signal=job.stop_signal)
            elif job.attempt not in self.running and job.attempt not in self.ended and job.stop_signal is None:
                self.running[job.attempt] = job
                started.append((job.attempt, self.place))
            elif job.attempt not in self.running and job.attempt not in self.ended:
                self.ended[job.attempt] = attempt(job.attempt, "not-started")
        for name in self.ended.keys() - self.assigned:
            del self.ended[name]

    def restart(self) -> None:
        """Another boot: nothing of the old one runs, and its exits were never recorded."""
        self.boot += 1
        self.running.clear()
        self.ended.clear()

    def report(self) -> tuple[AttemptState, ...]:
        alive = (attempt(name, "running", started_at=1) for name in self.running)
        return (*alive, *self.ended.values())


class Machines(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world: World = self.run(make_world())
        self.agents = {OWN_MACHINE: ModelAgent(OWN_MACHINE)}
        self.silent: set[MachineId] = set()
        #: every start of any attempt, and where
        self.started: list[tuple[str, MachineId]] = []
        self.number = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        """Left alone, everything ends that has a machine to run on."""
        while self.silent:
            self.hello(self.agents[self.silent.pop()])
        self.run(self.world.store.write(lambda tx: [self._drain(tx, machine, "") for machine in tx.machines()]))
        for _ in range(200):
            jobs = [job for job in self.jobs() if not job.state.terminal]
            if all(job.spec.pool and len(self.agents) == 1 for job in jobs):
                break
            self.world.clock.advance(3600)
            self.settle()
            for agent in self.agents.values():
                for name in list(agent.running):
                    self._end(agent, name, 0)
        else:
            raise AssertionError(f"never ended: {[(job.id, job.state, job.reason, job.detail) for job in jobs]}")
        self.nothing_runs_twice()
        self.loop.close()

    def jobs(self) -> list[Job]:
        return self.run(self.world.store.read(lambda tx: tx.jobs()))

    # -- what happens

    @rule(cpus=st.sampled_from([0.5, 1.0, 2.0]), pool=st.sampled_from(["", "train"]), retry=st.booleans())
    def submit(self, cpus: float, pool: str, retry: bool) -> None:
        self.world.clock.advance(0.001)  # of those submitted in one moment nobody is promised to be first
        rules = (RetryRule(RetryOn.NODE_LOST, 50, 0.0),) if retry else ()
        self.run(self.world.submit(spec=JobSpec("x", ("true",), "/", resources=Resources(cpus), pool=pool, retry=rules)))
        self.decide()

    @precondition(lambda self: len(self.agents) < 4)
    @rule()
    def a_machine_comes(self) -> None:
        self.number += 1
        name = MachineId(f"train-{self.number}")
        self.run(self.world.store.write(lambda tx: tx.put_pilot(make_pilot(name))))
        self.agents[name] = ModelAgent(name)
        self.hello(self.agents[name])
        self.decide()

    @precondition(lambda self: len(self.agents) > 1)
    @rule(which=st.integers(0, 9))
    def a_machine_goes_for_good(self, which: int) -> None:
        name = sorted(self.agents.keys() - {OWN_MACHINE})[which % (len(self.agents) - 1)]
        del self.agents[name]
        self.silent.discard(name)
        now = self.world.clock.now_us()
        self.run(self.world.store.write(lambda tx: lose_machine(tx, name, "its allocation ended", now)))
        self.decide()

    @rule(which=st.integers(0, 9))
    def a_machine_restarts(self, which: int) -> None:
        agent = self.pick(which)
        agent.restart()
        if agent.place not in self.silent:
            self.hello(agent)

    @rule(which=st.integers(0, 9))
    def an_agent_falls_silent_or_comes_back(self, which: int) -> None:
        agent = self.pick(which)
        if agent.place in self.silent:
            self.silent.remove(agent.place)
            self.hello(agent)
        else:
            self.silent.add(agent.place)

    @rule(which=st.integers(0, 9))
    def a_machine_drains_or_takes_work_again(self, which: int) -> None:
        place = self.pick(which).place
        if place != OWN_MACHINE:
            machine = self.run(self.world.store.read(lambda tx: tx.machine(place)))
            self.run(self.world.store.write(lambda tx: self._drain(tx, machine, "" if machine.draining else "soon")))
            self.decide()

    @staticmethod
    def _drain(tx: Any, machine: Machine, why: str) -> None:
        tx.put_machine(msgspec.structs.replace(machine, draining=why))

    @rule(which=st.integers(0, 9), code=st.integers(0, 1))
    def some_work_ends(self, which: int, code: int) -> None:
        running = [(agent, name) for agent in self.agents.values() for name in agent.running]
        if running:
            self._end(*running[which % len(running)], code)

    @rule(which=st.integers(0, 9))
    def a_user_stops_a_job(self, which: int) -> None:
        jobs = [job for job in self.jobs() if not job.state.terminal]
        if jobs:
            change = stop_job(jobs[which % len(jobs)], 15, 10.0, self.world.clock.now_us())
            if change is not None:
                self.run(self.world.store.write(lambda tx: tx.put_job(change.job)))

    @rule()
    def settle(self) -> None:
        """Everybody who can be heard says what it sees, and is told what to do."""
        for _ in range(2):
            self.report()
            self.decide()
            self.deliver()
        self.nobody_waits_for_what_is_free()

    @rule(which=st.integers(0, 9))
    def one_agent_is_told(self, which: int) -> None:
        self.deliver(self.pick(which).place)

    # -- parts

    def pick(self, which: int) -> ModelAgent:
        return self.agents[sorted(self.agents)[which % len(self.agents)]]

    def hello(self, agent: ModelAgent) -> None:
        fields = {"id": agent.place, "pool": "train"} if agent.place else {}
        machine = msgspec.structs.replace(MACHINE, boot_id=f"boot-{agent.boot}", **fields)
        if self.run(greet(self.world.store, machine, self.world.clock.now_us())):
            self.world.agents.forget(agent.place)
        self.run(self.world.assignment.activate())

    def report(self) -> None:
        for place, agent in self.agents.items():
            if place not in self.silent:
                self.world.seq += 1
                boot = f"boot-{agent.boot}"
                self.world.agents.reports[place] = Report(self.world.seq, place or MACHINE.id, boot, 0, agent.report())
        self.run(self.world.reports.activate())

    def decide(self) -> None:
        self.run(self.world.settle())

    def deliver(self, only: MachineId | None = None) -> None:
        for place, agent in self.agents.items():
            offers = self.world.agents.offered(place)
            if offers and place not in self.silent and only in (None, place):
                agent.take(offers[-1].jobs, self.started)

    @staticmethod
    def _end(agent: ModelAgent, name: str, code: int) -> None:
        del agent.running[name]
        agent.ended[name] = attempt(name, "ended", exit_code=code)

    # -- what must hold

    @invariant()
    def nothing_runs_twice(self) -> None:
        assert len({name for name, _ in self.started}) == len(self.started), "an attempt started twice"
        running = [name for agent in self.agents.values() for name in agent.running]
        jobs = [name.rpartition(".")[0] for name in running]
        assert len(set(jobs)) == len(jobs), f"two attempts of a job at a time: {running}"

    @invariant()
    def nothing_is_given_twice(self) -> None:
        held: dict[MachineId, float] = {}
        for job in self.run(self.world.store.read(lambda tx: tx.jobs(HOLDING))):
            assert job.plan is not None and job.machine == job.plan.machine
            assert (job.machine != OWN_MACHINE) is bool(job.spec.pool)
            held[job.machine] = held.get(job.machine, 0.0) + job.spec.demand.cpus
        assert all(cores <= CORES for cores in held.values()), held

    def nobody_waits_for_what_is_free(self) -> None:
        """The first of a pool's queue, after everybody has decided."""
        jobs = self.jobs()
        for machine in self.run(self.world.store.read(lambda tx: tx.machines())):
            held = [job.spec.demand.cpus for job in jobs if job.state in HOLDING and job.machine == machine.place]
            waiting = [job for job in jobs if job.state is JobState.QUEUED and job.spec.pool == machine.pool]
            if waiting and not machine.draining:
                first = min(waiting, key=lambda job: (job.submitted_at, job.id))
                assert first.spec.demand.cpus > CORES - sum(held), f"{first.id} fits on {machine.id} and waits"

    @invariant()
    def what_runs_is_known(self) -> None:
        """No job waits or has ended while a machine that was not lost runs an attempt of it that nobody has asked to end."""
        states = {job.id: job for job in self.jobs()}
        for agent in self.agents.values():
            for name in agent.running:
                job = states[JobId(name.rpartition(".")[0])]
                assert job.state not in (JobState.QUEUED, JobState.SUCCEEDED), (name, job.state, job.detail)


TestMachines = Machines.TestCase
TestMachines.settings = settings(max_examples=40, stateful_step_count=30)
