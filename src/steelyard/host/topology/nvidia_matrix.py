"""How near are GPUs and NICs to each other, by the matrix of `nvidia-smi topo -m`?

A matrix names devices `GPU0`, `mlx5_0` or `NIC0` (with a legend of real names below) and tells one path class per pair, no
bandwidths and no PCI addresses. Columns vary by driver, cells stand between tabs or blanks. A matrix that lacks rows or columns, or
says two things about one pair, is refused. Inside a container or job the affinities are those of its cpuset, not of the hardware:
they are left out, with a note, where the NUMA column shows it (a range) or lists of CPUs contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from steelyard.errors import Refused
from steelyard.host.topology.notation import read_cpus, read_whole, told
from steelyard.model.machine import Core, NumaNode
from steelyard.model.topology import Gpu, Nic, Pair, PathClass, Port, Topology

_DEVICE = re.compile(r"GPU\d{1,4}|NIC\d{1,4}|mlx\d_(?:bond_)?\d{1,4}|[a-z][a-z0-9]{1,15}_\d{1,4}|[a-z]{2,8}\d{1,4}")
#: what may stand right of the matrix, longest first
_AFFINITIES = ("CPU Affinity NUMA ID", "NUMA Affinity", "CPU Affinity", "GPU NUMA ID", "GPU NUMA Affinity")
_PATHS = {"PIX": PathClass.PIX, "PXB": PathClass.PXB, "PHB": PathClass.PHB, "NODE": PathClass.NODE, "SYS": PathClass.SYS}
#: `SOC` is what drivers before 2018 called SYS
_OLD_PATHS = {"SOC": PathClass.SYS, "C2C": PathClass.C2C}
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_DEVICES_MAX = 512


@dataclass(frozen=True)
class _Row:
    device: str
    cells: Sequence[str]
    #: column title -> what the row says; "" where it says nothing
    affinities: dict[str, str]


def read_nvidia_matrix(text: str, source: str) -> Topology:
    """The machine as the matrix shows it. Raises `Refused` for what is cut off, contradictory or no matrix."""
    lines = [_ESCAPE.sub("", line).rstrip() for line in text.splitlines()]
    start = next((place for place, line in enumerate(lines) if _is_header(line)), None)
    if start is None:
        raise Refused(f"{source} holds no matrix of nvidia-smi topo -m: a header line with GPU0 is missing.")
    devices, titles = _read_header(lines[start], source)
    rows = _read_rows(lines[start + 1 :], devices, titles, source)
    _check_symmetric(rows, devices, source)
    notes: list[str] = []
    gpus, nics, numa_nodes = _describe(rows, _read_legend(lines), notes)
    by_name = {row.device: row for row in rows}
    order = [*(gpu.id for gpu in gpus), *(nic.id for nic in nics)]
    column = {device: place for place, device in enumerate(devices)}
    return Topology(
        sources=(f"nvidia-smi topo -m ({source})",),
        numa_nodes=numa_nodes,
        cores=tuple(Core((cpu,), numa_node=node) for cpu, node in sorted((cpu, node.id) for node in numa_nodes for cpu in node.cpus)),
        smt_known=False,
        gpus=gpus,
        nics=nics,
        pairs=tuple(
            _pair(a, b, by_name[a].cells[column[b]], source) for place, a in enumerate(order) for b in order[place + 1 :]
        ),
        notes=tuple(notes),
    )


def _is_header(line: str) -> bool:
    words = line.split()
    return bool(words) and words[0] == "GPU0" and (len(words) == 1 or words[1] != "X") and "X" not in words


def _read_header(line: str, source: str) -> tuple[list[str], list[str]]:
    """Device columns and titles of the others. Titles hold blanks, and some files have one blank between columns."""
    rest, titles = line, list[str]()
    words: list[str] = []
    for part in re.split(r"(CPU Affinity NUMA ID|GPU NUMA Affinity|CPU Affinity|NUMA Affinity|GPU NUMA ID)", rest):
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
        if not line.strip() and len(rows) == len(devices):
            break
        if not line.strip():
            continue
        first = line.split()[0]
        if first.rstrip(":") in ("Legend", "NIC"):
            break
        if first not in devices:
            raise Refused(f"{source}: there is a row {first[:40]!r} but no such column, so the matrix is cut off at the right.")
        rows.append(_read_row(line, devices, titles, source))
    told_rows = [row.device for row in rows]
    missing = next((device for device in devices if device not in told_rows), None)
    if missing is not None:
        raise Refused(f"{source}: the row of {missing} is missing, so the matrix is cut off at the bottom: record it again.")
    if len(told_rows) > len(devices):
        raise Refused(f"{source}: a device has two rows.")
    return rows


def _read_row(line: str, devices: Sequence[str], titles: Sequence[str], source: str) -> _Row:
    """Between tabs an empty cell stays a cell; between blanks it does not, and then only a full row tells its affinities."""
    tabs = "\t" in line.strip()
    words = [word.strip() for word in line.split("\t")] if tabs else line.split()
    name, cells, rest = words[0], words[1 : len(devices) + 1], words[len(devices) + 1 :]
    if len(cells) < len(devices) or (tabs and "" in cells):
        place = cells.index("") if "" in cells else len(cells)
        raise Refused(f"{source}: the row of {name} ends before column {devices[place]}, so the matrix is cut off: record it again.")
    if tabs:
        # some drivers put two tabs after the NUMA column
        rest = rest if len(rest) <= len(titles) else [word for word in rest if word] if any(rest) else []
    elif len(rest) < len(titles):
        rest = rest if len(rest) == len(titles) - 1 and titles[-1].startswith("GPU NUMA") else []
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
    rows: Sequence[_Row], legend: dict[str, str], notes: list[str]
) -> tuple[tuple[Gpu, ...], tuple[Nic, ...], tuple[NumaNode, ...]]:
    places = {row.device: _affinity(row) for row in rows}
    nodes = _numa_nodes([place for place in places.values() if place], notes)
    known = {node.id for node in nodes}
    gpus: list[Gpu] = []
    nics: list[Nic] = []
    for row in sorted(rows, key=lambda row: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row.device)]):
        cpus, node = places[row.device] or ((), None)
        node = node if node in known else None
        if row.device.startswith("GPU"):
            gpus.append(
                Gpu(row.device, vendor="NVIDIA", index=int(row.device[3:]), numa_node=node, cpus=cpus if nodes or node else ())
            )
        else:
            name = legend.get(row.device, row.device)
            nics.append(Nic(row.device, name=name, ports=(Port(name),), rdma=name.startswith("mlx") or None, numa_node=node))
    return tuple(gpus), tuple(nics), nodes


def _affinity(row: _Row) -> tuple[tuple[int, ...], int | None] | None:
    """The CPUs and the NUMA node of a row; None where it tells neither."""
    cpus, node = told(row.affinities.get("CPU Affinity")), told(row.affinities.get("NUMA Affinity"))
    numbers = read_cpus(cpus) if cpus else None
    return (numbers or (), read_whole(node, 4095)) if cpus or node else None
