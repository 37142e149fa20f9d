"""What does the API tell of machines? Answers, as in `api.py`."""

from __future__ import annotations

import msgspec

from steelyard.model.machine import Machine


class NodeView(msgspec.Struct, frozen=True):
    """A machine whose agent works for this Steelyard."""

    #: its host name
    name: str
    id: str
    #: READY, DEGRADED (some of it is out of use), DRAINED (all of it is), DRAINING (a pool's that is about to be given back), or
    #: UNKNOWN while its agent is silent
    state: str
    cores: int
    threads: int
    numa_nodes: int
    memory_bytes: int
    gpus: int
    nics: int
    virtualisation: str
    kernel: str
    #: "" for the home's own; a machine of a pool has a name of its own in `id`
    pool: str = ""
    #: why it takes no work, for people
    detail: str = ""


class NodeDetail(msgspec.Struct, frozen=True):
    node: NodeView
    machine: Machine
    #: device id or `cpu:N` -> the job or function that holds it
    used: dict[str, str]
