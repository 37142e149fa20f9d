"""How many durable calls may ask a function at the same time? As many as its replicas hold, until it says that it is busy.

After a refusal there is a pause, longer each time, then one call asks alone, and each answer doubles how many may. Otherwise ten
thousand waiting calls would be refused over and over, each at the cost of a write. Never reads the clock or a random number.
"""

from __future__ import annotations

import msgspec

PAUSE_FIRST_S, PAUSE_MAX_S = 0.25, 30.0
WINDOW_MAX = 1 << 20


class Pace(msgspec.Struct, frozen=True):
    """Of one function."""

    window: int = WINDOW_MAX
    #: nobody asks before; nanoseconds of the monotonic clock
    not_before_ns: int = 0
    #: pauses in a row
    refusals: int = 0


def quicken(pace: Pace) -> Pace:
    """It answered."""
    return Pace(min(WINDOW_MAX, pace.window * 2))


def slow(pace: Pace, mono_ns: int, jitter: float) -> Pace:
    """It refused, or could not be reached. What was asked before the pause began is part of it. `jitter`: 0 to 1."""
    if mono_ns < pace.not_before_ns:
        return pace
    pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2**pace.refusals) * (0.5 + jitter / 2)
    return Pace(1, mono_ns + round(pause_s * 1e9), min(pace.refusals + 1, 20))
