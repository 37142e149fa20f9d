"""What do many wake-ups say together? Histograms of lateness (microseconds -> count), their percentiles and their picture.
Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

#: bounds of the bars, microseconds: 1, 2, 5, 10, ...
_STEPS = (1, 2, 5)
BAR_WIDTH = 40


class Jitter(msgspec.Struct, frozen=True):
    """The shape of one entry of `jitter --json`. Lateness of wake-ups; None without samples."""

    timing: str
    with_noise: bool
    #: "cyclictest" or "own loop"
    engine: str
    samples: int
    p50_us: int | None
    p99_us: int | None
    p999_us: int | None
    max_us: int | None
    #: sentences: what this machine does not allow, for this class
    could_not: tuple[str, ...] = ()


def make_jitter(
    timing: str, with_noise: bool, engine: str, late_us: Mapping[int, int], could_not: tuple[str, ...] = ()
) -> Jitter:
    return Jitter(
        timing=timing,
        with_noise=with_noise,
        engine=engine,
        samples=sum(late_us.values()),
        p50_us=percentile(late_us, 0.5),
        p99_us=percentile(late_us, 0.99),
        p999_us=percentile(late_us, 0.999),
        max_us=max((us for us, count in late_us.items() if count), default=None),
        could_not=could_not,
    )


def percentile(late_us: Mapping[int, int], share: float) -> int | None:
    """The smallest lateness that at least `share` of all wake-ups do not exceed; None without any."""
    total = sum(late_us.values())
    if not total:
        return None
    needed = -(-total * round(share * 1000) // 1000)
    seen = 0
    for us in sorted(late_us):
        seen += late_us[us]
        if seen >= needed:
            return us
    return max(late_us)


def count_late(late_ns: Iterable[int]) -> dict[int, int]:
    """Nanoseconds to whole microseconds, rounded up."""
    found: dict[int, int] = {}
    for ns in late_ns:
        us = max(0, -(-ns // 1000))
        found[us] = found.get(us, 0) + 1
    return found


def parse_cyclictest(text: str) -> dict[int, int]:
    """The output of `cyclictest -q -h MAX` with one thread. What lies beyond its histogram is counted at the largest lateness."""
    found: dict[int, int] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\d{6,})\s+(\d{6,})", line.strip())
        if match and int(match[2]):
            found[int(match[1])] = int(match[2])
    beyond = re.search(r"^# Histogram Overflows:\s*(\d+)", text, re.MULTILINE)
    largest = re.search(r"^# Max Latencies:\s*(\d+)", text, re.MULTILINE)
    if beyond and largest and int(beyond[1]):
        found[int(largest[1])] = found.get(int(largest[1]), 0) + int(beyond[1])
    return found


def add_late(left: Mapping[int, int], right: Mapping[int, int]) -> dict[int, int]:
    return {us: left.get(us, 0) + right.get(us, 0) for us in {*left, *right}}


def make_bars(late_us: Mapping[int, int]) -> list[tuple[int, int]]:
    """(upper bound, count) from the first to the last step that holds anything."""
    bounds = [step * 10**power for power in range(9) for step in _STEPS]
    counts = [0] * len(bounds)
    for us, count in late_us.items():
        counts[next((at for at, bound in enumerate(bounds) if us <= bound), len(bounds) - 1)] += count
    held = [at for at, count in enumerate(counts) if count]
    return [(bounds[at], counts[at]) for at in range(held[0], held[-1] + 1)] if held else []


def render_bars(late_us: Mapping[int, int]) -> str:
    """A line per step. A bar's length grows with the logarithm, so that one wake-up in a million still shows."""
    bars = make_bars(late_us)
    most = max((count for _, count in bars), default=1)
    lines: list[str] = []
    for bound, count in bars:
        length = 0 if not count else 1 + round((BAR_WIDTH - 1) * (count.bit_length() - 1) / max(1, most.bit_length() - 1))
        lines.append(f"  <= {_time(bound):>7} {'#' * length} {count if count else ''}".rstrip())
    return "\n".join(lines)


def _time(us: int) -> str:
    if us < 1000:
        return f"{us} us"
    return f"{us // 1000} ms" if us < 1_000_000 else f"{us // 1_000_000} s"
