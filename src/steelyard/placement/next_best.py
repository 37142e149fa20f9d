"""Which sets of GPUs come next after the chosen one? For people who look at a choice, not for choosing.

By smallest pair value, then sum, then addresses; cards, cores and what remains are not compared again.
The sets that differ from the chosen one in a single device give a floor; the search then ends every branch that falls below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add

from steelyard.placement.best_sets import SetValue, bits, measure
from steelyard.placement.budget import Budget
from steelyard.placement.pair_value import Rows


def list_next_best(rows: Rows, members: int, known: int, count: int, budget: Budget | None = None) -> list[int]:
    """Up to `count` sets of the size of `known`, without it, the best first."""
    near = [known ^ 1 << out ^ 1 << in_ for out in bits(known) for in_ in bits(members & ~known)]
    if not near or not count:
        return []
    floors = sorted((measure(rows, chosen) for chosen in near), reverse=True)
    search = _NextBest(rows, known, count, floors[min(count, len(floors)) - 1], budget or Budget())
    search.extend(0, 0, (1 << 62, 0), [0] * len(rows), members)
    return [chosen for _, chosen in search.ranked]


class _NextBest:
    def __init__(self, rows: Rows, known: int, count: int, floor: SetValue, budget: Budget) -> None:
        #: best first; of equal ones the earlier found has the lower addresses
        self.ranked: list[tuple[SetValue, int]] = []
        self._rows, self._known, self._size, self._count, self._floor = rows, known, known.bit_count(), count, floor
        self._budget = budget
        self._largest = [max(row) for row in rows]

    def extend(self, chosen: int, taken: int, value: SetValue, gains: Sequence[int], open_: int) -> None:
        missing = self._size - taken
        if not missing:
            self._keep(chosen, value if self._size > 1 else (0, 0))
            return
        if not self._budget.step():
            return
        places = list(bits(open_))
        for at in range(len(places) - missing + 1):
            place = places[at]
            row = self._rows[place]
            smallest = min((value[0], *(row[other] for other in bits(chosen))))
            total = value[1] + gains[place]
            after = list(map(add, gains, row))
            rest = [2 * after[other] + (missing - 2) * self._largest[other] for other in places[at + 1 :]]
            most = total + sum(sorted(rest, reverse=True)[: missing - 1]) // 2
            if not self._beaten((smallest, most)):
                self.extend(chosen | 1 << place, taken + 1, (smallest, total), after, open_ & -(2 << place))

    def _beaten(self, promise: SetValue) -> bool:
        if len(self.ranked) == self._count:
            return promise <= self.ranked[-1][0]
        return promise < self._floor

    def _keep(self, chosen: int, value: SetValue) -> None:
        if chosen == self._known or self._beaten(value):
            return
        self.ranked.append((value, chosen))
        self.ranked.sort(key=lambda each: each[0], reverse=True)
        del self.ranked[self._count :]
