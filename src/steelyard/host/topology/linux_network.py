"""What network ports has a PCI function? From /sys/class/infiniband and /sys/class/net. Never opens an address or a GUID."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from steelyard.host.devices import find_pci, numa_node_of
from steelyard.host.health.infiniband import read_port
from steelyard.host.sysfs import names, numbered, read_int, read_text
from steelyard.host.topology.linux_pci import PciFunction, users_by_function
from steelyard.host.topology.pci import CRAY
from steelyard.model.topology import Nic, Port

_INFINIBAND_TYPE = 32


def read_nics(root: Path, functions: Mapping[str, PciFunction]) -> tuple[Nic, ...]:
    """By class; where a tree was recorded without classes, or the class is odd (GB300), by what the driver made of it."""
    if not functions:
        return _loose_nics(root)
    fabrics, networks = users_by_function(root, "infiniband"), users_by_function(root, "net")
    found: list[Nic] = []
    for address, function in functions.items():
        right_here = names(function.folder / "net")
        rdma = fabrics.get(address) or names(function.folder / "infiniband")
        # A network over USB hangs somewhere below a USB controller: only a card's interfaces hang right at a function.
        if function.kind == "nic" or rdma or (right_here and function.kind is None):
            found.append(_nic(root, functions, function, rdma, networks.get(address) or right_here))
    return tuple(found)


def _nic(root: Path, functions: Mapping[str, PciFunction], function: PciFunction, fabrics: list[str], networks: list[str]) -> Nic:
    """`fabrics`: its RDMA devices (`mlx5_0`); `networks`: its interfaces (`eth0`)."""
    slingshot = function.vendor == CRAY
    ports = _ports(root, function.folder, fabrics, networks, slingshot)
    return Nic(
        id=function.address,
        name=next(iter([*fabrics, *networks]), ""),
        pci=function.address,
        ports=ports,
        # A function with interfaces but without an RDMA device has none; without any driver it can't be told.
        rdma=True if fabrics or slingshot else False if networks else None,
        numa_node=function.numa_node,
        pcie_gbps=function.link_gbps(functions),
        pcie_width=function.width,
        pcie_width_max=function.width_max,
        parent=function.parent,
    )


def _loose_nics(root: Path) -> tuple[Nic, ...]:
    """For trees without PCI: RDMA devices, then interfaces that stand on hardware and are not theirs."""
    found: list[Nic] = []
    for name in names(root / "sys/class/infiniband"):
        address = find_pci(root / "sys/class/infiniband" / name)
        ports = _ports(root, root, [name], [], slingshot=False)
        found.append(Nic(id=address or name, name=name, pci=address, ports=ports, rdma=True))
    taken = {nic.id for nic in found}
    for name in names(root / "sys/class/net"):
        link = root / "sys/class/net" / name / "device"
        address = find_pci(link)
        if not (link.is_symlink() or link.exists()) or (address or name) in taken:
            continue
        taken.add(address or name)
        ports = _ports(root, root, [], [name], slingshot=False)
        found.append(Nic(id=address or name, name=name, pci=address, ports=ports, numa_node=numa_node_of(link)))
    return tuple(found)


def _ports(root: Path, folder: Path, fabrics: list[str], networks: list[str], slingshot: bool) -> tuple[Port, ...]:
    if not fabrics:
        return tuple(_interface(_place(root, folder, "net", name), name, slingshot) for name in networks)
    ports: list[Port] = []
    for name in fabrics:
        place = _place(root, folder, "infiniband", name) / "ports"
        numbers = numbered(place, "")
        ports += [_fabric(place / str(number), name if len(numbers) == 1 else f"{name}:{number}") for number in numbers]
    return tuple(ports)


def _place(root: Path, folder: Path, kind: str, name: str) -> Path:
    """Below the device, or by class where a tree was recorded without the link between them."""
    place = folder / kind / name
    return place if place.is_dir() else root / "sys/class" / kind / name


def _fabric(place: Path, name: str) -> Port:
    port = read_port(place)
    return Port(
        name=name,
        # A port that is down shows the rate at which links begin to talk.
        gbps=port.gbps or None if port.state != "down" else None,
        link=port.link or None,
        up={"active": True, "down": False, "init": False, "armed": False}.get(port.state or ""),
    )


def _interface(place: Path, name: str, slingshot: bool) -> Port:
    # Mbit/s; -1 or unreadable while the link is down
    speed, state = read_int(place / "speed"), read_text(place / "operstate")
    kind = read_int(place / "type")
    link = "Slingshot" if slingshot else "InfiniBand" if kind == _INFINIBAND_TYPE else "Ethernet" if kind == 1 else None
    return Port(
        name=name,
        gbps=speed / 1000 if speed is not None and 0 < speed < 2**31 else None,
        link=link,
        up={"up": True, "down": False}.get(state or ""),
    )
