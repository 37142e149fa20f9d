"""Small machines of our own, written by hand, so that the suite means something without the recorded ones."""

from __future__ import annotations

import itertools

from steelyard.host.topology.tree import make_pairs
from steelyard.model.cores import Core, NumaNode
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


def make_cube_mesh() -> Topology:
    """Eight V100 in two quads, as a bare matrix tells them: NV1 and NV2 links, no bandwidths, no PCIe tree."""
    rows = {(0, 1): 1, (0, 2): 2, (0, 3): 1, (0, 7): 2, (1, 2): 1, (1, 3): 2, (1, 6): 2, (2, 3): 2, (2, 5): 1, (3, 4): 1}
    rows |= {(4, 5): 2, (4, 6): 2, (4, 7): 1, (5, 6): 1, (5, 7): 2, (6, 7): 1}
    gpus = tuple(Gpu(f"GPU{index}", index=index, numa_node=index // 4) for index in range(8))
    pairs = tuple(
        Pair(
            f"GPU{a}",
            f"GPU{b}",
            PathClass.NV if (a, b) in rows else PathClass.NODE if a // 4 == b // 4 else PathClass.SYS,
            rows.get((a, b), 0),
        )
        for a, b in itertools.combinations(range(8), 2)
    )
    nodes = tuple(NumaNode(id=node, cpus=tuple(range(node * 8, node * 8 + 8)), memory_bytes=0) for node in (0, 1))
    cores = tuple(Core((cpu,), numa_node=node.id) for node in nodes for cpu in node.cpus)
    return Topology(sources=("drawn by hand",), numa_nodes=nodes, cores=cores, smt_known=False, gpus=gpus, pairs=pairs)
