"""Which links does an hwloc file give beside PCIe? NVLink and xGMI pairs, and NUMA distances, from its matrices.

hwloc gives bandwidths in MB/s in one direction, all links of a pair together. GPUs that meet in NVSwitches have a path as wide as
the narrower one's links into them. Links between GPU and CPU count for the GPU, they make no pair.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import gcd
from xml.etree.ElementTree import Element

from steelyard.errors import Refused
from steelyard.host.topology.hwloc_io import HwlocDevices
from steelyard.host.topology.hwloc_object import HwlocObject, parse_number
from steelyard.model.machine import NumaNode
from steelyard.model.topology import Gpu, Pair, PathClass

#: one NVLink in MB/s by generation: 50 GB/s since Blackwell, 20 GB/s in Pascal, 25 GB/s between them
_BLACKWELL = re.compile(r"\bG?B[123]00\b")
#: of one matrix: all GPUs that a machine may have, with as many switches
OBJECTS_MAX = 2048
#: firmware gives 10 to 255; more is a user's own matrix or a sign for "unknown"
_DISTANCE_MAX = 1_000_000
#: bit of `kind` in a matrix: values are latencies
_LATENCY = 4


@dataclass(frozen=True, slots=True)
class Links:
    """By ids in document order."""

    pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    #: GPU -> links in all
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Matrix:
    name: str
    #: `OSDev:802`, or `NUMANode:0` by the number that the matrix uses
    objects: list[str]
    values: list[int]
    kind: int
    by_os_index: bool

    def at(self, row: int, column: int) -> int:
        return self.values[row * len(self.objects) + column]


def _matrices(root: Element, source: str) -> list[_Matrix]:
    found: list[_Matrix] = []
    for element in (*root.iterfind("distances2"), *root.iterfind("distances2hetero")):
        name = element.get("name", "")
        where = f"{source}: the matrix {name or 'without a name'}"
        count = parse_number(element.get("nbobjs", ""), f"{where} with nbobjs")
        if count > OBJECTS_MAX:
            raise Refused(f"{where} joins {count} objects; at most {OBJECTS_MAX} are read.", code="too-large")
        indexes = " ".join(part.text or "" for part in element.iterfind("indexes")).split()
        values = " ".join(part.text or "" for part in element.iterfind("u64values")).split()
        if len(indexes) != count or len(values) != count * count:
            raise Refused(
                f"{where} should join {count} objects but has {len(indexes)} names and {len(values)} values: record it again.",
                code="truncated",
            )
        type_ = element.get("type")
        objects = [f"{type_}:{index}" if type_ else index for index in indexes]
        numbers = [parse_number(value, f"{where} with a value", 2**64 - 1) for value in values]
        kind = parse_number(element.get("kind", "0"), f"{where} with kind")
        found.append(_Matrix(name, objects, numbers, kind, element.get("indexing") == "os"))
    return found


def read_links(root: Element, devices: HwlocDevices, source: str) -> Links:
    matrices = {matrix.name: matrix for matrix in reversed(_matrices(root, source))}
    links = Links()
    order = {gpu.id: place for place, gpu in enumerate(devices.gpus)}
    if (matrix := matrices.get("NVLinkBandwidth")) is not None:
        _add_nvlinks(links, matrix, devices, order)
    _add_xgmi(links, matrices, devices, order)
    known = any(name in matrices for name in ("NVLinkBandwidth", "XGMIBandwidth", "XGMIHops")) or bool(devices.peers)
    many = [vendor for vendor in ("NVIDIA", "AMD") if sum(gpu.vendor == vendor for gpu in devices.gpus) > 1]
    if many and not known:
        links.notes.append("The file does not tell whether its GPUs have NVLink or xGMI: their paths are those over PCIe.")
    return links


def _add_nvlinks(links: Links, matrix: _Matrix, devices: HwlocDevices, order: dict[str, int]) -> None:
    """Direct links, else the way through NVSwitches. All NVSwitches of a machine are one fabric: the driver tells which of them a
    GPU is wired to but not how they are joined among themselves (in a DGX-2 the two halves share none)."""
    ids = [devices.ids.get(reference) for reference in matrix.objects]
    switches = {switch.id for switch in devices.nvswitches}
    size = range(len(ids))
    gpus = [place for place in size if ids[place] in order]
    fabric = [place for place in size if ids[place] in switches]
    link = _link_rate(matrix, gpus, devices.gpus)
    if any(not any(matrix.at(a, to) and matrix.at(b, to) for to in fabric) for a, b in combinations(gpus, 2) if fabric):
        links.notes.append("Some GPUs share no NVSwitch; all NVSwitches are taken as one fabric, which the file does not tell.")
    into_fabric = {place: sum(matrix.at(place, other) for other in fabric) for place in gpus}
    for place in gpus:
        total = sum(matrix.at(place, other) for other in size if other != place)
        if (count := _links(total, link)) or not total:
            links.counts[str(ids[place])] = count
    for at, first in enumerate(gpus):
        for second in gpus[at + 1 :]:
            # Links are the same both ways; a matrix that says otherwise is taken at its lower word.
            direct = min(matrix.at(first, second), matrix.at(second, first))
            rate = max(direct, min(into_fabric[first], into_fabric[second]))
            if rate:
                _add(links, order, Pair(str(ids[first]), str(ids[second]), PathClass.NV, _links(rate, link), rate * 8 / 1000))


def _link_rate(matrix: _Matrix, gpus: Sequence[int], known: Sequence[Gpu]) -> int:
    """One link in MB/s; 0 where it can't be told, since every value must be a whole number of links."""
    names = [gpu.name for gpu in known]
    common = 0
    for gpu in gpus:
        for other in range(len(matrix.objects)):
            common = gcd(common, matrix.at(gpu, other) if other != gpu else 0)
    rates = [50_000] if names and all(_BLACKWELL.search(name) for name in names) else [25_000, 20_000]
    return next((rate for rate in rates if common and common % rate == 0), 0)


def _links(rate: int, link: int) -> int:
    return rate // link if link else 0


def _add_xgmi(links: Links, matrices: dict[str, _Matrix], devices: HwlocDevices, order: dict[str, int]) -> None:
    """The bandwidth matrix, else hops, else the peers that each GPU names. hwloc gives no number of links."""
    for name in ("XGMIBandwidth", "XGMIHops"):
        matrix = matrices.get(name)
        for row, first in enumerate(matrix.objects if matrix else ()):
            for column, second in enumerate(matrix.objects if matrix else ()):
                a, b = devices.ids.get(first), devices.ids.get(second)
                if matrix is None or a is None or b is None or row >= column or not matrix.at(row, column):
                    continue
                rate = min(matrix.at(row, column), matrix.at(column, row)) * 8 / 1000 if name == "XGMIBandwidth" else 0.0
                _add(links, order, Pair(a, b, PathClass.XGMI, gbps=rate or None))
    for id_, peers in devices.peers.items():
        for peer in peers:
            if peer in devices.names:
                _add(links, order, Pair(id_, devices.names[peer], PathClass.XGMI))


def _add(links: Links, order: dict[str, int], pair: Pair) -> None:
    """The first word about a pair stands."""
    if pair.a == pair.b or pair.a not in order or pair.b not in order:
        return
    if order[pair.a] > order[pair.b]:
        pair = Pair(pair.b, pair.a, pair.path, pair.links, pair.gbps)
    links.pairs.setdefault((pair.a, pair.b), pair)


def read_numa_distances(
    root: Element, machine: HwlocObject, nodes: Sequence[NumaNode], source: str
) -> tuple[tuple[int, ...], ...]:
    """Row by row in the order of `nodes`; () where the file has no matrix over all of them."""
    for matrix in _matrices(root, source):
        about_nodes = all(name.startswith("NUMANode:") for name in matrix.objects) and matrix.by_os_index
        if about_nodes and (matrix.name == "NUMALatency" or (not matrix.name and matrix.kind & _LATENCY)):
            numbers = [parse_number(name.partition(":")[2], f"{source}: a NUMA node in a matrix") for name in matrix.objects]
            return _in_order(numbers, matrix.values, nodes)
    return _version_1(machine, nodes, source)


def _in_order(numbers: Sequence[int], values: Sequence[int], nodes: Sequence[NumaNode]) -> tuple[tuple[int, ...], ...]:
    place = {number: at for at, number in enumerate(numbers)}
    if any(node.id not in place for node in nodes) or max(values) > _DISTANCE_MAX:
        return ()
    return tuple(tuple(values[place[a.id] * len(numbers) + place[b.id]] for b in nodes) for a in nodes)


def _version_1(machine: HwlocObject, nodes: Sequence[NumaNode], source: str) -> tuple[tuple[int, ...], ...]:
    """Version 1 has relative latencies at the machine, over all objects of one depth: the NUMA nodes' if depth and number fit."""
    numbers: list[int] = []
    depths: set[int] = set()

    def walk(at: HwlocObject, depth: int) -> None:
        for child in at.children():
            if child.kind == "NUMANode":
                numbers.append(child.index())
                depths.add(depth)
            walk(child, depth + 1)

    walk(machine, 1)
    for element in machine.element.iterfind("distances"):
        where = f"{source}: the matrix of latencies"
        count = parse_number(element.get("nbobjs", ""), f"{where} with nbobjs")
        depth = parse_number(element.get("relative_depth", ""), f"{where} with relative_depth")
        scale = _decimal(element.get("latency_base", "1"), where)
        values = [round(_decimal(value.get("value", ""), where) * scale) for value in element.iterfind("latency")]
        if len(values) != count * count:
            raise Refused(f"{where} should join {count} objects but has {len(values)} values: record it again.", code="truncated")
        # The level of a kind of object is that of its deepest one; memory of GPUs hangs higher.
        if numbers and count == len(numbers) and depth == max(depths):
            return _in_order(numbers, values, nodes)
    return ()


def _decimal(text: str, where: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise Refused(f"{where} with {text[:40]!r}, which is no number.", code="illegal")
    return float(text)
