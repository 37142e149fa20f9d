"""Where on one machine does this workload run, or why not?

Rules, in this order:
1. Whole cores (`exclusive`) are physical cores with all their SMT siblings; nobody else is on them. The others are shared.
2. One core always stays shared, for the platform and for everybody else.
3. Shares are booked against the shared cores: their sum never exceeds the number of shared cores.
4. Memory is booked where it was asked for; the sum never exceeds the machine's.
5. Exclusive cores come from one NUMA node where one has enough, and then their memory comes from that node too, if it fits.
A Refusal names every blocking reason and the largest that would be possible; `never` tells "beyond this machine" from "not now".
Amounts are compared in millionths of a core, so that 50 x 0.01 and 100 x 0.02 are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from steelyard.model.job import Plan, Resources
from steelyard.model.machine import Core, Machine
from steelyard.model.reason import Reason

_MICRO = 1_000_000


class Largest(msgspec.Struct, frozen=True):
    """The most that one demand may ask for (now, or of an empty machine when the refusal says never)."""

    #: share of the common cores
    cpus: float
    exclusive_cores: int
    memory_bytes: int


class Refusal(msgspec.Struct, frozen=True):
    """No, with every blocking reason. `never`: even an empty machine could not hold it."""

    reasons: tuple[Reason, ...]
    never: bool
    #: a sentence per reason
    detail: str
    largest: Largest


class _Booked(msgspec.Struct, frozen=True):
    free_cores: tuple[Core, ...]
    share_micro: int
    memory_bytes: int


def place(machine: Machine, running: Sequence[tuple[Resources, Plan]], demand: Resources) -> Plan | Refusal:
    """A plan for `demand` beside what runs, or a Refusal."""
    never = _check_machine(machine, demand)
    if never is not None:
        return never
    booked = _book(machine, running)
    cores = _whole_cores(demand)
    reasons: list[Reason] = []
    details: list[str] = []
    largest = _largest(machine, booked)
    if demand.whole_cores and cores > largest.exclusive_cores:
        reasons.append(Reason.NO_CORES_LEFT)
        details.append(f"{_count(cores, 'whole core')} asked, {largest.exclusive_cores} free now (one core always stays shared)")
    if not demand.whole_cores and _micro(demand.cpus) > _micro_or_zero(largest.cpus):
        reasons.append(Reason.NO_CORES_LEFT)
        details.append(f"{demand.cpus:g} cores asked, {largest.cpus:g} of {len(booked.free_cores)} shared cores free now")
    if demand.memory_bytes is not None and demand.memory_bytes > largest.memory_bytes:
        reasons.append(Reason.NO_MEMORY_LEFT)
        details.append(f"{_size(demand.memory_bytes)} of memory asked, {_size(largest.memory_bytes)} free now")
    if reasons:
        return Refusal(tuple(reasons), never=False, detail="; ".join(details), largest=largest)
    if not demand.whole_cores:
        return Plan(share=demand.cpus, memory_bytes=demand.memory_bytes, preemptible=demand.preemptible)
    chosen = _choose_cores(booked.free_cores, cores)
    return Plan(
        cpus=tuple(sorted(cpu for core in chosen for cpu in core.cpus)),
        share=float(cores),
        memory_bytes=demand.memory_bytes,
        memory_nodes=_memory_nodes(machine, chosen, demand.memory_bytes),
        timing=demand.timing,
    )


def check_plan(machine: Machine, running: Sequence[tuple[Resources, Plan]], demand: Resources, plan: Plan) -> tuple[str, ...]:
    """Why `plan` may not be carried out beside what runs; empty when it may. For the one applier that re-checks every plan."""
    findings: list[str] = []
    booked = _book(machine, running)
    free = {cpu for core in booked.free_cores for cpu in core.cpus}
    taken = [cpu for cpu in plan.cpus if cpu not in free]
    if taken:
        findings.append(f"CPUs {taken} are not free")
    left = [core for core in booked.free_cores if not set(core.cpus) & set(plan.cpus)]
    share = booked.share_micro + (0 if demand.whole_cores else _micro(demand.cpus))
    if not left or share > len(left) * _MICRO:
        findings.append("the shared cores would be overbooked")
    if booked.memory_bytes + (demand.memory_bytes or 0) > machine.memory_bytes:
        findings.append("memory would be overbooked")
    return tuple(findings)


def _check_machine(machine: Machine, demand: Resources) -> Refusal | None:
    """Is it beyond the machine itself?"""
    total = len(machine.cores)
    reasons: list[Reason] = []
    details: list[str] = []
    if demand.whole_cores and _whole_cores(demand) > total - 1:
        reasons.append(Reason.CORES_BEYOND_MACHINE)
        details.append(
            f"this machine has {_count(total, 'core')} and one always stays shared, so at most "
            f"{total - 1} can be exclusive; {_whole_cores(demand)} asked"
        )
    elif _micro(demand.cpus) > total * _MICRO:
        reasons.append(Reason.CORES_BEYOND_MACHINE)
        details.append(f"this machine has {_count(total, 'core')}; {demand.cpus:g} asked")
    if demand.memory_bytes is not None and demand.memory_bytes > machine.memory_bytes:
        reasons.append(Reason.MEMORY_BEYOND_MACHINE)
        details.append(f"this machine has {_size(machine.memory_bytes)} of memory; {_size(demand.memory_bytes)} asked")
    if not reasons:
        return None
    largest = _largest(machine, _Booked(machine.cores, 0, 0))
    return Refusal(tuple(reasons), never=True, detail="; ".join(details), largest=largest)


def _book(machine: Machine, running: Sequence[tuple[Resources, Plan]]) -> _Booked:
    held = {cpu for _, plan in running for cpu in plan.cpus}
    return _Booked(
        free_cores=tuple(core for core in machine.cores if not held & set(core.cpus)),
        share_micro=sum(_micro(asked.cpus) for asked, plan in running if not plan.cpus),
        memory_bytes=sum(asked.memory_bytes or 0 for asked, _ in running),
    )


def _largest(machine: Machine, booked: _Booked) -> Largest:
    free = len(booked.free_cores)
    needed_shared = max(1, -(-booked.share_micro // _MICRO))
    return Largest(
        cpus=max(0, free * _MICRO - booked.share_micro) / _MICRO,
        exclusive_cores=max(0, free - needed_shared),
        memory_bytes=max(0, machine.memory_bytes - booked.memory_bytes),
    )


def _choose_cores(free: Sequence[Core], count: int) -> list[Core]:
    """1. The NUMA node with the fewest free cores that still has enough (keeps large holes whole); then the higher node.
    2. No node has enough: fill from the nodes with the most free cores, so that few nodes are touched.
    3. Within a node the highest cores first: the first core of a machine serves most interrupts, so it stays shared longest."""
    nodes: dict[int, list[Core]] = {}
    for core in sorted(free, key=lambda core: core.cpus, reverse=True):
        nodes.setdefault(core.numa_node, []).append(core)
    enough = [node for node in nodes if len(nodes[node]) >= count]
    if enough:
        best = min(enough, key=lambda node: (len(nodes[node]), -node))
        return nodes[best][:count]
    chosen: list[Core] = []
    for node in sorted(nodes, key=lambda node: (-len(nodes[node]), -node)):
        chosen += nodes[node][: count - len(chosen)]
    return chosen


def _memory_nodes(machine: Machine, chosen: Sequence[Core], memory_bytes: int | None) -> tuple[int, ...]:
    """The NUMA nodes of the chosen cores; empty (any) where they could not hold the memory that was asked for."""
    nodes = {core.numa_node for core in chosen}
    sizes = {node.id: node.memory_bytes for node in machine.numa_nodes}
    if not nodes <= sizes.keys() or sum(sizes[node] for node in nodes) < (memory_bytes or 1):
        return ()
    return tuple(sorted(nodes))


def _whole_cores(demand: Resources) -> int:
    return max(1, -(-_micro(demand.cpus) // _MICRO))


def _micro(cpus: float) -> int:
    """Never zero, so that many tiny shares still add up."""
    return max(1, round(cpus * _MICRO))


def _micro_or_zero(cpus: float) -> int:
    return round(cpus * _MICRO)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"
