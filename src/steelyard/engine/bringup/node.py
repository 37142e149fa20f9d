"""What does Slurm have to know of one machine? Sockets, cores, threads, memory, GPUs, from its topology document. Pure.

Slurm counts as slurmd does (hwloc): cores per socket and threads per core are whole numbers, and what is over in an irregular
machine (hybrid cores, cores taken offline) is not used. Its "socket" may be a NUMA node or a level-3 cache (`Socketing`), for
whole cores and GPUs near each other are found by socket.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from steelyard.model.cluster import HostEntry, SeenHost
from steelyard.model.cores import Core
from steelyard.model.topology import Gpu, PathClass, Topology

MIB = 1 << 20
#: kept from jobs for the system, slurmd and the page cache: a part of the memory within bounds
_RESERVE_PART, _RESERVE_MIN_MIB, _RESERVE_MAX_MIB = 32, 512, 16 * 1024
#: words in names of GPUs that tell no model
# fmt: off
_BRANDS = frozenset({
    "nvidia", "amd", "ati", "intel", "corporation", "inc", "advanced", "micro", "devices", "tesla", "geforce", "quadro",
    "instinct", "radeon", "pro", "data", "center",
})
# fmt: on


class Socketing(StrEnum):
    """What Slurm calls a socket: the value for SlurmdParameters, "" for the package."""

    PACKAGE = ""
    NUMA = "numa_node_as_socket"
    L3 = "l3cache_as_socket"


class NodeGpu(msgspec.Struct, frozen=True):
    file: str
    #: Slurm's Type: `h100`
    type: str
    #: bonded links to each GPU of the machine in this order, -1 for itself; () where there are none at all
    links: tuple[int, ...] = ()
    #: positions of the cores near it, as Slurm numbers them; () where unknown
    cores: tuple[int, ...] = ()


class Node(msgspec.Struct, frozen=True):
    name: str
    address: str
    sockets: int
    cores_per_socket: int
    threads_per_core: int
    real_memory_mib: int
    reserve_mib: int
    gpus: tuple[NodeGpu, ...] = ()
    features: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    #: sentences about this machine that stand beside its lines
    notes: tuple[str, ...] = ()

    @property
    def cpus(self) -> int:
        return self.sockets * self.cores_per_socket * self.threads_per_core

    @property
    def gres(self) -> str:
        """`gpu:h100:8`; "" without GPUs. Types in the order of the machine's GPUs."""
        types = [gpu.type for gpu in self.gpus]
        return ",".join(f"gpu:{each}:{types.count(each)}" for each in dict.fromkeys(types))


def choose_socketing(machines: Sequence[Topology]) -> tuple[Socketing, str]:
    """What to call a socket in a cluster of these machines (Slurm has one answer for all), and why."""
    helped = sum(_splits(_numa_groups(machine), machine) for machine in machines)
    bare = sum(any(not node.cpus for node in machine.numa_nodes) for machine in machines)
    if helped and not bare:
        return Socketing.NUMA, f"{_machines(helped)} more NUMA nodes than sockets, and memory is near by NUMA node"
    shared = sum(_splits(_l3_groups(machine), machine, cores_min=2) for machine in machines)
    if shared:
        return (
            Socketing.L3,
            f"{_machines(shared)} several level-3 caches in a socket: cores that share one are handed out together",
        )
    if helped:
        return Socketing.PACKAGE, f"{_machines(bare)} NUMA nodes without CPUs, which slurmd can't take for sockets"
    return Socketing.PACKAGE, ""


def _machines(count: int) -> str:
    return f"{count} machine has" if count == 1 else f"{count} machines have"


def _splits(groups: Iterable[frozenset[int]], machine: Topology, cores_min: int = 1) -> bool:
    """Do these groups of CPUs cut packages into several parts of one size, and leave nothing over?"""
    found = set(groups)
    cores = [sum(core.cpus[0] in group for core in machine.cores) for group in found]
    return (
        len(found) > _package_count(machine)
        and len(set(cores)) == 1
        and cores[0] >= cores_min
        and cores[0] * len(cores) == len(machine.cores)
    )


def _numa_groups(machine: Topology) -> set[frozenset[int]]:
    return {frozenset(node.cpus) for node in machine.numa_nodes if node.cpus}


def _l3_groups(machine: Topology) -> set[frozenset[int]]:
    return {frozenset(cache.cpus) for cache in machine.caches if cache.level == 3 and cache.cpus}


def _package_count(machine: Topology) -> int:
    return machine.packages or len({core.package for core in machine.cores}) or 1


def make_node(entry: HostEntry, seen: SeenHost, socketing: Socketing) -> Node:
    """`seen` has a topology with cores and memory (`plan.py` leaves out what has not)."""
    machine = seen.topology
    assert machine is not None and machine.cores and machine.memory_bytes
    sockets = len(_sockets(machine, socketing))
    per_socket = max(1, len(machine.cores) // sockets)
    threads = max(1, machine.threads // len(machine.cores))
    total = machine.memory_bytes // MIB
    reserve = _reserve_mib(total) if entry.reserve_bytes is None else entry.reserve_bytes // MIB
    gpus, notes = _gpus(machine, seen, socketing)
    lost = machine.threads - sockets * per_socket * threads
    if lost:
        notes = (f"Its sockets are unlike each other: Slurm can't name {lost} of its {machine.threads} CPUs.", *notes)
    return Node(
        name=seen.name,
        address=entry.address or seen.address,
        sockets=sockets,
        cores_per_socket=per_socket,
        threads_per_core=threads,
        real_memory_mib=max(1, total - reserve),
        reserve_mib=reserve,
        gpus=gpus,
        features=tuple(dict.fromkeys([*_features(machine, gpus), *entry.features])),
        partitions=entry.partitions,
        notes=notes,
    )


def _reserve_mib(total_mib: int) -> int:
    return min(_RESERVE_MAX_MIB, max(total_mib // _RESERVE_PART, min(_RESERVE_MIN_MIB, total_mib // 4)))


def _sockets(machine: Topology, socketing: Socketing) -> list[frozenset[int]]:
    """Groups of CPUs, as slurmd finds them; the whole machine where the kernel tells no group."""
    packages = [frozenset(cpu for core in of for cpu in core.cpus) for of in _by_package(machine)]
    groups = _numa_groups(machine) if socketing is Socketing.NUMA else _l3_groups(machine) if socketing is Socketing.L3 else set()
    # one NUMA node over several packages is no socket: slurmd keeps to the packages then
    if len(groups) < len(packages):
        groups = set(packages)
    return sorted(groups, key=lambda group: (next(at for at, package in enumerate(packages) if group & package), min(group)))


def _by_package(machine: Topology) -> list[list[Core]]:
    ordered = sorted(machine.cores, key=lambda core: (core.package, core.cpus))
    return [list(of) for _, of in itertools.groupby(ordered, key=lambda core: core.package)]


def _gpus(machine: Topology, seen: SeenHost, socketing: Socketing) -> tuple[tuple[NodeGpu, ...], tuple[str, ...]]:
    """Ordered by device file, as slurmd sorts them, and why others are left away."""
    notes: list[str] = []
    whole: list[tuple[str, Gpu]] = []
    for gpu in machine.gpus:
        file = seen.gpu_files.get(gpu.pci or "")
        if file is None:
            notes.append(f"{gpu.name or 'A GPU'} at {gpu.id} is left away: it has no device file, so no driver runs it.")
        elif gpu.mig:
            notes.append(
                f"{gpu.name or 'A GPU'} at {gpu.id} is left away: it is cut by MIG, and instances are not handed out here."
            )
        elif all(file != other for other, _ in whole):
            whole.append((file, gpu))
    whole.sort(key=lambda each: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", each[0])])
    links = {
        frozenset((pair.a, pair.b)): pair.links or 1 for pair in machine.pairs if pair.path in (PathClass.NV, PathClass.XGMI)
    }
    places = _core_places(machine, socketing)
    ids = [gpu.id for _, gpu in whole]
    found: list[NodeGpu] = []
    for file, gpu in whole:
        row = tuple(-1 if other == gpu.id else links.get(frozenset((gpu.id, other)), 0) for other in ids)
        near = tuple(place for place, core in places if core.numa_node == gpu.numa_node)
        everywhere = len(near) == len(places)
        found.append(
            NodeGpu(file, gpu_type(gpu.name), row if any(count > 0 for count in row) else (), () if everywhere else near)
        )
    return tuple(found), tuple(notes)


def _core_places(machine: Topology, socketing: Socketing) -> list[tuple[int, Core]]:
    """Slurm's number of each core: socket by socket, in the order of their first CPUs."""
    sockets = _sockets(machine, socketing)
    at = {cpu: place for place, group in enumerate(sockets) for cpu in group}
    return list(enumerate(sorted(machine.cores, key=lambda core: (at.get(core.cpus[0], len(sockets)), core.cpus))))


def gpu_type(name: str) -> str:
    """`NVIDIA H100 80GB HBM3` -> `h100`, `NVIDIA GeForce RTX 4090` -> `rtx4090`; `gpu` for a name that tells no model."""
    taken = ""
    for word in re.findall(r"[a-z0-9]+", name.lower()):
        if word in _BRANDS:
            continue
        taken += word
        if any(letter.isdigit() for letter in word):
            return taken[:40]
    return "gpu"


def _features(machine: Topology, gpus: Sequence[NodeGpu]) -> list[str]:
    """For `--constraint`: what jobs may insist on that no count tells."""
    ports = [port for nic in machine.nics if nic.rdma for port in nic.ports if port.up is not False]
    found = list(dict.fromkeys(gpu.type for gpu in gpus))
    if any(gpu.links for gpu in gpus):
        found.append("nvlink" if any(pair.path is PathClass.NV for pair in machine.pairs) else "xgmi")
    found += ["infiniband"] if any(port.link == "InfiniBand" for port in ports) else []
    found += ["roce"] if any(port.link == "Ethernet" for port in ports) else []
    return found + (["smt"] if machine.threads > len(machine.cores) else [])
