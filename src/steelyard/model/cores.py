"""What computes and remembers: physical cores, their caches, NUMA nodes."""

from __future__ import annotations

import msgspec


class Core(msgspec.Struct, frozen=True):
    """A physical core: its logical CPUs (SMT siblings), package and NUMA node."""

    cpus: tuple[int, ...]
    package: int = 0
    numa_node: int = 0


class Cache(msgspec.Struct, frozen=True):
    level: int
    #: "Data", "Instruction" or "Unified"
    kind: str
    size_bytes: int
    cpus: tuple[int, ...]


class NumaNode(msgspec.Struct, frozen=True):
    id: int
    cpus: tuple[int, ...]
    memory_bytes: int
