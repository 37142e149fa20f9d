"""Which files did NVIDIA's driver install, and which device files are whose? From /proc, /sys and the folders where its
installers put libraries, under a root that is a parameter. Never asks the driver, never starts a program.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from steelyard.host.sysfs import names, read_text
from steelyard.model.cdi import NvidiaDriver, OwnNode

#: where installers of distributions, NVIDIA's own, and containers of clouds put them; the first that has them counts
_FOLDERS = (
    "usr/lib/{machine}-linux-gnu", "usr/lib/{machine}-linux-gnu/nvidia/current", "usr/lib64", "usr/lib64/nvidia", "usr/lib",
    "usr/lib/nvidia", "usr/local/nvidia/lib64", "usr/local/nvidia/lib", "opt/nvidia/lib64", "run/nvidia/driver/usr/lib64",
    "run/nvidia/driver/usr/lib/{machine}-linux-gnu", "home/kubernetes/bin/nvidia/lib64",
)  # fmt: skip
#: without either there is nothing to compute with
_NEEDED = ("libcuda.so", "libnvidia-ml.so")
_PROGRAM_FOLDERS = ("usr/bin", "usr/local/bin", "usr/local/nvidia/bin", "opt/nvidia/bin", "run/nvidia/driver/usr/bin")
_PROGRAMS = ("nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
_VERSION = re.compile(r"^NVRM version:.*?\b(\d+(?:\.\d+){1,3})\b", re.MULTILINE)
#: names in /proc/devices; the first is the older word for the second
_FRONTEND, _UVM, _CAPS = ("nvidia-frontend", "nvidia"), "nvidia-uvm", "nvidia-caps"
_CONTROL_MINOR = 255
_PART = re.compile(r"gpu(\d+)/gi(\d+)(?:/ci(\d+))?/access (\d+)")


def observe_driver(root: Path, machine: str) -> NvidiaDriver | None:
    """None: there is none, or its libraries were not found. `machine`: as `uname -m` says it."""
    told = _VERSION.search(read_text(root / "proc/driver/nvidia/version") or "")
    if told is None:
        return None
    version = told[1]
    for place in _FOLDERS:
        folder = root / place.format(machine=machine)
        found = [name for name in names(folder) if name.startswith("lib") and name.endswith(f".so.{version}")]
        if all(f"{name}.{version}" in found for name in _NEEDED):
            break
    else:
        return None
    programs = (_first(root, [f"{place}/{name}" for place in _PROGRAM_FOLDERS]) for name in _PROGRAMS)
    return NvidiaDriver(
        version=version,
        libraries=tuple(f"/{folder.relative_to(root)}/{name}" for name in sorted(found)),
        programs=tuple(filter(None, programs)),
        persistenced=_first(root, ["run/nvidia-persistenced/socket"]),
        fabricmanager=_first(root, ["run/nvidia-fabricmanager/socket"]),
        mps=_first(root, ["tmp/nvidia-mps"]) if (root / "tmp/nvidia-mps/control").exists() else "",
    )


def _first(root: Path, places: Iterable[str]) -> str:
    return next((f"/{place}" for place in places if (root / place).exists()), "")


def find_aliases(root: Path, libraries: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Library -> the other names that links in its folder give it: what ldconfig, or an installer, found to be needed."""
    wanted = set(libraries)
    found: dict[str, list[str]] = {}
    for folder in {os.path.dirname(each) for each in wanted}:
        for name in names(root / folder.lstrip("/")):
            if name.startswith("lib") and (leads := _follow(root, f"{folder}/{name}")) in wanted:
                found.setdefault(leads, []).append(name)
    return {library: tuple(sorted(links)) for library, links in found.items()}


def _follow(root: Path, path: str) -> str:
    """Where a link leads, in one folder; "" for what is no link or leads elsewhere."""
    start = path
    for _ in range(8):
        try:
            target = os.readlink(root / path.lstrip("/"))
        except OSError:
            return path if path != start else ""
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))
    return ""


def observe_majors(root: Path) -> dict[str, int]:
    """Driver's name -> major number of its character devices, by /proc/devices."""
    text = (read_text(root / "proc/devices") or "").partition("Block devices")[0]
    return {match[2]: int(match[1]) for match in re.finditer(r"^\s*(\d+) (\S+)$", text, re.MULTILINE)}


def observe_shared(root: Path) -> dict[str, tuple[int, int]]:
    """The device files that all NVIDIA GPUs share, whether or not somebody has made them in /dev."""
    majors = observe_majors(root)
    control = next((majors[name] for name in _FRONTEND if name in majors), None)
    found = {} if control is None else {"/dev/nvidiactl": (control, _CONTROL_MINOR)}
    if _UVM in majors:
        found |= {"/dev/nvidia-uvm": (majors[_UVM], 0), "/dev/nvidia-uvm-tools": (majors[_UVM], 1)}
    return found


def observe_parts(root: Path, minor: int) -> Iterator[OwnNode]:
    """The files that open parts which MIG cut from the GPU with this minor number."""
    major = observe_majors(root).get(_CAPS)
    text = read_text(root / "proc/driver/nvidia-caps/mig-minors") or ""
    for match in _PART.finditer(text) if major is not None else ():
        if int(match[1]) == minor:
            part = (int(match[2]), None if match[3] is None else int(match[3]))
            assert major is not None
            yield OwnNode(f"/dev/nvidia-caps/nvidia-cap{match[4]}", (major, int(match[4])), part)
