"""How are AMD's GPUs linked, by `rocm-smi --showtopo`, and what are they, by `rocm-smi -a --json`?

The tables tell weight, hops and type of link per pair, and the NUMA node per GPU. `XGMI` with one hop is direct (how many links
is not told); with more hops it goes through other GPUs, and `PCIE` goes through CPUs. The driver gives a weight of 40 to two GPUs
under one CPU and 72 over sockets, but counts switches nowhere, so nothing nearer than the NUMA node is told: NODE within one, SYS
beyond it. PIX, PXB and PHB are never given from these tables; merge with a source that sees the PCIe tree.
Serial numbers and unique ids are not taken over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from steelyard.errors import Refused
from steelyard.host.topology.lines import split_lines
from steelyard.host.topology.notation import read_gigatransfers, read_pci, read_whole, told
from steelyard.host.topology.tree import pcie_gbps
from steelyard.model.topology import Gpu, Pair, PathClass, Topology

_TITLE = re.compile(r"=+ *([A-Za-z][^=]*)=+")
_WEIGHTS, _HOPS, _TYPES = "Weight between two GPUs", "Hops between two GPUs", "Link Type between two GPUs"
_GPUS_MAX = 512
_KINDS = ("XGMI", "PCIE")
#: a card fills 4 KiB
_JSON_CHARACTERS_MAX = 4 * 1024**2


def read_rocm_topo(text: str, source: str) -> Topology:
    """`rocm-smi --showtopo`. Raises `Refused` for a table that is cut off, contradicts itself or has another link type."""
    sections = _sections(split_lines(text, source))
    if _TYPES not in sections:
        raise Refused(f"{source} has no table {_TYPES!r}, so it is no rocm-smi --showtopo or is cut off.")
    types = _table(sections[_TYPES], _TYPES, source)
    hops = _table(sections[_HOPS], _HOPS, source) if _HOPS in sections else {}
    if _WEIGHTS in sections:
        _table(sections[_WEIGHTS], _WEIGHTS, source)
    if "End of ROCm SMI Log" not in sections and "Numa Nodes" not in sections:
        raise Refused(f"{source} ends before its list of NUMA nodes, so it is cut off: record it again.")
    indices = sorted({index for pair in types for index in pair})
    nodes = _numa_nodes(sections.get("Numa Nodes", []))
    if nodes and (missing := [index for index in indices if index not in nodes]):
        raise Refused(f"{source} tells no NUMA node of GPU{missing[0]}, so it is cut off: record it again.")
    gpus = tuple(Gpu(f"GPU{index}", vendor="AMD", index=index, numa_node=nodes.get(index)) for index in indices)
    pairs = _pairs(gpus, types, hops, source)
    return Topology(sources=(f"rocm-smi --showtopo ({source})",), smt_known=False, gpus=gpus, pairs=pairs)


def _sections(screen: Sequence[str]) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in screen:
        if match := _TITLE.fullmatch(line.strip()):
            lines = sections.setdefault(match[1].strip(), [])
        elif line.strip():
            lines.append(line)
    return sections


def _table(lines: Sequence[str], title: str, source: str) -> dict[tuple[int, int], str]:
    """(row, column) -> cell, both halves; the diagonal is left out."""
    header = lines[0].split() if lines else []
    if not header or not all(re.fullmatch(r"GPU\d{1,4}", word, re.ASCII) for word in header) or len(header) > _GPUS_MAX:
        raise Refused(f"{source}: the table {title!r} has no header with GPU0 and so on, so it is cut off.")
    columns = [int(word[3:]) for word in header]
    rows: dict[int, list[str]] = {}
    for line in lines[1:]:
        name, *cells = line.split()
        if name not in header or int(name[3:]) in rows or len(cells) != len(header):
            raise Refused(f"{source}: the row {name[:20]!r} of {title!r} does not fit its columns, so the table is cut off.")
        rows[int(name[3:])] = cells
    if missing := [column for column in columns if column not in rows]:
        raise Refused(f"{source}: the row of GPU{missing[0]} is missing in {title!r}, so it is cut off: record it again.")
    cells = {(row, column): cell for row, words in rows.items() for column, cell in zip(columns, words, strict=True)}
    for (row, column), cell in cells.items():
        if cells[column, row] != cell:
            raise Refused(
                f"{source} contradicts itself: GPU{row} to GPU{column} is {cell[:20]} one way, {cells[column, row][:20]} back."
            )
    return {pair: cell for pair, cell in cells.items() if pair[0] != pair[1]} or {(columns[0], columns[0]): "0"}


def _numa_nodes(lines: Sequence[str]) -> dict[int, int | None]:
    """GPU -> NUMA node; None where the driver says -1. ROCm writes `GPU[0]` and `GPU 0`."""
    nodes: dict[int, int | None] = {}
    for line in lines:
        if match := re.match(r"GPU ?\[?(\d{1,4})\]?\s*: \(Topology\) Numa Node: (-?\d{1,4})\s*$", line, re.ASCII):
            nodes[int(match[1])] = int(match[2]) if int(match[2]) >= 0 else None
    return nodes


def _pairs(
    gpus: Sequence[Gpu], types: Mapping[tuple[int, int], str], hops: Mapping[tuple[int, int], str], source: str
) -> tuple[Pair, ...]:
    by_index = {gpu.index: gpu for gpu in gpus}
    pairs: list[Pair] = []
    for i, j in sorted(types):
        if i < j:
            kind, far = types[i, j].upper(), hops.get((i, j), "1") != "1"
            if kind not in _KINDS:
                raise Refused(f"{source}: GPU{i} to GPU{j} has the link type {types[i, j][:20]!r}, which is not known.")
            a, b = by_index[i], by_index[j]
            near = a.numa_node is not None and a.numa_node == b.numa_node
            path = PathClass.XGMI if kind == "XGMI" and not far else PathClass.NODE if near else PathClass.SYS
            pairs.append(Pair(a.id, b.id, path))
    return tuple(pairs)


def read_rocm_json(text: str, source: str) -> Topology:
    """`rocm-smi -a --json`: one object per card, and the pairs under `system`. Keys change their case between versions."""
    if len(text) > _JSON_CHARACTERS_MAX:
        raise Refused(f"{source} is larger than {_JSON_CHARACTERS_MAX >> 20} MiB, so it is no dump of rocm-smi.")
    try:
        dump = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise Refused(f"{source} is not whole JSON ({error}), so it is cut off or no dump of rocm-smi.") from error
    cards = {int(key[4:]): card for key, card in _cards(dump)}
    if not cards or len(cards) > _GPUS_MAX:
        raise Refused(f"{source} is JSON, but names no cards (card0, card1) as rocm-smi does.")
    gpus = tuple(_gpu_of_json(index, card) for index, card in sorted(cards.items()))
    if len({gpu.id for gpu in gpus}) < len(gpus):
        raise Refused(f"{source} gives two cards one PCI address.")
    types, hops, strangers = _system(dump.get("system"), set(cards))
    notes = (f"The links of {strangers} more GPUs are told, but not what they are.",) if strangers else ()
    complete = len(types) == len(gpus) * (len(gpus) - 1) // 2
    return Topology(
        sources=(f"rocm-smi --json ({source})",),
        smt_known=False,
        gpus=gpus,
        pairs=_pairs(gpus, types, hops, source) if complete else (),
        notes=notes,
    )


def _cards(dump: Any) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(dump, dict):
        return []
    return [
        (key, card) for key, card in dump.items() if re.fullmatch(r"card\d{1,4}", str(key), re.ASCII) and isinstance(card, dict)
    ]


def _gpu_of_json(index: int, card: Mapping[str, Any]) -> Gpu:
    words = {str(key).lower(): value for key, value in card.items() if isinstance(value, str)}
    pci = read_pci(words.get("pci bus"))
    name = told(words.get("card series")) or told(words.get("device name")) or ""
    node = words.get("(topology) numa node", "")
    clock = re.search(r"\(([\d.]{1,6} ?GT/s) x(\d{1,2})\)", words.get("pcie clock level", ""), re.ASCII)
    width = int(clock[2]) if clock else None
    architecture = words.get("gfx version", "")
    return Gpu(
        id=pci or f"GPU{index}",
        name=name if not name.startswith("0x") else "",
        vendor="AMD",
        memory_bytes=read_whole(words.get("vram total memory (b)"), 2**50),
        pci=pci,
        index=index,
        numa_node=read_whole(node, 4095),
        pcie_gbps=pcie_gbps(_fastest(card, width), width),
        pcie_width=width,
        architecture=architecture if re.fullmatch(r"gfx[0-9a-f]{3,5}", architecture) else None,
    )


def _fastest(card: Mapping[str, Any], width: int | None) -> float | None:
    """The best speed in the list of PCIe clocks (`0: 2.5GT/s x16`, `1: 16.0GT/s x16 *`): an idle GPU runs at the first."""
    told_speeds = [re.fullmatch(r"([\d.]{1,6} ?GT/s) x(\d{1,2}) ?\*?", str(value).strip(), re.ASCII) for value in card.values()]
    speeds = [read_gigatransfers(match[1]) for match in told_speeds if match and int(match[2]) == width]
    return max((speed for speed in speeds if speed is not None), default=None)


def _system(system: Any, cards: set[int]) -> tuple[dict[tuple[int, int], str], dict[tuple[int, int], str], int]:
    """Link types and hops per pair of known cards, and how many unknown ones there are."""
    types: dict[tuple[int, int], str] = {}
    hops: dict[tuple[int, int], str] = {}
    strangers: set[int] = set()
    for key, value in system.items() if isinstance(system, dict) else ():
        match = re.fullmatch(r"\(Topology\) (Link type|Hops) between DRM devices (\d{1,4}) and (\d{1,4})", str(key), re.ASCII)
        if match:
            pair = (min(int(match[2]), int(match[3])), max(int(match[2]), int(match[3])))
            strangers |= set(pair) - cards
            if set(pair) <= cards:
                (types if match[1] == "Link type" else hops)[pair] = str(value)
    return types, hops, len(strangers)
