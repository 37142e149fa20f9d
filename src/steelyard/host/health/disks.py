"""How do the disks stand?

Mounted file systems and their space, NVMe controllers, from a root; or the JSON of `lsblk` and `nvme smart-log`. Never reads
serial numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from steelyard.host.health.ask import ask
from steelyard.host.sysfs import names, read_text
from steelyard.model.health_facts import DiskFact

#: file systems that live on disks
_KINDS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "vfat", "jfs", "reiserfs"}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


def observe_disks(root: Path) -> tuple[DiskFact, ...]:
    return (*_mounts(root), *_controllers(root))


def _mounts(root: Path) -> list[DiskFact]:
    found: dict[str, DiskFact] = {}
    for line in (read_text(root / "proc/self/mounts") or read_text(root / "proc/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[2] not in _KINDS or fields[0] in found:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1])
        size = free = None
        if root == Path("/"):
            try:
                told = os.statvfs(point)
                size, free = told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize
            except OSError:
                pass
        found[fields[0]] = DiskFact(
            name=fields[0], mount=point, size_bytes=size, free_bytes=free, read_only="ro" in fields[3].split(",")
        )
    return list(found.values())


def _controllers(root: Path) -> list[DiskFact]:
    base = root / "sys/class/nvme"
    found: list[DiskFact] = []
    for name in names(base):
        disk = DiskFact(name=name, state=read_text(base / name / "state"))
        if root == Path("/"):
            told = ask(["nvme", "smart-log", f"/dev/{name}", "-o", "json"])
            disk = merge_smart(disk, told.text) if told.text and not told.error else disk
        found.append(disk)
    return found


def merge_smart(disk: DiskFact, text: str) -> DiskFact:
    """With what `nvme smart-log -o json` says; odd text changes nothing."""
    try:
        told = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return disk

    def number(*keys: str) -> int | None:
        return next((int(told[key]) for key in keys if isinstance(told.get(key), int | float)), None)

    return msgspec.structs.replace(
        disk,
        critical_warning=number("critical_warning"),
        life_used_percent=number("percent_used", "percentage_used"),
        media_errors=number("media_errors"),
    )


def parse_lsblk(document: Mapping[str, Any]) -> tuple[DiskFact, ...]:
    """The file systems of `lsblk --json`, with sizes and, where asked for, what is free. Loop devices are no disks."""
    found: list[DiskFact] = []
    waiting = _rows(document.get("blockdevices"))
    while waiting and len(found) < 10_000:
        row = waiting.pop(0)
        waiting += _rows(row.get("children"))
        if row.get("type") == "loop" or not isinstance(row.get("name"), str):
            continue
        mounts = row.get("mountpoints") or [row.get("mountpoint")]
        mount = next((each for each in mounts if isinstance(each, str)), None) if isinstance(mounts, list) else None
        found.append(
            DiskFact(
                name=row["name"],
                mount=mount,
                size_bytes=_bytes(row.get("fssize") or row.get("size")),
                free_bytes=_bytes(row.get("fsavail")),
                read_only=row.get("ro") in (True, "1", 1) if "ro" in row else None,
            )
        )
    return tuple(found)


def _rows(value: object) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _bytes(value: object) -> int | None:
    """`894.3G`, `63,8M`, or a number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"(\d{1,15}(?:[.,]\d{1,3})?)([KMGTP]?)", value) if isinstance(value, str) else None
    return int(float(match[1].replace(",", ".")) * _UNITS[match[2]]) if match else None
