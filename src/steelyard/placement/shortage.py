"""A plan for devices, cores and memory of one machine, or why there is none and what the most would be?

Looks twice: at the machine as it is now, and as if it were empty. What an empty machine can't give either is refused for ever
(`never`), with the reasons that hold even then. Every blocking reason is named, one sentence each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from steelyard.model import words
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.model.topology import Topology
from steelyard.placement.devices import DeviceDemand, DevicePlan, Used, choose_devices, free_cores
from steelyard.placement.gpus import explain_shortage, find_supply, instance_id
from steelyard.placement.near_nics import is_down


class DeviceRefusal(msgspec.Struct, frozen=True):
    """No, with every blocking reason. `never`: even this machine empty could not give it."""

    reasons: tuple[Reason, ...]
    never: bool
    #: a sentence per reason
    detail: str
    #: the most of each by itself: `gpus` (of the kind asked), `nics`, `cores`, `memory_bytes` where known;
    #: of the empty machine where `never`
    largest_possible: dict[str, int]


def plan_devices(topology: Topology, used: Used, demand: DeviceDemand, alternatives: int = 0) -> DevicePlan | DeviceRefusal:
    """`alternatives`: how many next best sets of GPUs to name; they cost more time than the choice."""
    empty = Used()
    beyond = [*find_device_blocks(topology, empty, demand, now=False), *_find_core_blocks(topology, empty, demand, now=False)]
    if beyond:
        return _refuse(beyond, topology, empty, demand, never=True)
    blocks = [*find_device_blocks(topology, used, demand), *_find_core_blocks(topology, used, demand)]
    if blocks:
        return _refuse(blocks, topology, used, demand, never=False)
    plan = choose_devices(topology, used, demand, alternatives)
    if plan is not None:
        return plan
    never = choose_devices(topology, empty, demand) is None
    return _refuse([explain_local_memory(demand)], topology, empty if never else used, demand, never)


def find_device_blocks(topology: Topology, used: Used, demand: DeviceDemand, now: bool = True) -> list[tuple[Reason, str]]:
    """What GPUs and network cards stand in the way. `now`: of a machine in use; else of the empty one."""
    blocks: list[tuple[Reason, str]] = []
    if demand.gpus is not None:
        supply = find_supply(topology.gpus, used.gpus, demand.gpus)
        block = explain_shortage(topology.gpus, supply, demand.gpus, now)
        if block is not None:
            blocks.append(block)
    nics = count_nics(topology, used)
    if demand.nics > nics:
        reason = Reason.NO_NICS_LEFT if now else Reason.NICS_BEYOND_MACHINE
        blocks.append(
            (reason, f"{demand.nics} network cards asked, {nics} that are up {'free now' if now else 'on this machine'}")
        )
    return blocks


def count_nics(topology: Topology, used: Used) -> int:
    return sum(1 for nic in topology.nics if nic.id not in used.nics and not is_down(nic))


def explain_local_memory(demand: DeviceDemand) -> tuple[Reason, str]:
    return Reason.NO_MEMORY_LEFT, (
        f"{words.exact_size(demand.memory_bytes or 1)} of memory must be local to the NUMA nodes of {demand.cores} cores of its "
        "own, and no "
        "choice of cores has that much: ask for more cores, less memory or best-effort timing"
    )


def check_devices(topology: Topology, used: Used, plan: Plan) -> list[str]:
    """Why the plan's GPUs, shares, MIG instances and network cards can't be had (any more); empty when they can."""
    findings: list[str] = []
    gpus = {gpu.id: gpu for gpu in topology.gpus}
    instances = {instance_id(gpu, each) for gpu in topology.gpus for each in gpu.mig_instances}
    # a GPU of which several ranks of a gang have a share stands there once for each
    for name, times in Counter(plan.gpus).items():
        gpu = gpus.get(name)
        if gpu is None:
            findings.append(f"GPU {name} is no longer on this machine")
        elif not plan.mig_instances and (gpu.mig or gpu.mig_instances):
            findings.append(f"GPU {name} has MIG on and is given away in instances only")
        elif not used.gpus.has_room(name, 1.0 if plan.mig_instances else plan.gpu_fraction * times):
            findings.append(f"GPU {name} is not free")
    for name in plan.mig_instances:
        if name not in instances:
            findings.append(f"MIG instance {name} is no longer on this machine")
        elif name in used.gpus.instances:
            findings.append(f"MIG instance {name} is not free")
    nics = {nic.id: nic for nic in topology.nics}
    for name in plan.nics:
        if name not in nics:
            findings.append(f"network card {name} is no longer on this machine")
        elif name in used.nics or is_down(nics[name]):
            findings.append(f"network card {name} is not free, or is down")
    return findings


def _find_core_blocks(topology: Topology, used: Used, demand: DeviceDemand, now: bool = True) -> list[tuple[Reason, str]]:
    blocks: list[tuple[Reason, str]] = []
    when = "free now" if now else "on this machine"
    if demand.cores > _largest_cores(topology, used, demand):
        most = _largest_cores(topology, used, demand)
        rule = " (one always stays shared)" if demand.whole_cores else ""
        told = f"{most} {when}{rule}" if topology.cores else "no source tells the cores of this machine"
        blocks.append((Reason.NO_CORES_LEFT if now else Reason.CORES_BEYOND_MACHINE, f"{demand.cores} cores asked, {told}"))
    if demand.memory_bytes is not None and demand.memory_bytes > (_largest_memory(topology, used) or 0):
        most = _largest_memory(topology, used)
        told = "no source tells the memory of this machine" if most is None else f"{words.exact_size(most)} {when}"
        reason = Reason.NO_MEMORY_LEFT if now else Reason.MEMORY_BEYOND_MACHINE
        blocks.append((reason, f"{words.exact_size(demand.memory_bytes)} of memory asked, {told}"))
    return blocks


def _refuse(
    blocks: Sequence[tuple[Reason, str]], topology: Topology, used: Used, demand: DeviceDemand, never: bool
) -> DeviceRefusal:
    gpus = 0 if demand.gpus is None else find_supply(topology.gpus, used.gpus, demand.gpus).possible
    largest = {"nics": count_nics(topology, used), "cores": _largest_cores(topology, used, demand)}
    memory = _largest_memory(topology, used)
    if demand.gpus is not None:
        largest = {"gpus": gpus, **largest}
    if memory is not None:
        largest["memory_bytes"] = memory
    return DeviceRefusal(
        reasons=tuple(dict.fromkeys(reason for reason, _ in blocks)),
        never=never,
        detail="; ".join(sentence for _, sentence in blocks),
        largest_possible=largest,
    )


def _largest_cores(topology: Topology, used: Used, demand: DeviceDemand) -> int:
    return max(0, len(free_cores(topology, used)) - (used.shared_cores if demand.whole_cores else 0))


def _largest_memory(topology: Topology, used: Used) -> int | None:
    if topology.memory_bytes is None:
        return None
    return max(0, topology.memory_bytes - used.memory_bytes)
