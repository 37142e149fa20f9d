"""Which disk scratch space is made on: the choice as a table, and what trees of /sys and mountinfo tell of speed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.host.local_disks import (
    Disk,
    Mount,
    Speed,
    choose_disk,
    observe_disk_numbers,
    observe_disks,
    observe_speed,
    parse_mountinfo,
    room_bytes,
)

GB = 1 << 30
HOME = Disk("/home/steelyard", Speed.HDD, 100 * GB, 200 * GB)


def disk(mount: str, speed: Speed, free_gb: int = 100) -> Disk:
    return Disk(mount, speed, free_gb * GB, 200 * GB)


@pytest.mark.parametrize(
    ("disks", "home", "wanted_gb", "chosen"),
    [
        ([disk("/", Speed.HDD), disk("/mnt/nvme", Speed.NVME), disk("/ssd", Speed.SSD)], HOME, 20, "/mnt/nvme"),
        ([disk("/", Speed.HDD), disk("/ssd", Speed.SSD)], HOME, 20, "/ssd"),
        ([disk("/mnt/nvme", Speed.NVME, 10), disk("/ssd", Speed.SSD)], HOME, 20, "/ssd"),
        ([disk("/a", Speed.HDD, 150)], HOME, 20, HOME.mount),
        ([disk("/a", Speed.NVME, 50), disk("/b", Speed.NVME, 60)], HOME, 20, "/b"),
        ([], Disk("/home/steelyard", Speed.UNKNOWN, 100 * GB, 200 * GB), 20, "/home/steelyard"),
        ([disk("/a", Speed.NVME, 50)], HOME, 99, None),
    ],
    ids=["nvme-first", "ssd-before-hdd", "a-full-one-is-passed-over", "home-wins-ties", "more-room", "nothing-else", "no-room"],
)
def test_the_fastest_disk_with_room_is_taken(disks: list[Disk], home: Disk, wanted_gb: int, chosen: str | None) -> None:
    found = choose_disk(disks, home, wanted_gb * GB)
    assert (found.mount if found else None) == chosen


disks_st = st.lists(
    st.builds(
        Disk,
        mount=st.sampled_from(["/", "/a", "/b", "/c"]),
        speed=st.sampled_from(Speed),
        free_bytes=st.integers(0, 100 * GB),
        size_bytes=st.just(100 * GB),
    ),
    max_size=5,
    unique_by=lambda each: each.mount,
)


@given(disks_st, st.integers(0, 120 * GB))
def test_no_faster_disk_with_room_is_left_unused(disks: list[Disk], wanted: int) -> None:
    found = choose_disk(disks, HOME, wanted)
    with_room = [each for each in (*disks, HOME) if room_bytes(each) >= wanted]
    assert (found is None) == (not with_room)
    if found is not None:
        assert found in with_room and all(found.speed <= each.speed for each in with_room)


def add_disk(root: Path, name: str, number: str, *, rotational: int | None = 0, transport: str | None = None) -> Path:
    folder = root / "sys/devices/block" / name
    (folder / "queue").mkdir(parents=True)
    (folder / "device").mkdir()
    (folder / "dev").write_text(f"{number}\n")
    (folder / "size").write_text("1000\n")
    if rotational is not None:
        (folder / "queue/rotational").write_text(f"{rotational}\n")
    if transport is not None:
        (folder / "device/transport").write_text(f"{transport}\n")
    link(root, folder, name, number)
    (root / "sys/block").mkdir(parents=True, exist_ok=True)
    (root / "sys/block" / name).symlink_to(folder)
    return folder


def link(root: Path, folder: Path, name: str, number: str) -> None:
    for base, entry in (("sys/dev/block", number), ("sys/class/block", name)):
        (root / base).mkdir(parents=True, exist_ok=True)
        (root / base / entry).symlink_to(folder)


def add_partition(root: Path, parent: Path, name: str, number: str) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / "partition").write_text("1\n")
    link(root, folder, name, number)
    return folder


def mount(number: str, source: str = "/dev/x", kind: str = "ext4") -> Mount:
    return Mount(number, "/x", kind, source, False)


def test_speed_is_told_by_the_disk_below_a_partition_or_a_stack(tmp_path: Path) -> None:
    nvme = add_disk(tmp_path, "nvme0n1", "259:0", transport="pcie")
    hdd = add_disk(tmp_path, "sda", "8:0", rotational=1)
    add_disk(tmp_path, "sdb", "8:16", rotational=0)
    add_disk(tmp_path, "vdx", "254:9", rotational=None)
    add_partition(tmp_path, nvme, "nvme0n1p2", "259:2")
    dm = tmp_path / "sys/devices/block/dm-0"
    (dm / "slaves").mkdir(parents=True)
    for slave in (nvme / "nvme0n1p2", hdd):
        (dm / "slaves" / slave.name).symlink_to(slave)
    link(tmp_path, dm, "dm-0", "253:0")
    speeds = [observe_speed(mount(number), tmp_path) for number in ("259:2", "8:0", "8:16", "254:9", "253:0")]
    assert speeds == [Speed.NVME, Speed.HDD, Speed.SSD, Speed.UNKNOWN, Speed.HDD]
    assert observe_speed(mount("0:55", "/dev/nvme0n1p2", "btrfs"), tmp_path) is Speed.NVME
    assert observe_speed(mount("0:60", "tank/data", "zfs"), tmp_path) is Speed.UNKNOWN


@pytest.mark.parametrize(("name", "transport"), [("nvme1n1", "tcp"), ("nbd0", None), ("loop3", None), ("zram0", None)])
def test_what_is_no_disk_of_this_machine_has_no_speed(tmp_path: Path, name: str, transport: str | None) -> None:
    add_disk(tmp_path, name, "259:7", transport=transport)
    assert observe_speed(mount("259:7"), tmp_path) is None


def test_only_disks_that_may_be_written_and_entered_are_offered(tmp_path: Path) -> None:
    add_disk(tmp_path, "nvme0n1", "259:0", transport="pcie")
    for name in ("data", "closed", "shown"):
        (tmp_path / name).mkdir()
    tmp_path.chmod(0o755)
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "1 0 259:0 / /data rw,relatime shared:1 - ext4 /dev/nvme0n1 rw\n"
        "2 0 259:0 / /shown ro,relatime - ext4 /dev/nvme0n1 rw\n"
        "3 0 259:0 / /closed rw,relatime - ext4 /dev/nvme0n1 rw\n"
        "4 0 0:22 / /data/net rw - nfs4 server:/x rw\n"
        "5 0 0:23 / /dev/shm rw - tmpfs tmpfs rw\n"
        "a line that is none\n"
    )
    assert [each.mount for each in observe_disks(for_all=True, root=tmp_path)] == ["/data"]
    assert [each.mount for each in observe_disks(for_all=False, root=tmp_path)] == ["/data", "/closed"]


def test_the_last_mount_on_a_point_counts_and_blanks_are_read() -> None:
    text = "1 0 8:1 / /a\\040b rw - ext4 /dev/sda1 rw\n2 0 8:2 / /a\\040b rw - xfs /dev/sda2 ro\n"
    assert parse_mountinfo(text) == [Mount("8:2", "/a b", "xfs", "/dev/sda2", True)]


@given(st.text(max_size=200))
def test_no_mountinfo_breaks_the_reader(text: str) -> None:
    parse_mountinfo(text)


def test_limits_are_for_disks_and_not_for_partitions_or_what_is_stacked(tmp_path: Path) -> None:
    nvme = add_disk(tmp_path, "nvme0n1", "259:0")
    add_partition(tmp_path, nvme, "nvme0n1p1", "259:1")
    add_disk(tmp_path, "loop0", "7:0")
    hidden = add_disk(tmp_path, "nvme0c0n1", "259:9")
    (hidden / "hidden").write_text("1\n")
    os.rmdir(add_disk(tmp_path, "dm-0", "253:0") / "device")
    assert observe_disk_numbers(tmp_path) == ("259:0",)
