"""What time is it? The only module that reads a clock (ruff bans the rest), so that everything else takes time as an argument.

Wall time (`now_us`) is for people and audit: microseconds since the Unix epoch, UTC. Durations, deadlines and timeouts use
`mono_ns` (CLOCK_MONOTONIC), which is the same in every process of one machine and never jumps.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What loops are given: the real clock below, or the virtual one of the simulator and the tests."""

    def now_us(self) -> int: ...
    def mono_ns(self) -> int: ...
    def boot_ns(self) -> int:
        """Since the kernel was started, time asleep included: what a process's start time is counted by."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def mono_ns(self) -> int:
        return time.monotonic_ns()

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class VirtualClock:
    """A clock that moves only when told to. All readings start at `start_us` and move together."""

    def __init__(self, start_us: int = 1_700_000_000_000_000) -> None:
        self._us = start_us

    def now_us(self) -> int:
        return self._us

    def mono_ns(self) -> int:
        return self._us * 1000

    def boot_ns(self) -> int:
        return self._us * 1000

    def advance(self, seconds: float) -> None:
        self._us += round(seconds * 1_000_000)


def rfc3339(us: int | None) -> str | None:
    """RFC 3339 in UTC with exactly six fractional digits; None stays None."""
    if us is None:
        return None
    whole, micros = divmod(us, 1_000_000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"
