"""Ports, interfaces and PCIe links beside their peers."""

from __future__ import annotations

import pytest

from recorded import recorded
from steelyard.host.health.infiniband import parse_ibstat, parse_ibstatus, parse_perfquery
from steelyard.lifecycle.health_links import judge_interfaces, judge_pci, judge_ports
from steelyard.model.health import Finding, Severity
from steelyard.model.health_facts import InterfaceFact, PciFact, PortFact


def port(number: int, state: str = "active", physical: str = "linkup", gbps: float | None = 400.0, **more: object) -> PortFact:
    return PortFact(f"mlx5_{number}", 1, state, physical, gbps, "InfiniBand", "MT4129", **more)  # type: ignore[arg-type]


def of(findings: list[Finding], subject: str) -> list[Severity]:
    return [finding.severity for finding in findings if finding.subject == subject]


def test_all_active_ports_pass_in_one_finding() -> None:
    (finding,) = judge_ports([port(n) for n in range(8)])
    assert finding.severity is Severity.PASS and "8 ports" in finding.sentence and "400" in finding.sentence


@pytest.mark.parametrize(
    ("active", "physical", "severity"),
    [
        (6, "disabled", Severity.CRITICAL),
        (6, "polling", Severity.CRITICAL),
        (0, "disabled", Severity.INFO),
        (0, "polling", Severity.WARNING),
    ],
)
def test_a_port_that_is_down_is_judged_by_its_peers(active: int, physical: str, severity: Severity) -> None:
    findings = judge_ports([*(port(n) for n in range(active)), port(7, "down", physical, 40.0)])
    assert of(findings, "mlx5_7/1") == [severity]


def test_a_down_port_among_few_that_are_used_is_a_warning() -> None:
    findings = judge_ports([port(0), *(port(n, "down", "disabled", 40.0) for n in (1, 2, 3))])
    assert {severity for n in (1, 2, 3) for severity in of(findings, f"mlx5_{n}/1")} == {Severity.WARNING}


def test_a_down_port_takes_out_its_card_by_pci_address_where_that_is_known() -> None:
    findings = judge_ports([port(0), port(1), port(2, "down", "polling", pci="0000:4b:00.0")])
    assert [finding.blocks for finding in findings if finding.severity is Severity.CRITICAL] == [("0000:4b:00.0",)]


def test_a_link_without_a_subnet_manager_carries_nothing() -> None:
    assert of(judge_ports([port(0), port(1, "init")]), "mlx5_1/1") == [Severity.CRITICAL]


def test_a_slow_port_is_seen_beside_its_peers_and_beside_its_own_interface() -> None:
    assert of(judge_ports([port(0), port(1, gbps=200.0)]), "mlx5_1/1") == [Severity.WARNING]
    own = InterfaceFact("ib0", "up", mbps=200_000, pci="0000:0c:00.0")
    assert of(judge_ports([port(0, gbps=100.0, pci="0000:0c:00.0")], [own]), "mlx5_0/1") == [Severity.WARNING]


def test_other_models_are_no_peers() -> None:
    ethernet = PortFact("mlx5_1", 1, "active", "linkup", 100.0, "Ethernet", "MT4125")
    assert {finding.severity for finding in judge_ports([port(0), ethernet])} == {Severity.PASS}


def test_a_state_that_was_not_read_is_unknown_and_never_pass() -> None:
    unread = PortFact("mlx5_0", 1, None, "linkup", None)
    assert of(judge_ports([unread]), "mlx5_0/1") == [Severity.UNKNOWN]
    assert of(judge_ports([port(0, gbps=None)]), "mlx5_0/1") == [Severity.UNKNOWN]


def test_error_counts_warn_from_a_limit_on() -> None:
    assert of(judge_ports([port(0, counters={"symbol_error": 999, "link_downed": 9})]), "mlx5_0/1") == []
    findings = judge_ports([port(0, counters={"symbol_error": 1000})])
    assert of(findings, "mlx5_0/1") == [Severity.WARNING]


def test_an_interface_that_should_be_up_and_is_not_is_a_warning() -> None:
    wanted = InterfaceFact("eth1", "down", True, wanted=True)
    spare = InterfaceFact("eth2", "down", True)
    findings = judge_interfaces([InterfaceFact("eth0", "up"), wanted, spare])
    assert (of(findings, "eth1"), of(findings, "eth2")) == ([Severity.WARNING], [Severity.INFO])


def test_a_bond_with_unlike_speeds_or_mtus_is_a_warning() -> None:
    fast, slow = (
        InterfaceFact("eth0", "up", mbps=100_000, mtu=9000, master="bond0"),
        InterfaceFact("eth1", "up", mbps=25_000, mtu=1500, master="bond0"),
    )
    assert of(judge_interfaces([fast, slow]), "eth1") == [Severity.WARNING, Severity.WARNING]
    odd = InterfaceFact("eth2", "up", mtu=1500, mtu_configured=9000)
    assert of(judge_interfaces([odd]), "eth2") == [Severity.WARNING]


def test_pcie_links_with_fewer_lanes_warn_and_a_vanished_device_is_critical() -> None:
    narrow = PciFact("0000:0f:00.0", "gpu", 8, 16, 2.5, 32.0)
    gone = PciFact("0000:10:00.0", "gpu", 63, 16, None, None)
    idle = PciFact("0000:11:00.0", "gpu", 16, 16, 2.5, 32.0)
    findings = judge_pci([narrow, gone, idle])
    assert of(findings, "0000:0f:00.0") == [Severity.WARNING]
    assert [finding.blocks for finding in findings if finding.severity is Severity.CRITICAL] == [("0000:10:00.0",)]
    assert of(findings, "0000:11:00.0") == []
    assert judge_pci([PciFact("0000:0f:00.0", "gpu", 16, None, None, None)])[0].severity is Severity.UNKNOWN


@pytest.mark.parametrize(
    ("name", "active", "worst", "blocked"),
    [
        ("ibstat.47.0.a100.all.active.0.txt", 9, Severity.PASS, set()),
        ("ibstat.47.0.h100.all.active.0.txt", 12, Severity.PASS, set()),
        ("ibstat.47.0.h100.some.down.0.txt", 9, Severity.WARNING, set()),
        ("ibstat.47.0.h100.some.down.1.txt", 10, Severity.CRITICAL, {("mlx5_11",), ("mlx5_5",)}),
        ("ibstatus.39.0.a100.all.active.0.txt", 9, Severity.PASS, set()),
    ],
)
def test_recorded_ports(name: str, active: int, worst: Severity, blocked: set[tuple[str, ...]]) -> None:
    text = recorded(f"health/ib/{name}").read_text()
    ports = parse_ibstatus(text) if name.startswith("ibstatus") else parse_ibstat(text)
    findings = judge_ports(ports)
    assert sum(each.state == "active" for each in ports) == active
    assert max((finding.severity for finding in findings), key=lambda each: each.rank) is worst
    assert {finding.blocks for finding in findings if finding.blocking} == blocked


def test_recorded_counters_of_two_ports() -> None:
    ports = parse_perfquery(recorded("fabric/ohio-perfquery-0x7cfe9003009ce5b0.out").read_text())
    assert [(each.port, each.counters["symbol_error"]) for each in ports] == [(1, 0), (2, 0)]
    assert {finding.severity for finding in judge_ports(ports)} == {Severity.PASS}
