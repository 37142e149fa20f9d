"""May a device go back to the pool after work that had it? Only when no process holds it and its memory is as it was before.

Pure: who holds the device and what its memory says are arguments. Processes that held it before the work began (a monitoring or
persistence daemon) do not count. What ended work left behind is traced to its attempt and ended; a stranger is waited for and
named, never killed. Where memory can't be read, the device goes back as NOT VERIFIED, in these words.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

import msgspec

#: memory above the baseline that drivers keep for themselves
TOLERANCE_BYTES = 64 << 20


class Holder(msgspec.Struct, frozen=True):
    """A process that has a device open."""

    pid: int
    #: clock ticks since boot; with the pid, one process and no other
    start_time: int
    command: str
    #: the attempt or replica that it belongs to, by its control group or what it was started with; None for a stranger
    workload: str | None = None

    @property
    def process(self) -> tuple[int, int]:
        return self.pid, self.start_time


class Baseline(msgspec.Struct, frozen=True):
    """What a device looked like before work was given it."""

    #: (pid, start time) of those who held it already
    holders: tuple[tuple[int, int], ...] = ()
    #: None: it could not be read
    memory_bytes: int | None = None


class Verdict(StrEnum):
    RETURN = "RETURN"
    #: nobody holds it; whether its memory is free can't be known here
    NOT_VERIFIED = "NOT VERIFIED"
    WAIT = "WAIT"
    #: end these processes, then look again
    KILL = "KILL"


class ReturnDecision(msgspec.Struct, frozen=True):
    verdict: Verdict
    #: one sentence for the history
    sentence: str
    #: with KILL: what ended work left behind
    orphans: tuple[Holder, ...] = ()


def decide_return(
    device: str,
    holders: Sequence[Holder],
    live: Collection[str],
    ended: Collection[str],
    memory_bytes: int | None,
    baseline: Baseline,
    *,
    has_memory: bool = True,
) -> ReturnDecision:
    """`live`: workloads that run now (they may share the device); `ended`: those of which nothing may be left. Network
    cards have no memory of this kind (`has_memory`)."""
    strangers = [each for each in holders if each.process not in baseline.holders and each.workload not in live]
    orphans = tuple(each for each in strangers if each.workload in ended)
    if orphans:
        named = ", ".join(f"{each.command} (pid {each.pid}) of {each.workload}" for each in orphans[:5])
        return ReturnDecision(Verdict.KILL, f"{device} is still held by what ended work left behind: {named}.", orphans)
    if strangers:
        named = ", ".join(f"{each.command} (pid {each.pid})" for each in strangers[:5])
        return ReturnDecision(Verdict.WAIT, f"{device} is held by what Steelyard did not start or knows nothing of: {named}.")
    if not has_memory:
        return ReturnDecision(Verdict.RETURN, f"{device} is free: no process holds it.")
    if memory_bytes is None:
        return ReturnDecision(Verdict.NOT_VERIFIED, f"{device}: no process holds it; NOT VERIFIED that its memory is free.")
    shared = any(each.workload in live for each in holders)
    # Without a baseline (it was lost, or could not be read then) an idle device's memory is taken to be empty.
    limit = (baseline.memory_bytes or 0) + TOLERANCE_BYTES
    if memory_bytes > limit and not shared:
        used, was = memory_bytes >> 20, (baseline.memory_bytes or 0) >> 20
        return ReturnDecision(Verdict.WAIT, f"{device}: no process holds it, yet {used} MiB of memory are in use ({was} before).")
    if shared:
        return ReturnDecision(Verdict.NOT_VERIFIED, f"{device} is shared: NOT VERIFIED that its memory is free.")
    return ReturnDecision(Verdict.RETURN, f"{device} is free: no process holds it, its memory is as before.")
