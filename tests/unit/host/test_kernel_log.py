"""Kernel logs: every stamp that they are kept with, what lines count, and that no text can do harm."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorded import recorded
from steelyard.host.health.kernel_log import EVENTS_MAX, TEXT_MAX, parse_log, read_message, split_stamp
from steelyard.model.health_facts import LogKind

XID = "NVRM: Xid (PCI:0000:1a:00): 79, pid=7, GPU has fallen off the bus."
STAMPED = [
    f"[Fri Aug 30 11:11:22 2024] {XID}",
    f"2024-08-30T11:11:22,491363+00:00 {XID}",
    f"kern  :warn  : 2024-08-30T11:11:22,285060+00:00 {XID}",
    f"[  966.503025] {XID}",
    f"Aug 30 11:11:22 node7 kernel: [  966.503025] {XID}",
    f"Okt 06 17:59:27 node7 kernel: {XID}",
    f"févr. 03 17:59:27 node7 kernel: {XID}",
    f"4,3964,206764307,-;{XID}",
    f"<4>[  201.650687] {XID}",
    f"kernel: {XID}",
    XID,
]


@pytest.mark.parametrize("line", STAMPED)
def test_a_line_is_read_whatever_stamp_it_has(line: str) -> None:
    (event,) = parse_log(line, "log").events
    assert (event.kind, event.device, event.code) == (LogKind.XID, "0000:1a:00.0", 79)
    assert event.text == XID


def test_stamps_give_seconds_and_the_kernels_own_number() -> None:
    assert split_stamp(f"4,3964,206764307,-;{XID}") == (XID, 206.764307, 3964)
    first, later = (split_stamp(f"Okt 0{day} 23:59:50 node7 kernel: x")[1] for day in (6, 7))
    assert first is not None and later is not None and later - first == 86_400
    assert split_stamp("Foo 31 10:00:00 node7 kernel: x")[1] is None


@pytest.mark.parametrize(
    ("line", "device", "code"),
    [
        ("NVRM: Xid (0000:01:00): 31, Ch 0000000b, engmask 00000120", "0000:01:00.0", 31),
        ("NVRM: Xid (PCI:0019:01:00): 149, NETIR Fatal XC0 i0 Link -1", "0019:01:00.0", 149),
        ("NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper", "0000:10:1c.0", 63),
    ],
)
def test_the_first_number_of_an_xid_line_is_the_address(line: str, device: str, code: int) -> None:
    event = read_message(line)
    assert event is not None and (event.device, event.code) == (device, code)


def test_sxid_lines_of_driver_and_fabric_manager_say_whether_they_are_fatal() -> None:
    driver = read_message("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore MCTO (First)")
    manager = read_message(
        "detected NVSwitch fatal error 20034 on fid 0 on NVSwitch pci bus id 00000000:86:00.0 physical id 3 port 61"
    )
    assert driver is not None and (driver.device, driver.code, driver.fatal) == ("0000:c1:00.0", 28006, False)
    assert manager is not None and (manager.device, manager.code, manager.fatal) == ("0000:86:00.0", 20034, True)


@pytest.mark.parametrize(
    ("line", "kind", "detail"),
    [
        ("Out of memory: Killed process 123 (httpd)", LogKind.OOM, ""),
        ("Memory cgroup out of memory: Killed process 12 (python3) total-vm:1kB", LogKind.OOM, "memory-limit"),
        ("mce: [Hardware Error]: Machine check events logged", LogKind.HARDWARE, "corrected"),
        ("{1}[Hardware Error]: event severity: fatal", LogKind.HARDWARE, ""),
        ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0", LogKind.HARDWARE, "corrected"),
        ("EDAC MC0: 1 UE memory read error on CPU_SrcID#0", LogKind.HARDWARE, ""),
        ("pcieport 0000:00:01.0: AER: Corrected error received: 0000:01:00.0", LogKind.PCIE, "corrected"),
        ("pcieport 0000:00:01.0: AER: Multiple Uncorrectable (Fatal) error received: 0000:01:00.0", LogKind.PCIE, ""),
        ("blk_update_request: critical medium error, dev sda, sector 12", LogKind.DISK, ""),
        ("nvme nvme0: I/O 12 QID 3 timeout, aborting", LogKind.DISK, "timeout"),
        ("nvme nvme0: controller is down; will reset: CSTS=0xffffffff", LogKind.DISK, ""),
        ("EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2", LogKind.DISK, "file-system"),
        ("watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:77]", LogKind.LOCKUP, ""),
        ("Kernel panic - not syncing: Fatal exception", LogKind.CRASH, ""),
        ("CPU3: Core temperature above threshold, cpu clock throttled (total events = 5)", LogKind.THERMAL, ""),
        ("python[7]: segfault at 7f ip 0 sp 0 error 4 in libnccl.so.2[7f7c7ac00000+d3d3000]", LogKind.SEGFAULT, "libnccl.so.2"),
    ],
)
def test_what_lines_mean(line: str, kind: LogKind, detail: str) -> None:
    event = read_message(line)
    assert event is not None and (event.kind, event.detail) == (kind, detail)


@pytest.mark.parametrize(
    "line",
    [
        "traps: python[77] general protection fault ip:7f sp:7f error:0",
        "mce: CPU0: Thermal monitoring enabled (TM1)",
        "pcieport 0000:00:1c.0: AER: enabled with IRQ 122",
        "I/O error, dev loop3, sector 0",
        "python[7]: segfault at 7f ip 0 sp 0 error 4 in libc.so.6[7f7c+d3]",
        "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready",
        "",
    ],
)
def test_what_says_nothing_about_the_machines_health_is_passed_over(line: str) -> None:
    assert read_message(line) is None


def test_serial_numbers_uuids_and_macs_are_masked() -> None:
    text = "NVRM: Xid (PCI:0000:1a:00): 79, GPU-509665ad-b600-ac93-3616-d754b23d636d 12:34:56:78:9a:bc Serial Number: 1650"
    (event,) = parse_log(text, "log").events
    assert not any(secret in event.text for secret in ("509665ad", "9a:bc", "1650"))


@given(st.lists(st.text(alphabet=string.printable + "Ä…\x00", max_size=300), max_size=30))
@settings(max_examples=150)
def test_no_text_makes_the_reader_fail(lines: list[str]) -> None:
    log = parse_log("\n".join(lines), "log")
    assert all(len(event.text) <= TEXT_MAX for event in log.events)


@given(st.sampled_from(STAMPED), st.data())
@settings(max_examples=200)
def test_a_damaged_line_is_read_or_passed_over(line: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(line) - 1))
    junk = data.draw(st.text(max_size=12))
    parse_log(line[:at] + junk + line[at + data.draw(st.integers(0, 8)) :], "log")


def test_a_log_full_of_different_faults_stays_small() -> None:
    lines = "\n".join(f"NVRM: Xid (PCI:{n:04x}:00:00): 79, pid=1" for n in range(5000))
    assert len(parse_log(lines, "log").events) == EVENTS_MAX


def test_absurd_numbers_are_no_stamps() -> None:
    nines = "9" * 900
    for line in (
        f"4,{nines},{nines},-;x",
        f"[{nines}.{nines}] x",
        f"Aug {nines} 11:11:22 n kernel: x",
        f"2024-08-30T11:11:22,{nines} x",
    ):
        assert split_stamp(line)[1:] in ((None, None),)
    assert split_stamp("[Fri Aug 99 11:11:22 2024] x")[1] is None


def test_a_hostile_line_takes_no_time() -> None:
    for start in ("pcieport AER ", "nvme nvme0: ", "XFS (sda): ", "NVSwitch fatal error 1 ", "AER: "):
        assert len(parse_log((start + "a" * 50_000 + "\n") * 20, "log").events) <= 1


@pytest.mark.parametrize(
    ("name", "xids"),
    [
        ("dmesg-0.log", {48, 63, 94}),
        ("dmesg-oom.log", {13, 43}),
        ("dmesg-xid-samples.log", {13, 31, 32, 45, 62, 63, 79, 94, 109, 144, 145, 149}),
        ("dmesg-xid119.log", {119}),
        ("kmsg-1.log", set()),
    ],
)
def test_recorded_logs_have_their_xids(name: str, xids: set[int]) -> None:
    log = parse_log(recorded(f"health/{name}").read_text(), name)
    assert {event.code for event in log.events if event.kind is LogKind.XID} == xids
