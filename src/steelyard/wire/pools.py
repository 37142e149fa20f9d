"""What does the REST API say and take of pools and their pilots? JSON, as `wire/api.py`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from steelyard.model.pool import NODES_MAX, PoolSpec


class PoolCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=255)]
    nodes_min: Annotated[int, Meta(ge=0, le=NODES_MAX)] = 0
    nodes_max: Annotated[int, Meta(ge=1, le=NODES_MAX)] = 1
    #: of each node; None: whole nodes, with all their memory
    cpus_per_node: Annotated[int, Meta(ge=1, le=65536)] | None = None
    memory_per_node: Annotated[int, Meta(ge=1, le=1 << 60)] | None = None
    gpus_per_node: Annotated[int, Meta(ge=0, le=1024)] = 0
    gpu_model: Annotated[str, Meta(max_length=100, pattern=r"^[A-Za-z0-9_.-]*\Z")] = ""
    #: Slurm's; "": as `cluster attach` was told
    partition: Annotated[str, Meta(max_length=255)] = ""
    account: Annotated[str, Meta(max_length=255)] = ""
    qos: Annotated[str, Meta(max_length=255)] = ""
    #: of each allocation; None leaves it to the partition's limit
    max_duration_s: Annotated[float, Meta(ge=60, le=365 * 86400)] | None = None
    #: an allocation that nothing runs on is given back after that long
    idle_s: Annotated[float, Meta(ge=0, le=365 * 86400)] = 300.0
    #: that long before its end nothing new starts on an allocation
    drain_s: Annotated[float, Meta(ge=1, le=65535)] = 120.0
    #: machines that are one allocation; bounds are multiples of it
    nodes_per_allocation: Annotated[int, Meta(ge=1, le=NODES_MAX)] = 1


class PilotView(msgspec.Struct, frozen=True):
    """A machine of a pool."""

    id: str
    state: str
    #: Slurm's number of its allocation; "" while that is not known
    slurm_job: str
    node: str
    detail: str
    submitted_at: str
    started_at: str | None
    #: when its time limit comes
    ends_at: str | None
    ended_at: str | None


class PoolView(msgspec.Struct, frozen=True):
    spec: PoolSpec
    owner: str
    generation: int
    created_at: str
    deleting: bool
    #: state -> pilots in it, of those that have not ended
    pilots: dict[str, int]
    #: why no machine comes now; "" where nothing is wrong
    complaint: str


class PoolDetail(msgspec.Struct, frozen=True):
    pool: PoolView
    #: those that have ended within a day too, the oldest first
    pilots: tuple[PilotView, ...]


class PilotDrain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: for people
    why: Annotated[str, Meta(max_length=1000)] = ""
