"""How wide and fast are the PCIe links of GPUs, network cards and NVMe disks, beside what the devices could do?

From /sys under a root.
"""

from __future__ import annotations

import re
from pathlib import Path

from steelyard.host.sysfs import names, read_int, read_text
from steelyard.model.health_facts import PciFact

#: PCI class (its first two bytes) -> kind
KINDS = {
    0x0300: "gpu",
    0x0302: "gpu",
    0x0380: "gpu",
    0x1200: "gpu",
    0x0200: "nic",
    0x0207: "nic",
    0x0108: "nvme",
    0x0680: "switch",
}
_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def observe_pci(root: Path) -> tuple[PciFact, ...]:
    """Devices that tell a link. In a recorded tree without classes, `nvme/`, `infiniband/` or `net/` below tells the kind."""
    base = root / "sys/bus/pci/devices"
    found = {pci: base / pci for pci in names(base) if _ADDRESS.fullmatch(pci)}
    for bus in names(root / "sys/class/pci_bus"):
        folder = root / "sys/class/pci_bus" / bus / "device"
        for pci in names(folder):
            if _ADDRESS.fullmatch(pci) and (pci not in found or not (found[pci] / "current_link_width").exists()):
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
        return KINDS.get(code >> 8, "other")
    below = set(names(folder))
    return "nvme" if "nvme" in below else "nic" if below & {"infiniband", "net"} else "other"


def _rate(text: str | None) -> float | None:
    match = re.match(r"(\d{1,3}(?:\.\d{1,2})?) ?GT/s", text or "")
    return float(match[1]) if match else None
