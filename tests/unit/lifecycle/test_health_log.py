"""What Xids, SXids and other lines of a log mean, and what they take out of use."""

from __future__ import annotations

import csv

import pytest

from recorded import recorded
from steelyard.host.health.kernel_log import parse_log
from steelyard.lifecycle.health import forgive, judge_health
from steelyard.lifecycle.sxid import SXIDS, Fatality
from steelyard.lifecycle.xid import XIDS
from steelyard.model.health import NODE, Finding, Health, Remedy, Severity
from steelyard.model.health_facts import HealthFacts

GPU = "0000:1a:00.0"


def judge(text: str) -> Health:
    return judge_health(HealthFacts(logs=(parse_log(text, "log"),)))


def xid(code: int, rest: str = "") -> Finding:
    (finding,) = judge(f"NVRM: Xid (PCI:0000:1a:00): {code}, pid=1{rest}").findings
    return finding


@pytest.mark.parametrize("code", [13, 31, 32, 43, 45, 63, 92, 94, 144 + 1000])
def test_errors_of_programs_and_warnings_take_no_gpu_out_of_use(code: int) -> None:
    assert not xid(code).blocking


@pytest.mark.parametrize("code", [48, 62, 64, 74, 79, 95, 109, 119, 120, 140, 143])
def test_errors_of_the_gpu_take_just_that_gpu_out_of_use(code: int) -> None:
    finding = xid(code)
    assert (finding.severity, finding.blocks, finding.subject) == (Severity.CRITICAL, (GPU,), GPU)
    assert finding.action


def test_a_code_that_nobody_knows_is_a_warning_that_says_so() -> None:
    finding = xid(4711)
    assert finding.severity is Severity.WARNING and "not in the catalogue" in finding.sentence


def test_nvlink_errors_are_judged_by_the_word_in_their_line() -> None:
    assert xid(149, ", NETIR_LINK_EVT Fatal XC0 i0 Link 00").severity is Severity.CRITICAL
    assert xid(145, ", RLW_RXPIPE Nonfatal XC0 i0 Link 13").severity is Severity.WARNING


def test_xid_154_says_what_the_driver_asks_for() -> None:
    text = ", GPU recovery action changed from 0x0 (None) to 0x{} ({})"
    assert xid(154, text.format(0, "None")).severity is Severity.INFO
    reset, reboot = xid(154, text.format(1, "GPU Reset Required")), xid(154, text.format(2, "Node Reboot Required"))
    assert (reset.severity, reset.remedy) == (Severity.CRITICAL, Remedy.RESET_GPU)
    assert (reboot.severity, reboot.remedy) == (Severity.CRITICAL, Remedy.REBOOT)


def test_xid_45_is_only_a_consequence_where_its_cause_is_near() -> None:
    line = "[{}.0] NVRM: Xid (PCI:0000:1a:00): {}, pid=1"
    near = judge("\n".join((line.format(100, 79), line.format(130, 45))))
    far = judge("\n".join((line.format(100, 79), line.format(1000, 45))))
    other_gpu = judge("[100.0] NVRM: Xid (PCI:0000:1b:00): 79, pid=1\n" + line.format(101, 45))
    severities = [next(f.severity for f in each.findings if "Xid 45" in f.sentence) for each in (near, far, other_gpu)]
    assert severities == [Severity.INFO, Severity.WARNING, Severity.WARNING]
    assert xid(45, ", Ch 00000001 caused by previous Xid 149").severity is Severity.INFO


def test_the_drivers_second_line_about_a_lost_gpu_is_not_said_twice() -> None:
    lost = "NVRM: GPU 0000:1a:00.0: GPU has fallen off the bus."
    assert len(judge(f"NVRM: Xid (PCI:0000:1a:00): 79, pid=1\n{lost}").findings) == 1
    (alone,) = judge(lost).findings
    assert alone.blocks == (GPU,)


def test_sxids_are_judged_by_fatality_and_a_fatal_one_takes_out_the_machine() -> None:
    line = "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): {}, {}, Link 30"
    (sometimes,) = judge(line.format(20034, "Fatal")).findings
    (not_now,) = judge(line.format(20034, "Non-fatal")).findings
    (always,) = judge(line.format(10003, "Non-fatal")).findings
    (never,) = judge(line.format(11012, "Non-fatal")).findings
    assert [each.severity for each in (sometimes, not_now, always, never)] == [
        Severity.CRITICAL,
        Severity.WARNING,
        Severity.CRITICAL,
        Severity.INFO,
    ]
    assert sometimes.blocks == (NODE,)


def test_work_that_reached_its_own_limit_is_no_fault_of_the_machine() -> None:
    (limit,) = judge("Memory cgroup out of memory: Killed process 12 (python3)").findings
    (machine,) = judge("Out of memory: Killed process 12 (python3)").findings
    assert (limit.severity, machine.severity) == (Severity.INFO, Severity.WARNING)


def test_a_clean_log_passes_and_says_how_much_was_read() -> None:
    (finding,) = judge("[1.0] usb 1-1: new device\n[2.0] eth0: link up").findings
    assert finding.severity is Severity.PASS and "2 lines" in finding.sentence


def test_a_passed_check_answers_older_lines_and_no_newer_ones() -> None:
    health = judge("NVRM: Xid (PCI:0000:1a:00): 79, pid=1")
    assert forgive(health, {GPU: 1}).worst is Severity.INFO
    assert forgive(health, {GPU: 0}).worst is Severity.CRITICAL
    assert forgive(health, {"0000:1b:00.0": 99}).worst is Severity.CRITICAL


@pytest.mark.parametrize(
    ("name", "worst", "blocked"),
    [
        ("dmesg-0.log", Severity.CRITICAL, {("0000:19:00.0",)}),
        ("dmesg-nccl-segfault.log", Severity.WARNING, set()),
        ("dmesg-oom.log", Severity.WARNING, set()),
        (
            "dmesg-xid-samples.log",
            Severity.CRITICAL,
            {("0000:00:00.0",), ("0000:01:00.0",), ("0000:cb:00.0",), ("0019:01:00.0",)},
        ),
        ("dmesg-xid119.log", Severity.CRITICAL, {("0000:9b:00.0",)}),
        ("fabricmanager-1.log", Severity.WARNING, set()),
        ("kmsg-1.log", Severity.PASS, set()),
        ("pstore-erst.txt", Severity.CRITICAL, {(NODE,)}),
    ],
)
def test_recorded_logs_are_judged(name: str, worst: Severity, blocked: set[tuple[str, ...]]) -> None:
    health = judge(recorded(f"health/{name}").read_text())
    assert (health.worst, set(health.blocked)) == (worst, blocked)


def test_every_code_of_the_recorded_catalogues_is_known_with_its_name_and_fatality() -> None:
    with recorded("health/xid-catalog.csv").open() as file:
        xids = {int(row["xid"]): row["mnemonic"].split(" / ")[0].strip() for row in csv.DictReader(file)}
    assert {code: meaning.mnemonic for code, meaning in XIDS.items()} == xids
    with recorded("health/sxid-catalog.csv").open() as file:
        rows = list(csv.DictReader(file))
    fatality = {"true": Fatality.ALWAYS}
    for row in rows:
        sometimes = Fatality.SOMETIMES if row["potential_fatal"] in ("true", "inherit") else Fatality.NEVER
        assert SXIDS[int(row["sxid"])].fatality is fatality.get(row["always_fatal"], sometimes)
    assert len(SXIDS) == len(rows) == 93
