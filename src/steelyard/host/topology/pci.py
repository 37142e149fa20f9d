"""What do PCI addresses and classes tell? What all readers that see PCI devices share: spelling, NVSwitches, PCIe switches.

Pure: takes what a reader has found, never reads anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from steelyard.errors import Refused
from steelyard.host.sysfs import PCI_ADDRESS
from steelyard.model.topology import Bridge, BridgeKind, Switch, SwitchKind

NVIDIA, AMD, INTEL, CRAY = 0x10DE, 0x1002, 0x8086, 0x17DB
#: whose display and accelerator devices compute
GPU_VENDOR_NAMES = {NVIDIA: "NVIDIA", AMD: "AMD", INTEL: "Intel"}
#: PCI class and subclass: a bridge that is none of the standard kinds, as NVSwitches call themselves
OTHER_BRIDGE = 0x0680
#: GPUs and NICs of one machine, virtual functions included. Their pairs grow with the square.
DEVICES_MAX = 1024


def parse_pci_address(text: str, source: str) -> str:
    """`0000:0F:00.0` -> `0000:0f:00.0`."""
    address = text.strip().lower()
    if not PCI_ADDRESS.fullmatch(address):
        raise Refused(f"{source}: {text[:40]!r} is no PCI address (such as 0000:0f:00.0).", code="illegal")
    return address


def is_nvswitch(code: int, vendor: int) -> bool:
    return code == OTHER_BRIDGE and vendor == NVIDIA


def make_pcie_switches(bridges: Sequence[Bridge]) -> tuple[Switch, ...]:
    """By the upstream port. A PCIe link ends in one device, so a bridge with two or more bridges right below it can only be a
    switch's upstream port. A switch with a single port in use joins nothing and is not listed."""
    below = Counter(bridge.parent for bridge in bridges)
    return tuple(
        Switch(bridge.id, SwitchKind.PCIE) for bridge in bridges if bridge.kind is BridgeKind.PCIE and below[bridge.id] >= 2
    )


def check_device_count(gpus: int, nics: int, source: str) -> None:
    if gpus + nics > DEVICES_MAX:
        raise Refused(
            f"{source} lists more than {DEVICES_MAX} GPUs and network functions, so it is not read: no machine has so many.",
            code="too-large",
        )
