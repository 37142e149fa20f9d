"""Is a promise of punctuality kept? Counts of a watcher in, a verdict and words out; pure. Never "met" without data."""

from __future__ import annotations

from enum import StrEnum

import msgspec

#: below that nothing is said: some seconds of watching
SAMPLES_MIN = 1000


class PromiseState(StrEnum):
    MET = "MET"
    BREACHED = "BREACHED"
    #: nobody watched long enough to say
    NOT_VERIFIED = "NOT VERIFIED"


class Wakeups(msgspec.Struct, frozen=True):
    """What the watcher counted since the attempt began."""

    samples: int = 0
    #: wake-ups later than the promise
    breaches: int = 0
    worst_us: int = 0
    #: the watcher has not been heard of for some seconds
    stale: bool = False


def decide_promise(seen: Wakeups | None) -> PromiseState:
    """One breach is a breach, however few the samples."""
    if seen is not None and seen.breaches:
        return PromiseState.BREACHED
    enough = seen is not None and seen.samples >= SAMPLES_MIN and not seen.stale
    return PromiseState.MET if enough else PromiseState.NOT_VERIFIED


def got_promise(seen: Wakeups | None) -> dict[str, object]:
    """Keys for `Proof.got` beside an asked `max_wakeup_us`. Its value is None until enough was seen."""
    state = decide_promise(seen)
    return {
        "max_wakeup_us": None if seen is None or state is PromiseState.NOT_VERIFIED else seen.worst_us,
        "max_wakeup": state.value,
        "wakeups_watched": 0 if seen is None else seen.samples,
        "wakeup_breaches": 0 if seen is None else seen.breaches,
    }


def explain_promise(max_wakeup_us: int, seen: Wakeups | None) -> tuple[str, ...]:
    """A sentence where there is not enough data."""
    if decide_promise(seen) is not PromiseState.NOT_VERIFIED:
        return ()
    if seen is not None and seen.stale:
        return (f"max_wakeup_us {max_wakeup_us} is NOT VERIFIED: its watcher has not been heard of for a while.",)
    samples = 0 if seen is None else seen.samples
    return (
        f"max_wakeup_us {max_wakeup_us} is NOT VERIFIED: {samples} wake-ups were watched, {SAMPLES_MIN} are needed to say more.",
    )
