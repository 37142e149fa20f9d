"""What is a pool, and what is a pilot of it? A pool has its machines from a batch system: each is a pilot, a node of an
allocation that runs an agent. The pilot's id is the id of its machine as well. Pilots of one allocation come and go together."""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from steelyard.model.ids import MachineId, ProjectName
from steelyard.model.owner import Owner

#: a pool's name begins the names of its pilots, which stand in certificates, comments of Slurm's and paths
POOL_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z")
#: more than any pool should ask a batch system for by a slip of the finger
NODES_MAX = 1024


class NodeShape(msgspec.Struct, frozen=True):
    """What each allocation asks for."""

    #: None: whole nodes, with all their memory
    cpus: int | None = None
    #: None: what the batch system gives with the CPUs
    memory_bytes: int | None = None
    gpus: int = 0
    #: as the batch system names it; "" for any
    gpu_model: str = ""


class PoolSpec(msgspec.Struct, frozen=True):
    """What the user asked for."""

    name: str
    nodes_min: int = 0
    nodes_max: int = 1
    node: NodeShape = NodeShape()
    #: "": as `cluster attach` was told
    partition: str = ""
    account: str = ""
    #: quality of service; "" leaves it to the batch system
    qos: str = ""
    #: of an allocation; None leaves it to the partition's limit
    max_duration_s: float | None = None
    #: an allocation that nothing runs on is given back after that long
    idle_s: float = 300.0
    #: before the end of an allocation nothing new starts on it any more
    drain_s: float = 120.0
    #: machines that come as one allocation, and go as one
    nodes_per_allocation: int = 1


class Pool(msgspec.Struct, frozen=True):
    spec: PoolSpec
    project: ProjectName
    owner: Owner
    generation: int
    created_at: int
    #: no pilot is asked for any more; it goes when the last has ended
    deleting: bool = False
    #: pilots in a row that ended before their agent was heard
    failures: int = 0
    #: wall time before which no pilot is asked for
    not_before: int | None = None
    #: what was wrong with the last of them
    complaint: str = ""

    @property
    def name(self) -> str:
        return self.spec.name


class PilotState(StrEnum):
    #: about to be asked for, or asked for and the answer was lost
    SUBMITTED = "SUBMITTED"
    #: in the batch system's queue
    WAITING = "WAITING"
    #: its allocation runs, its agent was not heard yet
    STARTING = "STARTING"
    #: takes work
    READY = "READY"
    #: takes no new work; it ends when nothing runs there any more, or its allocation does
    DRAINING = "DRAINING"
    ENDED = "ENDED"

    @property
    def coming(self) -> bool:
        return self in (PilotState.SUBMITTED, PilotState.WAITING, PilotState.STARTING)


class Pilot(msgspec.Struct, frozen=True):
    id: MachineId
    pool: str
    project: ProjectName
    owner: Owner
    generation: int
    state: PilotState
    #: microseconds, wall clock; so are the others
    submitted_at: int
    #: the batch system's own name for it; "": not known yet
    number: str = ""
    #: a sentence for people: why it waits, drains or has ended
    detail: str = ""
    #: the node, in the batch system's words
    node: str = ""
    started_at: int | None = None
    #: of the allocation; None: without an end, or not known yet
    ends_at: int | None = None
    #: its agent was heard first
    ready_at: int | None = None
    ended_at: int | None = None
    #: the first pilot of its allocation; "" where it has one to itself
    allocation: str = ""
    #: which of its allocation's nodes, in the batch system's order
    place: int = 0

    @property
    def living(self) -> bool:
        return self.state is not PilotState.ENDED

    @property
    def queue_id(self) -> MachineId:
        """By which the batch system's queue knows its allocation."""
        return MachineId(self.allocation or self.id)


def make_pilot_id(pool: str, number: int) -> MachineId:
    return MachineId(f"{pool}-{number}")


def find_pool(pilot: str) -> str:
    """The pool whose pilot has that id; "" for what is no pilot's."""
    name, _, number = pilot.rpartition("-")
    return name if POOL_NAME.fullmatch(name) and number.isdecimal() else ""
