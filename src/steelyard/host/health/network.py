"""How do the network interfaces of physical cards stand?

From /sys/class/net under a root, or from a recorded `ip -json` with what the configuration asks for. Never reads MAC addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steelyard.host.sysfs import names, read_int, read_text
from steelyard.model.health_facts import InterfaceFact

#: ARPHRD_INFINIBAND
INFINIBAND = 32


def observe_interfaces(root: Path) -> tuple[InterfaceFact, ...]:
    """Interfaces of hardware, and bonds. Virtual ones (veth, bridges, tunnels) say nothing about the machine."""
    found: list[InterfaceFact] = []
    base = root / "sys/class/net"
    for name in names(base):
        folder = base / name
        if (folder / "device").exists() or (folder / "bonding").exists():
            try:
                pci = (folder / "device").resolve().name if (folder / "device").exists() else ""
            except OSError:
                pci = ""
            found.append(_read(folder, name, pci if pci.count(":") == 2 else None))
    if not found:
        devices = root / "sys/bus/pci/devices"
        for pci in names(devices):
            found += [_read(devices / pci / "net" / name, name, pci) for name in names(devices / pci / "net")]
    return tuple(found)


def _read(folder: Path, name: str, pci: str | None) -> InterfaceFact:
    mbps = read_int(folder / "speed")
    try:
        master = (folder / "master").readlink().name
    except OSError:
        master = None
    return InterfaceFact(
        name=name,
        operstate=read_text(folder / "operstate") or None,
        mbps=mbps if mbps is not None and mbps > 0 else None,
        mtu=read_int(folder / "mtu"),
        master=master,
        infiniband=read_int(folder / "type") == INFINIBAND,
        pci=pci,
    )


def parse_interfaces(document: Mapping[str, Any]) -> tuple[InterfaceFact, ...]:
    """`{"intf_status": ip -json link, "link_speed": {name: Mbit/s}, "intf_ifcfg": {name: {MTU, ONBOOT…}}}`. Interfaces that are
    neither configured nor part of a bond are left out with the loopback."""
    speeds, configured = _dict(document.get("link_speed")), _dict(document.get("intf_ifcfg"))
    found: list[InterfaceFact] = []
    for row in _list(document.get("intf_status")):
        if not isinstance(row, dict) or row.get("link_type") == "loopback" or not isinstance(row.get("ifname"), str):
            continue
        name = row["ifname"]
        wanted = _dict(configured.get(name))
        found.append(
            InterfaceFact(
                name=name,
                operstate=str(row.get("operstate", "")).lower() or None,
                mbps=_int(speeds.get(name)),
                mtu=_int(row.get("mtu")),
                master=next((each for each in (row.get("main"), row.get("master")) if isinstance(each, str)), None),
                infiniband=row.get("link_type") == "infiniband",
                mtu_configured=_int(wanted.get("MTU")),
                wanted=str(wanted.get("ONBOOT", "")).lower() == "yes",
            )
        )
    return tuple(found)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _int(value: object) -> int | None:
    text = str(value) if value is not None else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None
