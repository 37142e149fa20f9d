"""What machine does an hwloc XML file describe? Versions 1, 2 and 3, parsed here, so no hwloc library is needed.

This file reads packages, NUMA nodes, cores, caches and puts the parts together; `hwloc_io.py` reads the PCI tree and
`hwloc_links.py` the matrices. CPUs count where they are online and allowed: what the machine's `cpuset` holds, not its
`complete_cpuset`. A CPU stands at one NUMA node as in Linux, although hwloc lists it at each memory near it (DDR and HBM).
Serial numbers and network addresses are in these files and are never taken over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

import msgspec

from steelyard.errors import Refused
from steelyard.host.topology.gpu_memory import find_gpu_memory_nodes
from steelyard.host.topology.hwloc_io import Attached, HwlocDevices, read_devices
from steelyard.host.topology.hwloc_links import read_links, read_numa_distances
from steelyard.host.topology.hwloc_object import NUMBER_MAX, HwlocObject, as_mask, members
from steelyard.host.topology.pci import make_pcie_switches
from steelyard.host.topology.tree import make_pairs
from steelyard.host.topology.xml import parse_xml
from steelyard.model.machine import Cache, Core, NumaNode
from steelyard.model.topology import Topology

#: twice what Linux can be built for; more would cost time with every mask
CPUS_MAX = 16_384
NUMA_NODES_MAX = 1024
#: hwloc's numbers for `cache_type`, in the kernel's words
_CACHE_KINDS = ("Unified", "Data", "Instruction")
#: kinds that hang on the tree beside CPUs and memory
_DEVICE_KINDS = ("Bridge", "PCIDev", "OSDev")


@dataclass(slots=True)
class _Found:
    """The objects of the tree in the file's order."""

    packages: list[HwlocObject] = field(default_factory=list)
    nodes: list[HwlocObject] = field(default_factory=list)
    #: (logical CPUs, package); CPUs outside any core stand alone
    cores: list[tuple[list[int], int]] = field(default_factory=list)
    cpus: set[int] = field(default_factory=set)
    lone_cpus: int = 0
    caches: list[tuple[HwlocObject, list[int]]] = field(default_factory=list)
    #: devices with what they are attached to
    devices: list[tuple[HwlocObject, HwlocObject]] = field(default_factory=list)


def read_hwloc_xml(text: str, source: str) -> Topology:
    """Raises `Refused` for what is cut off, illegal, of a version above 3 or no hwloc file at all."""
    root = parse_xml(text, source)
    version = _version(root, source)
    tops = root.findall("object")
    if len(tops) != 1 or tops[0].get("type") not in ("Machine", "System"):
        raise Refused(f"{source} describes {len(tops)} top objects instead of one Machine, so it is not read.", code="illegal")
    machine = HwlocObject(tops[0], source)
    found = _Found()
    _walk(machine, found, package=0, core=None)
    usable, notes = _usable(machine, found)
    homes = _homes(found.nodes, usable)
    nodes, memory, more = _numa_nodes(machine, found.nodes, homes, usable)
    notes += more
    devices = read_devices(_places(found, nodes, usable), version, source)
    links = read_links(root, devices, source)
    gpus = tuple(msgspec.structs.replace(gpu, links=links.counts.get(gpu.id)) for gpu in devices.gpus)
    own = find_gpu_memory_nodes(
        nodes,
        gpus,
        said={node.index() for node in found.nodes if node.subtype == "GPUMemory"},
        architecture=machine.infos().get("Architecture", ""),
    )
    return Topology(
        sources=(f"hwloc XML v{version} ({source})",),
        packages=len(found.packages) or None,
        numa_nodes=nodes,
        cores=_cores(found, homes, usable),
        smt_known=not found.lone_cpus,
        caches=_caches(found, usable),
        memory_bytes=None if memory is None else memory - sum(node.memory_bytes for node in nodes if node.id in own),
        gpus=gpus,
        nics=devices.nics,
        nvme=devices.nvme,
        bridges=devices.bridges,
        switches=(*devices.nvswitches, *make_pcie_switches(devices.bridges)),
        pairs=make_pairs(gpus, devices.nics, devices.bridges, links.pairs),
        numa_distances=read_numa_distances(root, machine, nodes, source),
        gpu_memory_nodes=own,
        notes=(*notes, *_device_notes(devices, found), *links.notes),
    )


def _version(root: Element, source: str) -> int:
    if root.tag != "topology":
        raise Refused(f"{source} is XML of another kind (<{root.tag[:40]}>); hwloc's begins with <topology>.", code="illegal")
    text = root.get("version", "1.0")
    match = re.fullmatch(r"([0-9]{1,3})(\.[0-9]{1,9})*", text)
    if match is None or not 1 <= int(match[1]) <= 3:
        raise Refused(f"{source} is hwloc XML of version {text[:20]!r}; versions 1, 2 and 3 are read.", code="illegal")
    return int(match[1])


def _walk(at: HwlocObject, found: _Found, package: int, core: list[int] | None) -> list[int]:
    """Collects everything below `at`; returns the CPUs below it."""
    below: list[int] = []
    if at.kind in ("Package", "Socket"):
        number = at.number("os_index")
        package = len(found.packages) if number is None else number
        found.packages.append(at)
    elif at.kind == "NUMANode":
        found.nodes.append(at)
    elif at.kind == "Core":
        core = []
        found.cores.append((core, package))
    elif at.kind == "PU":
        cpu = at.index()
        if cpu in found.cpus:
            raise Refused(f"{at.source}: the logical CPU {cpu} stands in two places.", code="illegal")
        found.cpus.add(cpu)
        below.append(cpu)
        if core is None:
            found.lone_cpus += 1
            found.cores.append(([cpu], package))
        else:
            core.append(cpu)
        _check_counts(found, at.source)
    for child in at.children():
        if child.kind in _DEVICE_KINDS:
            found.devices.append((child, at))
        else:
            below += _walk(child, found, package, core)
    if at.kind.endswith("Cache") and at.kind != "MemCache":
        found.caches.append((at, below))
    return below


def _check_counts(found: _Found, source: str) -> None:
    if len(found.cpus) > CPUS_MAX or len(found.nodes) > NUMA_NODES_MAX:
        raise Refused(f"{source} has more than {CPUS_MAX} CPUs or {NUMA_NODES_MAX} NUMA nodes: it is not read.", code="too-large")


def _usable(machine: HwlocObject, found: _Found) -> tuple[frozenset[int], list[str]]:
    """The CPUs that are online and allowed, with a sentence about others that the file lists."""
    _check_counts(found, machine.source)
    mask = as_mask(found.cpus)
    for attribute in ("cpuset", "online_cpuset", "allowed_cpuset"):
        told = machine.mask(attribute)
        mask &= -1 if told is None else told
    usable = frozenset(members(mask))
    left_out = len(found.cpus) - len(usable)
    return usable, [f"{left_out} logical CPUs of the file are offline or not allowed; they are left out."] if left_out else []


def _homes(nodes: Sequence[HwlocObject], usable: frozenset[int]) -> dict[int, int]:
    """CPU -> its NUMA node: ordinary memory before special kinds (hwloc names them in `subtype`), then the lowest number."""
    homes: dict[int, int] = {}
    left = as_mask(usable)
    for node in sorted(nodes, key=lambda node: (node.subtype not in ("", "DRAM"), node.index())):
        mine = left & (node.mask("cpuset") or 0)
        left &= ~mine
        homes.update((cpu, node.index()) for cpu in members(mine))
    return homes


def _numa_nodes(
    machine: HwlocObject, objects: Sequence[HwlocObject], homes: dict[int, int], usable: frozenset[int]
) -> tuple[tuple[NumaNode, ...], int | None, list[str]]:
    """(nodes by number, memory in all, notes). A version 1 file of a machine without NUMA has its memory at the machine."""
    if not objects:
        memory = _memory(machine)
        return (NumaNode(id=0, cpus=tuple(sorted(usable)), memory_bytes=memory or 0),), memory, []
    cpus_of: dict[int, list[int]] = {node.index(): [] for node in objects}
    if len(cpus_of) < len(objects):
        raise Refused(f"{machine.source}: two NUMA nodes have the same number.", code="illegal")
    for cpu in sorted(homes):
        cpus_of[homes[cpu]].append(cpu)
    sizes = {node.index(): _memory(node) for node in objects}
    nodes = tuple(NumaNode(id=at, cpus=tuple(cpus_of[at]), memory_bytes=sizes[at] or 0) for at in sorted(sizes))
    known = [size for size in sizes.values() if size is not None]
    notes = [] if known else ["The file tells no memory sizes."]
    notes += [
        f"NUMA node {node.index()} is {node.subtype}."
        for node in sorted(objects, key=lambda node: node.index())
        if node.subtype not in ("", "DRAM")
    ]
    return nodes, sum(known) if known else None, notes


def _memory(at: HwlocObject) -> int | None:
    """Bytes of memory right at this object; None where the file does not tell."""
    if (local := at.number("local_memory")) is not None:
        return local
    pages = [HwlocObject(page, at.source) for page in at.element.iterfind("page_type")]
    total = sum((page.number("size") or 0) * (page.number("count") or 0) for page in pages)
    return total if 0 < total <= NUMBER_MAX else None


def _cores(found: _Found, homes: dict[int, int], usable: Collection[int]) -> tuple[Core, ...]:
    cores: list[Core] = []
    for members_, package in found.cores:
        cpus = tuple(sorted(cpu for cpu in members_ if cpu in usable))
        if cpus:
            cores.append(Core(cpus=cpus, package=package, numa_node=homes.get(cpus[0], 0)))
    return tuple(sorted(cores, key=lambda core: core.cpus))


def _caches(found: _Found, usable: Collection[int]) -> tuple[Cache, ...]:
    caches: list[Cache] = []
    for at, below in found.caches:
        level, size, kind = at.number("depth"), at.number("cache_size"), at.number("cache_type") or 0
        cpus = tuple(sorted(cpu for cpu in below if cpu in usable))
        if level is not None and size and cpus and kind < len(_CACHE_KINDS):
            caches.append(Cache(level=level, kind=_CACHE_KINDS[kind], size_bytes=size, cpus=cpus))
    return tuple(sorted(caches, key=lambda cache: (cache.level, cache.kind, cache.cpus)))


def _places(found: _Found, nodes: Sequence[NumaNode], usable: Collection[int]) -> list[Attached]:
    """Where each host bridge hangs: at one NUMA node, or at a part with several, which is no NUMA node."""
    homes = [node for node in nodes if node.cpus] or list(nodes)
    homes_mask, usable_mask = as_mask(node.id for node in homes), as_mask(usable)
    places: list[Attached] = []
    for device, owner in found.devices:
        nodeset, cpuset = owner.mask("nodeset") if found.nodes else None, owner.mask("cpuset")
        near = homes_mask & (-1 if nodeset is None else nodeset)
        if owner.kind == "NUMANode":
            near = 1 << owner.index()
        whole = owner.kind in ("Machine", "System") and len(homes) > 1
        places.append(
            Attached(
                device=device,
                numa_node=near.bit_length() - 1 if near.bit_count() == 1 else None,
                cpus_mask=0 if whole else usable_mask & (-1 if cpuset is None else cpuset),
            )
        )
    return places


def _device_notes(devices: HwlocDevices, found: _Found) -> list[str]:
    if not found.devices:
        return ["The file holds no devices: hwloc was run without I/O, or had none to see."]
    return list(devices.notes)
