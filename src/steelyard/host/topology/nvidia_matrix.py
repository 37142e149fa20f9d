"""How near are GPUs and NICs to each other, by the matrix of `nvidia-smi topo -m`?

A matrix names devices `GPU0`, `mlx5_0` or `NIC0` (with a legend of real names below) and tells one path class per pair, no
bandwidths and no PCI addresses. Columns vary by driver, cells stand between tabs or blanks. A matrix that lacks rows or columns,
or says two things about one pair, is refused. Inside a container or job the affinities are those of its cpuset, not of the
hardware: they are left out, with a note, where the NUMA column shows it (a range) or lists of CPUs contradict each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steelyard.errors import Refused
from steelyard.host.topology.lines import split_lines
from steelyard.host.topology.notation import read_cpus, read_whole, told
from steelyard.model.machine import Core, NumaNode
from steelyard.model.topology import Gpu, Nic, Pair, PathClass, Port, Topology

#: `GPU0`, `NIC0`, `mlx5_bond_0`, `rdmap16s27`: names of devices hold a digit, words of titles do not
_DEVICE = re.compile(r"GPU\d{1,4}|(?!GPU)(?=.*\d)[A-Za-z][\w.-]{1,31}", re.ASCII)
#: what may stand right of the matrix
_AFFINITIES = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
_TITLES = re.compile(f"({'|'.join(_AFFINITIES)})")
_PATHS = {"PIX": PathClass.PIX, "PXB": PathClass.PXB, "PHB": PathClass.PHB, "NODE": PathClass.NODE, "SYS": PathClass.SYS}
#: `SOC` is what drivers before 2018 called SYS
_OLD_PATHS = {"SOC": PathClass.SYS, "C2C": PathClass.C2C}
_DEVICES_MAX = 512


@dataclass(frozen=True)
class _Row:
    device: str
    cells: Sequence[str]
    #: column title -> what the row says; "" where it says nothing
    affinities: dict[str, str]


def read_nvidia_matrix(text: str, source: str) -> Topology:
    """The machine as the matrix shows it. Raises `Refused` for what is cut off, contradictory or no matrix."""
    lines = split_lines(text, source)
    start = next((place for place, line in enumerate(lines) if is_matrix_header(line)), None)
    if start is None:
        raise Refused(f"{source} holds no matrix of nvidia-smi topo -m: a header line with GPU0 is missing.")
    devices, titles = _read_header(lines[start], source)
    rows = _read_rows(lines[start + 1 :], devices, titles, source)
    _check_symmetric(rows, devices, source)
    notes: list[str] = []
    gpus, nics, numa_nodes = _describe(rows, devices, _read_legend(lines), notes)
    by_name = {row.device: row for row in rows}
    memories = {read_whole(told(row.affinities.get("GPU NUMA ID")), 4095) for row in rows} - {None}
    order = [*(gpu.id for gpu in gpus), *(nic.id for nic in nics)]
    column = {device: place for place, device in enumerate(devices)}
    return Topology(
        sources=(f"nvidia-smi topo -m ({source})",),
        numa_nodes=numa_nodes,
        cores=tuple(
            Core((cpu,), numa_node=node) for cpu, node in sorted((cpu, node.id) for node in numa_nodes for cpu in node.cpus)
        ),
        smt_known=False,
        gpus=gpus,
        nics=nics,
        pairs=tuple(
            _pair(a, b, by_name[a].cells[column[b]], source) for place, a in enumerate(order) for b in order[place + 1 :]
        ),
        gpu_memory_nodes=tuple(sorted(node for node in memories if node is not None)),
        notes=tuple(notes),
    )


def is_matrix_header(line: str) -> bool:
    words = line.split()
    return bool(words) and words[0] == "GPU0" and (len(words) == 1 or words[1] != "X") and "X" not in words


def _read_header(line: str, source: str) -> tuple[list[str], list[str]]:
    """Device columns and titles of the others. Titles hold blanks, and some files have one blank between columns."""
    words: list[str] = []
    titles: list[str] = []
    for part in _TITLES.split(line):
        if part in _AFFINITIES:
            titles.append(part)
        elif titles and part.strip():
            raise Refused(f"{source}: the header has a column {part.strip()[:40]!r} that is not known.")
        else:
            words += part.split()
    strange = next((word for word in words if not _DEVICE.fullmatch(word)), None)
    if strange is not None:
        raise Refused(f"{source}: the header is cut off or has a column {strange[:40]!r} that is not known.")
    if len(set(words)) < len(words) or len(words) > _DEVICES_MAX:
        raise Refused(f"{source}: the header names a device twice, or more than {_DEVICES_MAX}.")
    return words, titles


def _read_rows(lines: Sequence[str], devices: Sequence[str], titles: Sequence[str], source: str) -> list[_Row]:
    rows: list[_Row] = []
    for line in lines:
        if not line.strip():
            continue
        first = line.split()[0]
        if first == "Legend:" or (first not in devices and len(rows) == len(devices)):
            break
        if first in (row.device for row in rows):
            raise Refused(f"{source}: {first} has two rows.")
        if first not in devices:
            raise Refused(f"{source}: there is a row {first[:40]!r} but no such column, so the matrix is cut off at the right.")
        rows.append(_read_row(line, devices, titles, source))
    told_rows = [row.device for row in rows]
    missing = next((device for device in devices if device not in told_rows), None)
    if missing is not None:
        raise Refused(f"{source}: the row of {missing} is missing, so the matrix is cut off at the bottom: record it again.")
    return rows


def _read_row(line: str, devices: Sequence[str], titles: Sequence[str], source: str) -> _Row:
    """Between tabs an empty cell stays a cell; between blanks it does not, and then only a full row tells its affinities."""
    tabs = "\t" in line.strip()
    words = [word.strip() for word in line.split("\t")] if tabs else line.split()
    name, cells, rest = words[0], words[1 : len(devices) + 1], words[len(devices) + 1 :]
    if len(cells) < len(devices) or (tabs and "" in cells):
        place = cells.index("") if "" in cells else len(cells)
        raise Refused(
            f"{source}: the row of {name} ends before column {devices[place]}, so the matrix is cut off: record it again."
        )
    if len(rest) == len(titles) + 1 and rest[-2] == "":
        del rest[-2]  # drivers put two tabs after the NUMA column
    if len(rest) > len(titles):
        raise Refused(f"{source}: the row of {name} has more cells than the header, so the matrix is cut off at the right.")
    if not tabs and len(rest) < len(titles):
        rest = []
    affinities = dict.fromkeys(titles, "")
    affinities.update(zip(titles, rest, strict=False))
    return _Row(name, cells, affinities)


def _check_symmetric(rows: Sequence[_Row], devices: Sequence[str], source: str) -> None:
    column = {device: place for place, device in enumerate(devices)}
    cells = {row.device: row.cells for row in rows}
    for a in devices:
        if cells[a][column[a]] != "X":
            raise Refused(f"{source}: {a} should have X in its own column and has {cells[a][column[a]][:20]!r}.")
        for b in devices[column[a] + 1 :]:
            there, back = cells[a][column[b]], cells[b][column[a]]
            if there != back:
                raise Refused(f"{source} contradicts itself: {a} to {b} is {there[:20]}, {b} to {a} is {back[:20]}.")


def _pair(a: str, b: str, word: str, source: str) -> Pair:
    if match := re.fullmatch(r"NV(\d{1,3})", word, re.ASCII):
        return Pair(a, b, PathClass.NV, links=int(match[1]))
    path = _PATHS.get(word) or _OLD_PATHS.get(word)
    if path is None:
        raise Refused(f"{source}: {a} to {b} is {word[:20]!r}, which is no path class.")
    return Pair(a, b, path)


def _read_legend(lines: Sequence[str]) -> dict[str, str]:
    """`NIC0: mlx5_0` below the matrix."""
    matches = (re.fullmatch(r"\s*(NIC\d{1,4}): ([\w.-]{1,64})", line) for line in lines)
    return {match[1]: match[2] for match in matches if match}


def _describe(
    rows: Sequence[_Row], devices: Sequence[str], legend: dict[str, str], notes: list[str]
) -> tuple[tuple[Gpu, ...], tuple[Nic, ...], tuple[NumaNode, ...]]:
    places = _affinities(rows, notes)
    gpus: list[Gpu] = []
    nics: list[Nic] = []
    for row in sorted(rows, key=lambda row: _natural(row.device)):
        cpus, node = places[row.device]
        if row.device.startswith("GPU"):
            gpus.append(Gpu(row.device, vendor="NVIDIA", index=int(row.device[3:]), numa_node=node, cpus=cpus))
        else:
            name = legend.get(row.device, row.device)
            near = node if node is not None else _node_of_card(row, devices, places)
            nics.append(Nic(row.device, name=name, ports=(Port(name),), rdma=name.startswith("mlx") or None, numa_node=near))
    nodes = {node: cpus for cpus, node in places.values() if node is not None and cpus}
    return tuple(gpus), tuple(nics), tuple(NumaNode(node, cpus, 0) for node, cpus in sorted(nodes.items()))


def _node_of_card(row: _Row, devices: Sequence[str], places: dict[str, tuple[tuple[int, ...], int | None]]) -> int | None:
    """A card has no affinity of its own in the matrix, but every class nearer than SYS lies within one NUMA node: that of the GPU
    which it is so near to."""
    nodes = {
        places[device][1]
        for device, word in zip(devices, row.cells, strict=True)
        if device.startswith("GPU") and word in ("PIX", "PXB", "PHB", "NODE")
    }
    return nodes.pop() if len(nodes) == 1 else None


def _natural(name: str) -> list[int | str]:
    """`mlx5_2` before `mlx5_10`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def _affinities(rows: Sequence[_Row], notes: list[str]) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """Device -> its CPUs and NUMA node, where both are the hardware's as far as the matrix shows."""
    places: dict[str, tuple[tuple[int, ...], int | None]] = {}
    cut: list[str] = []
    for row in rows:
        cpus, node = told(row.affinities.get("CPU Affinity")), told(row.affinities.get("NUMA Affinity"))
        number = read_whole(node, 4095)
        if node is not None and number is None:
            cut.append(row.device)
            cpus = None
        places[row.device] = ((read_cpus(cpus) or ()) if cpus else (), number)
    if cut:
        notes.append(
            f"{', '.join(cut[:16])}: the NUMA column names several nodes, so these affinities are those of a container or job,"
            " not of the hardware; they are left out."
        )
    blurred = _contradicting(places.values())
    if blurred:
        notes.append(
            f"The CPUs of NUMA node {', '.join(map(str, sorted(blurred)))} are told in contradicting ways; they are left out."
        )
        places = {device: (() if node in blurred else cpus, node) for device, (cpus, node) in places.items()}
    if any(cpus and node is None for cpus, node in places.values()):
        notes.append("The matrix has CPUs but no NUMA nodes beside them: which node they belong to is unknown.")
    return places


def _contradicting(places: Iterable[tuple[tuple[int, ...], int | None]]) -> set[int]:
    """The NUMA nodes that have two lists of CPUs, or share a CPU with another node."""
    lists: dict[int, set[tuple[int, ...]]] = {}
    for cpus, node in places:
        if node is not None and cpus:
            lists.setdefault(node, set()).add(cpus)
    owners = Counter(cpu for several in lists.values() for cpu in {cpu for cpus in several for cpu in cpus})
    shared = {cpu for cpu, count in owners.items() if count > 1}
    return {node for node, several in lists.items() if len(several) > 1 or any(shared & set(cpus) for cpus in several)}
