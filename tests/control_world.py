"""Store, clock and the server's loops, activated by hand; the agent's end says what the test says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from machines import make_machine
from steelyard.api.auth import WorkloadTokens
from steelyard.clock import VirtualClock
from steelyard.control.assignment import AssignmentLoop
from steelyard.control.images import NodeImages
from steelyard.control.jobs import JobsLoop
from steelyard.control.live import LiveJobs
from steelyard.control.reports import ReportsLoop, greet
from steelyard.control.rollouts import Looks
from steelyard.control.watch import Watch
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, AttemptId, JobId, MachineId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Resources
from steelyard.model.machine import Core
from steelyard.model.pool import Pilot, PilotState
from steelyard.store.memory import MemoryStore
from steelyard.wire.agent import Assignment, AttemptState, Report

OWNER = Owner("root", 0)
MACHINE = make_machine(id=MachineId("m1"), boot_id="boot-1", cores=(Core((0,)), Core((1,))), memory_bytes=1 << 33)


class FakeAgents:
    """The agents' end: keeps what they were offered, reports what the test says. `offers`, `report`: of the home's own."""

    def __init__(self) -> None:
        self.offers: list[Assignment] = []
        #: of each machine of a pool
        self.away: dict[MachineId, list[Assignment]] = {}
        self.reports: dict[MachineId, Report] = {}
        self.acks: list[int] = []
        self.dropped: list[MachineId] = []

    @property
    def report(self) -> Report | None:
        return self.reports.get(OWN_MACHINE)

    @report.setter
    def report(self, report: Report) -> None:
        self.reports[OWN_MACHINE] = report

    def newest_reports(self) -> dict[MachineId, Report]:
        return dict(self.reports)

    def acknowledge(self, machine: MachineId, report: Report) -> None:
        self.acks.append(report.seq)
        if self.reports.get(machine) is report:
            del self.reports[machine]

    def offer(self, machine: MachineId, assignment: Assignment) -> None:
        self.offered(machine).append(assignment)

    def holds(self, machine: MachineId, assignment: Assignment) -> bool:
        offers = self.offered(machine)
        return bool(offers) and offers[-1] is assignment

    def drop(self, machine: MachineId) -> None:
        self.dropped.append(machine)

    def forget(self, machine: MachineId) -> None:
        """As the hub does when a machine restarted."""
        self.offered(machine).clear()

    def offered(self, machine: MachineId) -> list[Assignment]:
        return self.offers if machine == OWN_MACHINE else self.away.setdefault(machine, [])


class World:
    """Store, clock and the three loops, activated by hand."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = VirtualClock()
        self.watch = Watch()
        self.agents = FakeAgents()
        self.live = LiveJobs()
        self.tokens = WorkloadTokens("", self.live.attempt)
        self.jobs = JobsLoop(self.store, self.clock, self.watch, self.live)
        self.assignment = AssignmentLoop(self.store, self.agents, self.live, self.tokens)
        self.looks = Looks()
        self.reports = ReportsLoop(self.store, self.agents, self.clock, self.watch, self.live, self.looks, NodeImages())
        self.seq = 0

    async def submit(self, cpus: float = 1.0, **fields: object) -> JobId:
        def commit(tx: object) -> JobId:
            id_ = JobId(f"j-{tx.bump('job'):06d}")  # type: ignore[attr-defined]
            spec = JobSpec("x", ("true",), "/", resources=Resources(cpus))
            job = Job(id_, DEFAULT_PROJECT, OWNER, 1, 0, spec, JobState.QUEUED, self.clock.now_us())
            tx.put_job(msgspec.structs.replace(job, **fields))  # type: ignore[attr-defined]
            return id_

        return await self.store.write(commit)

    async def job(self, id_: JobId) -> Job:
        job = await self.store.read(lambda tx: tx.job(id_))
        assert job is not None
        return job

    async def observe(self, *attempts: AttemptState, boot: str = "boot-1", **fields: object) -> Sequence[str]:
        self.seq += 1
        report = Report(self.seq, MACHINE.id, boot, generation=0, attempts=attempts)
        self.agents.report = msgspec.structs.replace(report, **fields)
        return await self.reports.activate()

    async def settle(self) -> None:
        await self.jobs.activate()
        await self.assignment.activate()


def make_pilot(name: str, state: PilotState = PilotState.READY, **more: Any) -> Pilot:
    """Without a row nobody speaks for a machine of a pool."""
    return Pilot(MachineId(name), name.rpartition("-")[0], DEFAULT_PROJECT, OWNER, 1, state, 0, **more)


async def make_world() -> World:
    world = World()
    await greet(world.store, MACHINE, world.clock.now_us())
    return world


def attempt(name: str, phase: str, **fields: object) -> AttemptState:
    return msgspec.structs.replace(AttemptState(AttemptId(name), phase), **fields)
