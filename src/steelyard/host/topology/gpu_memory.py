"""Which NUMA nodes are only a GPU's own memory (as on POWER9 with V100, or Grace Hopper)? One rule for all readers.

Pure. A program that is placed on such a node would eat the GPU's memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from steelyard.model.machine import NumaNode
from steelyard.model.topology import Gpu

#: a GPU's memory seen as a NUMA node may lack what its driver keeps for itself
_SAME_SIZE = 0.02


def find_gpu_memory_nodes(
    nodes: Sequence[NumaNode], gpus: Sequence[Gpu], said: Collection[int], architecture: str
) -> tuple[int, ...]:
    """Numbers of those nodes. `said`: the source itself says so. Else, only on CPUs that share memory with NVIDIA's GPUs
    (`ppc64`, `aarch64`; elsewhere a node without CPUs is CXL or the like): one without CPUs and as large as a GPU's memory, or,
    on POWER where GPU sizes are unknown, one of those without CPUs that are all of one size and as many as the GPUs."""
    bare = [node for node in nodes if not node.cpus and node.memory_bytes]
    sizes = [gpu.memory_bytes for gpu in gpus if gpu.memory_bytes]
    found: set[int] = set()
    if architecture.startswith(("ppc64", "aarch64")) and all(gpu.vendor == "NVIDIA" for gpu in gpus):
        found = {node.id for node in bare if any(abs(node.memory_bytes - size) <= size * _SAME_SIZE for size in sizes)}
        alike = len(bare) == len(gpus) and len({node.memory_bytes for node in bare}) == 1
        if not sizes and alike and architecture.startswith("ppc64"):
            found = {node.id for node in bare}
    return tuple(sorted({*found, *said})) if gpus else ()
