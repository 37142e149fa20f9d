"""Which local disks has this machine, and on which of its file systems is scratch space best?

Looks at /proc/self/mountinfo and /sys under a root that is a parameter; the choice itself, `choose_disk`, is pure. Network and
memory file systems are no disks: the home's own place is taken where nothing else is there, whatever it lies on. Never writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import msgspec

from steelyard.host.sysfs import names, read_int, read_text

#: file systems that live on disks, and a container's own
KINDS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "jfs", "overlay"})
#: disks that are memory, files or other machines
NOT_LOCAL = re.compile(r"(loop|ram|zram|nbd|rbd|drbd|sr|fd)\d")
#: stacked devices (LVM on RAID on partitions) below each other
DEPTH_MAX = 8


class Speed(IntEnum):
    """The faster the smaller."""

    NVME = 0
    SSD = 1
    HDD = 2
    UNKNOWN = 3


class Disk(msgspec.Struct, frozen=True):
    """A mounted, writable file system."""

    mount: str
    speed: Speed
    free_bytes: int
    size_bytes: int


class Mount(msgspec.Struct, frozen=True):
    """A line of mountinfo."""

    #: `259:3`
    number: str
    point: str
    kind: str
    source: str
    read_only: bool
    #: what of its file system is mounted, a path within that
    root: str = "/"


def choose_disk(disks: Sequence[Disk], home: Disk, wanted_bytes: int) -> Disk | None:
    """The fastest with room for `wanted_bytes` beside what must stay free; among equally fast ones the home's own, then the one
    with the most room, then by name. None: no disk has the room."""
    ranked = sorted(
        {disk.mount: disk for disk in (*disks, home)}.values(),
        key=lambda disk: (disk.speed, disk.mount != home.mount, -disk.free_bytes, disk.mount),
    )
    return next((disk for disk in ranked if wanted_bytes <= room_bytes(disk)), None)


def room_bytes(disk: Disk) -> int:
    """What scratch may take of it: a twentieth, at most 2 GiB, stays free for everybody else."""
    return max(0, disk.free_bytes - min(2 << 30, disk.size_bytes // 20))


def observe_disks(*, for_all: bool, root: Path = Path("/")) -> list[Disk]:
    """The local ones that we may write. `for_all`: whose top folder everybody may enter, because work runs as somebody else."""
    found: list[Disk] = []
    for mount in parse_mountinfo(read_text(root / "proc/self/mountinfo") or ""):
        point = root / mount.point.lstrip("/")
        if mount.read_only or mount.kind not in KINDS or not point.is_dir() or not os.access(point, os.W_OK | os.X_OK):
            continue
        if for_all and not enterable(point, root):
            continue
        disk = make_disk(mount, root)
        if disk is not None:
            found.append(disk)
    return found


def observe_disk_of(folder: Path, root: Path = Path("/")) -> Disk:
    """The file system that a folder lies on, whatever it is; its `mount` is the folder itself."""
    number = os.stat(folder).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    mounts = [each for each in parse_mountinfo(read_text(root / "proc/self/mountinfo") or "") if each.number == name]
    speed = (observe_speed(mounts[-1], root) if mounts else None) or Speed.UNKNOWN
    free, size = _space(folder)
    return Disk(str(folder), speed if mounts and mounts[-1].kind in KINDS else Speed.UNKNOWN, free, size)


def make_disk(mount: Mount, root: Path) -> Disk | None:
    """None for one that is not on a disk of this machine."""
    speed = observe_speed(mount, root)
    if speed is None:
        return None
    try:
        free, size = _space(root / mount.point.lstrip("/"))
    except OSError:
        return None
    return Disk(mount.point, speed, free, size)


def _space(folder: Path) -> tuple[int, int]:
    told = os.statvfs(folder)
    return told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize


def enterable(folder: Path, root: Path = Path("/")) -> bool:
    """May everybody walk there?"""
    return all(each.stat().st_mode & 0o001 for each in (folder, *folder.parents) if each.is_relative_to(root))


def parse_mountinfo(text: str) -> list[Mount]:
    """See proc(5). Of several mounts on one point the last one counts, since it hides the others."""
    found: dict[str, Mount] = {}
    for line in text.splitlines():
        head, dash, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()
        if not dash or len(fields) < 6 or len(kind) < 2:
            continue
        root, point = (re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), each) for each in fields[3:5])
        options = {*fields[5].split(","), *(kind[2].split(",") if len(kind) > 2 else ())}
        found[point] = Mount(fields[2], point, kind[0], kind[1], "ro" in options, root)
    return list(found.values())


def observe_speed(mount: Mount, root: Path) -> Speed | None:
    """By the disks below it, the slowest of them. UNKNOWN where they can't be found (ZFS); None where they are not local."""
    device = root / "sys/dev/block" / mount.number
    if not device.exists():
        # btrfs and its like have numbers of their own; their source is one of their devices.
        device = root / "sys/class/block" / os.path.basename(mount.source)
    if not mount.source.startswith("/dev/") and not device.exists():
        return Speed.UNKNOWN
    return _speed(device, DEPTH_MAX) if device.exists() else Speed.UNKNOWN


def _speed(device: Path, depth: int) -> Speed | None:
    disk = device.resolve()
    if (disk / "partition").exists():
        disk = disk.parent
    below = names(disk / "slaves")
    if below and depth:
        speeds = [_speed(disk / "slaves" / name, depth - 1) for name in below]
        known = [speed for speed in speeds if speed is not None]
        return max(known) if len(known) == len(speeds) else None
    transport = read_text(disk / "device/transport")
    if NOT_LOCAL.match(disk.name) or (transport is not None and transport != "pcie"):
        return None
    if disk.name.startswith("nvme"):
        return Speed.NVME
    rotational = read_int(disk / "queue/rotational")
    return Speed.UNKNOWN if rotational is None else Speed.HDD if rotational else Speed.SSD


def observe_disk_numbers(root: Path = Path("/")) -> tuple[str, ...]:
    """`major:minor` of every disk itself: no partitions and nothing stacked, whose traffic all arrives at the disks below."""
    base = root / "sys/block"
    disks = [name for name in names(base) if not NOT_LOCAL.match(name) and (base / name / "device").exists()]
    seen = [name for name in disks if read_int(base / name / "hidden") != 1 and read_int(base / name / "size") != 0]
    return tuple(number for name in seen if (number := read_text(base / name / "dev")))
