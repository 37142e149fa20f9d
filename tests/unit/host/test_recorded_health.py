"""Recorded files of every form, and what is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recorded import recorded
from steelyard.errors import Refused
from steelyard.host.health.recorded import read_recorded
from steelyard.lifecycle.expectation import Expectation, check_expectation
from steelyard.lifecycle.health import judge_health
from steelyard.model.health import Severity
from steelyard.model.health_facts import HealthFacts, InterfaceFact, PciFact, PortFact

TREE = {
    "/sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE\n",
    "/sys/class/infiniband/mlx5_0/ports/1/phys_state": "5: LinkUp\n",
    "/sys/class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)\n",
    "/sys/class/infiniband/mlx5_0/ports/1/link_layer": "InfiniBand\n",
    "/sys/class/infiniband/mlx5_0/hca_type": "MT4129\n",
    "/sys/class/infiniband/mlx5_0/ports/1/counters/symbol_error": "7\n",
}


def test_a_packed_tree_is_read_like_the_machine_itself(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text(json.dumps(TREE))
    (port,) = read_recorded(file).ports
    assert port == PortFact("mlx5_0", 1, "active", "linkup", 400.0, "InfiniBand", "MT4129", None, {"symbol_error": 7})


def test_a_folder_with_sys_is_read(tmp_path: Path) -> None:
    for name, content in TREE.items():
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    facts = read_recorded(tmp_path)
    assert len(facts.ports) == 1
    assert {each.check for each in facts.unread} >= {"kernel-log", "ecc", "sel"}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "empty"),
        ("a,b,c\n1,2,3\n", "no form"),
        ("{", "damaged"),
        ('{"a":' * 100_000, "damaged"),
        ("[" * 100_000, "no form"),
        ("[1]", "no form"),
        ('{"a": 1}', "no form"),
        ('{"/sys/../../etc/passwd": "x"}', "no file"),
        ('{"/sys/a": "x", "/sys/a/b": "y"}', "contradict"),
        ('{"/sys/a": 7}', "no file"),
        ("\x7fELF\x00\x00", "binary"),
        ('{"pci": {}, "disks": {}}', "--expect"),
    ],
)
def test_what_is_no_health_record_is_refused_in_one_sentence(tmp_path: Path, content: str, word: str) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    with pytest.raises(Refused, match=word):
        read_recorded(file)
    assert not (tmp_path.parent / "etc").exists()


def test_what_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="can't be read"):
        read_recorded(tmp_path / "none")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(101 * 1024 * 1024)
    with pytest.raises(Refused, match="100 MiB"):
        read_recorded(tmp_path / "large")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["intf_status", "link_speed", "intf_ifcfg", "blockdevices", "ifname", "mtu", "name", "children", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_json_is_read_or_refused(tmp_path: Path, document: object) -> None:
    file = tmp_path / "odd.json"
    file.write_text(json.dumps({"intf_status": document} if not isinstance(document, dict) else document))
    with contextlib.suppress(Refused):
        judge_health(read_recorded(file))


@pytest.mark.parametrize(
    ("name", "worst"),
    [
        ("gcm-eth_learn_good.json", Severity.PASS),
        ("gcm-eth_learn_mtu_bad.json", Severity.WARNING),
        ("gcm-eth_learn_down_intf.json", Severity.WARNING),
        ("gcm-learn_good.json", Severity.UNKNOWN),
        ("gcm-learn_ib_intf_bad_rate.json", Severity.WARNING),
        ("gcm-learn_ib_intf_operstate_down.json", Severity.WARNING),
        ("gcm-cache_milan_good.json", Severity.UNKNOWN),
        ("lsblk-4.json", Severity.PASS),
        ("ipmi-sel-argon.txt", Severity.INFO),
        ("dmidecode.txt", Severity.UNKNOWN),
        ("../sysfs/infiniband-h100.json", Severity.WARNING),
    ],
)
def test_recorded_files_are_judged(name: str, worst: Severity) -> None:
    health = judge_health(read_recorded(recorded(f"health/{name}")))
    assert health.worst is worst and not health.blocked


@pytest.mark.parametrize("name", ["xid-catalog.csv", "gcm-DGX_A100.json", "cluster-reliability-figures.json"])
def test_recorded_files_that_are_no_health_records_are_refused(name: str) -> None:
    with pytest.raises(Refused):
        read_recorded(recorded(f"health/{name}"))


def check_recorded(name: str, expected: str) -> dict[str, set[Severity]]:
    wanted = msgspec.json.decode(recorded(f"health/{expected}").read_bytes(), type=Expectation)
    found: dict[str, set[Severity]] = {}
    for finding in check_expectation(wanted, read_recorded(recorded(f"health/{name}"))):
        found.setdefault(finding.check, set()).add(finding.severity)
    return found


def test_a_recorded_machine_is_compared_with_what_was_bought() -> None:
    good = check_recorded("gcm-learn_good.json", "gcm-DGX_A100.json")
    assert good == {"expected-pci": {Severity.PASS}, "expected-ib": {Severity.PASS}, "expected-network": {Severity.UNKNOWN}}
    slow = check_recorded("gcm-eth_learn_degraded_intf.json", "gcm-DGX_A100.json")
    assert slow["expected-network"] == {Severity.WARNING} and slow["expected-ib"] == {Severity.UNKNOWN}
    assert check_recorded("gcm-learn_ib_intf_bad_rate.json", "gcm-DGX_A100.json")["expected-ib"] == {Severity.WARNING}
    assert check_recorded("gcm-cache_milan_good.json", "gcm-Altus_XE1211_Cache_Milan.json")["expected-pci"] == {Severity.PASS}


def test_a_missing_device_is_critical_and_blocks_itself() -> None:
    expected = msgspec.convert(
        {
            "pci": {"0000:0f:00.0": {"type": "gpu", "link_width": "16"}, "0000:10:00.0": {"type": "gpu", "link_width": "16"}},
            "eth": {"a": {"netdev": "eth0", "speed": 100000, "mtu": 9000}},
            "ib": {"link_rate": "400 Gb/sec (4X NDR)", "interfaces": {"ib0": {"mlx": "mlx5_0"}}},
        },
        Expectation,
    )
    facts = HealthFacts(
        pci=(PciFact("0000:0f:00.0", "gpu", 8, 16, 32.0, 32.0),),
        interfaces=(InterfaceFact("eth0", "up", mbps=25_000, mtu=1500),),
        ports=(PortFact("mlx5_0", 1, "active", "linkup", 200.0),),
    )
    findings = {finding.subject: finding for finding in check_expectation(expected, facts)}
    assert findings["0000:10:00.0"].blocks == ("0000:10:00.0",)
    assert {findings[subject].severity for subject in ("0000:0f:00.0", "eth0", "mlx5_0")} == {Severity.WARNING}
