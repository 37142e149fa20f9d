"""How wide and fast are the PCIe links of GPUs, network cards and NVMe disks, beside what the devices could do?

From /sys under a root.
"""

from __future__ import annotations

import re
from pathlib import Path

from steelyard.host.devices import KINDS
from steelyard.host.sysfs import PCI_ADDRESS, names, read_int, read_text
from steelyard.host.topology.pci import OTHER_BRIDGE
from steelyard.model.health_facts import PciFact


def observe_pci(root: Path) -> tuple[PciFact, ...]:
    """Devices that tell a link. In a recorded tree without classes, `nvme/`, `infiniband/` or `net/` below tells the kind."""
    base = root / "sys/bus/pci/devices"
    found = {pci: base / pci for pci in names(base) if PCI_ADDRESS.fullmatch(pci)}
    for bus in names(root / "sys/class/pci_bus"):
        folder = root / "sys/class/pci_bus" / bus / "device"
        for pci in names(folder):
            if PCI_ADDRESS.fullmatch(pci) and (pci not in found or not (found[pci] / "current_link_width").exists()):
                found[pci] = folder / pci
    facts: list[PciFact] = []
    for pci, folder in sorted(found.items()):
        width = read_int(folder / "current_link_width")
        if width is None:
            continue
        facts.append(
            PciFact(
                pci=pci,
                kind=_kind(base / pci),
                width=width,
                width_max=read_int(folder / "max_link_width"),
                gigatransfers=_rate(read_text(folder / "current_link_speed")),
                gigatransfers_max=_rate(read_text(folder / "max_link_speed")),
            )
        )
    return tuple(facts)


def _kind(folder: Path) -> str:
    code = read_int(folder / "class")
    if code is not None:
        return "switch" if code >> 8 == OTHER_BRIDGE else KINDS.get(code >> 8, "other")
    below = set(names(folder))
    return "nvme" if "nvme" in below else "nic" if below & {"infiniband", "net"} else "other"


def _rate(text: str | None) -> float | None:
    match = re.match(r"(\d{1,3}(?:\.\d{1,2})?) ?GT/s", text or "")
    return float(match[1]) if match else None
