"""Which GPUs are joined by NVLink or xGMI, and how fast, when each GPU tells its own links? Shared by NCCL's XML and NVML.

Takes each GPU's links by target, gives pairs. Links to NVSwitches join every GPU that has such links: a pair has as many as the
poorer of the two. Direct links are told by both ends; where the ends differ, the smaller number counts and a note says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from steelyard.host.topology.notation import NVLINK_GBPS, XGMI_GBPS
from steelyard.model.topology import Pair, PathClass


@dataclass
class LinkTable:
    #: GPU id -> {address of another GPU: links}
    _direct: dict[str, dict[str, int]] = field(default_factory=dict)
    #: GPU id -> links to any NVSwitch
    _to_switches: dict[str, int] = field(default_factory=dict)
    #: GPU id -> one link in one direction, Gbit/s
    _rates: dict[str, float | None] = field(default_factory=dict)
    _paths: dict[str, PathClass] = field(default_factory=dict)

    def read(self, gpu: str, architecture: str | None, targets: Sequence[tuple[str, str, int]]) -> int | None:
        """Takes one GPU's links as (kind, target, count). Returns their number, None where there is no word of any."""
        direct: dict[str, int] = defaultdict(int)
        to_switches = total = 0
        for kind, target, count in targets:
            total += count
            if kind == "switch":
                to_switches += count
            elif kind != "cpu":
                direct[target] += count
        amd = any(kind == "xgmi" for kind, _, _ in targets)
        self._direct[gpu], self._to_switches[gpu] = dict(direct), to_switches
        self._rates[gpu] = (XGMI_GBPS if amd else NVLINK_GBPS).get(architecture or "")
        self._paths[gpu] = PathClass.XGMI if amd else PathClass.NV
        return total if targets else None

    def make_pairs(self, gpus: Sequence[str]) -> tuple[dict[tuple[str, str], Pair], list[str]]:
        """The linked pairs in the order of `gpus`, and sentences about what did not fit."""
        pairs: dict[tuple[str, str], Pair] = {}
        notes: list[str] = []
        for place, a in enumerate(gpus):
            for b in gpus[place + 1 :]:
                links = self._count(a, b, notes)
                if links:
                    rates = [self._rates.get(a), self._rates.get(b)]
                    known = [rate for rate in rates if rate is not None]
                    gbps = round(links * min(known), 3) if len(known) == 2 else None
                    pairs[a, b] = Pair(a, b, self._paths.get(a, PathClass.NV), links=links, gbps=gbps)
        strangers = {target for targets in self._direct.values() for target in targets} - {gpu.split("/")[0] for gpu in gpus}
        if strangers:
            notes.append(f"Links lead to GPUs that this source does not list: {', '.join(sorted(strangers)[:16])}.")
        return pairs, notes

    def _count(self, a: str, b: str, notes: list[str]) -> int:
        there, back = self._direct.get(a, {}).get(b, 0), self._direct.get(b, {}).get(a, 0)
        if there != back:
            notes.append(f"GPU {a} tells {there} links to {b}, which tells {back}; the smaller number that is not 0 is used.")
        direct = min(there, back) or max(there, back)
        return max(direct, min(self._to_switches.get(a, 0), self._to_switches.get(b, 0)))
