"""What did a workload use, and when?"""

from __future__ import annotations

import msgspec


class UsageSample(msgspec.Struct, frozen=True):
    """An average over the time since the sample before."""

    #: seconds since its start
    at_s: float
    #: cores' worth of CPU time
    cpus: float
    memory_bytes: int
    read_bytes_s: float = 0.0
    written_bytes_s: float = 0.0
    #: of its own GPUs, 0-100; None without any, or where nobody can tell
    gpu_percent: float | None = None


class Usage(msgspec.Struct, frozen=True):
    """Of one attempt, so far or in all. None: can't be read here."""

    cpu_s: float | None = None
    memory_peak_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    #: most that was in its scratch folder
    scratch_peak_bytes: int | None = None
    #: at most 120, evenly spread over its life
    samples: tuple[UsageSample, ...] = ()
