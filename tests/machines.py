"""Small machines of our own, as a reader would describe them, so that the suite means something without the recorded ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from steelyard.host.topology.tree import make_pairs
from steelyard.model.cores import Core, NumaNode
from steelyard.model.ids import MachineId
from steelyard.model.machine import Isolation, Machine
from steelyard.model.topology import (
    Bridge,
    BridgeKind,
    Gpu,
    Nic,
    Nvme,
    Pair,
    PathClass,
    Port,
    Switch,
    SwitchKind,
    Topology,
)

GIB = 1 << 30

#: (position of a device, position of another) -> path, bonded links, Gbit/s. GPUs come first, then NICs.
Wiring = Callable[[int, int], tuple[PathClass, int, float | None]]


def make_machine(**fields: Any) -> Machine:
    """One of which nothing is told but these."""
    told = {
        "id": MachineId("m"), "boot_id": "b", "hostname": "h", "kernel": "k", "cpu_model": "c", "cores": (), "caches": (),
        "numa_nodes": (), "memory_bytes": 0, "devices": (), "virtualisation": "unknown", "virtualisation_detail": "",
        "isolation": Isolation("v2", True, True, True, True),
    }  # fmt: skip
    return Machine(**{**told, **fields})


def machine_of(topology: Topology, **fields: Any) -> Machine:
    wired = {name: getattr(topology, name) for name in ("cores", "numa_nodes")}
    return make_machine(**{**wired, "memory_bytes": topology.memory_bytes or 0, "topology": topology, **fields})


def make_topology(
    gpu_nodes: Sequence[int | None],
    wiring: Wiring,
    nic_nodes: Sequence[int | None] = (),
    cores_per_node: int = 8,
    nodes: int = 2,
    name: str = "NVIDIA H100 80GB HBM3",
) -> Topology:
    gpus = tuple(
        Gpu(f"0000:{0x10 + at:02x}:00.0", name, "NVIDIA", 81559 << 20, index=at, numa_node=node)
        for at, node in enumerate(gpu_nodes)
    )
    nics = tuple(
        Nic(
            f"0000:{0x80 + at:02x}:00.0",
            f"mlx5_{at}",
            ports=(Port(f"mlx5_{at}", 400.0, "InfiniBand", True),),
            rdma=True,
            numa_node=node,
        )
        for at, node in enumerate(nic_nodes)
    )
    devices = [*gpus, *nics]
    cores = tuple(
        Core((at, at + nodes * cores_per_node), at // cores_per_node, at // cores_per_node)
        for at in range(nodes * cores_per_node)
    )
    pairs: list[Pair] = []
    for a in range(len(devices)):
        for b in range(a + 1, len(devices)):
            path, links, gbps = wiring(a, b)
            pairs.append(Pair(devices[a].id, devices[b].id, path, links, gbps))
    return Topology(
        numa_nodes=tuple(
            NumaNode(node, tuple(cpu for core in cores if core.numa_node == node for cpu in core.cpus), 64 * GIB)
            for node in range(nodes)
        ),
        cores=cores,
        memory_bytes=nodes * 64 * GIB,
        gpus=gpus,
        nics=nics,
        pairs=tuple(pairs),
    )


def nvswitch_16(nics: int = 8) -> Topology:
    """Sixteen GPUs behind NVSwitches, two and a NIC to a PCIe switch, four switches to a socket (as in a DGX-2)."""

    def slot(at: int) -> int:
        return at if at < 16 else (at - 16) * 16 // nics

    def wiring(a: int, b: int) -> tuple[PathClass, int, float | None]:
        if b < 16:
            return PathClass.NV, 6, 1200.0
        return pcie_path(slot(a), slot(b)), 0, None

    return make_topology([at // 8 for at in range(16)], wiring, [slot(16 + at) // 8 for at in range(nics)], 24)


def pcie_16() -> Topology:
    """The same without NVLink."""
    return make_topology([at // 8 for at in range(16)], lambda a, b: (pcie_path(a, b), 0, None))


def pcie_path(a: int, b: int) -> PathClass:
    """Paths between the sixteen slots of a machine with PCIe switches in two stages."""
    for width, path in ((2, PathClass.PIX), (4, PathClass.PXB), (8, PathClass.NODE)):
        if a // width == b // width:
            return path
    return PathClass.SYS


#: bonded NVLinks of a DGX-1V's hybrid cube mesh
CUBE_MESH = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2, (2, 6): 1, (3, 7): 1,
    (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip


def cube_mesh() -> Topology:
    """Eight GPUs in a hybrid cube mesh (as in a DGX-1V), a NIC to each two."""

    def wiring(a: int, b: int) -> tuple[PathClass, int, float | None]:
        links = CUBE_MESH.get((a, b), 0)
        if links:
            return PathClass.NV, links, 200.0 * links
        slots = [at if at < 8 else (at - 8) * 2 for at in (a, b)]
        same = slots[0] // 2 == slots[1] // 2
        return (
            (PathClass.PIX if same else PathClass.PHB if slots[0] // 4 == slots[1] // 4 else PathClass.SYS),
            0,
            126.0 if same else None,
        )

    return make_topology([0] * 4 + [1] * 4, wiring, [0, 0, 1, 1])


def rail_8() -> Topology:
    """Eight GPUs behind NVSwitches, each with its own PCIe switch and two NIC ports (as in clouds' H100 machines)."""

    def wiring(a: int, b: int) -> tuple[PathClass, int, float | None]:
        if b < 8:
            return PathClass.NV, 18, 3600.0
        slots = [at if at < 8 else (at - 8) // 2 for at in (a, b)]
        return (
            (PathClass.PIX if slots[0] == slots[1] else PathClass.NODE if slots[0] // 4 == slots[1] // 4 else PathClass.SYS),
            0,
            None,
        )

    return make_topology([at // 4 for at in range(8)], wiring, [at // 8 for at in range(16)], 32)


def make_hgx(gpus: int = 8, cores_per_node: int = 16) -> Topology:
    """Two NUMA nodes; per GPU a PCIe switch that a network card shares; all GPUs joined by NVSwitches (NV18)."""
    nodes = tuple(
        NumaNode(id=node, cpus=tuple(range(node * cores_per_node, (node + 1) * cores_per_node)), memory_bytes=512 << 30)
        for node in (0, 1)
    )
    bridges: list[Bridge] = []
    cards: list[Gpu] = []
    nics: list[Nic] = []
    for index in range(gpus):
        node, bus = (0 if index < gpus // 2 else 1), 0x10 * (index + 1)
        root, switch = f"host{index}", f"0000:{bus:02x}:00.0"
        bridges += [Bridge(root, BridgeKind.HOST, numa_node=node), Bridge(switch, BridgeKind.PCIE, root, 504.123)]
        card, nic = f"0000:{bus + 1:02x}:00.0", f"0000:{bus + 2:02x}:00.0"
        cards.append(
            Gpu(
                card,
                "NVIDIA H100 80GB HBM3",
                "NVIDIA",
                85_520_809_984,
                card,
                index,
                numa_node=node,
                pcie_gbps=504.123,
                parent=switch,
            )
        )
        nics.append(Nic(nic, f"mlx5_{index}", nic, (Port(f"mlx5_{index}", 400.0),), True, node, pcie_gbps=504.123, parent=switch))
    links = {(a.id, b.id): Pair(a.id, b.id, PathClass.NV, 18, 3600.0) for a, b in itertools.combinations(cards, 2)}
    return Topology(
        sources=("drawn by hand",),
        packages=2,
        numa_nodes=nodes,
        cores=tuple(Core((cpu,), package=node.id, numa_node=node.id) for node in nodes for cpu in node.cpus),
        memory_bytes=1 << 40,
        gpus=tuple(cards),
        nics=tuple(nics),
        nvme=(Nvme("0000:f1:00.0", "nvme0n1", "0000:f1:00.0", 3_840_755_982_336, numa_node=0),),
        bridges=tuple(bridges),
        switches=tuple(Switch(bridge.id, SwitchKind.PCIE) for bridge in bridges if bridge.kind is BridgeKind.PCIE),
        pairs=make_pairs(cards, nics, bridges, links),
        numa_distances=((10, 21), (21, 10)),
    )


def cube_matrix() -> Topology:
    """The hybrid cube mesh as a bare matrix tells it: links without bandwidths, no PCIe tree, no siblings, no cards."""
    gpus = tuple(Gpu(f"GPU{at}", index=at, numa_node=at // 4) for at in range(8))
    pairs: list[Pair] = []
    for a, b in itertools.combinations(range(8), 2):
        links = CUBE_MESH.get((a, b), 0)
        pairs.append(Pair(gpus[a].id, gpus[b].id, PathClass.NV if links else PathClass.SYS, links))
    nodes = tuple(NumaNode(node, tuple(range(node * 8, node * 8 + 8)), 0) for node in (0, 1))
    cores = tuple(Core((cpu,), numa_node=node.id) for node in nodes for cpu in node.cpus)
    return Topology(sources=("drawn by hand",), numa_nodes=nodes, cores=cores, smt_known=False, gpus=gpus, pairs=tuple(pairs))
