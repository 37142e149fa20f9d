"""Which InfiniBand and RoCE ports has this machine, and are they up? `/sys/class/infiniband` under any root.

Reads names, states and rates; never GUIDs, GIDs, MACs or serial numbers. What the kernel leaves out is None.
"""

from __future__ import annotations

import re
from pathlib import Path

from steelyard.host.sysfs import names, read_text
from steelyard.model.fabric import InfinibandPort, name_key

_RATE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?) Gb/sec(?: \((\d+X(?: [A-Z0-9]+)?)\))?")
_STATE = re.compile(r"\d+: ([\w ]+)")
_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def read_infiniband(root: Path) -> tuple[InfinibandPort, ...]:
    """Every port of every device in `root/sys/class/infiniband`, or in `root` itself where that is such a folder."""
    folder = root / "sys/class/infiniband"
    if not folder.is_dir():
        folder = root
    found: list[InfinibandPort] = []
    for device in sorted(names(folder), key=name_key):
        at = folder / device
        pci = _pci(at / "device")
        for number in sorted(int(name) for name in names(at / "ports") if name.isascii() and name.isdigit()):
            port = at / "ports" / str(number)
            rate = _RATE.fullmatch(read_text(port / "rate") or "")
            found.append(
                InfinibandPort(
                    device=device,
                    number=number,
                    state=_word(port / "state"),
                    physical=_word(port / "phys_state"),
                    gbps=float(rate[1]) if rate else None,
                    speed=rate[2] if rate else None,
                    link=read_text(port / "link_layer") or None,
                    board=read_text(at / "board_id") or None,
                    firmware=read_text(at / "fw_ver") or None,
                    pci=pci,
                )
            )
    return tuple(found)


def _word(path: Path) -> str | None:
    match = _STATE.fullmatch(read_text(path) or "")
    return match[1] if match else None


def _pci(link: Path) -> str | None:
    try:
        name = link.readlink().name
    except OSError:
        return None
    return name if _PCI.fullmatch(name) else None
