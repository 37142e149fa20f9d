"""How much is the path between two devices worth? One whole number per pair, so that pairs compare and add up.

GPU and GPU: the bandwidth in thousandths of a Gbit/s where the source knows it, else 1000 x the rank of the path's class
(below), so that an unknown path is worth little beside a known one. But if one NVLink or xGMI pair of the machine has no
bandwidth, ranks count for all its pairs: a PCIe path must not win only because its rate is known. A pair that the source leaves
out counts as SYS. GPU and NIC: always the rank, "near" is a matter of distance: every PCIe switch of a machine tends to have
the same rate. Whole numbers, because sums of floats depend on their order and would break ties by chance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from steelyard.model.topology import Pair, PathClass, Topology

_RANKS = {PathClass.SYS: 1, PathClass.NODE: 2, PathClass.PHB: 3, PathClass.PXB: 4, PathClass.PIX: 5, PathClass.C2C: 6}
#: the bandwidth of a path that may not be used: worth less than any other, so that a set with it is the last choice
OUT_OF_USE = 0.0
_LINKED = (PathClass.NV, PathClass.XGMI)
_SCALE = 1000

_PCI = re.compile(r"([0-9a-f]+):([0-9a-f]{2}):([0-9a-f]{2})\.([0-9a-f])(?:/(\d+))?")
_RUN = re.compile(r"(\d+)")

Address: TypeAlias = tuple[int, tuple[int | str, ...]]
Rows: TypeAlias = tuple[tuple[int, ...], ...]


@lru_cache(maxsize=4096)
def address_key(device: str) -> Address:
    """Orders device ids: PCI addresses by their numbers, then other names with their numbers counted (`GPU9` before `GPU10`)."""
    if pci := _PCI.fullmatch(device):
        return 0, (*(int(part, 16) for part in pci.groups()[:4]), int(pci[5] or 0))
    # split() alternates text and digits, so that numbers only ever meet numbers
    return 1, tuple(int(part) if place % 2 else part for place, part in enumerate(_RUN.split(device)))


def path_rank(pair: Pair | None) -> int:
    """SYS 1, NODE 2, PHB 3, PXB 4, PIX 5, C2C 6, and NVLink or xGMI 6 + the links (one where their number is unknown)."""
    if pair is None:
        return 1
    return _RANKS.get(pair.path) or 6 + max(1, pair.links)


def uses_ranks(topology: Topology) -> bool:
    """Do ranks count for all pairs, because a link between GPUs has no bandwidth?"""
    return any(pair.gbps is None and pair.path in _LINKED for pair in topology.pairs)


def find_pairs(topology: Topology) -> dict[tuple[str, str], Pair]:
    """Every pair under both of its orders."""
    return {key: pair for pair in topology.pairs for key in ((pair.a, pair.b), (pair.b, pair.a))}


def gpu_rows(pairs: Mapping[tuple[str, str], Pair], gpus: Sequence[str], ranks_only: bool) -> Rows:
    """`rows[i][j]`: the value of the pair of the i-th and j-th GPU; 0 on the diagonal, which nothing may read."""

    def value(a: str, b: str) -> int:
        pair = pairs.get((a, b))
        if pair is not None and pair.gbps == OUT_OF_USE:
            return 0
        if pair is None or pair.gbps is None or ranks_only:
            return _SCALE * path_rank(pair)
        return round(_SCALE * pair.gbps)

    rows = [[0] * len(gpus) for _ in gpus]
    for i, a in enumerate(gpus):
        for j in range(i):
            rows[i][j] = rows[j][i] = value(a, gpus[j])
    return tuple(tuple(row) for row in rows)


def nic_columns(pairs: Mapping[tuple[str, str], Pair], gpus: Sequence[str], nics: Sequence[str]) -> Rows:
    """`columns[t][i]`: the rank of the path from the t-th NIC to the i-th GPU."""
    return tuple(tuple(path_rank(pairs.get((gpu, nic))) for gpu in gpus) for nic in nics)


def to_public(value: int) -> float:
    """Back to Gbit/s, or to a rank."""
    return value / _SCALE
