"""Settings, memory errors, disks and the management log."""

from __future__ import annotations

import msgspec
import pytest

from recorded import recorded
from steelyard.host.health.ecc import parse_dmidecode, parse_gpu_errors
from steelyard.host.health.sel import parse_sel
from steelyard.lifecycle.health import judge_health
from steelyard.lifecycle.health_platform import judge_disks, judge_ecc, judge_platform, judge_sel
from steelyard.model.health import NODE, Finding, Severity
from steelyard.model.health_facts import (
    DimmFact,
    DiskFact,
    EccFact,
    HealthFacts,
    MemoryNodeFact,
    PlatformFact,
    SelFact,
    Unread,
)

GIB = 1 << 30
GOOD = PlatformFact(
    kernel="6.8.0-generic",
    virtualisation="bare metal",
    virtualisation_detail="The CPU's hypervisor bit is clear.",
    cgroups="v2",
    cgroups_missing=(),
    clocksource="tsc",
    clocksources=("tsc", "hpet"),
    clock_synced=True,
    clock_offset_us=20,
    governors={"performance": 64},
    nodes=(MemoryNodeFact(0, 32, 256 * GIB), MemoryNodeFact(1, 32, 256 * GIB)),
    numa_balancing=False,
    hugepages_total=0,
    iommu_groups=80,
    cmdline="quiet iommu=pt",
    swap_total_bytes=0,
    swap_used_bytes=0,
    throttled=0,
    crash_records=(),
    packages={"crun": True},
    dimms=DimmFact(16, 16, {32 * GIB: 16}),
)


def judge(**changed: object) -> dict[str, Finding]:
    """The worst finding of each check."""
    findings = sorted(judge_platform(msgspec.structs.replace(GOOD, **changed)), key=lambda each: each.severity.rank)
    return {finding.check: finding for finding in findings}


def test_a_well_set_up_machine_passes_everything() -> None:
    assert {finding.severity for finding in judge().values()} == {Severity.PASS}


CHECKS = "kernel cgroups bare-metal clocksource clock governor numa hugepages swap memory-slots iommu cpu-heat crash-records"


@pytest.mark.parametrize("check", CHECKS.split())
def test_what_could_not_be_read_is_unknown_and_never_pass(check: str) -> None:
    nothing = {finding.check: finding.severity for finding in judge_platform(PlatformFact())}
    assert nothing[check] is Severity.UNKNOWN


@pytest.mark.parametrize(
    ("changed", "check", "severity"),
    [
        ({"kernel": "4.18.0-553.el8"}, "kernel", Severity.WARNING),
        ({"virtualisation": "guest", "steal_percent": 0.1}, "bare-metal", Severity.INFO),
        ({"virtualisation": "guest", "steal_percent": 4.0}, "bare-metal", Severity.WARNING),
        ({"virtualisation": "unknown"}, "bare-metal", Severity.UNKNOWN),
        ({"clocksource": "hpet", "clocksources": ("hpet", "acpi_pm")}, "clocksource", Severity.WARNING),
        ({"clock_synced": False}, "clock", Severity.WARNING),
        ({"clock_offset_us": 300_000}, "clock", Severity.WARNING),
        ({"governors": {"powersave": 64}}, "governor", Severity.INFO),
        ({"governors": {}}, "governor", Severity.INFO),
        ({"numa_balancing": True}, "numa", Severity.INFO),
        ({"swap_total_bytes": GIB, "swap_used_bytes": GIB}, "swap", Severity.WARNING),
        ({"swap_total_bytes": GIB}, "swap", Severity.INFO),
        ({"cmdline": "quiet"}, "iommu", Severity.INFO),
        ({"throttled": 12}, "cpu-heat", Severity.WARNING),
        ({"crash_records": ("dmesg-erst-1",)}, "crash-records", Severity.WARNING),
        ({"cgroups": "none", "cgroups_missing": ("Control groups are not mounted.",)}, "cgroups", Severity.WARNING),
        ({"packages": {"crun": False}}, "packages", Severity.INFO),
        ({"dimms": DimmFact(4, 3, {8 * GIB: 2, 16 * GIB: 1})}, "memory-slots", Severity.INFO),
    ],
)
def test_settings_are_judged(changed: dict[str, object], check: str, severity: Severity) -> None:
    assert judge(**changed)[check].severity is severity


def test_a_node_with_less_memory_or_none_is_named() -> None:
    uneven = judge(nodes=(MemoryNodeFact(0, 32, 256 * GIB), MemoryNodeFact(1, 32, 224 * GIB)))["numa"]
    empty = judge(nodes=(MemoryNodeFact(0, 32, 256 * GIB), MemoryNodeFact(1, 32, 0)))["numa"]
    assert [(each.severity, each.subject) for each in (uneven, empty)] == [(Severity.WARNING, "numa:1")] * 2
    gpu_memory = judge(nodes=(MemoryNodeFact(0, 72, 480 * GIB), MemoryNodeFact(1, 0, 96 * GIB)))["numa"]
    assert gpu_memory.severity is Severity.INFO


def test_uncorrected_memory_errors_take_out_what_they_hit() -> None:
    memory, gpu, pending, fine = judge_ecc(
        [
            EccFact("mc0", 3, 1),
            EccFact("0000:0f:00.0", 0, 2),
            EccFact("0000:10:00.0", 0, 0, pending=True),
            EccFact("mc1", 100, 0),
        ]
    )
    assert (memory.blocks, gpu.blocks) == ((NODE,), ("0000:0f:00.0",))
    assert (pending.severity, fine.severity) == (Severity.WARNING, Severity.WARNING)
    assert judge_ecc([EccFact("mc0", None, None)])[0].severity is Severity.UNKNOWN
    assert judge_ecc([EccFact("mc0", 3, 0)])[0].severity is Severity.PASS


def test_nvidia_smi_answers_are_read_with_what_it_does_not_know() -> None:
    errors = "00000000:19:00.0, 0, 2\n00000000:3B:00.0, [N/A], [N/A]\n"
    remaps = "00000000:19:00.0, No, Yes\n00000000:3B:00.0, [N/A], [N/A]\n"
    first, second = parse_gpu_errors(errors, remaps)
    assert (first.subject, first.uncorrected, first.pending, first.remap_failed) == ("0000:19:00.0", 2, False, True)
    assert (second.subject, second.uncorrected, second.pending) == ("0000:3b:00.0", None, None)


def test_disks_are_judged_by_space_state_and_their_own_warnings() -> None:
    size = 1000 * GIB
    full = judge_disks([DiskFact("/dev/sda1", "/data", size, 10 * GIB)])[0]
    filling = judge_disks([DiskFact("/dev/sda1", "/data", size, 50 * GIB)])[0]
    dead = judge_disks([DiskFact("nvme0", state="dead")])[0]
    read_only = judge_disks([DiskFact("/dev/sda1", "/", size, size, read_only=True)])[0]
    worn = judge_disks([DiskFact("nvme0", state="live", life_used_percent=95)])[0]
    assert [each.severity for each in (full, filling, dead, read_only, worn)] == [
        Severity.CRITICAL,
        Severity.WARNING,
        Severity.CRITICAL,
        Severity.CRITICAL,
        Severity.WARNING,
    ]
    assert (full.blocks, dead.blocks, read_only.blocks) == ((), ("nvme0",), (NODE,))
    assert judge_disks([DiskFact("nvme0", state="live")])[0].severity is Severity.PASS


def test_the_management_log_counts_only_what_was_not_taken_back() -> None:
    lost = SelFact(0x98, "03/06/2025 19:00:47", "Power Supply PSU1", "Power Supply AC lost", True)
    back = msgspec.structs.replace(lost, record=0x99, asserted=False)
    assert judge_sel([lost])[0].severity is Severity.WARNING
    assert max(finding.severity.rank for finding in judge_sel([lost, back])) == Severity.INFO.rank
    memory = judge_sel([SelFact(1, "", "DIMM A1", "Uncorrectable ECC", True)])[0]
    assert (memory.severity, memory.blocks) == (Severity.CRITICAL, (NODE,))


def test_a_recorded_management_log_has_hexadecimal_record_numbers() -> None:
    records = parse_sel(recorded("health/ipmi-sel-argon.txt").read_text())
    assert [record.record for record in records] == list(range(0x92, 0x9C))
    assert {finding.severity for finding in judge_sel(records)} == {Severity.INFO, Severity.PASS} - {Severity.PASS}


def test_memory_slots_are_counted_without_serial_numbers() -> None:
    module = "Handle 0x1100, DMI type 17, 92 bytes\nMemory Device\n\tSize: 32 GB\n\tSerial Number: 12\n\n"
    empty = "Handle 0x1101, DMI type 17, 92 bytes\nMemory Device\n\tSize: No Module Installed\n\n"
    assert parse_dmidecode("# dmidecode 3.3\n" + module * 2 + empty) == DimmFact(3, 2, {32 * GIB: 2})
    assert parse_dmidecode(recorded("health/dmidecode.txt").read_text()) is None


def test_what_could_not_be_looked_at_is_unknown_with_its_reason() -> None:
    health = judge_health(HealthFacts(unread=(Unread("sel", NODE, "ipmitool is not installed."),)))
    assert [(each.severity, each.sentence) for each in health.findings] == [(Severity.UNKNOWN, "ipmitool is not installed.")]
    assert judge_health(HealthFacts()).worst is Severity.UNKNOWN
