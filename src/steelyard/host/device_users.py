"""Who has a GPU or an RDMA card open, and whose work is that? And how much of a GPU's memory is used?

Looks at the open files of all processes under a root that is a parameter, so that recorded and made-up trees can be tested. A
process is traced to its workload by its control group, or by what it was started with when it has left that. Without root only
the own processes can be seen: `complete` says so. Never changes anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from steelyard.host.device_nodes import observe_nodes
from steelyard.host.health.ask import ask
from steelyard.host.proc import find_workload, observe_process
from steelyard.host.sysfs import names, read_int, read_text
from steelyard.lifecycle.device_return import Holder
from steelyard.model.health import pci_of

ATTEMPT_VARIABLE = "STEELYARD_ATTEMPT_ID="


class DeviceUsers(msgspec.Struct, frozen=True):
    #: device id -> who has it open
    holders: dict[str, tuple[Holder, ...]]
    #: False when some processes could not be looked into
    complete: bool


def observe_device_nodes(root: Path = Path("/")) -> dict[str, tuple[str, ...]]:
    """PCI address -> the device files that only it has. `card0` is left out: a console has it open, for the screen."""
    found: dict[str, list[str]] = {}
    for node in observe_nodes(root):
        if not node.path.startswith("/dev/dri/card"):
            found.setdefault(node.pci, []).append(node.path)
    return {pci: tuple(nodes) for pci, nodes in found.items()}


def observe_users(nodes: Mapping[str, Collection[str]], root: Path = Path("/")) -> DeviceUsers:
    """`nodes`: device id -> its files, as `observe_device_nodes` gives them."""
    wanted = {path: device for device, paths in nodes.items() for path in paths}
    # Containers may give a device another name: there the device number tells.
    numbers = {number: device for path, device in wanted.items() if (number := _number(root / path.lstrip("/"))) is not None}
    holders: dict[str, list[Holder]] = {device: [] for device in nodes}
    complete = True
    for name in names(root / "proc"):
        if not name.isdigit():
            continue
        held, seen = _held(root / "proc" / name / "fd", wanted, numbers)
        complete = complete and seen
        if not held:
            continue
        process = observe_process(int(name), root)
        if process is None or process.state in ("Z", "X"):
            continue
        holder = Holder(int(name), process.start_time, _command(root, name), observe_workload(int(name), root))
        for device in held:
            holders[device].append(holder)
    return DeviceUsers({device: tuple(each) for device, each in holders.items()}, complete)


def _held(folder: Path, wanted: Mapping[str, str], numbers: Mapping[int, str]) -> tuple[set[str], bool]:
    """(devices that one process has open, whether its files could be seen)"""
    try:
        fds = os.listdir(folder)
    except PermissionError:
        return set(), False
    except OSError:
        return set(), True  # it ended while we looked
    held: set[str] = set()
    for fd in fds:
        try:
            target = os.readlink(folder / fd)
        except OSError:
            continue
        if not target.startswith("/"):
            continue
        device = wanted.get(target.removesuffix(" (deleted)"))
        if device is None and numbers and target.startswith("/dev/") and (number := _number(folder / fd)) is not None:
            device = numbers.get(number)
        if device is not None:
            held.add(device)
    return held, True


def _number(path: Path) -> int | None:
    try:
        told = os.stat(path)
    except OSError:
        return None
    return told.st_rdev if stat.S_ISCHR(told.st_mode) else None


def observe_workload(pid: int, root: Path = Path("/")) -> str | None:
    """The attempt or replica that a process belongs to; None for a process that is not ours."""
    for line in (read_text(root / f"proc/{pid}/cgroup") or "").splitlines():
        workload = find_workload(line)
        if workload is not None:
            return workload
    try:
        environ = (root / f"proc/{pid}/environ").read_bytes()[:262_144].decode(errors="replace")
    except OSError:
        return None
    told = next((each for each in environ.split("\x00") if each.startswith(ATTEMPT_VARIABLE)), "")
    return told.removeprefix(ATTEMPT_VARIABLE) or None


def _command(root: Path, pid: str) -> str:
    return (read_text(root / f"proc/{pid}/comm") or "unknown")[:64]


def observe_memory(root: Path = Path("/")) -> dict[str, int]:
    """GPU's PCI address -> bytes of its memory in use; a GPU that tells nothing is left out. AMD tells it in /sys, NVIDIA through
    `nvidia-smi`."""
    found: dict[str, int] = {}
    base = root / "sys/bus/pci/devices"
    for pci in names(base):
        used = read_int(base / pci / "mem_info_vram_used")
        if used is not None:
            found[pci] = used
    if root == Path("/"):
        told = ask(["nvidia-smi", "--query-gpu=pci.bus_id,memory.used", "--format=csv,noheader,nounits"])
        found |= parse_memory(told.text)
    return found


def parse_memory(text: str) -> dict[str, int]:
    """`00000000:19:00.0, 4` per line, in MiB; `[N/A]` is not known."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        pci, _, used = (part.strip() for part in line.partition(","))
        if used.isdigit():
            found[pci_of(pci)] = int(used) << 20
    return found
