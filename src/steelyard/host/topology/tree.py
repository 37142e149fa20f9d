"""Which path do two devices have, given the PCIe tree and the links beside it? Shared by all readers that see the tree.

PIX: at most one bridge or switch between them. PXB: more, but no host bridge. PHB: one host bridge. NODE: two host bridges of one
NUMA node. SYS: anything farther, also where the source leaves the NUMA node out (assuming near would be a guess). Bandwidths are
given for PIX and PXB only: what a CPU's root complex or the links between CPUs carry does not follow from the devices' links.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steelyard.model.topology import Bridge, BridgeKind, Gpu, Nic, Pair, PathClass

#: PCIe GT/s -> Gbit/s of one lane after its line code (8b/10b up to generation 2, 128b/130b up to 5, none in 6)
_LANE_GBPS = {2.5: 2.0, 5.0: 4.0, 8.0: 8 * 128 / 130, 16.0: 16 * 128 / 130, 32.0: 32 * 128 / 130, 64.0: 64.0}


def pcie_gbps(gigatransfers: float | None, width: int | None) -> float | None:
    """A PCIe link's nominal rate in one direction, Gbit/s; None where speed or width is unknown or no PCIe speed."""
    lane = _LANE_GBPS.get(gigatransfers) if gigatransfers is not None else None
    return None if lane is None or not width else round(lane * width, 3)


def make_pairs(
    gpus: Sequence[Gpu],
    nics: Sequence[Nic],
    bridges: Sequence[Bridge],
    links: Mapping[tuple[str, str], Pair] = {},
    *,
    flattened: bool = False,
) -> tuple[Pair, ...]:
    """Every pair of GPUs and NICs, in document order. `links`: NVLink and xGMI pairs by their ids in that order; they win.

    `flattened`: each bridge of the tree is a whole switch, as NCCL writes it, not one port of a switch: crossing two is PXB.
    """
    devices: list[Gpu | Nic] = [*gpus, *nics]
    by_id = {bridge.id: bridge for bridge in bridges}
    roads = {device.id: _road(device.parent, by_id) for device in devices}
    pairs: list[Pair] = []
    for place, a in enumerate(devices):
        for b in devices[place + 1 :]:
            pairs.append(links.get((a.id, b.id)) or _over_pcie(a, b, roads[a.id], roads[b.id], flattened))
    return tuple(pairs)


def _road(parent: str | None, bridges: Mapping[str, Bridge]) -> list[Bridge]:
    """From the device's own parent to the root. A loop in the source ends the road."""
    road: list[Bridge] = []
    while parent is not None and (bridge := bridges.get(parent)) is not None and bridge not in road:
        road.append(bridge)
        parent = bridge.parent
    return road


def _over_pcie(a: Gpu | Nic, b: Gpu | Nic, road_a: list[Bridge], road_b: list[Bridge], flattened: bool) -> Pair:
    if a.pci is not None and a.pci == b.pci:
        return Pair(a.id, b.id, PathClass.PIX)  # two partitions of one device
    meeting = next((bridge for bridge in road_a if bridge in road_b), None)
    if meeting is None:
        return Pair(a.id, b.id, PathClass.NODE if _same_node(a, b, road_a, road_b) else PathClass.SYS)
    if meeting.kind is BridgeKind.HOST:
        return Pair(a.id, b.id, PathClass.PHB)
    below_a, below_b = road_a[: road_a.index(meeting)], road_b[: road_b.index(meeting)]
    # A switch is an upstream port with a downstream port per device: one port below the meeting point on each side is one switch.
    path = PathClass.PIX if max(len(below_a), len(below_b)) <= (0 if flattened else 1) else PathClass.PXB
    rates = [a.pcie_gbps, b.pcie_gbps, *(bridge.pcie_gbps for bridge in (*below_a, *below_b))]
    known = [rate for rate in rates if rate is not None]
    # A port that does not tell its rate is as fast as what hangs on it; a device that does not tell leaves the path unknown.
    told = a.pcie_gbps is not None and b.pcie_gbps is not None
    return Pair(a.id, b.id, path, gbps=min(known) if told else None)


def _same_node(a: Gpu | Nic, b: Gpu | Nic, road_a: list[Bridge], road_b: list[Bridge]) -> bool:
    node_a = a.numa_node if a.numa_node is not None or not road_a else road_a[-1].numa_node
    node_b = b.numa_node if b.numa_node is not None or not road_b else road_b[-1].numa_node
    return node_a is not None and node_a == node_b
