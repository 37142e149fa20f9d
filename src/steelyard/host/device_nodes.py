"""By which device files is a GPU or an RDMA card opened? Its character devices, from the driver's own files below /sys and /proc.

Only what belongs to one device: files that all GPUs of a driver share (`/dev/nvidiactl`, `/dev/kfd`) let nobody reach a GPU whose
own file is closed to him.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from steelyard.host.devices import find_pci
from steelyard.host.sysfs import names, read_text
from steelyard.model.health import pci_of
from steelyard.model.topology import Gpu

#: the driver's character device: one minor per GPU, 255 is for the control file
_NVIDIA_MAJOR = 195
#: in the /dev of every container
_EACH_HAS = frozenset({"console", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero"})
_DEPTH_MAX, _DEVICE = 4, (stat.S_IFCHR, stat.S_IFBLK)
_CLASSES = (("drm", re.compile(r"(card|renderD)\d+"), "dri"), ("infiniband_verbs", re.compile(r"uverbs\d+"), "infiniband"))


class DeviceNode(msgspec.Struct, frozen=True):
    pci: str
    #: `/dev/nvidia3`, `/dev/dri/renderD128`, `/dev/infiniband/uverbs0`
    path: str
    #: `195:3`, major and minor; None where the tree was recorded without
    number: str | None


def observe_nodes(root: Path = Path("/")) -> list[DeviceNode]:
    """Of GPUs and RDMA cards. AMD's and Intel's way to compute is a render node, NVIDIA's to draw."""
    found: list[DeviceNode] = []
    gpus = root / "proc/driver/nvidia/gpus"
    for folder in names(gpus):
        match = re.search(r"^Device Minor:\s*(\d+)\s*$", read_text(gpus / folder / "information") or "", re.MULTILINE)
        if match is not None:
            found.append(DeviceNode(pci_of(folder), f"/dev/nvidia{match[1]}", f"{_NVIDIA_MAJOR}:{match[1]}"))
    for kind, looks, where in _CLASSES:
        base = root / "sys/class" / kind
        for name in filter(looks.fullmatch, names(base)):
            number = read_text(base / name / "dev") or ""
            pci = find_pci(base / name / "device")
            if pci is not None:
                found.append(DeviceNode(pci, f"/dev/{where}/{name}", number if re.fullmatch(r"\d+:\d+", number) else None))
    return found


def observe_gpu_nodes(root: Path, gpus: Iterable[Gpu]) -> dict[str, tuple[str, ...]]:
    """GPU id -> its device numbers, as `c 195:0`; a GPU without a driver has none and is left out."""
    nodes = observe_nodes(root)
    told = {gpu.id: tuple(f"c {node.number}" for node in nodes if node.pci == gpu.pci and node.number) for gpu in gpus}
    return {gpu: numbers for gpu, numbers in told.items() if numbers}


def observe_inside(pids: Sequence[int], root: Path = Path("/")) -> list[str] | None:
    """The device files that a container has beside those of every one, by their paths in it; None when none of these processes is
    there any more."""
    for pid in pids:
        top = f"{root}/proc/{pid}/root/dev"
        try:
            return sorted(path.removeprefix(top.removesuffix("/dev")) for path in _walk(top, 0))
        except OSError:
            continue
    return None


def _walk(folder: str, depth: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if depth < _DEPTH_MAX and (depth or entry.name not in _EACH_HAS):
                    yield from _walk(entry.path, depth + 1)
            elif (depth or entry.name not in _EACH_HAS) and stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode) in _DEVICE:
                yield entry.path


def mps_runs(root: Path = Path("/")) -> bool:
    """Does NVIDIA's Multi-Process Service answer here? It alone holds processes to a share of a GPU that is not cut by MIG."""
    return (root / "tmp/nvidia-mps/control").exists()
