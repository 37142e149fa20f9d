"""Which GPUs, network cards, cores and memory nodes of one machine does a workload get, chosen together, or why none?

Sets of GPUs are compared in this order:
(a) the largest smallest pair value (`pair_value.py`),
(b) the largest sum of pair values,
(c) the nearest network cards (`near_nics.py`),
(d) the nearest cores and memory (`near_cores.py`): fewest cores on no GPU's node, then the smallest sum of distances, then the
    fewest NUMA nodes under the GPUs. That counts also where no cores are asked,
(e) the best (a), then (b), that a set of as many GPUs still has in what remains free; having one beats having none,
(f) the lowest addresses of the GPUs, then of the cards.
Exact: the answer is the one that trying all sets gives (`tests/brute_force.py`). Indices and the order of the document never
count. Shares of GPUs and MIG instances are packed first (`gpus.py`); what they still need of whole GPUs is chosen as above.
Best effort gets no cores of its own: `cores` are then the nearest shared ones, for a process that wants to stay near.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.machine import Core
from steelyard.model.timing import Timing
from steelyard.model.topology import Gpu, Nic, Pair, PathClass, Topology
from steelyard.placement.best_sets import SetValue, bits, find_best_sets, find_best_value
from steelyard.placement.budget import Budget
from steelyard.placement.gpus import GpuUse, choose_kind, find_supply
from steelyard.placement.near_cores import BoundMemory, CoreChoice, CoreSupply, choose_cores, make_supply
from steelyard.placement.near_nics import choose_candidates, choose_nics, keep_nearest
from steelyard.placement.next_best import list_next_best
from steelyard.placement.pair_value import Rows, address_key, find_pairs, gpu_rows, nic_columns, to_public, uses_ranks
from steelyard.placement.symmetry import find_rules


class Used(msgspec.Struct, frozen=True):
    """What others hold."""

    gpus: GpuUse = GpuUse()
    nics: frozenset[str] = frozenset()
    #: logical CPUs; one of them takes its whole core
    cpus: frozenset[int] = frozenset()
    memory_bytes: int = 0
    bound: tuple[BoundMemory, ...] = ()
    #: cores that must stay for everybody
    shared_cores: int = 1


class DeviceDemand(msgspec.Struct, frozen=True):
    gpus: GpuDemand | None = None
    nics: int = 0
    #: physical cores; whole ones for itself if `whole_cores`
    cores: int = 0
    memory_bytes: int | None = None
    whole_cores: bool = False
    #: memory of the cores' own nodes only
    local_memory: bool = False


class Alternative(msgspec.Struct, frozen=True):
    gpus: tuple[str, ...]
    bottleneck: Pair | None
    #: sum of its pair values
    pair_sum: float


class Remainder(msgspec.Struct, frozen=True):
    """What a set of the same size still finds: smallest pair value and sum of pair values, Gbit/s or ranks."""

    smallest: float
    pair_sum: float


class DevicePlan(msgspec.Struct, frozen=True):
    #: GPU ids in address order
    gpus: tuple[str, ...] = ()
    #: share of each GPU; 1.0 whole
    gpu_fraction: float = 1.0
    mig_instances: tuple[str, ...] = ()
    nics: tuple[str, ...] = ()
    #: logical CPUs of the chosen physical cores
    cores: tuple[int, ...] = ()
    core_count: int = 0
    memory_nodes: tuple[int, ...] = ()
    #: the worst pair among the GPUs; None with fewer than two
    bottleneck: Pair | None = None
    #: Gbit/s, or ranks of path classes where bandwidths are not known
    pair_sum: float = 0.0
    remainder: Remainder | None = None
    alternatives: tuple[Alternative, ...] = ()
    #: sentences: why this choice
    explanation: tuple[str, ...] = ()
    #: sentences: what was not known
    notes: tuple[str, ...] = ()


def make_demand(
    gpus: GpuDemand | None, nics: int, cores: int, memory_bytes: int | None, timing: Timing, exclusive: bool = False
) -> DeviceDemand:
    """Classes above best effort have at least one core of their own, and only local memory."""
    punctual = timing is not Timing.BEST_EFFORT
    return DeviceDemand(gpus, nics, max(cores, 1) if punctual else cores, memory_bytes, punctual or exclusive, punctual)


def free_cores(topology: Topology, used: Used) -> tuple[Core, ...]:
    return tuple(core for core in topology.cores if not used.cpus.intersection(core.cpus))


def choose_devices(topology: Topology, used: Used, demand: DeviceDemand, alternatives: int = 0) -> DevicePlan | None:
    """The best choice, where there is enough of everything (`shortage.py` looks). None: local memory can't be had."""
    pairs = find_pairs(topology)
    nics = [nic for nic in topology.nics if nic.id not in used.nics] if demand.nics else []
    nics = choose_candidates(nics, demand.nics)
    fixed: tuple[Gpu, ...] = ()
    instances: tuple[str, ...] = ()
    sets = _Sets(topology, used, demand, pairs, nics)
    remainder: SetValue | None = None
    others: list[tuple[Gpu, ...]] = []
    if demand.gpus is not None:
        supply = find_supply(topology.gpus, used.gpus, demand.gpus)
        kind = choose_kind(supply, used.gpus, demand.gpus)
        fixed, instances = kind.fixed, kind.instances
        if kind.whole:
            whole, remainder, others = sets.choose(supply.pool, supply.free, kind.whole, alternatives)
            fixed = tuple(sorted((*fixed, *whole), key=lambda gpu: address_key(gpu.id)))
    ids = [gpu.id for gpu in fixed]
    _, cards = choose_nics(nic_columns(pairs, ids, [nic.id for nic in nics]), (1 << len(ids)) - 1, demand.nics, sets.budget)
    chosen_nics = tuple(nics[card] for card in cards)
    cores = sets.choose_cores(_count_nodes(fixed or chosen_nics))
    if not cores.holds_memory:
        return None
    bottleneck, pair_sum = _describe(pairs, ids, sets.ranks_only)
    plan = DevicePlan(
        gpus=tuple(ids),
        gpu_fraction=1.0 if demand.gpus is None or demand.gpus.fraction is None else demand.gpus.fraction,
        mig_instances=instances,
        nics=tuple(nic.id for nic in chosen_nics),
        cores=tuple(sorted(cpu for core in cores.cores for cpu in core.cpus)),
        core_count=len(cores.cores),
        memory_nodes=sets.memory_nodes(cores),
        bottleneck=bottleneck,
        pair_sum=pair_sum,
        remainder=None if remainder is None else Remainder(to_public(remainder[0]), to_public(remainder[1])),
        alternatives=tuple(
            Alternative(tuple(gpu.id for gpu in other), *_describe(pairs, [gpu.id for gpu in other], sets.ranks_only))
            for other in others
        ),
    )
    return msgspec.structs.replace(plan, explanation=_explain(plan, cores, sets.ranks_only), notes=_note(topology, fixed, sets))


class _Sets:
    """Compares sets of whole GPUs on one machine."""

    def __init__(
        self, topology: Topology, used: Used, demand: DeviceDemand, pairs: Mapping[tuple[str, str], Pair], nics: Sequence[Nic]
    ) -> None:
        self.budget = Budget()
        self.ranks_only = uses_ranks(topology)
        self._pairs, self._nics, self._demand = pairs, nics, demand
        free = free_cores(topology, used)
        self._supply: CoreSupply = make_supply(
            free, topology.numa_nodes, topology.numa_distances, used.bound, topology.gpu_memory_nodes
        )
        self._choices: dict[tuple[tuple[int, int], ...], CoreChoice] = {}

    def choose(
        self, pool: Sequence[Gpu], free: Sequence[Gpu], count: int, alternatives: int
    ) -> tuple[tuple[Gpu, ...], SetValue | None, list[tuple[Gpu, ...]]]:
        """The GPUs, the value of what remains, and the next best sets. `pool`: what is free on the machine; `free`: what fits."""
        ids = [gpu.id for gpu in pool]
        rows = gpu_rows(self._pairs, ids, self.ranks_only)
        columns = nic_columns(self._pairs, ids, [nic.id for nic in self._nics])
        fits = {gpu.id for gpu in free}
        members = sum(1 << place for place, gpu in enumerate(pool) if gpu.id in fits)
        labels = [(gpu.id in fits, (gpu.numa_node,)) for gpu in pool]
        value, sets = find_best_sets(rows, members, count, find_rules(rows, columns, labels), self.budget)
        sets = keep_nearest(columns, sets, self._demand.nics, self.budget)
        if len(sets) > 1:
            sets = self._keep_near_cores(pool, sets)
        chosen, remainder = keep_remainder(
            rows, (1 << len(pool)) - 1, sets, count, self.budget, value if len(free) == len(pool) else None
        )
        others = list_next_best(rows, members, chosen, alternatives) if alternatives else []
        return _pick(pool, chosen), remainder, [_pick(pool, other) for other in others]

    def choose_cores(self, wanted: Mapping[int, int]) -> CoreChoice:
        key = tuple(sorted(wanted.items()))
        if key not in self._choices:
            known = any(self._supply.memory.values())
            local = (self._demand.memory_bytes or 1) if self._demand.local_memory and known else None
            count = min(self._demand.cores, sum(map(len, self._supply.free.values())))
            self._choices[key] = choose_cores(self._supply, wanted, count, local)
        return self._choices[key]

    def memory_nodes(self, cores: CoreChoice) -> tuple[int, ...]:
        """The nodes of the cores, unless they could not hold the memory (then any may be used)."""
        memory = self._supply.memory
        if not any(memory.values()):
            return cores.nodes
        if not memory.keys() >= set(cores.nodes) or sum(memory[node] for node in cores.nodes) < (self._demand.memory_bytes or 1):
            return ()
        return tuple(node for node in cores.nodes if memory[node])

    def _keep_near_cores(self, pool: Sequence[Gpu], sets: Sequence[int]) -> list[int]:
        measures: list[tuple[bool, int, int, int]] = []
        for chosen in sets:
            nodes = _count_nodes([pool[place] for place in bits(chosen)])
            cores = self.choose_cores(nodes)
            measures.append((not cores.holds_memory, cores.far, cores.distance, len(nodes)))
        best = min(measures)
        return [chosen for chosen, measure in zip(sets, measures, strict=True) if measure == best]


def keep_remainder(
    rows: Rows, pool: int, sets: Sequence[int], count: int, budget: Budget, most: SetValue | None = None
) -> tuple[int, SetValue | None]:
    """The first of `sets` that leaves the best set of the same size, and the value of that. `most`: what no remainder exceeds."""
    if pool.bit_count() < 2 * count:
        return sets[0], None
    best: tuple[int, SetValue | None] = (sets[0], None)
    for chosen in sets:
        left = find_best_value(rows, pool & ~chosen, count, budget)
        if left is not None and (best[1] is None or left > best[1]):
            best = (chosen, left)
            if left == most or budget.spent:
                break
    return best


def _pick(pool: Sequence[Gpu], chosen: int) -> tuple[Gpu, ...]:
    return tuple(pool[place] for place in bits(chosen))


def _count_nodes(devices: Sequence[Gpu] | Sequence[Nic]) -> dict[int, int]:
    return Counter(device.numa_node for device in devices if device.numa_node is not None)


def _describe(pairs: Mapping[tuple[str, str], Pair], ids: Sequence[str], ranks_only: bool) -> tuple[Pair | None, float]:
    """The worst pair, of equal ones that with the lowest addresses, and the sum of all values."""
    rows = gpu_rows(pairs, ids, ranks_only)
    values = [(rows[a][b], a, b) for b in range(len(ids)) for a in range(b)]
    if not values:
        return None, 0.0
    _, a, b = min(values)
    worst = pairs.get((ids[a], ids[b])) or Pair(ids[a], ids[b], PathClass.SYS)
    return worst, to_public(sum(value for value, _, _ in values))


def _with(gbps: float) -> str:
    """Small values are ranks of classes, which say nothing to people."""
    return f", with at least {gbps:g} Gbit/s between any two" if gbps > 20 else ""


def _explain(plan: DevicePlan, cores: CoreChoice, ranks_only: bool) -> tuple[str, ...]:
    said: list[str] = []
    if plan.bottleneck is not None:
        rate = "" if plan.bottleneck.gbps is None else f", {plan.bottleneck.gbps:g} Gbit/s"
        said.append(f"the worst path between its {len(plan.gpus)} GPUs is {plan.bottleneck.class_name}{rate}")
    if plan.remainder is not None:
        left = f"another {len(plan.gpus)} GPUs" if len(plan.gpus) > 1 else "another GPU"
        said.append(f"{left} can still be had" + ("" if ranks_only or len(plan.gpus) < 2 else _with(plan.remainder.smallest)))
    if cores.far:
        said.append(f"{cores.far} of its {plan.core_count} cores are on no NUMA node of its devices: nearer ones are taken")
    return tuple(said)


def _note(topology: Topology, gpus: Sequence[Gpu], sets: _Sets) -> tuple[str, ...]:
    notes: list[str] = []
    if sets.budget.spent:
        notes.append("there are more sets of devices than could be compared: this choice is a good one, not proven the best")
    if len(gpus) > 1 and not topology.pairs:
        notes.append("no source tells how the GPUs are wired: every path counts as SYS")
    if len(gpus) > 1 and sets.ranks_only:
        notes.append("the bandwidth of some links between GPUs is not known: classes of paths are compared, not bandwidths")
    if gpus and topology.numa_nodes and any(gpu.numa_node is None for gpu in gpus):
        notes.append("the NUMA node of some GPUs is not known: cores and memory are chosen without regard to them")
    return tuple(notes)
