"""What is a MIG instance called (`1g.10gb`, `1c.3g.40gb`), by what its driver tells about it?

NVML gives slices; nvidia-smi gives multiprocessors and copy engines. Both the name and the memory in it are derived, as NVIDIA's
own tools do; where the figures fit no profile the answer is None.
"""

from __future__ import annotations

import math

_EIGHTHS = 8
#: copy engines of an instance -> its slices of the GPU (seven slices bring eight engines since H100)
_SLICES = {1: 1, 2: 2, 3: 3, 4: 4, 7: 7, 8: 7}
#: multiprocessors in one slice, over all generations (A100 14, H100 16, B200 18). Fewer: a compute instance that has a part only.
_MULTIPROCESSORS = range(13, 21)


def name_slices(
    gpu_slices: int | None, compute_slices: int | None, memory_bytes: int | None, gpu_bytes: int | None
) -> str | None:
    """From slices. Memory is counted in eighths of the GPU's, rounded up, as in NVIDIA's go-nvlib (`getMigMemorySizeGB`)."""
    if not gpu_slices or not memory_bytes or not gpu_bytes or memory_bytes > gpu_bytes:
        return None
    part = math.ceil(memory_bytes / gpu_bytes * _EIGHTHS) / _EIGHTHS
    gigabytes = math.floor(part * math.ceil(gpu_bytes / 2**30) + 0.5)
    compute = f"{compute_slices}c." if compute_slices and compute_slices != gpu_slices else ""
    return f"{compute}{gpu_slices}g.{gigabytes}gb"


def name_engines(
    gpu_bytes: int | None,
    memory_bytes: int | None,
    *,
    multiprocessors: int | None,
    copy_engines: int | None,
    media_engines: int | None,
) -> str | None:
    """From engines. Only where a compute instance has its whole GPU instance: parts of one can't be told apart by these."""
    slices = _SLICES.get(copy_engines or 0)
    if slices is None or not multiprocessors or multiprocessors % slices or multiprocessors // slices not in _MULTIPROCESSORS:
        return None
    name = name_slices(slices, None, memory_bytes, gpu_bytes)
    return f"{name}+me" if name and slices == 1 and media_engines else name
