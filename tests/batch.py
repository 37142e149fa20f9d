"""Jobs and machines in one line each, and what runs on them placed for real, for tests of what scheduling decides."""

from __future__ import annotations

from typing import Any

import msgspec

from steelyard.model.batch import ArrayPlace
from steelyard.model.cores import Core, NumaNode
from steelyard.model.ids import DEFAULT_PROJECT, JobId, MachineId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Plan, Resources
from steelyard.model.machine import Isolation, Machine
from steelyard.model.topology import Topology
from steelyard.placement.gang import place_spec
from steelyard.placement.room import Room
from steelyard.scheduling.snapshot import Holding

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
GIB = 1 << 30

_JOB_FIELDS = frozenset(Job.__struct_fields__)


def make_machine(cores: int = 8, memory_bytes: int = 64 * GIB, topology: Topology | None = None) -> Machine:
    """Two NUMA nodes with half of the cores each; with a topology its cores and nodes."""
    nodes = tuple(
        NumaNode(node, tuple(range(node * cores // 2, (node + 1) * cores // 2)), memory_bytes // 2)
        for node in ((0, 1) if cores > 1 else (1,))
    )
    plain = tuple(Core((cpu,), numa_node=node.id) for node in nodes for cpu in node.cpus)
    return Machine(
        id=MachineId("m"),
        boot_id="b",
        hostname="h",
        kernel="k",
        cpu_model="c",
        cores=plain if topology is None else topology.cores,
        caches=(),
        numa_nodes=nodes if topology is None else topology.numa_nodes,
        memory_bytes=memory_bytes,
        devices=(),
        virtualisation="unknown",
        virtualisation_detail="",
        isolation=Isolation("v2", True, True, True, True),
        topology=topology,
    )


def make_job(number: int, demand: Resources | None = None, **fields: Any) -> Job:
    """Queued, submitted at second `number`; `fields` of the job or of its spec."""
    own = {name: value for name, value in fields.items() if name in _JOB_FIELDS}
    spec = JobSpec("x", ("true",), "/", resources=demand or Resources())
    spec = msgspec.structs.replace(spec, **{name: value for name, value in fields.items() if name not in own})
    job = Job(JobId(f"j-{number:06d}"), DEFAULT_PROJECT, Owner("u", 1), 1, 0, spec, JobState.QUEUED, number * SECOND)
    return msgspec.structs.replace(job, **own)


def make_array(first: int, count: int, at_once: int | None = None, demand: Resources | None = None, **fields: Any) -> list[Job]:
    return [
        make_job(first + at, demand, array=ArrayPlace(JobId(f"a-{first}"), at, count, 0, count - 1, 1, at_once), **fields)
        for at in range(count)
    ]


def run_job(machine: Machine, holding: list[Holding], job: Job, started_at: int = 0, plan: Plan | None = None) -> bool:
    """Adds it to `holding` where it fits."""
    room = Room(machine, ((held.demand, held.plan) for held in holding))
    placed = plan or place_spec(room, job.spec)
    if not isinstance(placed, Plan):
        return False
    running = msgspec.structs.replace(job, state=JobState.RUNNING, attempt=1, plan=placed, started_at=started_at)
    holding.append(Holding(job.spec.demand, placed, running))
    return True
