"""Has the machine what it should have?

Compares facts with a list of the hardware that was bought (GCM's manifests have this form).

Pure. What the facts do not tell is UNKNOWN, never PASS.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from steelyard.model.health import Finding, Remedy, Severity
from steelyard.model.health_facts import HealthFacts, InterfaceFact, PciFact, PortFact


class ExpectedPci(msgspec.Struct, frozen=True):
    type: str
    link_width: str | None = None
    #: as /sys spells it; several spellings of one speed
    link_speed: tuple[str, ...] = ()
    slot: str = ""


class ExpectedInterface(msgspec.Struct, frozen=True):
    netdev: str
    speed: int | None = None
    mtu: int | None = None


class ExpectedPort(msgspec.Struct, frozen=True):
    mlx: str


class ExpectedPorts(msgspec.Struct, frozen=True):
    #: `200 Gb/sec (4X HDR)`
    link_rate: str | None = None
    interfaces: dict[str, ExpectedPort] = {}


class Expectation(msgspec.Struct, frozen=True):
    pci: dict[str, ExpectedPci] = {}
    eth: dict[str, ExpectedInterface] = {}
    ib: ExpectedPorts = ExpectedPorts()


def check_expectation(expected: Expectation, facts: HealthFacts) -> tuple[Finding, ...]:
    return (
        *_check_pci(expected, facts.pci),
        *_check_interfaces(expected, facts.interfaces),
        *_check_ports(expected.ib, facts.ports),
    )


def _check_pci(expected: Expectation, seen: Sequence[PciFact]) -> list[Finding]:
    if not expected.pci:
        return []
    if not seen:
        return [
            Finding("expected-pci", "pcie", Severity.UNKNOWN, "The facts tell no PCIe links, so that devices can't be compared.")
        ]
    by_address = {link.pci: link for link in seen}
    findings: list[Finding] = []
    for address, wanted in expected.pci.items():
        link = by_address.get(address)
        where = f"{wanted.type} in slot {wanted.slot}" if wanted.slot else wanted.type
        if link is None:
            action = "Look at its seating and power; it may have fallen off the bus."
            findings.append(
                Finding(
                    "expected-pci",
                    address,
                    Severity.CRITICAL,
                    f"The {where} is missing.",
                    action,
                    Remedy.CHECK_POWER,
                    (),
                    (address,),
                )
            )
            continue
        wrong: list[str] = []
        if wanted.link_width is not None and link.width is not None and str(link.width) != wanted.link_width:
            wrong.append(f"{link.width} lanes instead of {wanted.link_width}")
        speeds = {speed.partition(" ")[0].removesuffix(".0") for speed in wanted.link_speed}
        if speeds and link.gigatransfers is not None and f"{link.gigatransfers:g}" not in speeds:
            wrong.append(f"{link.gigatransfers:g} GT/s instead of {' or '.join(sorted(speeds))}")
        if wrong:
            # GPUs and idle disks lower their speed; only lanes are sure to be a fault.
            severity = Severity.WARNING if "lanes" in wrong[0] else Severity.INFO
            findings.append(
                Finding(
                    "expected-pci",
                    address,
                    severity,
                    f"The {where} runs with {', '.join(wrong)}.",
                    "Look at its seating.",
                    Remedy.CHECK_LINK,
                )
            )
    if not findings:
        findings.append(Finding("expected-pci", "pcie", Severity.PASS, f"All {len(expected.pci)} PCIe devices are there."))
    return findings


def _check_interfaces(expected: Expectation, seen: Sequence[InterfaceFact]) -> list[Finding]:
    wanted = expected.eth.values()
    if not wanted:
        return []
    by_name = {each.name: each for each in seen}
    if not any(each.netdev in by_name for each in wanted):
        return [Finding("expected-network", "interfaces", Severity.UNKNOWN, "The facts tell none of the expected interfaces.")]
    findings: list[Finding] = []
    for want in wanted:
        each = by_name.get(want.netdev)
        wrong: list[str] = []
        if each is None:
            wrong.append("is missing")
        else:
            if each.operstate not in ("up", None):
                wrong.append(f"is {each.operstate}")
            if want.speed is not None and each.mbps is not None and each.mbps != want.speed:
                wrong.append(f"runs at {each.mbps / 1000:g} instead of {want.speed / 1000:g} Gbit/s")
            if want.mtu is not None and each.mtu is not None and each.mtu != want.mtu:
                wrong.append(f"has MTU {each.mtu} instead of {want.mtu}")
        if wrong:
            action = "Look at cable, transceiver and the switch's port; then at the interface's settings."
            sentence = f"It {', '.join(wrong)}."
            findings.append(Finding("expected-network", want.netdev, Severity.WARNING, sentence, action, Remedy.CHECK_LINK))
    if not findings:
        findings.append(Finding("expected-network", "interfaces", Severity.PASS, "All interfaces are as expected."))
    return findings


def _check_ports(expected: ExpectedPorts, seen: Sequence[PortFact]) -> list[Finding]:
    if not expected.interfaces:
        return []
    if not seen:
        return [
            Finding(
                "expected-ib", "ports", Severity.UNKNOWN, "The facts tell no InfiniBand ports, so that they can't be compared."
            )
        ]
    rate = (expected.link_rate or "").partition(" ")[0]
    wanted_gbps = float(rate) if rate.replace(".", "", 1).isdecimal() else None
    by_device = {port.device: port for port in seen}
    findings: list[Finding] = []
    for want in expected.interfaces.values():
        port = by_device.get(want.mlx)
        if port is None:
            action = "Look at its seating and power."
            blocks = (want.mlx,)
            findings.append(
                Finding(
                    "expected-ib", want.mlx, Severity.CRITICAL, "The card is missing.", action, Remedy.CHECK_POWER, (), blocks
                )
            )
        elif wanted_gbps is not None and port.gbps is not None and port.gbps != wanted_gbps:
            sentence = f"It runs at {port.gbps:g} instead of {wanted_gbps:g} Gbit/s."
            action = "Look at cable and transceiver, and at the rate that the switch's port allows."
            findings.append(Finding("expected-ib", want.mlx, Severity.WARNING, sentence, action, Remedy.CHECK_LINK))
    if not findings:
        findings.append(Finding("expected-ib", "ports", Severity.PASS, f"All {len(expected.interfaces)} ports are as expected."))
    return findings
