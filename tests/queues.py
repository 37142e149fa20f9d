"""Machines, jobs and what holds a machine, for tests of decisions over a queue."""

from __future__ import annotations

import msgspec

from machines import GIB, machine_of, make_topology, pcie_path
from steelyard.model.batch import ArrayPlace, Gang
from steelyard.model.ids import DEFAULT_PROJECT, JobId, ProjectName
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan, Resources
from steelyard.model.machine import Machine
from steelyard.placement.gang import place_spec
from steelyard.placement.room import Room
from steelyard.scheduling.snapshot import Holding

SECOND = 1_000_000
#: wall time of most tests, microseconds
NOW = 1_800_000_000 * SECOND


def small_machine(cores_per_node: int = 4, gpus: int = 4) -> Machine:
    """Two NUMA nodes with 64 GiB each; GPUs and cards over PCIe."""
    nodes = [at * 2 // gpus for at in range(gpus)]
    return machine_of(make_topology(nodes, lambda a, b: (pcie_path(a, b), 0, None), [0, 1], cores_per_node))


def make_job(
    name: str,
    cpus: float = 1.0,
    *,
    memory_gib: int | None = None,
    hours: float | None = None,
    priority: int = 50,
    submitted: int = 0,
    gang: Gang | None = None,
    array: ArrayPlace | None = None,
    project: str = DEFAULT_PROJECT,
    user: str = "u",
    resources: Resources | None = None,
    **fields: object,
) -> Job:
    """`fields`: of the Job, or of its spec."""
    memory = None if memory_gib is None else memory_gib * GIB
    spec = JobSpec(
        name,
        ("true",),
        "/",
        resources=resources or Resources(cpus, memory),
        gang=gang,
        max_duration_s=None if hours is None else hours * 3600,
    )
    of_spec = {field: value for field, value in fields.items() if field not in Job.__struct_fields__}
    job = Job(
        id=JobId(name),
        project=ProjectName(project),
        owner=Owner(user, 1),
        generation=1,
        attempt=0,
        spec=msgspec.structs.replace(spec, **of_spec),
        state=JobState.QUEUED,
        submitted_at=NOW - 10**9 + submitted,
        priority=priority,
        array=array,
    )
    return msgspec.structs.replace(job, **{field: value for field, value in fields.items() if field not in of_spec})


def hours(count: float) -> int:
    return round(count * 3600 * SECOND)


def run_job(
    machine: Machine,
    holding: list[Holding],
    job: Job,
    since: int = NOW,
    plan: Plan | None = None,
    state: JobState = JobState.RUNNING,
) -> Job | None:
    """Adds it to `holding` where it fits."""
    room = Room(machine)
    for held in holding:
        room.take(held.demand, held.plan, held.suspended)
    placed = plan or place_spec(room, job.spec)
    if not isinstance(placed, Plan):
        return None
    job = msgspec.structs.replace(job, state=state, plan=placed, started_at=since)
    holding.append(Holding(job.spec.demand, placed, job))
    return job


class Busy:
    """A machine and what runs on it, as placement would have placed it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.holding: list[Holding] = []

    def run(self, job: Job, since: int = NOW, state: JobState = JobState.RUNNING) -> Job:
        running = run_job(self.machine, self.holding, job, since, state=state)
        assert running is not None, "it does not fit"
        return running

    def change(self, job: Job, **fields: object) -> None:
        self.holding = [
            Holding(held.demand, held.plan, msgspec.structs.replace(held.job, **fields))
            if held.job is not None and held.job.id == job.id
            else held
            for held in self.holding
        ]
