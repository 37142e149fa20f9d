"""What is free on every machine of a fabric? Arrays for 100,000 GPUs, counts per group kept as things are taken and given back.

Machines stand in the order of `FabricLevels`, so a group of any level is one run of rows and a sum over groups is one pass.
Taking or giving a GPU changes one row and one count per level; nothing is ever recounted. Every change is in a journal, so
that a trial ("what if this job were gone?") is undone exactly. One thread uses it at a time. Never reads anything but its
arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from steelyard.model.fabric import Fabric
from steelyard.model.gang import GangPlan
from steelyard.placement.fabric_levels import FabricLevels, make_levels

Ints: TypeAlias = npt.NDArray[np.int64]
WHOLE = 1000
#: an empty machine's free thousandths are 1000 per GPU
GPUS_MAX = 64


class _Change(msgspec.Struct, frozen=True):
    node: int
    gpus: tuple[int, ...]
    #: taken (+) or given (-), thousandths of each GPU
    milli: int
    #: the machine was closed (+1) or opened (-1) with it
    closed: int
    #: members that came (+1) or went (-1)
    members: int


class FabricState:
    """Free GPUs per machine, with counts per group of every level."""

    def __init__(self, levels: FabricLevels, gpus: Mapping[str, int], rails: Mapping[str, int] | None = None) -> None:
        """`gpus`: GPUs of each host, 0 to 64; `rails`: bit r is set where the host has rail r."""
        self.names = levels.hosts
        self.levels = tuple(level.name for level in levels.levels)
        self.labels = tuple(level.labels for level in levels.levels)
        self.notes = levels.notes
        self.row = {name: row for row, name in enumerate(levels.hosts)}
        #: [level][machine] -> group, growing along the row
        self.group: tuple[Ints, ...] = tuple(np.asarray(level.group, dtype=np.int64) for level in levels.levels)
        #: [level][group] -> its first machine; one more for the end
        self.start: tuple[Ints, ...] = tuple(
            np.searchsorted(group, np.arange(len(labels) + 1)) for group, labels in zip(self.group, self.labels, strict=True)
        )
        #: GPUs of each machine
        self.capacity: Ints = np.asarray([gpus.get(name, 0) for name in levels.hosts], dtype=np.int64)
        widest = max(1, int(self.capacity.max(initial=0)))
        if int(self.capacity.min(initial=0)) < 0 or widest > GPUS_MAX:
            raise ValueError(f"a machine has 0 to {GPUS_MAX} GPUs")
        #: [machine, GPU] -> free thousandths; 0 beyond the machine's GPUs
        self.milli: npt.NDArray[np.int16] = np.where(np.arange(widest) < self.capacity[:, None], WHOLE, 0).astype(np.int16)
        self.rails: Ints = np.asarray([(rails or {}).get(name, 0) for name in levels.hosts], dtype=np.int64)
        #: gang members on each machine, and how often it is closed (held whole, or drained)
        self.members: Ints = np.zeros(len(self.names), dtype=np.int64)
        self.closed: Ints = np.zeros(len(self.names), dtype=np.int64)
        #: GPUs that are free as a whole; -1 where the machine is closed
        self.whole: Ints = self.capacity.copy()
        #: [level][group, k] -> machines with at least k whole free GPUs
        self.holds: tuple[Ints, ...] = tuple(self._count(start, widest) for start in self.start)
        #: [level][group] -> machines that nobody is on
        self.untouched: tuple[Ints, ...] = tuple(np.diff(start) for start in self.start)
        self._journal: list[_Change] = []

    @property
    def size(self) -> int:
        return len(self.names)

    def take(self, node: str, gpus: tuple[int, ...], milli: int = WHOLE, *, exclusive: bool = False) -> None:
        """One member comes: `milli` of each of `gpus`, and the whole machine where it is exclusive."""
        row = self.row[node]
        free = self.milli[row, list(gpus)]
        if len(set(gpus)) != len(gpus) or not 0 < milli <= WHOLE or (free < milli).any():
            raise ValueError(f"{node}: not all of its GPUs {gpus} have {milli} thousandths free")
        if self.closed[row] or (exclusive and self.members[row]):
            raise ValueError(f"{node} is held by another or closed")
        self._apply(_Change(row, gpus, milli, int(exclusive), 1), log=True)

    def give(self, node: str, gpus: tuple[int, ...], milli: int = WHOLE, *, exclusive: bool = False) -> None:
        """The opposite of the same `take`."""
        row = self.row[node]
        full = self.milli[row, list(gpus)] + milli
        beyond = any(not 0 <= gpu < self.capacity[row] for gpu in gpus)
        if beyond or (full > WHOLE).any() or not self.members[row] or (exclusive and not self.closed[row]):
            raise ValueError(f"{node}: more would be given back than was taken")
        self._apply(_Change(row, gpus, -milli, -int(exclusive), -1), log=True)

    def take_plan(self, plan: GangPlan) -> None:
        for member in plan.members:
            self.take(member.node, member.gpus, member.milli, exclusive=plan.exclusive)

    def give_plan(self, plan: GangPlan) -> None:
        for member in plan.members:
            self.give(member.node, member.gpus, member.milli, exclusive=plan.exclusive)

    def close(self, node: str) -> None:
        """Nothing new goes there (drained, lost). What runs stays booked."""
        self._apply(_Change(self.row[node], (), WHOLE, 1, 0), log=True)

    def open(self, node: str) -> None:
        if not self.closed[self.row[node]]:
            raise ValueError(f"{node} is not closed")
        self._apply(_Change(self.row[node], (), WHOLE, -1, 0), log=True)

    def mark(self) -> int:
        """A point to come back to with `undo`."""
        return len(self._journal)

    def undo(self, mark: int) -> None:
        """Everything since `mark` is taken back."""
        while len(self._journal) > mark:
            change = self._journal.pop()
            self._apply(_Change(change.node, change.gpus, -change.milli, -change.closed, -change.members), log=False)

    def _apply(self, change: _Change, *, log: bool) -> None:
        row = change.node
        was_whole, was_untouched = int(self.whole[row]), self._nobody(row)
        if change.gpus:
            self.milli[row, list(change.gpus)] -= change.milli
        self.closed[row] += change.closed
        self.members[row] += change.members
        now = -1 if self.closed[row] else int((self.milli[row] == WHOLE).sum())
        self.whole[row] = now
        untouched = int(self._nobody(row)) - int(was_untouched)
        for group, holds, free in zip(self.group, self.holds, self.untouched, strict=True):
            at = group[row]
            holds[at, now + 1 : was_whole + 1] -= 1
            holds[at, was_whole + 1 : now + 1] += 1
            free[at] += untouched
        if log:
            self._journal.append(change)

    def _nobody(self, row: int) -> bool:
        return not self.members[row] and not self.closed[row]

    def _count(self, start: Ints, widest: int) -> Ints:
        table = (self.whole[:, None] >= np.arange(widest + 1)).astype(np.int64)
        return np.add.reduceat(table, start[:-1], axis=0) if len(table) else np.zeros((0, widest + 1), dtype=np.int64)


def make_state(fabric: Fabric, gpus: int | Mapping[str, int]) -> FabricState:
    """An empty fabric. `gpus`: of each machine, or one number for all."""
    per_host = dict.fromkeys((host.name for host in fabric.hosts), gpus) if isinstance(gpus, int) else gpus
    rails = {host.name: sum(1 << rail for rail in host.rails if rail < 62) for host in fabric.hosts}
    return FabricState(make_levels(fabric), per_host, rails)
