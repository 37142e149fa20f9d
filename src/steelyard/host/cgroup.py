"""Which control groups has this machine, and which variant of `Cgroups` fits?

Looks at /proc/self/mountinfo and /proc/cgroups under a root that is a parameter, so that recorded machines can be tested. A
controller that can't be used is named, with what to do about it, and the rest still works. Looking changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from steelyard.clock import Clock, SystemClock
from steelyard.host import UNLIMITED_BYTES, CgroupReading, Cgroups
from steelyard.host.cgroup_files import CgroupFiles
from steelyard.host.cgroup_none import CgroupsNone
from steelyard.host.cgroup_v1 import CgroupsV1
from steelyard.host.cgroup_v2 import CgroupsV2
from steelyard.host.local_disks import observe_disk_numbers
from steelyard.host.resctrl import Resctrl
from steelyard.host.sysfs import read_text

__all__ = ["UNLIMITED_BYTES", "CgroupMounts", "CgroupReading", "Cgroups", "find_mounts", "open_cgroups"]

#: what a controller's absence means to a user
MEANING = {
    "cpu": "CPU shares are not enforced",
    "cpuset": "work is pinned by affinity only, which it may change itself",
    "memory": "memory limits are not enforced",
    "pids": "the number of processes is not limited",
    "freezer": "a process that forks very fast may outrun being killed",
}
#: of a machine that is an allocation of a batch system
HELD = "The batch system's own groups limit all work here together; among each other jobs are held by affinity alone."
#: also v1's, but only asked for where there are GPUs to keep apart; v2 filters devices by BPF
DEVICES = "devices"
#: v1's that count CPU time, and that limit traffic of disks for those who ask for it
CPUACCT, BLKIO = "cpuacct", "blkio"


class CgroupMounts(msgspec.Struct, frozen=True):
    """What was found. Paths are absolute and below the root that was looked under."""

    #: "v1", "v2", "hybrid" or "none"
    flavour: str
    #: v1 controller -> mount point, only writable ones
    v1: dict[str, str]
    #: mount point of v2, None without one that is writable
    v2: str | None
    controllers: frozenset[str]
    missing: tuple[str, ...]
    #: mount point of v1's devices controller
    devices: str | None = None
    #: mount points of v1's cpuacct and blkio controllers
    cpuacct: str | None = None
    blkio: str | None = None


def open_cgroups(
    tag: str,
    root: Path = Path("/"),
    *,
    clock: Clock | None = None,
    files: CgroupFiles | None = None,
    gpu_nodes: Mapping[str, tuple[str, ...]] = {},
    own: bool = True,
) -> Cgroups:
    """The control groups of the home with this tag. Nothing is made before `prepare`. `gpu_nodes`: GPU id -> its device numbers,
    which only workloads that were given the GPU may open. Without `own` none are made: somebody else's hold all of us."""
    clock = clock or SystemClock()
    files = files or CgroupFiles()
    mounts = find_mounts(root)
    disks = lambda: observe_disk_numbers(root)  # noqa: E731 - disks come and go
    resctrl = Resctrl(str(root / "sys/fs/resctrl"), f"steelyard-{tag}", files)
    if not own:
        return CgroupsNone(missing=(HELD,), files=files, clock=clock, root=root)
    if mounts.flavour == "none":
        return CgroupsNone(missing=mounts.missing, files=files, clock=clock, root=root)
    if mounts.flavour == "v2" and mounts.v2 is not None:
        return CgroupsV2(
            tag,
            mounts.v2,
            missing=mounts.missing,
            files=files,
            clock=clock,
            gpu_nodes=gpu_nodes,
            resctrl=resctrl,
            disks=disks,
        )
    v1, missing = dict(mounts.v1), mounts.missing
    if gpu_nodes and mounts.devices is not None:
        v1[DEVICES] = mounts.devices
    elif gpu_nodes:
        missing += ("The devices controller is not available to us: work is told which GPUs are its own, but can open all.",)
    return CgroupsV1(
        tag,
        v1,
        flavour=mounts.flavour,
        missing=missing,
        files=files,
        clock=clock,
        unified=mounts.v2,
        gpu_nodes=gpu_nodes,
        resctrl=resctrl,
        cpuacct=mounts.cpuacct,
        blkio=mounts.blkio,
        disks=disks,
    )


def find_mounts(root: Path = Path("/")) -> CgroupMounts:
    """Where the controllers we use can be reached and written."""
    seen_v1, seen_v2 = parse_mounts(read_text(root / "proc/self/mountinfo") or "", root)
    v1 = {controller: mount for controller, mount in seen_v1.items() if os.access(mount, os.W_OK)}
    v2 = seen_v2 if seen_v2 is not None and os.access(seen_v2, os.W_OK) else None
    devices, cpuacct, blkio = (v1.pop(name, None) for name in (DEVICES, CPUACCT, BLKIO))
    shares_mount = "cpuset" in v1 and list(v1.values()).count(v1["cpuset"]) > 1
    if shares_mount:
        # The common cpuset needs a tree in which work is not told apart by anything else.
        del v1["cpuset"]
    if v1:
        flavour = "hybrid" if seen_v2 is not None else "v1"
        controllers = frozenset(v1)
    elif v2 is not None:
        flavour = "v2"
        controllers = frozenset((read_text(f"{v2}/cgroup.controllers") or "").split()) & frozenset(MEANING) | {"freezer"}
    else:
        flavour = "none"
        controllers = frozenset[str]()
    missing = _missing(root, flavour, controllers, seen=bool(seen_v1 or seen_v2))
    return CgroupMounts(
        flavour=flavour,
        v1=v1 if flavour != "v2" else {},
        v2=v2,
        controllers=controllers,
        missing=missing,
        devices=devices,
        cpuacct=cpuacct,
        blkio=blkio,
    )


def parse_mounts(mountinfo: str, root: Path) -> tuple[dict[str, str], str | None]:
    """(v1 controller -> mount point, mount point of v2). Of several mounts of one tree the first counts. See proc(5)."""
    v1: dict[str, str] = {}
    v2: str | None = None
    for line in mountinfo.splitlines():
        head, found, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()
        if not found or len(fields) < 5 or len(kind) < 3:
            continue
        # Blanks and their like stand as octal in mountinfo.
        name = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        point = str(root / name.lstrip("/"))
        if kind[0] == "cgroup2" and v2 is None:
            v2 = point
        elif kind[0] == "cgroup":
            for option in kind[2].split(","):
                if option in MEANING or option in (DEVICES, CPUACCT, BLKIO):
                    v1.setdefault(option, point)
    return v1, v2


def _missing(root: Path, flavour: str, controllers: frozenset[str], *, seen: bool) -> tuple[str, ...]:
    if flavour == "none":
        if not seen:
            why = "Control groups are not mounted: mount cgroup2 on /sys/fs/cgroup"
        elif os.geteuid() != 0:
            why = "Control groups are not writable for this user: run Steelyard as root"
        else:
            why = (
                "Control groups are mounted read-only: run Steelyard outside the container, or give it a writable /sys/fs/cgroup"
            )
        return (f"{why}. Until then work gets affinity only, and no memory limit.",)
    off = _switched_off(root)
    sentences: list[str] = []
    for controller in sorted(MEANING.keys() - controllers):
        cause = "is switched off in this kernel" if controller in off else "is not available to us"
        sentences.append(f"The {controller} controller {cause}: {MEANING[controller]}.")
    return tuple(sentences)


def _switched_off(root: Path) -> frozenset[str]:
    """Controllers that the kernel knows but does not run (`cgroup_disable=`), by the last column of /proc/cgroups."""
    rows = [line.split() for line in (read_text(root / "proc/cgroups") or "").splitlines() if not line.startswith("#")]
    return frozenset(row[0] for row in rows if len(row) == 4 and row[3] == "0")
