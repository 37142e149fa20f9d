"""Which physical cores are nearest to the chosen GPUs, and does their memory suffice?

Each GPU gets its share of the cores on its own NUMA node; what a node lacks comes from the nodes of the other GPUs, then from
the nearest other nodes. Within a node the highest cores go first: the first core of a machine serves most interrupts and stays
shared longest. Without GPUs that tell their node, the cores come from the fullest node that has enough, so that large holes
stay whole, else from the emptiest nodes, so that few are touched. Where the memory asked must be local, it must fit the nodes
that the cores come from. If the nearest way can't hold it: the nearest single node that has both, then the cores are spread
over more and more nodes, by nearness and at last by free memory. What is bound to several nodes counts against each set of
nodes that it touches: nobody knows where its pages lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from steelyard.model.machine import Core, NumaNode

#: as ACPI's SLIT counts: a node to itself, and to a farther one where the firmware does not tell
_LOCAL, _REMOTE = 10, 20


class BoundMemory(msgspec.Struct, frozen=True):
    """Memory that a workload may only take from some nodes."""

    nodes: frozenset[int]
    memory_bytes: int


class CoreSupply(msgspec.Struct, frozen=True):
    """What there is to choose from."""

    #: per NUMA node its free cores, the highest first
    free: dict[int, list[Core]]
    #: per NUMA node with memory of the machine's own: its size in bytes
    memory: dict[int, int]
    bound: tuple[BoundMemory, ...] = ()
    #: (node, node) -> distance
    distances: dict[tuple[int, int], int] = {}

    def distance(self, a: int, b: int) -> int:
        return self.distances.get((a, b), _LOCAL if a == b else _REMOTE)

    def free_memory(self, nodes: Sequence[int]) -> int:
        taken = sum(each.memory_bytes for each in self.bound if each.nodes & set(nodes))
        return max(0, sum(self.memory.get(node, 0) for node in nodes) - taken)


class CoreChoice(msgspec.Struct, frozen=True):
    cores: tuple[Core, ...]
    #: cores on no GPU's node
    far: int
    #: distances of all cores to their nearest GPU's node, together
    distance: int
    #: whether the nodes of the cores can hold the memory asked
    holds_memory: bool

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(sorted({core.numa_node for core in self.cores}))


def make_supply(
    free: Sequence[Core],
    nodes: Sequence[NumaNode],
    distances: Sequence[Sequence[int]] = (),
    bound: Sequence[BoundMemory] = (),
    without: Sequence[int] = (),
) -> CoreSupply:
    """`distances`: rows in the order of `nodes`. `without`: nodes whose memory nobody may be given (a GPU's own)."""
    by_node: dict[int, list[Core]] = {}
    for core in sorted(free, key=lambda core: core.cpus, reverse=True):
        by_node.setdefault(core.numa_node, []).append(core)
    pairs: dict[tuple[int, int], int] = {}
    for a, row in zip(nodes, distances, strict=False):
        pairs.update({(a.id, b.id): value for b, value in zip(nodes, row, strict=False)})
    memory = {node.id: node.memory_bytes for node in nodes if node.id not in without}
    return CoreSupply(by_node, memory, tuple(bound), pairs)


def choose_cores(supply: CoreSupply, wanted: Mapping[int, int], count: int, local_bytes: int | None = None) -> CoreChoice:
    """`count` cores of `supply`, which has that many. `wanted`: GPUs per NUMA node. `local_bytes`: memory that must be local."""
    split = _split_near(supply, wanted, count) if wanted else _split_packed(supply, count)
    if count and local_bytes is not None and supply.free_memory(list(split)) < local_bytes:
        for other in _other_splits(supply, wanted, count):
            if supply.free_memory(list(other)) >= local_bytes:
                split = other
                break
    return CoreChoice(
        cores=tuple(core for node in split for core in supply.free[node][: split[node]]),
        far=sum(number for node, number in split.items() if wanted and node not in wanted),
        distance=sum(number * _nearness(supply, wanted, node) for node, number in split.items()),
        holds_memory=local_bytes is None or supply.free_memory(list(split)) >= local_bytes,
    )


def _nearness(supply: CoreSupply, wanted: Mapping[int, int], node: int) -> int:
    return min((supply.distance(own, node) for own in wanted), default=0)


def _by_nearness(supply: CoreSupply, wanted: Mapping[int, int]) -> list[int]:
    return sorted(supply.free, key=lambda node: (node not in wanted, _nearness(supply, wanted, node), node))


def _split_near(supply: CoreSupply, wanted: Mapping[int, int], count: int) -> dict[int, int]:
    total = sum(wanted.values())
    # largest remainders: everybody's whole part, then one more for those that lost most by rounding down
    split = {node: count * wanted[node] // total for node in sorted(wanted)}
    lost = sorted(split, key=lambda node: (-(count * wanted[node] % total), node))
    for node in lost[: count - sum(split.values())]:
        split[node] += 1
    split = {node: min(number, len(supply.free.get(node, ()))) for node, number in split.items()}
    return _fill(supply, split, _by_nearness(supply, wanted), count)


def _split_packed(supply: CoreSupply, count: int) -> dict[int, int]:
    enough = [node for node, cores in supply.free.items() if len(cores) >= count]
    if enough:
        return _fill(supply, {}, [min(enough, key=lambda node: (len(supply.free[node]), -node))], count)
    return _fill(supply, {}, sorted(supply.free, key=lambda node: (-len(supply.free[node]), -node)), count)


def _other_splits(supply: CoreSupply, wanted: Mapping[int, int], count: int) -> list[dict[int, int]]:
    near = _by_nearness(supply, wanted)
    roomy = sorted(near, key=lambda node: -supply.free_memory((node,)))
    splits = [{node: count} for node in near if len(supply.free[node]) >= count]
    for order in (near, roomy):
        for width in range(2, min(count, len(order)) + 1):
            nodes = order[:width]
            if sum(len(supply.free[node]) for node in nodes) >= count:
                splits.append(_fill(supply, dict.fromkeys(nodes, 1), nodes, count))
    return splits


def _fill(supply: CoreSupply, split: Mapping[int, int], order: Sequence[int], count: int) -> dict[int, int]:
    """The split with what is missing taken from the nodes in `order`; nodes that give nothing are left out."""
    filled = dict(split)
    missing = count - sum(filled.values())
    for node in order:
        more = min(missing, len(supply.free[node]) - filled.get(node, 0))
        filled[node] = filled.get(node, 0) + more
        missing -= more
    return {node: number for node, number in filled.items() if number}
