"""Which GPUs, network cards and disks has this machine? From PCI classes, /sys/class/net and /sys/class/block.

Never reads serial numbers or MAC addresses, never asks a driver or starts a program: what a driver knows beyond this (memory,
MIG) is not this file's business.
"""

from __future__ import annotations

import re
from pathlib import Path

from steelyard.host.sysfs import PCI_ADDRESS, names, read_int, read_text
from steelyard.host.topology.pci import GPU_VENDOR_NAMES
from steelyard.model.machine import Device

VENDORS = {
    **GPU_VENDOR_NAMES,
    0x15B3: "Mellanox",
    0x14E4: "Broadcom",
    0x1AF4: "virtio",
    0x144D: "Samsung",
    0x1D0F: "Amazon",
    0x1AE0: "Google",
    0x1B36: "QEMU",
    0x102B: "Matrox",
    0x1A03: "ASPEED",
}
#: PCI class and subclass -> our kind. 0x0300 VGA, 0x0302 3D controller, 0x0380 other display, 0x1200 processing accelerator
KINDS = {
    0x0300: "gpu",
    0x0302: "gpu",
    0x0380: "gpu",
    0x1200: "gpu",
    0x0200: "nic",
    0x0207: "nic",
    0x0208: "nic",
    0x0280: "nic",
    0x0108: "nvme",
}
#: AMD's old server consoles (ES1000, Rage XL, RV100), which compute nothing either
CONSOLES = {(0x1002, device) for device in (0x515E, 0x5969, 0x4752, 0x5159)}
#: Intel's processing accelerators are laptop NPUs and the like; its GPUs are all display controllers
NO_GPUS = {(0x8086, 0x1200)}
PCI_IDS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
#: block devices that are no hardware
VIRTUAL_BLOCKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd")


def observe_devices(root: Path) -> tuple[Device, ...]:
    """GPUs, then NICs, then NVMe controllers and disks, each by PCI address."""
    pci = {name: device for name in names(root / "sys/bus/pci/devices") if (device := _pci_device(root, name)) is not None}
    users = [*_interfaces(root), *_disks(root)]
    carried = {(device.kind, device.pci) for device in users}
    # A card with a driver shows as its interfaces or disks, which know names, speed and size; one without as its PCI device.
    found = [device for device in _with_names(root, pci).values() if (device.kind, device.pci) not in carried] + users
    order = ("gpu", "nic", "nvme", "disk")
    return tuple(sorted(found, key=lambda device: (order.index(device.kind), device.pci or "~", device.name)))


def _pci_device(root: Path, address: str) -> tuple[Device, int, int] | None:
    """(device without its model name, vendor, device id), or None for a class we don't list."""
    folder = root / "sys/bus/pci/devices" / address
    code, vendor, device = read_int(folder / "class"), read_int(folder / "vendor"), read_int(folder / "device")
    if code is None or vendor is None or device is None:
        return None
    kind = kind_of(code >> 8, vendor, device)
    if kind is None:
        return None
    return Device(kind=kind, name="", pci=address, numa_node=numa_node_of(folder)), vendor, device


def kind_of(code: int, vendor: int, device: int) -> str | None:
    """Our kind of a PCI function by class and subclass, vendor and device; None for what we don't list."""
    kind = KINDS.get(code)
    if kind == "gpu" and (vendor not in GPU_VENDOR_NAMES or (vendor, device) in CONSOLES or (vendor, code) in NO_GPUS):
        return None  # others only draw a console (ASPEED, Matrox)
    return kind


def numa_node_of(folder: Path) -> int | None:
    """-1 is the kernel's word for "not known"."""
    node = read_int(folder / "numa_node")
    return None if node is None or node < 0 else node


def _with_names(root: Path, pci: dict[str, tuple[Device, int, int]]) -> dict[str, Device]:
    models = model_names(root, {(vendor, device) for _, vendor, device in pci.values()})
    named: dict[str, Device] = {}
    for address, (seen, vendor, device) in pci.items():
        maker = VENDORS.get(vendor, f"vendor {vendor:04x}")
        model = (
            models.get((vendor, device)) or f"{ {'gpu': 'GPU', 'nic': 'network card', 'nvme': 'NVMe'}[seen.kind] } {device:04x}"
        )
        name = f"{maker} {model}"
        if seen.kind == "gpu":
            name = driver_name(root, address) or name
        elif seen.kind == "nvme":
            name = _nvme_name(root, address) or name
        named[address] = Device(kind=seen.kind, name=name, pci=address, numa_node=seen.numa_node, detail=_driver(root, address))
    return named


def driver_name(root: Path, address: str) -> str | None:
    """NVIDIA's driver tells the product's name in /proc; the file also holds serials, of which nothing is taken."""
    text = read_text(root / "proc/driver/nvidia/gpus" / address / "information") or ""
    match = re.search(r"^Model:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def _nvme_name(root: Path, address: str) -> str | None:
    folder = root / "sys/bus/pci/devices" / address / "nvme"
    for controller in names(folder):
        model = read_text(folder / controller / "model")
        if model:
            return model
    return None


def _driver(root: Path, address: str) -> str:
    link = root / "sys/bus/pci/devices" / address / "driver"
    try:
        return f"driver {link.readlink().name}"
    except OSError:
        return "no driver"


def model_names(root: Path, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Names from the machine's pci.ids where it has one: vendors at the line's start, their devices after one tab."""
    if not wanted:
        return {}
    text = next((text for place in PCI_IDS if (text := read_text(root / place)) is not None), "")
    found: dict[tuple[int, int], str] = {}
    for vendor in {vendor for vendor, _ in wanted}:
        start = re.search(rf"^{vendor:04x}  .*$", text, re.MULTILINE)
        if start is None:
            continue
        end = re.compile(r"^[0-9a-fC]", re.MULTILINE).search(text, start.end())
        part = text[start.end() : end.start() if end else len(text)]
        for device in {device for maker, device in wanted if maker == vendor}:
            match = re.search(rf"^\t{device:04x}  (.+)$", part, re.MULTILINE)
            if match:
                found[vendor, device] = match[1].strip()
    return found


def find_pci(folder: Path) -> str | None:
    """The innermost PCI address on the way to a device of /sys/class."""
    try:
        parts = folder.resolve().parts
    except (OSError, RuntimeError):
        return None
    return next((part for part in reversed(parts) if PCI_ADDRESS.fullmatch(part)), None)


def _interfaces(root: Path) -> list[Device]:
    """Network interfaces that stand on hardware, InfiniBand and Ethernet."""
    found: list[Device] = []
    for name in names(root / "sys/class/net"):
        folder = root / "sys/class/net" / name
        pci = find_pci(folder)
        if pci is None and not (folder / "device").exists():
            continue
        speed = read_int(folder / "speed")
        state = read_text(folder / "operstate")
        kind = "InfiniBand" if read_int(folder / "type") == 32 else "Ethernet"
        details = [
            kind,
            f"{speed / 1000:g} Gbit/s" if speed is not None and speed > 0 else "",
            state if state != "unknown" else "",
        ]
        rdma = ", ".join(names(folder / "device" / "infiniband"))
        found.append(
            Device(
                kind="nic",
                name=name,
                pci=pci,
                numa_node=numa_node_of(folder / "device"),
                detail=", ".join(part for part in (*details, f"RDMA {rdma}" if rdma else "") if part),
            )
        )
    return found


def _disks(root: Path) -> list[Device]:
    """Whole block devices on hardware; a partition has a file `partition`."""
    found: list[Device] = []
    for name in names(root / "sys/class/block"):
        folder = root / "sys/class/block" / name
        if name.startswith(VIRTUAL_BLOCKS) or (folder / "partition").exists() or re.fullmatch(r"nvme\d+c\d+n\d+", name):
            continue
        pci = find_pci(folder)
        if pci is None and not (folder / "device").exists():
            continue
        sectors = read_int(folder / "size")
        # Virtual disks call themselves rotating whatever is below.
        rotational = None if name.startswith(("vd", "xvd")) else read_int(folder / "queue/rotational")
        details = [
            read_text(folder / "device/model") or "",
            # Counted in units of 512 bytes whatever the sector size is.
            f"{sectors * 512 / 1e9:.0f} GB" if sectors else "",
            "" if rotational is None else "rotating" if rotational else "solid state",
        ]
        found.append(
            Device(
                kind="nvme" if name.startswith("nvme") else "disk",
                name=name,
                pci=pci,
                numa_node=numa_node_of(folder / "device"),
                detail=", ".join(part for part in details if part),
            )
        )
    return found
