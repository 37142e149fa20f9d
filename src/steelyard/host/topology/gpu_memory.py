"""Which NUMA nodes are only a GPU's own memory (as on POWER9 with V100, or Grace Hopper)? One rule for all readers.

Pure. A program that is placed on such a node would eat the GPU's memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from steelyard.model.machine import NumaNode
from steelyard.model.topology import Gpu

#: a GPU's memory seen as a NUMA node may lack what its driver keeps for itself
_SAME_SIZE = 0.02


def find_gpu_memory_nodes(nodes: Sequence[NumaNode], gpus: Sequence[Gpu], said: Collection[int], power: bool) -> tuple[int, ...]:
    """Numbers of those nodes. `said`: the source itself says so. Else a node without CPUs has the size of a GPU's memory; or, on
    POWER where GPU sizes are unknown, there is one node without CPUs, all of one size, for each NVIDIA GPU."""
    bare = [node for node in nodes if not node.cpus and node.memory_bytes]
    sizes = [gpu.memory_bytes for gpu in gpus if gpu.memory_bytes]
    found = {node.id for node in bare if any(abs(node.memory_bytes - size) <= size * _SAME_SIZE for size in sizes)}
    unknown = power and not sizes and all(gpu.vendor == "NVIDIA" for gpu in gpus)
    if unknown and len(bare) == len(gpus) and len({node.memory_bytes for node in bare}) == 1:
        found = {node.id for node in bare}
    return tuple(sorted({*found, *said})) if gpus else ()
