"""Which PCI functions are in this /sys, on which bridges, with which links? Reads /sys/bus/pci only; opens no config space."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard.host.devices import kind_of, numa_node_of
from steelyard.host.sysfs import PCI_ADDRESS, names, read_cpu_mask, read_cpus, read_int, read_text
from steelyard.host.topology.tree import pcie_gbps
from steelyard.model.machine import NumaNode
from steelyard.model.topology import Bridge, BridgeKind

_DEVICES = "sys/bus/pci/devices"
_ROOT = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class PciFunction:
    address: str
    folder: Path
    #: class and subclass; None where the tree was recorded without
    code: int | None
    vendor: int | None
    device: int | None
    #: `pci0000:80` and the bridges from there to here; () where the tree was recorded without links
    road: tuple[str, ...]
    #: GT/s that the device can do, or does where that is all that is known
    speed: float | None
    #: lanes in use, and lanes that it could use
    width: int | None
    width_max: int | None
    #: CPUs that the kernel calls near; () where it does not tell
    cpus: tuple[int, ...]
    numa_node: int | None

    @property
    def kind(self) -> str | None:
        if self.code is None or self.vendor is None or self.device is None:
            return None
        return kind_of(self.code, self.vendor, self.device)

    @property
    def parent(self) -> str | None:
        return self.road[-1] if self.road else None

    def link_gbps(self, functions: Mapping[str, PciFunction]) -> float | None:
        """At the speed that both ends can do: an idle device slows down but keeps its lanes."""
        above = functions.get(self.road[-1]) if self.road else None
        speeds = [speed for speed in (self.speed, above.speed if above else None) if speed is not None]
        return pcie_gbps(min(speeds), self.width) if self.speed is not None else None


def read_functions(root: Path, nodes: Sequence[NumaNode]) -> dict[str, PciFunction]:
    """By address, in order. Roots are renamed `host0`, `host1` … in the order of their buses."""
    folders = {name: root / _DEVICES / name for name in names(root / _DEVICES) if PCI_ADDRESS.fullmatch(name)}
    roads = {name: _road(folder, name) for name, folder in folders.items()}
    roots = sorted({road[0] for road in roads.values() if road}, key=lambda name: (len(name), name))
    hosts = {name: f"host{number}" for number, name in enumerate(roots)}
    return {
        name: _function(root, name, folder, tuple(hosts.get(part, part) for part in roads[name]), nodes)
        for name, folder in folders.items()
    }


def _road(folder: Path, name: str) -> tuple[str, ...]:
    """`../../../devices/pci0000:80/0000:80:02.2/0000:82:00.0` -> (`pci0000:80`, `0000:80:02.2`). The link's text tells."""
    try:
        parts = folder.readlink().parts
    except OSError:
        return ()
    start = next((at for at, part in enumerate(parts) if _ROOT.fullmatch(part)), None)
    if start is None or parts[-1] != name:
        return ()
    # Roots behind a function (Intel VMD) are skipped: that function is their bridge.
    return (parts[start], *(part for part in parts[start + 1 : -1] if PCI_ADDRESS.fullmatch(part)))


def _function(root: Path, name: str, folder: Path, road: tuple[str, ...], nodes: Sequence[NumaNode]) -> PciFunction:
    code = read_int(folder / "class")
    near = frozenset(read_cpus(folder / "local_cpulist") or read_cpu_mask(folder / "local_cpus") or ())
    # Firmware that gives no node (-1) may still give the CPUs near: those of one node tell it.
    homes = [node.id for node in nodes if near.intersection(node.cpus)]
    told = numa_node_of(folder)
    # The same files by way of the bus, which is all that some recordings have.
    links = (folder, root / "sys/class/pci_bus" / name.rpartition(":")[0] / "device" / name)
    speed = _first(links, "max_link_speed") or _first(links, "current_link_speed")
    width, width_max = _first(links, "current_link_width"), _first(links, "max_link_width")
    return PciFunction(
        address=name,
        folder=folder,
        code=None if code is None else code >> 8,
        vendor=read_int(folder / "vendor"),
        device=read_int(folder / "device"),
        road=road,
        speed=speed,
        width=int(width) if width else None,
        width_max=_lanes(width_max),
        cpus=tuple(sorted(cpu for node in nodes for cpu in node.cpus if cpu in near)),
        numa_node=told if told is not None else homes[0] if len(homes) == 1 else None,
    )


def _first(links: tuple[Path, ...], file: str) -> float | None:
    """`8.0 GT/s PCIe` -> 8.0; None for `Unknown` and 0."""
    for folder in links:
        match = re.match(r"([0-9]{1,4}(\.[0-9]{1,3})?)\b", read_text(folder / file) or "")
        if match and float(match[1]) > 0:
            return float(match[1])
    return None


def _lanes(width: float | None) -> int | None:
    """The kernel says 255 where a device doesn't tell."""
    return int(width) if width and width < 255 else None


def users_by_function(root: Path, kind: str) -> dict[str, list[str]]:
    """Names in /sys/class/<kind> by the innermost PCI function on the way to them (`virtio0` may lie between)."""
    found: dict[str, list[str]] = {}
    for name in names(root / "sys/class" / kind):
        try:
            parts = (root / "sys/class" / kind / name).readlink().parts
        except OSError:
            continue
        address = next((part for part in reversed(parts) if PCI_ADDRESS.fullmatch(part)), None)
        if address is not None:
            found.setdefault(address, []).append(name)
    return found


def make_bridges(functions: Mapping[str, PciFunction]) -> tuple[Bridge, ...]:
    """All bridges with a device below, each after its parent."""
    found: dict[str, Bridge] = {}
    for function in functions.values():
        for at, name in enumerate(function.road):
            if name in found:
                continue
            own = functions.get(name)
            if at == 0:
                found[name] = Bridge(name, BridgeKind.HOST, numa_node=_numa_node(name, functions))
            else:
                gbps = own.link_gbps(functions) if own else None
                found[name] = Bridge(name, BridgeKind.PCIE, function.road[at - 1], gbps)
    return tuple(found.values())


def _numa_node(host: str, functions: Mapping[str, PciFunction]) -> int | None:
    """A root has no file for it; the devices below all tell the same."""
    told = {function.numa_node for function in functions.values() if function.road[:1] == (host,)} - {None}
    return told.pop() if len(told) == 1 else None
