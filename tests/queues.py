"""Machines, jobs and what holds a machine, for tests of decisions over a queue."""

from __future__ import annotations

import msgspec

from machines import GIB, make_topology, pcie_path
from steelyard.model.batch import ArrayPlace, Gang
from steelyard.model.ids import DEFAULT_PROJECT, JobId, MachineId, ProjectName
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan, Resources
from steelyard.model.machine import Isolation, Machine
from steelyard.model.topology import Topology
from steelyard.placement.gang import place_spec
from steelyard.placement.room import Room
from steelyard.scheduling.snapshot import Holding

SECOND = 1_000_000
#: wall time of most tests, microseconds
NOW = 1_800_000_000 * SECOND


def machine_of(topology: Topology) -> Machine:
    return Machine(
        id=MachineId("m"),
        boot_id="b",
        hostname="h",
        kernel="k",
        cpu_model="c",
        cores=topology.cores,
        caches=(),
        numa_nodes=topology.numa_nodes,
        memory_bytes=topology.memory_bytes or 0,
        devices=(),
        virtualisation="unknown",
        virtualisation_detail="",
        isolation=Isolation("v2", True, True, True, True),
        topology=topology,
    )


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


class Busy:
    """A machine and what runs on it, as placement would have placed it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.holding: list[Holding] = []

    def run(self, job: Job, since: int = NOW, state: JobState = JobState.RUNNING) -> Job:
        room = Room(self.machine)
        for held in self.holding:
            room.take(held.demand, held.plan, held.suspended)
        plan = place_spec(room, job.spec)
        assert isinstance(plan, Plan), plan
        job = msgspec.structs.replace(job, state=state, plan=plan, started_at=since)
        self.holding.append(Holding(job.spec.demand, plan, job))
        return job

    def change(self, job: Job, **fields: object) -> None:
        self.holding = [
            Holding(held.demand, held.plan, msgspec.structs.replace(held.job, **fields))
            if held.job is not None and held.job.id == job.id
            else held
            for held in self.holding
        ]
