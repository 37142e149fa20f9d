"""What does the REST API take and give? Shapes that others script against; times are RFC 3339 strings.

Requests refuse unknown fields, so that a misspelt option is named instead of silently dropped.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from steelyard.model.function import FunctionSpec
from steelyard.model.job import JobSpec
from steelyard.model.machine import Machine


class JobSubmit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    spec: JobSpec


class JobStop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signal: Annotated[int, Meta(ge=1, le=64)] = 15
    grace_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0


class ExecSubmit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command to run inside a running job."""

    argv: tuple[str, ...]
    #: of a gang; None: its first
    rank: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None


class ExecSignal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signal: Annotated[int, Meta(ge=1, le=64)] = 15


class ExecView(msgspec.Struct, frozen=True):
    #: its name within the job, such as `x1`
    exec: str


class JobView(msgspec.Struct, frozen=True):
    id: str
    name: str
    project: str
    owner: str
    generation: int
    state: str
    reason: str | None
    detail: str
    exit_code: int | None
    submitted_at: str
    started_at: str | None
    ended_at: str | None
    argv: tuple[str, ...]
    cpus: tuple[int, ...]
    peak_memory_bytes: int | None


class EventView(msgspec.Struct, frozen=True):
    """One line of a job's history."""

    at: str
    text: str


class LogChunk(msgspec.Struct, frozen=True):
    """Bytes of both streams since the given offsets, base64. `ended` says that no more will come."""

    stdout: bytes
    stderr: bytes
    stdout_offset: int
    stderr_offset: int
    ended: bool
    exit_code: int | None
    state: str
    reason: str | None
    detail: str


class FunctionDeploy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    spec: FunctionSpec


class FunctionView(msgspec.Struct, frozen=True):
    name: str
    project: str
    owner: str
    generation: int
    revision: int
    routed_revision: int | None
    state: str
    reason: str | None
    detail: str
    url: str
    replicas: int
    waking: int
    queued: int
    public: bool
    deployed_at: str


class ColdStartView(msgspec.Struct, frozen=True):
    function: str
    revision: int
    at: str
    road: str
    reason: str
    wall_ms: float
    platform_ms: float
    user_ms: float
    phases: dict[str, float]
    user_phases: dict[str, float]


class NodeView(msgspec.Struct, frozen=True):
    """A machine whose agent works for this Steelyard."""

    #: its host name
    name: str
    id: str
    #: READY, DEGRADED (some of it is out of use), DRAINED (all of it is), or UNKNOWN while its agent is silent
    state: str
    cores: int
    threads: int
    numa_nodes: int
    memory_bytes: int
    gpus: int
    nics: int
    virtualisation: str
    kernel: str


class NodeDetail(msgspec.Struct, frozen=True):
    node: NodeView
    machine: Machine
    #: device id or `cpu:N` -> the job or function that holds it
    used: dict[str, str]


class KeyCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class KeyView(msgspec.Struct, frozen=True):
    """`secret` is given once, when the key is made."""

    name: str
    project: str
    owner: str
    created_at: str
    secret: str | None = None


class HealthRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Either an active check of `subject`, which is put back into use when it passes; or, with `keep_hardware`, drift is measured
    from the hardware as it is now."""

    subject: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    keep_hardware: bool = False


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457 problem details. `code` is stable."""

    type: str
    title: str
    status: int
    detail: str
    code: str
