"""How is the machine set up?

Kernel, clocks, governor, NUMA, huge pages, IOMMU, swap, throttling, crash records, programs that we use.

Everything from files under a root; only the state of the clock's synchronisation is asked of the kernel itself. A file that is
not there leaves its fact None.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections import Counter
from pathlib import Path

from steelyard.host.cgroup import find_mounts
from steelyard.host.health.ecc import observe_dimms
from steelyard.host.sysfs import names, numbered, read_cpus, read_int, read_text
from steelyard.host.virtualisation import observe_virtualisation
from steelyard.model.health_facts import MemoryNodeFact, PlatformFact

#: programs that make more possible where they are: what for stands in lifecycle/health_platform.py
PACKAGES = (
    "crun",
    "runc",
    "numactl",
    "cyclictest",
    "stress-ng",
    "nvidia-smi",
    "ibstat",
    "ipmitool",
    "nvme",
    "dmidecode",
    "skopeo",
)
_CPU = "sys/devices/system/cpu"
_NODE = "sys/devices/system/node"
_CLOCK = "sys/devices/system/clocksource/clocksource0"
#: adjtimex(2): the clock is not synchronised
STA_UNSYNC = 0x0040


def observe_platform(root: Path) -> PlatformFact:
    verdict, evidence = observe_virtualisation(root)
    # whether a recorded tree's control groups could be written can't be known
    groups = find_mounts(root) if root == Path("/") else None
    meminfo = _meminfo(read_text(root / "proc/meminfo") or "")
    synced, offset = _synchronised() if root == Path("/") else (None, None)
    swap, free = meminfo.get("SwapTotal"), meminfo.get("SwapFree")
    return PlatformFact(
        kernel=read_text(root / "proc/sys/kernel/osrelease"),
        virtualisation=verdict,
        virtualisation_detail=evidence,
        steal_percent=_steal(root),
        cgroups="" if groups is None else groups.flavour,
        cgroups_missing=None if groups is None else groups.missing,
        clocksource=read_text(root / _CLOCK / "current_clocksource"),
        clocksources=tuple((read_text(root / _CLOCK / "available_clocksource") or "").split()),
        clock_synced=synced,
        clock_offset_us=offset,
        governors=_governors(root),
        nodes=_nodes(root),
        numa_balancing=_flag(root / "proc/sys/kernel/numa_balancing"),
        hugepages_total=meminfo.get("HugePages_Total"),
        hugepages_free=meminfo.get("HugePages_Free"),
        transparent_hugepages=_chosen(read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        iommu_groups=_count(root / "sys/kernel/iommu_groups"),
        cmdline=read_text(root / "proc/cmdline"),
        swap_total_bytes=None if swap is None else swap * 1024,
        swap_used_bytes=None if swap is None or free is None else (swap - free) * 1024,
        throttled=_throttled(root),
        crash_records=_crashes(root),
        packages={name: shutil.which(name) is not None for name in PACKAGES} if root == Path("/") else None,
        offline_cpus=read_cpus(root / _CPU / "offline"),
        dimms=observe_dimms(root),
    )


def _steal(root: Path) -> float | None:
    """Percent of all CPU time since boot that a hypervisor gave to others; see proc_stat(5)."""
    fields = (read_text(root / "proc/stat") or "").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu" or not all(field.isdecimal() for field in fields[1:9]):
        return None
    times = [int(field) for field in fields[1:9]]
    return 100 * times[7] / sum(times) if sum(times) else None


def _governors(root: Path) -> dict[str, int] | None:
    cpus = numbered(root / _CPU, "cpu")
    if not cpus:
        return None
    told = [read_text(root / _CPU / f"cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus]
    return dict(Counter(governor for governor in told if governor))


def _nodes(root: Path) -> tuple[MemoryNodeFact, ...]:
    found: list[MemoryNodeFact] = []
    for node in numbered(root / _NODE, "node"):
        folder = root / _NODE / f"node{node}"
        match = re.search(r"MemTotal:\s+(\d+) kB", read_text(folder / "meminfo") or "")
        huge = re.search(r"HugePages_Total:\s+(\d+)", read_text(folder / "meminfo") or "")
        found.append(
            MemoryNodeFact(
                id=node,
                cpus=len(read_cpus(folder / "cpulist") or ()),
                memory_bytes=int(match[1]) * 1024 if match else 0,
                hugepages=int(huge[1]) if huge else None,
            )
        )
    return tuple(found)


def _throttled(root: Path) -> int | None:
    counts = [
        read_int(root / _CPU / f"cpu{cpu}/thermal_throttle/{kind}_throttle_count")
        for cpu in numbered(root / _CPU, "cpu")
        for kind in ("core", "package")
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _crashes(root: Path) -> tuple[str, ...] | None:
    folder = root / "sys/fs/pstore"
    if not folder.is_dir() or not os.access(folder, os.R_OK):
        return None
    return tuple(names(folder))


def _meminfo(text: str) -> dict[str, int]:
    pairs = (re.match(r"(\w+):\s+(\d+)", line) for line in text.splitlines())
    return {match[1]: int(match[2]) for match in pairs if match}


def _count(folder: Path) -> int | None:
    return len(names(folder)) if folder.is_dir() else None


def _flag(path: Path) -> bool | None:
    value = read_int(path)
    return None if value is None else value != 0


def _chosen(text: str | None) -> str | None:
    """`always [madvise] never` -> madvise"""
    match = re.search(r"\[(\w+)\]", text or "")
    return match[1] if match else None


class _Timex(ctypes.Structure):
    """struct timex as far as it is read; the rest is room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("room", ctypes.c_byte * 256),
    )


def _synchronised() -> tuple[bool | None, int | None]:
    """(is the clock held by a time service, its estimated error in microseconds); adjtimex(2) with nothing to set only reads."""
    timex = _Timex()
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None, None
    if answer < 0:
        return None, None
    return not timex.status & STA_UNSYNC, int(timex.esterror)
