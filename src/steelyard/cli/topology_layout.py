"""Which device is drawn inside which box? NUMA nodes hold PCIe switches, switches hold devices; for the tree and the picture.

Pure: a `Topology` in, nested groups out. Where a source tells no PCIe tree (a bare matrix), devices that are PIX to each other
share a box, because they share a switch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from steelyard.model.cores import Core, NumaNode
from steelyard.model.topology import Gpu, Nic, Nvme, Pair, PathClass, SwitchKind, Topology

Device = Gpu | Nic | Nvme


class Group(msgspec.Struct):
    """A PCIe switch with what hangs below it."""

    #: the switch's id; "" where only its existence is known
    id: str
    groups: list[Group] = []
    devices: list[Device] = []


class NodeGroup(msgspec.Struct):
    """A NUMA node with its cores and devices, or (`node` None) what no source attaches to a node."""

    node: NumaNode | None
    #: None where unknown or where the node spans several
    package: int | None
    cores: tuple[Core, ...]
    groups: list[Group]
    devices: list[Device]


class Mesh(msgspec.Struct, frozen=True):
    """GPUs joined pairwise by equal links: drawn as one bar instead of a link per pair."""

    gpus: tuple[str, ...]
    class_name: str
    gbps: float | None


def make_tree(topology: Topology) -> list[NodeGroup]:
    """One group per NUMA node, in order; a last one without a node for devices whose place is not known."""
    roots = _node_of_roots(topology)
    placed: dict[int | None, list[Device]] = {}
    devices = (*topology.gpus, *topology.nics, *topology.nvme)
    known = {node.id: node for node in topology.numa_nodes}
    # A source may place devices at nodes of which it tells nothing else.
    told = sorted({device.numa_node for device in devices if device.numa_node is not None} - known.keys())
    known |= {node: NumaNode(node, (), 0) for node in told}
    only = next(iter(known)) if len(known) == 1 else None
    for device in devices:
        node = device.numa_node if device.numa_node is not None else roots.get(device.id, only)
        placed.setdefault(node if node in known else None, []).append(device)
    nodes: list[NumaNode | None] = [*known.values(), *([None] if None in placed else [])]
    return [_make_node(topology, node, placed.get(None if node is None else node.id, [])) for node in nodes]


def find_meshes(topology: Topology) -> tuple[tuple[Mesh, ...], tuple[Pair, ...]]:
    """(groups of at least three GPUs that are all joined alike by NVLink or xGMI, the remaining links)."""
    fast = [pair for pair in topology.pairs if pair.path in (PathClass.NV, PathClass.XGMI)]
    meshes: list[Mesh] = []
    left: list[Pair] = []
    for key in dict.fromkeys((pair.class_name, pair.gbps) for pair in fast):
        alike = [pair for pair in fast if (pair.class_name, pair.gbps) == key]
        for part in _components(alike):
            inside = [pair for pair in alike if pair.a in part]
            if len(part) > 2 and len(inside) == len(part) * (len(part) - 1) // 2:
                meshes.append(Mesh(tuple(gpu.id for gpu in topology.gpus if gpu.id in part), *key))
            else:
                left += inside
    return tuple(meshes), tuple(left)


def short_names(topology: Topology) -> dict[str, str]:
    """`GPU0`, `NIC3`, `NVMe1` for each device, by address; the source's own words where it has no addresses."""
    names: dict[str, str] = {}
    for word, devices in (("GPU", topology.gpus), ("NIC", topology.nics), ("NVMe", topology.nvme)):
        for index, device in enumerate(devices):
            names[device.id] = f"{word}{index}" if device.pci or word == "NVMe" else device.id
    return names


def _node_of_roots(topology: Topology) -> dict[str, int]:
    """Device -> NUMA node of the root that it hangs below."""
    bridges = {bridge.id: bridge for bridge in topology.bridges}
    found: dict[str, int] = {}
    for device in (*topology.gpus, *topology.nics, *topology.nvme):
        road = _road(device.parent, {bridge.id: bridge.parent for bridge in topology.bridges})
        if road and (node := bridges[road[-1]].numa_node) is not None:
            found[device.id] = node
    return found


def _road(parent: str | None, parents: dict[str, str | None]) -> list[str]:
    road: list[str] = []
    while parent is not None and parent in parents and parent not in road:
        road.append(parent)
        parent = parents[parent]
    return road


def _make_node(topology: Topology, node: NumaNode | None, devices: Sequence[Device]) -> NodeGroup:
    cores = tuple(core for core in topology.cores if node is not None and set(core.cpus) <= set(node.cpus))
    packages = {core.package for core in cores}
    groups, loose = _under_switches(topology, devices)
    package = next(iter(packages)) if len(packages) == 1 and topology.packages is not None else None
    return NodeGroup(node=node, package=package, cores=cores, groups=groups, devices=loose)


def _under_switches(topology: Topology, devices: Sequence[Device]) -> tuple[list[Group], list[Device]]:
    """(the outermost switches with everything below them, devices that hang on no switch)."""
    if not topology.bridges:
        return _by_pix(topology, devices)
    switches = {switch.id for switch in topology.switches if switch.kind is SwitchKind.PCIE}
    parents = {bridge.id: bridge.parent for bridge in topology.bridges}
    made: dict[str, Group] = {}
    outer: list[Group] = []
    loose: list[Device] = []
    for device in devices:
        above = [bridge for bridge in _road(device.parent, parents) if bridge in switches]
        if not above:
            loose.append(device)
            continue
        level = outer
        for bridge in reversed(above):
            if bridge not in made:
                made[bridge] = Group(bridge)
                level.append(made[bridge])
            level = made[bridge].groups
        made[above[0]].devices.append(device)
    return outer, loose


def _by_pix(topology: Topology, devices: Sequence[Device]) -> tuple[list[Group], list[Device]]:
    ids = {device.id for device in devices}
    near = [pair for pair in topology.pairs if pair.path is PathClass.PIX and pair.a in ids and pair.b in ids]
    parts = _components(near)
    groups = [Group("", devices=[device for device in devices if device.id in part]) for part in parts]
    inside = {device for part in parts for device in part}
    return groups, [device for device in devices if device.id not in inside]


def _components(pairs: Sequence[Pair]) -> list[set[str]]:
    """Sets of ids that the pairs connect, in the order in which they appear."""
    parts: list[set[str]] = []
    for pair in pairs:
        touched = [part for part in parts if pair.a in part or pair.b in part]
        joined = {pair.a, pair.b}.union(*touched)
        parts = [part for part in parts if part not in touched] + [joined]
    return parts


def count_paths(topology: Topology) -> Counter[str]:
    """How many GPU pairs have each class."""
    gpus = {gpu.id for gpu in topology.gpus}
    return Counter(pair.class_name for pair in topology.pairs if pair.a in gpus and pair.b in gpus)
