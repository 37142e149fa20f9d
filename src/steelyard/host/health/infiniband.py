"""Which InfiniBand and RoCE ports has this machine, in which state, and how many errors did they count?

From /sys/class/infiniband under a root, and from the text of `ibstat`, `ibstatus` and `perfquery`. GUIDs are never read. Raises
nothing for odd text: what is missing stays None.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from steelyard.host.devices import find_pci
from steelyard.host.sysfs import names, numbered, read_int, read_text
from steelyard.model.health_facts import PortFact

#: the kernel's counter -> perfquery's
COUNTERS = {
    "symbol_error": "SymbolErrorCounter",
    "link_error_recovery": "LinkErrorRecoveryCounter",
    "link_downed": "LinkDownedCounter",
    "port_rcv_errors": "PortRcvErrors",
    "local_link_integrity_errors": "LocalLinkIntegrityErrors",
    "excessive_buffer_overrun_errors": "ExcessiveBufferOverrunErrors",
    "port_xmit_discards": "PortXmitDiscards",
}
_IBSTATUS = re.compile(r"^Infiniband device '([^']{1,64})' port (\d{1,4}) status:", re.MULTILINE)
_PERFQUERY = re.compile(r"^# Port (?:extended )?counters: (.{0,60}?) port (\d{1,4})\b", re.MULTILINE)


def observe_ports(root: Path) -> tuple[PortFact, ...]:
    found: list[PortFact] = []
    for device, folder, pci in _devices(root):
        for port in numbered(folder / "ports", ""):
            base = folder / "ports" / str(port)
            counters = {name: read_int(base / "counters" / name) for name in COUNTERS}
            found.append(
                msgspec.structs.replace(
                    read_port(base),
                    device=device,
                    model=read_text(folder / "hca_type") or "",
                    pci=pci,
                    counters={name: value for name, value in counters.items() if value is not None},
                )
            )
    return tuple(found)


def read_port(folder: Path) -> PortFact:
    """`…/mlx5_0/ports/1`, without its counters."""
    return PortFact(
        device=folder.parent.parent.name,
        port=int(folder.name),
        state=_word(read_text(folder / "state")),
        physical=_word(read_text(folder / "phys_state")),
        gbps=_rate(read_text(folder / "rate")),
        link=read_text(folder / "link_layer"),
    )


def _devices(root: Path) -> list[tuple[str, Path, str | None]]:
    """By class; where a recorded tree has no classes, below the PCI devices."""
    found: list[tuple[str, Path, str | None]] = []
    base = root / "sys/class/infiniband"
    for name in names(base):
        found.append((name, base / name, find_pci(base / name / "device")))
    if not found:
        devices = root / "sys/bus/pci/devices"
        for pci in names(devices):
            found += [(name, devices / pci / "infiniband" / name, pci) for name in names(devices / pci / "infiniband")]
    return sorted(found)


def parse_ibstat(text: str) -> tuple[PortFact, ...]:
    """The text of `ibstat`. Blocks `CA 'mlx5_0'` with `Port 1:` below."""
    found: list[PortFact] = []
    for block in re.split(r"^(?=CA ')", text, flags=re.MULTILINE):
        head = re.match(r"CA '([^']{1,64})'", block)
        if head is None:
            continue
        parts = re.split(r"^\s+Port (\d{1,4}):\s*$", block, flags=re.MULTILINE)
        model = _fields(parts[0]).get("ca type", "")
        for number, body in zip(parts[1::2], parts[2::2], strict=False):
            fields = _fields(body)
            found.append(
                PortFact(
                    device=head[1],
                    port=int(number),
                    state=_word(fields.get("state")),
                    physical=_word(fields.get("physical state")),
                    gbps=_rate(fields.get("rate")),
                    link=fields.get("link layer"),
                    model=model,
                )
            )
    return tuple(found)


def parse_ibstatus(text: str) -> tuple[PortFact, ...]:
    parts = _IBSTATUS.split(text)
    found: list[PortFact] = []
    for device, port, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=False):
        fields = _fields(body)
        found.append(
            PortFact(
                device=device,
                port=int(port),
                state=_word(fields.get("state")),
                physical=_word(fields.get("phys state")),
                gbps=_rate(fields.get("rate")),
                link=fields.get("link_layer"),
            )
        )
    return tuple(found)


def parse_perfquery(text: str) -> tuple[PortFact, ...]:
    """Counters of one or more ports; perfquery names them by LID."""
    parts = _PERFQUERY.split(text)
    found: list[PortFact] = []
    for lid, port, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=False):
        told = {match[1]: int(match[2]) for match in re.finditer(r"^(\w{1,60}):\.*(\d{1,20})\s*$", body, re.MULTILINE)}
        counters = {name: told[other] for name, other in COUNTERS.items() if other in told}
        found.append(PortFact(lid.strip().lower(), int(port), None, None, None, "InfiniBand", counters=counters))
    return tuple(found)


def _fields(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _word(text: str | None) -> str | None:
    """`4: ACTIVE` -> active, `LinkUp` -> linkup, `Initializing` -> init."""
    if not text:
        return None
    word = text.rpartition(":")[2].strip().lower()
    return "init" if word.startswith("init") else word or None


def _rate(text: str | None) -> float | None:
    """`400`, `200 Gb/sec (4X HDR)`, `2.5 Gb/sec (1X SDR)`."""
    match = re.match(r"\s*(\d{1,6}(?:\.\d{1,3})?)", text or "")
    return float(match[1]) if match else None
