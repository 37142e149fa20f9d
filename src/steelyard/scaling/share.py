"""Several functions want more replicas than the machine holds: how many may each have?

Never reads the clock, the disk or the network. Max-min fairness over the scarcest resource (as in dominant resource fairness,
Ghodsi et al. 2011): one replica after the other goes to the function that has the smallest share of the machine so far, of
equals to the first by name, as long as it fits. First of all each gets what may not be taken from it: its `replicas_min`, and
one where it wants any, so that nobody starves; what that takes beyond the machine is taken. What does not fit of one function
is tried of the others.

What a machine holds: memory is hard. Cores are shares, so that more replicas than cores make sense where they wait for others;
`CPU_OVERCOMMIT` x of them is where another process only makes all slower.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import msgspec

#: replicas' cores' worth of share for each core of the machine
CPU_OVERCOMMIT = 4.0


class Want(msgspec.Struct, frozen=True):
    """One function. `cpus` and `memory_bytes` are of one replica; 0 where it has no limit."""

    name: str
    #: replicas that its own rule asks for
    wanted: int
    cpus: float
    memory_bytes: int
    least: int = 0


class Budget(msgspec.Struct, frozen=True):
    """Of one machine, for replicas: `cpus` with the overcommit in it."""

    cpus: float
    memory_bytes: int


def divide(budget: Budget, wants: Iterable[Want]) -> dict[str, int]:
    """Name -> replicas it may have: what it wants where all fit, else its fair share."""
    asked = sorted(wants, key=lambda want: want.name)
    if _fits(budget, asked):
        return {want.name: want.wanted for want in asked}
    given = {want.name: min(want.wanted, max(want.least, 1)) for want in asked}
    cpus = budget.cpus - sum(want.cpus * given[want.name] for want in asked)
    memory = budget.memory_bytes - sum(want.memory_bytes * given[want.name] for want in asked)
    heap = [(_share(budget, want) * given[want.name], at) for at, want in enumerate(asked) if given[want.name] < want.wanted]
    heapq.heapify(heap)
    while heap:
        _, at = heapq.heappop(heap)
        want = asked[at]
        if want.cpus > cpus + 1e-9 or want.memory_bytes > memory:
            continue  # room never grows: it won't fit later either
        cpus, memory = cpus - want.cpus, memory - want.memory_bytes
        given[want.name] += 1
        if given[want.name] < want.wanted:
            heapq.heappush(heap, (_share(budget, want) * given[want.name], at))
    return given


def _fits(budget: Budget, wants: list[Want]) -> bool:
    cpus = sum(want.cpus * want.wanted for want in wants)
    return cpus <= budget.cpus + 1e-9 and sum(want.memory_bytes * want.wanted for want in wants) <= budget.memory_bytes


def _share(budget: Budget, want: Want) -> float:
    """Of one replica: the larger of its shares of cores and memory."""
    return max(want.cpus / max(budget.cpus, 1e-9), want.memory_bytes / max(budget.memory_bytes, 1))
