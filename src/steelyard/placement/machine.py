"""Where on one machine does this workload run, or why not?

Rules, in this order:
1. Whole cores (`whole_cores`: exclusive, dedicated or realtime) are physical cores with all their SMT siblings; nobody else is
   on them. The others are shared.
2. One core always stays shared, for the platform and for everybody else.
3. Shares are booked against the shared cores: their sum never exceeds the number of shared cores.
4. Memory is booked where it was asked for; the sum never exceeds the machine's.
5. Whole cores are near the GPUs or cards that come with them; without any they come from one NUMA node where one has enough
   (`near_cores.py`). Their memory comes from their nodes, if it fits; for dedicated and realtime it must fit.
6. GPUs, shares of them, MIG instances and network cards come from the machine's topology (`devices.py`) and are nobody else's.
A Refusal names every blocking reason and the largest that would be possible; `never` tells "beyond this machine" from "not
now". Amounts are compared in millionths of a core, so that 50 x 0.01 and 100 x 0.02 are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from steelyard.model import words
from steelyard.model.job import Plan, Resources
from steelyard.model.machine import Core, Machine
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing
from steelyard.model.topology import Pair, PathClass, Topology
from steelyard.placement.devices import DeviceDemand, Used, choose_devices, make_demand
from steelyard.placement.gpus import GpuUse, find_supply
from steelyard.placement.near_cores import BoundMemory, make_supply
from steelyard.placement.pair_value import OUT_OF_USE
from steelyard.placement.shortage import check_devices, count_nics, explain_local_memory, find_device_blocks

_MICRO = 1_000_000


class Largest(msgspec.Struct, frozen=True):
    """The most that one demand may ask for (now, or of an empty machine when the refusal says never)."""

    #: share of the common cores
    cpus: float
    exclusive_cores: int
    memory_bytes: int
    #: whole GPUs, shares or MIG instances, of the kind that was asked
    gpus: int = 0
    nics: int = 0


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
    #: logical CPUs of all other cores
    held_cpus: frozenset[int] = frozenset()


def place(machine: Machine, running: Sequence[tuple[Resources, Plan]], demand: Resources) -> Plan | Refusal:
    """A plan for `demand` beside what runs and what is out of use, or a Refusal. Without a topology the machine has no GPUs and
    no cards to give."""
    view = _view(machine)
    asked = _ask(demand)
    never = _check_machine(machine, demand, view, asked)
    if never is not None:
        return never
    booked = _book(machine, running)
    used = _use(running, booked, _out_of_use(machine, asked))
    cores = asked.cores
    blocks: list[tuple[Reason, str]] = []
    largest = _largest(machine, booked, view, used, asked)
    if demand.whole_cores and cores > largest.exclusive_cores:
        free = f"{largest.exclusive_cores} free now (one core always stays shared)"
        blocks.append((Reason.NO_CORES_LEFT, f"{words.count(cores, 'whole core')} asked, {free}"))
    if not demand.whole_cores and _micro(demand.cpus) > _micro_or_zero(largest.cpus):
        free = f"{largest.cpus:g} of {len(booked.free_cores)} shared cores free now"
        blocks.append((Reason.NO_CORES_LEFT, f"{demand.cpus:g} cores asked, {free}"))
    if demand.memory_bytes is not None and demand.memory_bytes > largest.memory_bytes:
        free = f"{words.exact_size(largest.memory_bytes)} free now"
        blocks.append((Reason.NO_MEMORY_LEFT, f"{words.exact_size(demand.memory_bytes)} of memory asked, {free}"))
    blocks += find_device_blocks(view, used, asked)
    if blocks:
        return _refuse(_say_what_is_out(machine, blocks), False, largest)
    if not demand.whole_cores and demand.gpus is None and not demand.nics:
        return Plan(
            share=demand.cpus,
            memory_bytes=demand.memory_bytes,
            preemptible=demand.preemptible,
            io_max_bytes_s=demand.io_max_bytes_s,
        )
    chosen = choose_devices(view, used, asked)
    if chosen is None:
        beyond = choose_devices(view, Used(), asked) is None
        if beyond:
            largest = _largest(machine, _Booked(machine.cores, 0, 0), view, Used(), asked)
        return _refuse([explain_local_memory(asked)], beyond, largest)
    if chosen.bottleneck is not None and chosen.bottleneck.gbps == OUT_OF_USE:
        sentence = f"{len(chosen.gpus)} GPUs asked, and no {len(chosen.gpus)} are free whose links to each other are all in use"
        return _refuse(_say_what_is_out(machine, [(Reason.NO_GPUS_LEFT, sentence)]), False, largest)
    whole = demand.whole_cores
    return Plan(
        cpus=chosen.cores if whole else (),
        share=float(cores) if whole else demand.cpus,
        memory_bytes=demand.memory_bytes,
        memory_nodes=chosen.memory_nodes if whole else (),
        timing=demand.timing,
        gpus=chosen.gpus,
        nics=chosen.nics,
        gpu_fraction=chosen.gpu_fraction,
        mig_instances=chosen.mig_instances,
        io_max_bytes_s=demand.io_max_bytes_s,
    )


def check_plan(
    machine: Machine,
    running: Sequence[tuple[Resources, Plan]],
    demand: Resources,
    plan: Plan,
) -> tuple[str, ...]:
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
    view, used = _view(machine), _use(running, booked)
    if demand.timing is not Timing.BEST_EFFORT and demand.memory_bytes is not None and plan.memory_nodes:
        local = make_supply((), view.numa_nodes, bound=used.bound, without=view.gpu_memory_nodes)
        # Where no node tells its memory nothing was bound to any.
        if any(local.memory.values()) and local.free_memory(plan.memory_nodes) < demand.memory_bytes:
            findings.append(f"the memory of NUMA nodes {list(plan.memory_nodes)} would be overbooked")
    findings += check_devices(view, used, plan)
    return tuple(findings)


def _check_machine(machine: Machine, demand: Resources, view: Topology, asked: DeviceDemand) -> Refusal | None:
    """Is it beyond the machine itself?"""
    total = len(machine.cores)
    blocks: list[tuple[Reason, str]] = []
    if demand.whole_cores and asked.cores > total - 1:
        sentence = (
            f"this machine has {words.count(total, 'core')} and one always stays shared, so at most "
            f"{total - 1} can be exclusive; {asked.cores} asked"
        )
        blocks.append((Reason.CORES_BEYOND_MACHINE, sentence))
    elif _micro(demand.cpus) > total * _MICRO:
        blocks.append((Reason.CORES_BEYOND_MACHINE, f"this machine has {words.count(total, 'core')}; {demand.cpus:g} asked"))
    if demand.memory_bytes is not None and demand.memory_bytes > machine.memory_bytes:
        sentence = (
            f"this machine has {words.exact_size(machine.memory_bytes)} of memory; {words.exact_size(demand.memory_bytes)} asked"
        )
        blocks.append((Reason.MEMORY_BEYOND_MACHINE, sentence))
    blocks += find_device_blocks(view, Used(), asked, now=False)
    if not blocks:
        return None
    return _refuse(blocks, True, _largest(machine, _Booked(machine.cores, 0, 0), view, Used(), asked))


def _refuse(blocks: Sequence[tuple[Reason, str]], never: bool, largest: Largest) -> Refusal:
    return Refusal(
        reasons=tuple(reason for reason, _ in blocks),
        never=never,
        detail="; ".join(sentence for _, sentence in blocks),
        largest=largest,
    )


def _out_of_use(machine: Machine, asked: DeviceDemand) -> frozenset[str]:
    """Devices that may not be chosen. A card that may not be used with some GPU is left out where GPUs are asked for too."""
    nics = {nic.id for nic in machine.topology.nics} if machine.topology is not None and asked.gpus is not None else set[str]()
    return frozenset(machine.blocked) | {device for pair in machine.blocked_pairs for device in pair if device in nics}


def _say_what_is_out(machine: Machine, blocks: list[tuple[Reason, str]]) -> list[tuple[Reason, str]]:
    sick = [*machine.blocked, *(f"{a} with {b}" for a, b in machine.blocked_pairs)]
    if not sick:
        return blocks
    *before, (reason, sentence) = blocks
    return [*before, (reason, f"{sentence} (out of use: {', '.join(sick)}; `steelyard check` says why)")]


def _view(machine: Machine) -> Topology:
    """The topology with the machine's own cores and nodes: what is booked are those."""
    topology = machine.topology
    lost = {frozenset(pair) for pair in machine.blocked_pairs}
    pairs = topology.pairs if topology is not None else ()
    if lost:
        pairs = tuple(
            Pair(pair.a, pair.b, PathClass.SYS, gbps=OUT_OF_USE) if frozenset((pair.a, pair.b)) in lost else pair
            for pair in pairs
        )
    return msgspec.structs.replace(
        topology or Topology(),
        pairs=pairs,
        cores=machine.cores,
        numa_nodes=machine.numa_nodes,
        numa_distances=topology.numa_distances if topology is not None and _same_nodes(machine, topology) else (),
        memory_bytes=machine.memory_bytes,
    )


def _same_nodes(machine: Machine, topology: Topology) -> bool:
    return [node.id for node in machine.numa_nodes] == [node.id for node in topology.numa_nodes]


def _ask(demand: Resources) -> DeviceDemand:
    cores = max(1, -(-_micro(demand.cpus) // _MICRO))
    return make_demand(demand.gpus, demand.nics, cores, demand.memory_bytes, demand.timing, demand.exclusive)


def _book(machine: Machine, running: Sequence[tuple[Resources, Plan]]) -> _Booked:
    held = {cpu for _, plan in running for cpu in plan.cpus} | _offline(machine)
    free = tuple(core for core in machine.cores if not held & set(core.cpus) and f"numa:{core.numa_node}" not in machine.blocked)
    return _Booked(
        free_cores=free,
        held_cpus=frozenset(machine.cpus) - {cpu for core in free for cpu in core.cpus},
        share_micro=sum(_micro(asked.cpus) for asked, plan in running if not plan.cpus),
        memory_bytes=sum(asked.memory_bytes or 0 for asked, _ in running),
    )


def _offline(machine: Machine) -> set[int]:
    """CPUs that went away since the machine was observed, as `cpu:3` in what is out of use."""
    return {int(name[4:]) for name in machine.blocked if name.startswith("cpu:")}


def _use(running: Sequence[tuple[Resources, Plan]], booked: _Booked, out: frozenset[str] = frozenset()) -> Used:
    """What the running plans hold of devices, cores and nodes, and what is out of use."""
    shares: dict[str, float] = dict.fromkeys(out, 1.0)
    for _, plan in running:
        # a MIG instance is booked by its own id; its GPU stays open for its other instances
        for gpu in () if plan.mig_instances else plan.gpus:
            shares[gpu] = shares.get(gpu, 0.0) + plan.gpu_fraction
    return Used(
        gpus=GpuUse(shares, frozenset(name for _, plan in running for name in plan.mig_instances)),
        nics=out | {nic for _, plan in running for nic in plan.nics},
        cpus=booked.held_cpus,
        memory_bytes=booked.memory_bytes,
        bound=tuple(
            BoundMemory(frozenset(plan.memory_nodes), asked.memory_bytes)
            for asked, plan in running
            if plan.memory_nodes and asked.memory_bytes
        ),
        shared_cores=_needed_shared(booked),
    )


def _needed_shared(booked: _Booked) -> int:
    return max(1, -(-booked.share_micro // _MICRO))


def _largest(machine: Machine, booked: _Booked, view: Topology, used: Used, asked: DeviceDemand) -> Largest:
    free = len(booked.free_cores)
    return Largest(
        cpus=max(0, free * _MICRO - booked.share_micro) / _MICRO,
        exclusive_cores=max(0, free - _needed_shared(booked)),
        memory_bytes=max(0, machine.memory_bytes - booked.memory_bytes),
        gpus=0 if asked.gpus is None else find_supply(view.gpus, used.gpus, asked.gpus).possible,
        nics=count_nics(view, used) if asked.nics else 0,
    )


def _micro(cpus: float) -> int:
    """Never zero, so that many tiny shares still add up."""
    return max(1, round(cpus * _MICRO))


def _micro_or_zero(cpus: float) -> int:
    return round(cpus * _MICRO)
