"""Which AMD GPUs does the driver show, in which parts, and which of them are joined by xGMI? From /sys/class/kfd."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from steelyard.host.sysfs import numbered, read_text
from steelyard.model.topology import Pair, PathClass

_NODES = "sys/class/kfd/kfd/topology/nodes"
#: HSA_IOLINK_TYPE_XGMI in the kernel's kfd_crat.h
_XGMI = 11


@dataclass(frozen=True, slots=True)
class KfdGpu:
    #: the driver's number of this GPU or part
    node: int
    #: `gfx942`; None where the kernel does not tell
    architecture: str | None


@dataclass(frozen=True, slots=True)
class KfdGpus:
    #: PCI address -> the GPU, or the parts that the driver splits it into (MI300 in TPX or CPX mode), in the driver's order
    parts: dict[str, list[KfdGpu]] = field(default_factory=dict)
    #: (node, node) -> MB/s in one direction; 0 where the kernel does not tell
    links: dict[tuple[int, int], int] = field(default_factory=dict)

    def pairs(self, order: list[str]) -> dict[tuple[str, str], Pair]:
        ids = {
            part.node: address if at == 0 else f"{address}/{at}"
            for address, parts in self.parts.items()
            for at, part in enumerate(parts)
        }
        place = {id_: at for at, id_ in enumerate(order)}
        found: dict[tuple[str, str], Pair] = {}
        for (first, second), rate in self.links.items():
            a, b = ids.get(first), ids.get(second)
            if a in place and b in place and a != b:
                a, b = sorted((a, b), key=lambda id_: place[id_])
                found.setdefault((a, b), Pair(a, b, PathClass.XGMI, gbps=rate * 8 / 1000 or None))
        return found


def read_kfd(root: Path) -> KfdGpus:
    found = KfdGpus()
    for node in numbered(root / _NODES, ""):
        folder = root / _NODES / str(node)
        facts = _facts(folder / "properties")
        # CPUs are nodes too, without SIMD units.
        if not facts.get("simd_count"):
            continue
        found.parts.setdefault(_address(facts), []).append(KfdGpu(node, _architecture(facts.get("gfx_target_version", 0))))
        for link in numbered(folder / "io_links", ""):
            wire = _facts(folder / "io_links" / str(link) / "properties")
            if wire.get("type") == _XGMI and "node_to" in wire:
                found.links[node, wire["node_to"]] = wire.get("max_bandwidth", 0)
    return found


def _facts(path: Path) -> dict[str, int]:
    """Lines `name number`."""
    lines = re.findall(r"^(\w+) ([0-9]{1,20})$", read_text(path) or "", re.MULTILINE)
    return {name: int(number) for name, number in lines}


def _address(facts: dict[str, int]) -> str:
    """`location_id` is bus, device and function; parts of one device count its function up, the device itself is function 0."""
    place = facts.get("location_id", 0)
    return f"{facts.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.0"


def _architecture(version: int) -> str | None:
    """90402 -> gfx942: major, minor and stepping, the last two as hexadecimal digits."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else None
