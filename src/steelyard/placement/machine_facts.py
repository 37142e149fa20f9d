"""What of a machine stays the same whatever runs on it? Its view for placement, what is out of use, and what is beyond it.

Made once per `Room` and shared by the copies of it, so that thousands of questions about one machine read it once.
"""

from __future__ import annotations

import msgspec

from steelyard.model import words
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.job import Resources
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.model.topology import Pair, PathClass, Topology
from steelyard.placement.devices import DeviceDemand, Used, make_demand
from steelyard.placement.gpus import GpuUse, find_supply
from steelyard.placement.near_nics import is_down
from steelyard.placement.pair_value import OUT_OF_USE
from steelyard.placement.refusal import Largest, Refusal, make_refusal
from steelyard.placement.shortage import find_device_blocks

MICRO = 1_000_000


class MachineFacts:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        #: what plans name it by
        self.place = machine.place
        #: the topology with the machine's own cores and nodes: what is booked are those
        self.view = _view(machine)
        #: logical CPU -> place of its core in `machine.cores`
        self.core_of = {cpu: place for place, core in enumerate(machine.cores) for cpu in core.cpus}
        #: per core 1 where it may not be given: it went away since the machine was observed, or its memory is out of use
        self.closed = _closed(machine)
        self.nics_up = tuple(nic.id for nic in self.view.nics if not is_down(nic))
        self._out = frozenset(machine.blocked)
        nics = {nic.id for nic in self.view.nics}
        self._out_beside_gpus = self._out | {device for pair in machine.blocked_pairs for device in pair if device in nics}
        self._possible: dict[GpuDemand, int] = {}

    def out_of_use(self, with_gpus: bool) -> frozenset[str]:
        """Devices that may not be chosen. A card that may not be used with some GPU is left out where GPUs are asked for too."""
        return self._out_beside_gpus if with_gpus else self._out

    def check(self, demand: Resources, asked: DeviceDemand) -> Refusal | None:
        """Is it beyond the machine itself, even if nothing ran on it?"""
        machine, total = self.machine, len(self.machine.cores)
        blocks: list[tuple[Reason, str]] = []
        if demand.whole_cores and asked.cores > total - 1:
            sentence = (
                f"this machine has {words.count(total, 'core')} and one always stays shared, so at most "
                f"{total - 1} can be exclusive; {asked.cores} asked"
            )
            blocks.append((Reason.CORES_BEYOND_MACHINE, sentence))
        elif to_micro(demand.cpus) > total * MICRO:
            blocks.append((Reason.CORES_BEYOND_MACHINE, f"this machine has {words.count(total, 'core')}; {demand.cpus:g} asked"))
        if demand.memory_bytes is not None and demand.memory_bytes > machine.memory_bytes:
            has, wants = words.exact_size(machine.memory_bytes), words.exact_size(demand.memory_bytes)
            blocks.append((Reason.MEMORY_BEYOND_MACHINE, f"this machine has {has} of memory; {wants} asked"))
        if self._lacks_devices(asked):
            blocks += find_device_blocks(self.view, Used(), asked, now=False)
        return make_refusal(blocks, True, self.largest(asked)) if blocks else None

    def largest(self, asked: DeviceDemand) -> Largest:
        """Of the empty machine."""
        total = len(self.machine.cores)
        return Largest(
            cpus=float(total),
            exclusive_cores=max(0, total - 1),
            memory_bytes=self.machine.memory_bytes,
            gpus=0 if asked.gpus is None else self._possible_gpus(asked.gpus),
            nics=len(self.nics_up) if asked.nics else 0,
        )

    def _lacks_devices(self, asked: DeviceDemand) -> bool:
        return asked.nics > len(self.nics_up) or (asked.gpus is not None and self._possible_gpus(asked.gpus) < asked.gpus.count)

    def _possible_gpus(self, gpus: GpuDemand) -> int:
        if gpus not in self._possible:
            self._possible[gpus] = find_supply(self.view.gpus, GpuUse(), gpus).possible
        return self._possible[gpus]


def make_asked(demand: Resources) -> DeviceDemand:
    return make_demand(demand.gpus, demand.nics, count_cores(demand.cpus), demand.memory_bytes, demand.timing, demand.exclusive)


def count_cores(cpus: float) -> int:
    """Whole cores for so much."""
    return max(1, -(-to_micro(cpus) // MICRO))


def to_micro(cpus: float) -> int:
    """Never zero, so that many tiny shares still add up."""
    return max(1, round(cpus * MICRO))


def _view(machine: Machine) -> Topology:
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


def _closed(machine: Machine) -> tuple[int, ...]:
    gone = {int(name[4:]) for name in machine.blocked if name.startswith("cpu:")}
    return tuple(int(not gone.isdisjoint(core.cpus) or f"numa:{core.numa_node}" in machine.blocked) for core in machine.cores)
