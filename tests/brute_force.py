"""Which GPUs and cards would trying everything choose? The plainest way to the answer that `placement/devices.py` must give.

Filters all sets of GPUs step by step, in the order that `devices.py` documents. Shares only the definition of near cores with it.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

from steelyard.model.topology import Gpu, Nic, PathClass, Topology
from steelyard.placement.devices import DeviceDemand, Used
from steelyard.placement.near_cores import choose_cores, make_supply

RANKS = ["SYS", "NODE", "PHB", "PXB", "PIX", "C2C"]


def address(device: Gpu | Nic) -> tuple[Any, ...]:
    if re.fullmatch(r"[0-9a-f]+:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f](/\d+)?", device.id):
        numbers = re.split(r"[:./]", device.id)
        return (0, *(int(number, 16) for number in numbers[:4]), int(numbers[4]) if len(numbers) > 4 else 0)
    return (1, *(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", device.id)))


class Values:
    """Values of pairs, by device ids."""

    def __init__(self, topology: Topology) -> None:
        self.pairs = {frozenset((pair.a, pair.b)): pair for pair in topology.pairs}
        links = [pair for pair in topology.pairs if pair.path in (PathClass.NV, PathClass.XGMI)]
        self.ranks_only = any(pair.gbps is None for pair in links)

    def rank(self, a: str, b: str) -> int:
        pair = self.pairs.get(frozenset((a, b)))
        if pair is None:
            return 1
        return RANKS.index(pair.path.value) + 1 if pair.path.value in RANKS else 6 + max(1, pair.links)

    def value(self, a: str, b: str) -> int:
        pair = self.pairs.get(frozenset((a, b)))
        if pair is None or pair.gbps is None or self.ranks_only:
            return 1000 * self.rank(a, b)
        return round(1000 * pair.gbps)

    def of_set(self, gpus: tuple[Gpu, ...]) -> tuple[int, int]:
        values = [self.value(a.id, b.id) for a, b in itertools.combinations(gpus, 2)]
        return (min(values), sum(values)) if values else (0, 0)

    def near(self, gpus: tuple[Gpu, ...], nics: tuple[Nic, ...]) -> tuple[int, int]:
        best = [max((self.rank(gpu.id, nic.id) for nic in nics), default=0) for gpu in gpus]
        return (min(best), sum(best)) if best else (0, 0)


def free_gpus(topology: Topology, used: Used) -> list[Gpu]:
    whole = [gpu for gpu in topology.gpus if not gpu.mig and not gpu.mig_instances and not used.gpus.shares.get(gpu.id)]
    return sorted(whole, key=address)


def usable_nics(topology: Topology, used: Used, count: int) -> list[Nic]:
    free = [nic for nic in topology.nics if nic.id not in used.nics]
    up = sorted((nic for nic in free if not nic.ports or any(port.up is not False for port in nic.ports)), key=address)
    kinds = sorted({(nic.rdma is True, nic.gbps or 0) for nic in up}, reverse=True)
    choices = [[nic for nic in up if (nic.rdma is True, nic.gbps or 0) == kind] for kind in kinds]
    choices.append([nic for nic in up if nic.rdma is True])
    return next((choice for choice in choices if len(choice) >= count), up)


def best_nics(values: Values, gpus: tuple[Gpu, ...], nics: list[Nic], count: int) -> tuple[tuple[int, int], tuple[Nic, ...]]:
    """max() keeps the first of equals: the lowest addresses."""

    def nearness(some: tuple[Nic, ...]) -> tuple[tuple[int, int], int]:
        return values.near(gpus, some), sum(values.rank(gpu.id, nic.id) for gpu in gpus for nic in some)

    chosen = max(itertools.combinations(nics, count), key=nearness)
    return values.near(gpus, chosen), chosen


def brute_force(
    topology: Topology, used: Used, demand: DeviceDemand
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, int] | None]:
    """GPUs, cards and the value that remains, for a demand for whole GPUs that can be met."""
    assert demand.gpus is not None
    values, pool, count = Values(topology), free_gpus(topology, used), demand.gpus.count
    fits = [gpu for gpu in pool if demand.gpus.matches_name(gpu.name) and demand.gpus.matches_memory(gpu.memory_bytes)]
    # (a), (b)
    every = {some: values.of_set(some) for some in itertools.combinations(fits, count)}
    most = max(every.values())
    left = [some for some, value in every.items() if value == most]
    # (c)
    nics = usable_nics(topology, used, demand.nics) if demand.nics else []
    if demand.nics:
        near = {some: best_nics(values, some, nics, demand.nics)[0] for some in left}
        nearest = max(near.values())
        left = [some for some in left if near[some] == nearest]
    # (d)
    distance = {some: measure_cores(topology, used, demand, some) for some in left}
    shortest = min(distance.values())
    left = [some for some in left if distance[some] == shortest]
    # (e)
    held = {some: values.of_set(some) for some in itertools.combinations(pool, count)}

    def remainder(some: tuple[Gpu, ...]) -> tuple[int, int]:
        return max(
            (held[other] for other in itertools.combinations([gpu for gpu in pool if gpu not in some], count)), default=(-1, -1)
        )

    remains = {some: remainder(some) for some in left}
    kept = max(remains.values())
    left = [some for some in left if remains[some] == kept]
    # (f): combinations of a sorted list come in the order of their addresses
    chosen = left[0]
    cards = best_nics(values, chosen, nics, demand.nics)[1] if demand.nics else ()
    remaining = None if remains[chosen] == (-1, -1) else remains[chosen]
    return tuple(gpu.id for gpu in chosen), tuple(nic.id for nic in cards), remaining


def measure_cores(topology: Topology, used: Used, demand: DeviceDemand, gpus: tuple[Gpu, ...]) -> tuple[bool, int, int, int]:
    free = [core for core in topology.cores if not set(core.cpus) & used.cpus]
    supply = make_supply(free, topology.numa_nodes, topology.numa_distances, used.bound, topology.gpu_memory_nodes)
    nodes = Counter(gpu.numa_node for gpu in gpus if gpu.numa_node is not None)
    local = (demand.memory_bytes or 1) if demand.local_memory and any(supply.memory.values()) else None
    choice = choose_cores(supply, nodes, min(demand.cores, len(free)), local)
    return not choice.holds_memory, choice.far, choice.distance, len(nodes)
