"""How does what a workload used over its life fit into 120 samples? Counters in, evenly spread averages out. Pure.

When there is no room for another sample, neighbours are joined two by two and looks become half as frequent: a job of a minute
has one per second, a job of a week one per hour and a half, and neither costs more than the other.
"""

from __future__ import annotations

import msgspec

from steelyard.model.usage import UsageSample

#: the most that are kept; even
SAMPLES_MAX = 120
#: between two looks at a young workload
FIRST_INTERVAL_S = 1.0


class Look(msgspec.Struct, frozen=True):
    """Counters since its start, and what is in use now."""

    #: seconds since its start
    at_s: float
    cpu_s: float = 0.0
    memory_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    gpu_percent: float | None = None


class Track(msgspec.Struct, frozen=True):
    """All that is kept of one workload's life."""

    interval_s: float = FIRST_INTERVAL_S
    samples: tuple[UsageSample, ...] = ()
    #: counters at the end of the newest sample
    last: Look = Look(0.0)


def is_due(track: Track, at_s: float) -> bool:
    return at_s - track.last.at_s >= track.interval_s


def add_look(track: Track, look: Look) -> Track:
    """With one sample more, of the time since the look before. A look that is not later changes nothing; counters that went back
    (a child ended and nobody waited for it) count as if they had stood still."""
    span_s = look.at_s - track.last.at_s
    if span_s <= 0:
        return track
    last = msgspec.structs.replace(
        look,
        cpu_s=max(look.cpu_s, track.last.cpu_s),
        read_bytes=max(look.read_bytes, track.last.read_bytes),
        written_bytes=max(look.written_bytes, track.last.written_bytes),
    )
    sample = UsageSample(
        at_s=look.at_s,
        cpus=(last.cpu_s - track.last.cpu_s) / span_s,
        memory_bytes=look.memory_bytes,
        read_bytes_s=(last.read_bytes - track.last.read_bytes) / span_s,
        written_bytes_s=(last.written_bytes - track.last.written_bytes) / span_s,
        gpu_percent=look.gpu_percent,
    )
    full = len(track.samples) >= SAMPLES_MAX
    kept = _halve(track.samples) if full else track.samples
    return Track(track.interval_s * 2 if full else track.interval_s, (*kept, sample), last)


def _halve(samples: tuple[UsageSample, ...]) -> tuple[UsageSample, ...]:
    halved: list[UsageSample] = []
    before_s = 0.0
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        halved.append(_join(before_s, first, second))
        before_s = second.at_s
    return tuple(halved)


def _join(before_s: float, first: UsageSample, second: UsageSample) -> UsageSample:
    part = (first.at_s - before_s) / (second.at_s - before_s)

    def average(a: float, b: float) -> float:
        return a * part + b * (1 - part)

    gpu = [percent for percent in (first.gpu_percent, second.gpu_percent) if percent is not None]
    return UsageSample(
        at_s=second.at_s,
        cpus=average(first.cpus, second.cpus),
        memory_bytes=round(average(first.memory_bytes, second.memory_bytes)),
        read_bytes_s=average(first.read_bytes_s, second.read_bytes_s),
        written_bytes_s=average(first.written_bytes_s, second.written_bytes_s),
        gpu_percent=average(gpu[0], gpu[1]) if len(gpu) == 2 else gpu[0] if gpu else None,
    )
