"""What did a job make of what it had? One sentence at its end, and a line of blocks for its use over time. Pure text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steelyard.model.job import Resources
from steelyard.model.usage import Usage

#: the lowest is a mark too, so that a quiet time is seen to be a time
_BLOCKS = "▁▂▃▄▅▆▇█"
_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))


def render_efficiency(demand: Resources, usage: Usage, run_s: float) -> str:
    """ "used 1.2 of 8 cores, 3.1 of 16 GB at most, read 2 GB, wrote 1 GB". `demand`: of all its ranks on this machine; `run_s`:
    how long it ran, without the time in which it was frozen. What can't be read here is left out; "" where nothing can."""
    parts: list[str] = []
    if usage.cpu_s is not None and run_s > 0:
        cores = math.ceil(demand.cpus) if demand.whole_cores else demand.cpus
        parts.append(f"{_round(usage.cpu_s / run_s)} of {_say_cores(cores)}")
    if usage.memory_peak_bytes is not None:
        parts.append(_say_memory(usage.memory_peak_bytes, demand.memory_bytes))
    gpus = [sample.gpu_percent for sample in usage.samples if sample.gpu_percent is not None]
    if gpus:
        parts.append(f"its GPUs {_round(_mean_over_time(usage))} % of the time")
    used = f"used {', '.join(parts)}" if parts else ""
    moved = [
        f"{verb} {_say_bytes(amount)}" for verb, amount in (("read", usage.read_bytes), ("wrote", usage.written_bytes)) if amount
    ]
    if usage.scratch_peak_bytes and demand.scratch_bytes:
        moved.append(f"filled {_say_share(usage.scratch_peak_bytes, demand.scratch_bytes)} of scratch")
    return ", ".join(part for part in (used, *moved) if part)


def render_sparkline(values: Sequence[float | None], width: int, top: float | None = None) -> str:
    """At most `width` blocks, each the mean of its part of `values`; a gap where nothing is known. `top`: what a full block
    stands for (by default the largest value)."""
    if width < 1 or not values:
        return ""
    width = min(width, len(values))
    means = [_mean(values[at * len(values) // width : (at + 1) * len(values) // width]) for at in range(width)]
    highest = max((value for value in means if value is not None), default=0.0) if top is None else top
    return "".join(_block(value, highest) for value in means)


def _say_cores(cores: float) -> str:
    return "1 core" if cores == 1 else f"{cores:g} cores"


def _block(value: float | None, highest: float) -> str:
    if value is None:
        return " "
    if highest <= 0 or value <= 0:
        return _BLOCKS[0]
    return _BLOCKS[min(len(_BLOCKS) - 1, math.ceil(value / highest * len(_BLOCKS)) - 1)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _mean_over_time(usage: Usage) -> float:
    """Each sample stands for the time since the one before it."""
    total = weight = before_s = 0.0
    for sample in usage.samples:
        length_s = max(0.0, sample.at_s - before_s)
        before_s = sample.at_s
        if sample.gpu_percent is not None:
            total += sample.gpu_percent * length_s
            weight += length_s
    return total / weight if weight > 0 else 0.0


def _say_memory(peak: int, asked: int | None) -> str:
    return f"{_say_bytes(peak)} of memory at most" if asked is None else f"{_say_share(peak, asked)} at most"


def _say_share(part: int, whole: int) -> str:
    """In the unit of the whole: "3.1 of 16 GB"."""
    unit, name = _unit(whole)
    return f"{_round(part / unit)} of {_round(whole / unit)} {name}"


def _say_bytes(size: int) -> str:
    unit, name = _unit(size)
    return f"{_round(size / unit)} {name}"


def _unit(size: int) -> tuple[int, str]:
    """The largest that is not more, so that 999.99 MB is 1 GB."""
    return next(((unit, name) for unit, name in _UNITS if size >= unit * 0.9999), _UNITS[-1])


def _round(value: float) -> str:
    """Two digits that mean something: 0.04, 1.2, 35."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0") if value >= 0.1 or value == 0 else f"{value:.2g}"
