"""By which device files is a GPU opened? Numbers of its character devices, from the driver's own files below /sys and /proc.

Only what belongs to one GPU: files that all GPUs of a driver share (`/dev/nvidiactl`, `/dev/kfd`) let nobody reach a GPU whose
own file is closed to him.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from steelyard.host.sysfs import names, read_text
from steelyard.model.topology import Gpu

#: the driver's character device: one minor per GPU, 255 is for the control file
_NVIDIA_MAJOR = 195


def observe_gpu_nodes(root: Path, gpus: Iterable[Gpu]) -> dict[str, tuple[str, ...]]:
    """GPU id -> its device numbers, as `c 195:0`; a GPU without a driver has none and is left out."""
    found: dict[str, tuple[str, ...]] = {}
    for gpu in gpus:
        if gpu.pci is None:
            continue
        nodes = (*_nvidia(root, gpu.pci), *_drm(root, gpu.pci))
        if nodes:
            found[gpu.id] = nodes
    return found


def mps_runs(root: Path = Path("/")) -> bool:
    """Does NVIDIA's Multi-Process Service answer here? It alone holds processes to a share of a GPU that is not cut by MIG."""
    return (root / "tmp/nvidia-mps/control").exists()


def _nvidia(root: Path, pci: str) -> list[str]:
    text = read_text(root / "proc/driver/nvidia/gpus" / pci / "information") or ""
    minor = re.search(r"^Device Minor:\s*(\d+)\s*$", text, re.MULTILINE)
    return [f"c {_NVIDIA_MAJOR}:{minor[1]}"] if minor else []


def _drm(root: Path, pci: str) -> list[str]:
    """card and render nodes: AMD's and Intel's way to compute, NVIDIA's to draw."""
    folder = root / "sys/bus/pci/devices" / pci / "drm"
    numbers = [read_text(folder / name / "dev") for name in names(folder)]
    return [f"c {number}" for number in numbers if number and re.fullmatch(r"\d+:\d+", number)]
