"""Are the machine's links as good as those beside them? Ports, interfaces and PCIe links in, findings out.

What a port should do is taken from its peers: ports of the same card model and link layer in the same machine. A port that is
down while most of its peers carry traffic is CRITICAL (work that uses every rail would fail on it); while some do, a WARNING;
while none does, it was never used: INFO when disabled, WARNING when it looks for a partner ("polling") without finding one.
InfiniBand that is up but not ACTIVE has no subnet manager, and carries nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.model.health import Finding, Remedy, Severity
from steelyard.model.health_facts import InterfaceFact, PciFact, PortFact

#: from here on a counter since the last reset is worth a warning; errors below come with every cable
COUNTER_LIMITS = {
    "symbol_error": 1000,
    "link_error_recovery": 10,
    "link_downed": 10,
    "port_rcv_errors": 1000,
    "local_link_integrity_errors": 10,
    "excessive_buffer_overrun_errors": 10,
}


def judge_ports(ports: Sequence[PortFact], interfaces: Sequence[InterfaceFact] = ()) -> list[Finding]:
    findings: list[Finding] = []
    states = [port for port in ports if port.state is not None or port.physical is not None]
    for port in states:
        finding = _judge_state(port, [other for other in states if _peers(port, other) and other is not port])
        findings += [finding] if finding is not None else _judge_rate(port, states, interfaces)
    findings += [finding for port in ports for finding in _judge_counters(port)]
    fine = [port for port in states if not any(finding.subject == _id(port) for finding in findings)]
    if fine:
        rates = ", ".join(sorted({f"{port.gbps:g}" for port in fine if port.gbps is not None}))
        sentence = f"{_many(len(fine), 'port')} active" + (f" at {rates} Gbit/s." if rates else ".")
        findings.append(Finding("ib-port", "ports", Severity.PASS, sentence))
    elif ports and not findings:
        findings.append(
            Finding("ib-counters", "ports", Severity.PASS, f"The error counts of {_many(len(ports), 'port')} are low.")
        )
    return findings


def _judge_state(port: PortFact, peers: Sequence[PortFact]) -> Finding | None:
    """None when the port carries traffic."""
    active = sum(peer.state == "active" for peer in peers)
    if port.state == "active":
        return None
    evidence = (f"state {port.state or 'not told'}, physical {port.physical or 'not told'}",)
    if port.state in ("init", "armed"):
        sentence = f"The link is up but in state {port.state}: no subnet manager has activated it."
        if port.link == "Ethernet":
            return _port(
                port, Severity.WARNING, sentence, Remedy.CONFIGURE, "Look at the card's Ethernet configuration.", evidence
            )
        return _port(port, Severity.CRITICAL, sentence, Remedy.CONFIGURE, "Look at the fabric's subnet manager.", evidence)
    if port.state is None:
        return _port(port, Severity.UNKNOWN, "Its state could not be read.", Remedy.NONE, "", evidence)
    disabled = port.physical in ("disabled", "sleep")
    where = "It is disabled" if disabled else f"It is down ({port.physical or 'no physical state'})"
    beside = f"{active} of {len(peers)} other ports of its kind are active"
    action = (
        "Enable the port, or take it out of the inventory." if disabled else "Look at cable, transceiver and the switch's port."
    )
    remedy = Remedy.CONFIGURE if disabled else Remedy.CHECK_LINK
    if active * 2 > len(peers):
        return _port(port, Severity.CRITICAL, f"{where}, while {beside}.", remedy, action, evidence)
    if active:
        return _port(port, Severity.WARNING, f"{where}, while {beside}.", remedy, action, evidence)
    if disabled:
        return _port(port, Severity.INFO, f"{where}, and no other port of its kind is used.", Remedy.NONE, "", evidence)
    return _port(port, Severity.WARNING, f"{where}, and no other port of its kind is used.", remedy, action, evidence)


def _judge_rate(port: PortFact, ports: Sequence[PortFact], interfaces: Sequence[InterfaceFact]) -> list[Finding]:
    if port.gbps is None:
        return [_port(port, Severity.UNKNOWN, "Its rate could not be read.", Remedy.NONE, "", ())]
    best = max((other.gbps for other in ports if _peers(port, other) and other.state == "active" and other.gbps), default=0.0)
    own = max((each.mbps / 1000 for each in interfaces if port.pci and each.pci == port.pci and each.mbps), default=0.0)
    should = max(best, own)
    if port.gbps >= should * 0.99:
        return []
    beside = "others of its kind run" if best >= own else "its network interface says that it could run"
    sentence = f"It runs at {port.gbps:g} Gbit/s, while {beside} at {should:g}."
    action = "Look at cable and transceiver, and at the rate that the switch's port allows."
    return [_port(port, Severity.WARNING, sentence, Remedy.CHECK_LINK, action, (f"rate {port.gbps:g}",), check="ib-rate")]


def _judge_counters(port: PortFact) -> list[Finding]:
    high = {name: value for name, value in port.counters.items() if value >= COUNTER_LIMITS.get(name, 1 << 62)}
    if not high:
        return []
    words = ", ".join(f"{name} {value}" for name, value in sorted(high.items()))
    action = "Look at cable and connectors; reset the counters and see how fast they grow."
    return [
        _port(
            port,
            Severity.WARNING,
            f"It has counted many errors: {words}.",
            Remedy.CHECK_LINK,
            action,
            (words,),
            check="ib-counters",
        )
    ]


def judge_interfaces(interfaces: Sequence[InterfaceFact]) -> list[Finding]:
    findings: list[Finding] = []
    for each in interfaces:
        findings += _judge_interface(each, interfaces)
    fine = [each for each in interfaces if each.operstate == "up" and not any(f.subject == each.name for f in findings)]
    if fine:
        findings.append(Finding("network", "interfaces", Severity.PASS, f"{_many(len(fine), 'interface')} up: {_names(fine)}."))
    return findings


def _judge_interface(each: InterfaceFact, all_interfaces: Sequence[InterfaceFact]) -> list[Finding]:
    findings: list[Finding] = []

    def add(severity: Severity, sentence: str, remedy: Remedy, action: str) -> None:
        findings.append(Finding("network", each.name, severity, sentence, action, remedy))

    cable = "Look at cable, transceiver and the switch's port."
    if each.operstate is None:
        add(Severity.UNKNOWN, "Its state could not be read.", Remedy.NONE, "")
    elif each.operstate in ("down", "lowerlayerdown"):
        if each.wanted or each.master is not None:
            add(Severity.WARNING, "It has no link, though the configuration wants it up.", Remedy.CHECK_LINK, cable)
        elif each.infiniband and sum(other.infiniband and other.operstate == "up" for other in all_interfaces) > 0:
            add(Severity.WARNING, "It is down, while other InfiniBand interfaces are up.", Remedy.CHECK_LINK, cable)
        else:
            add(Severity.INFO, "It has no link and nothing asks for one.", Remedy.NONE, "")
    elif each.operstate == "up":
        peers = [other for other in all_interfaces if other is not each and _bonded(each, other) and other.operstate == "up"]
        fastest = max((other.mbps for other in peers if other.mbps), default=0)
        if each.mbps is not None and each.mbps < fastest:
            sentence = f"It runs at {each.mbps / 1000:g} Gbit/s, others of its bond at {fastest / 1000:g}."
            add(Severity.WARNING, sentence, Remedy.CHECK_LINK, cable)
        if each.mtu_configured is not None and each.mtu is not None and each.mtu != each.mtu_configured:
            sentence = f"Its MTU is {each.mtu}, the configuration asks for {each.mtu_configured}."
            add(Severity.WARNING, sentence, Remedy.CONFIGURE, f"Set it: ip link set {each.name} mtu {each.mtu_configured}.")
        elif any(other.mtu is not None and each.mtu is not None and each.mtu < other.mtu for other in peers):
            add(
                Severity.WARNING,
                f"Its MTU of {each.mtu} is less than that of others in its bond.",
                Remedy.CONFIGURE,
                "Set one MTU for all.",
            )
    return findings


def judge_pci(links: Sequence[PciFact]) -> list[Finding]:
    """Lanes: fewer than the device could use. Speed is not held against GPUs (they lower it when idle) nor against others
    above INFO (an older slot does that too). A link that changes is drift, and judged there."""
    findings: list[Finding] = []
    told = [link for link in links if link.kind != "other"]
    for link in told:
        if link.width is None or link.width_max is None or link.width_max in (0, 255):
            continue
        if link.width in (0, 63):
            findings.append(
                Finding(
                    "pcie-link",
                    link.pci,
                    Severity.CRITICAL,
                    f"The {link.kind} no longer answers on PCIe.",
                    "Power the machine off and on; then look at seating and power.",
                    Remedy.REBOOT,
                    (f"width {link.width}",),
                    (link.pci,),
                )
            )
        elif link.width < link.width_max:
            findings.append(
                Finding(
                    "pcie-link",
                    link.pci,
                    Severity.WARNING,
                    f"The {link.kind} uses {link.width} of {link.width_max} PCIe lanes.",
                    "Look at its seating; if the slot has no more lanes, nothing is wrong.",
                    Remedy.CHECK_LINK,
                )
            )
        elif link.kind in ("nic", "nvme") and (link.gigatransfers or 0) < (link.gigatransfers_max or 0):
            sentence = f"The {link.kind} runs at {link.gigatransfers:g} of {link.gigatransfers_max:g} GT/s."
            findings.append(Finding("pcie-link", link.pci, Severity.INFO, sentence))
    known = [link for link in told if link.width is not None and link.width_max is not None]
    if known and not any(finding.severity.rank > Severity.INFO.rank for finding in findings):
        findings.append(Finding("pcie-link", "pcie", Severity.PASS, f"{_many(len(known), 'PCIe link')} with all lanes."))
    elif told and not known:
        sentence = f"What the PCIe links of {_many(len(told), 'device')} could do at best is not told."
        findings.append(Finding("pcie-link", "pcie", Severity.UNKNOWN, sentence))
    return findings


def _bonded(a: InterfaceFact, b: InterfaceFact) -> bool:
    return a.master is not None and a.master == b.master


def _peers(a: PortFact, b: PortFact) -> bool:
    return a.model == b.model and a.link == b.link


def _port(
    port: PortFact,
    severity: Severity,
    sentence: str,
    remedy: Remedy,
    action: str,
    evidence: tuple[str, ...],
    check: str = "ib-port",
) -> Finding:
    blocks = (port.pci or port.device,) if severity is Severity.CRITICAL else ()
    return Finding(check, _id(port), severity, sentence, action, remedy, evidence, blocks)


def _id(port: PortFact) -> str:
    return f"{port.device}/{port.port}"


def _many(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def _names(interfaces: Sequence[InterfaceFact]) -> str:
    return ", ".join(sorted(each.name for each in interfaces)[:12])
