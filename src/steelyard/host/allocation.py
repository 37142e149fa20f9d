"""What of this machine did a batch system give us? The machine as a pilot may offer it: what the allocation holds, and no more.

CPUs need no word: we run inside the allocation's, and see no others. Memory and GPUs are told by Slurm's variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from steelyard.host.device_nodes import DeviceNode
from steelyard.model.machine import Machine
from steelyard.model.topology import Gpu, Topology

#: what agent, spawner and gateway take of an allocation's memory, which has to hold them too; never more than half of it
OWN_BYTES = 256 << 20


def limit_machine(machine: Machine, environ: Mapping[str, str]) -> Machine:
    given = min(machine.memory_bytes, _read_memory(environ, len(machine.cpus)) or machine.memory_bytes)
    # by that name Slurm's commands know it
    name = environ.get("SLURMD_NODENAME") or machine.hostname
    return msgspec.structs.replace(machine, hostname=name, memory_bytes=given - min(OWN_BYTES, given // 2))


def limit_topology(topology: Topology, environ: Mapping[str, str], nodes: Sequence[DeviceNode]) -> Topology:
    """`nodes`: device files of the machine's GPUs, by which Slurm numbers them."""
    mine = _find_gpus(topology.gpus, environ, nodes)
    gone = {gpu.id for gpu in topology.gpus} - {gpu.id for gpu in mine}
    pairs = tuple(pair for pair in topology.pairs if not gone & {pair.a, pair.b})
    return msgspec.structs.replace(topology, gpus=mine, pairs=pairs)


def _read_memory(environ: Mapping[str, str], cpus: int) -> int | None:
    """Slurm counts in MiB; 0 is all of the node."""
    for name, times in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpus)):
        value = environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value) * times << 20
    return None


def _find_gpus(gpus: Sequence[Gpu], environ: Mapping[str, str], nodes: Sequence[DeviceNode]) -> tuple[Gpu, ...]:
    """Where Slurm closes the files of others, those that are seen are ours."""
    # on a node of several what the batch script was told is the first one's
    numbers = _read_list(environ.get("SLURM_STEP_GPUS") or environ.get("SLURM_JOB_GPUS", ""))
    if len(numbers) == len(gpus):
        return tuple(gpus)
    mine = {node.pci for node in nodes if (match := re.fullmatch(r"/dev/nvidia(\d+)", node.path)) and int(match[1]) in numbers}
    return tuple(gpu for gpu in gpus if gpu.pci in mine)


def _read_list(text: str) -> set[int]:
    """`0,2-3`."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d{1,6})(?:-(\d{1,6}))?", text):
        found |= set(range(int(first), min(int(last or first), int(first) + 4096) + 1))
    return found
