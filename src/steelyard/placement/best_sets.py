"""Which sets of k devices have the largest smallest pair value, and among those the largest sum? Exact, by branch and bound.

Devices are numbers 0..n-1 in the order of their addresses, a set is a bit mask, `rows[i][j]` the value of a pair
(`pair_value.py`).

1. The largest threshold at which k devices exist whose pairs all reach it (a k-clique) is the best smallest value. It is found
   by bisection over the values that occur, never above what k devices could reach by their own k-1 best pairs.
2. In the graph of that threshold cliques are listed in address order. A branch ends where even its best completion falls short
   of the largest sum known: pairs to what is chosen count in full, pairs among what is still to choose by half of what each end
   could have.
3. Sets that a symmetry of the machine turns into an equal set with lower addresses are left out (`symmetry.py`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from operator import add
from typing import TypeAlias

from steelyard.placement.budget import Budget
from steelyard.placement.pair_value import Rows
from steelyard.placement.symmetry import Rule

#: the smallest pair value, and the sum of all; (0, 0) where there is no pair
SetValue: TypeAlias = tuple[int, int]


def find_best_sets(
    rows: Rows, members: int, size: int, rules: Sequence[Sequence[Rule]] = (), budget: Budget | None = None
) -> tuple[SetValue, list[int]]:
    """The best value and the sets that have it, in address order, but for those that `rules` shows to have an equal with lower
    addresses. `members` holds at least `size` devices. With the budget spent: the best that was found."""
    budget = budget or Budget()
    rules = rules or ((),) * len(rows)
    threshold, near, members, equal = _prepare(rows, members, size, budget)
    if equal is not None:
        cliques = _Cliques(near, size, rules, budget)
        cliques.extend(0, 0, members)
        if cliques.found:
            return equal, cliques.found
    best = _BestSums(rows, near, members, size, rules, budget)
    best.extend(0, 0, 0, [0] * len(rows), members)
    if best.found:
        return (threshold, best.total), best.found
    rough = (
        _greedy(rows, near, members, size)[1] or _greedy(rows, [members & ~(1 << a) for a in range(len(rows))], members, size)[1]
    )
    return measure(rows, rough), [rough]


def find_best_value(rows: Rows, members: int, size: int, budget: Budget | None = None) -> SetValue | None:
    """None where `members` has fewer than `size` devices."""
    budget = budget or Budget()
    count = members.bit_count()
    if count <= size:
        return measure(rows, members) if count == size else None
    threshold, near, members, equal = _prepare(rows, members, size, budget)
    if equal is not None:
        return equal
    best = _BestSums(rows, near, members, size, ((),) * len(rows), budget, ties=False)
    best.extend(0, 0, 0, [0] * len(rows), members)
    return threshold, best.total


def _prepare(rows: Rows, members: int, size: int, budget: Budget) -> tuple[int, list[int], int, SetValue | None]:
    """The threshold, its graph, the members that may be in a clique of it, and the value where all cliques have the same."""
    if size == 1:
        return 0, [members] * len(rows), members, (0, 0)
    threshold = _find_threshold(rows, members, size, budget)
    near = _neighbours(rows, members, threshold)
    members = _thin(near, members, size)
    values = {rows[a][b] for a in bits(members) for b in bits(near[a] & members & ((1 << a) - 1))}
    return threshold, near, members, (threshold, threshold * (size * (size - 1) // 2)) if len(values) == 1 else None


def measure(rows: Rows, chosen: int) -> SetValue:
    values = [rows[a][b] for a in bits(chosen) for b in bits(chosen & ((1 << a) - 1))]
    return (min(values), sum(values)) if values else (0, 0)


def bits(mask: int) -> Iterator[int]:
    """The numbers in a set, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class _Cliques:
    """Lists the k-cliques, for where all of them have the same value."""

    def __init__(self, near: Sequence[int], size: int, rules: Sequence[Sequence[Rule]], budget: Budget) -> None:
        self.found: list[int] = []
        self._near, self._size, self._rules, self._budget = near, size, rules, budget

    def extend(self, chosen: int, count: int, open_: int) -> None:
        missing = self._size - count
        if not missing:
            self.found.append(chosen)
            return
        while open_.bit_count() >= missing and self._budget.step():
            low = open_ & -open_
            open_ ^= low
            place = low.bit_length() - 1
            if not _forbidden(self._rules[place], chosen):
                self.extend(chosen | low, count + 1, open_ & self._near[place])


class _BestSums:
    """Lists the k-cliques with the largest sum; without `ties` finds the sum only."""

    def __init__(
        self,
        rows: Rows,
        near: Sequence[int],
        members: int,
        size: int,
        rules: Sequence[Sequence[Rule]],
        budget: Budget,
        ties: bool = True,
    ) -> None:
        self.found: list[int] = []
        self._more = 0 if ties else 1
        self._budget = budget
        self._rows, self._near, self._size, self._rules = rows, near, size, rules
        #: per device the values of its pairs, the largest first, each with those it has that value with
        self._levels = _levels(rows, near, members)
        self.total = _greedy(rows, near, members, size)[0]

    def extend(self, chosen: int, count: int, total: int, gains: list[int], open_: int) -> None:
        """`gains[x]`: what x would add to `total` by its pairs to `chosen`."""
        missing = self._size - count
        if missing == 1:
            self._finish(chosen, total, gains, open_)
            return
        if not self._budget.step():
            return
        rest = missing - 1
        places = list(bits(open_))
        # what the best `rest` devices behind each place could add: the places before it no longer count there
        behind: list[int] = []
        bounds: list[int] = []
        for place in reversed(places):
            promise = 2 * gains[place]
            left = rest
            for value, peers in self._levels[place]:
                number = (peers & open_).bit_count()
                if number >= left:
                    promise += value * left
                    break
                promise += value * number
                left -= number
            bounds.append(promise + sum(behind[-rest:]))
            insort(behind, promise)
        needed = 2 * (self.total - total) + self._more
        for at in range(len(places) - rest):
            place = places[at]
            if bounds[-1 - at] < needed or _forbidden(self._rules[place], chosen):
                continue
            after = open_ & self._near[place] & -(2 << place)
            if after.bit_count() >= rest:
                added = list(map(add, gains, self._rows[place]))
                self.extend(chosen | 1 << place, count + 1, total + gains[place], added, after)
                needed = 2 * (self.total - total) + self._more

    def _finish(self, chosen: int, total: int, gains: list[int], open_: int) -> None:
        for place in bits(open_):
            reached = total + gains[place]
            if reached < self.total or _forbidden(self._rules[place], chosen):
                continue
            if reached > self.total:
                self.total = reached
                self.found.clear()
            self.found.append(chosen | 1 << place)


def _forbidden(rules: Sequence[Rule], chosen: int) -> bool:
    """Would the next device make a set that a symmetry turns into one with lower addresses?"""
    for rule in rules:  # noqa: SIM110  (any() around it is twice as slow, and this runs at every step)
        if not chosen & rule.partner and all(bool(chosen & a) is bool(chosen & b) for a, b in rule.before):
            return True
    return False


def _find_threshold(rows: Rows, members: int, size: int, budget: Budget) -> int:
    """The largest value that all pairs of some `size` members reach."""
    places = list(bits(members))
    own = sorted((sorted((rows[a][b] for b in places if b != a), reverse=True)[size - 2] for a in places), reverse=True)
    values = sorted({rows[a][b] for a in places for b in places if b < a and rows[a][b] <= own[size - 1]})
    low, high = 0, len(values) - 1
    # the smallest value always holds; most machines have few values, and the highest that may hold often does
    middle = high
    while low < high:
        near = _neighbours(rows, members, values[middle])
        if _has_clique(near, members, size, budget):
            low = middle
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return values[low]


def _neighbours(rows: Rows, members: int, threshold: int) -> list[int]:
    near = [0] * len(rows)
    for a in bits(members):
        row, mask = rows[a], 0
        for b in bits(members):
            if row[b] >= threshold and b != a:
                mask |= 1 << b
        near[a] = mask
    return near


def _thin(near: Sequence[int], members: int, size: int) -> int:
    """Without those that have too few neighbours to be in a clique of that size."""
    while True:
        left = sum(1 << a for a in bits(members) if (near[a] & members).bit_count() >= size - 1)
        if left == members:
            return left
        members = left


def _has_clique(near: Sequence[int], members: int, size: int, budget: Budget) -> bool:
    if size <= 1:
        return members.bit_count() >= size
    members = _thin(near, members, size)
    if members.bit_count() < size or not budget.step():
        return False
    fewest, place = min(((near[a] & members).bit_count(), a) for a in bits(members))
    if fewest == members.bit_count() - 1:
        return True
    # with the loneliest member, or without it
    with_it = _has_clique(near, members & near[place], size - 1, budget)
    return with_it or _has_clique(near, members & ~(1 << place), size, budget)


def _levels(rows: Rows, near: Sequence[int], members: int) -> list[list[tuple[int, int]]]:
    levels: list[list[tuple[int, int]]] = []
    for a, row in enumerate(rows):
        peers: dict[int, int] = {}
        for b in bits(near[a] & members):
            peers[row[b]] = peers.get(row[b], 0) | 1 << b
        levels.append(sorted(peers.items(), reverse=True))
    return levels


def _greedy(rows: Rows, near: Sequence[int], members: int, size: int) -> tuple[int, int]:
    """The sum of a good clique, and the clique, grown from each member by the best next; (0, 0) where none was finished. The
    search only ends branches that stay below it."""
    best = (0, 0)
    for start in bits(members):
        chosen, open_, total, gains = 1 << start, near[start] & members, 0, list(rows[start])
        for _ in range(size - 1):
            if not open_:
                break
            gain, place = max((gains[place], -place) for place in bits(open_))
            place = -place
            total += gain
            chosen |= 1 << place
            open_ &= near[place]
            gains = list(map(add, gains, rows[place]))
        if chosen.bit_count() == size:
            best = max(best, (total, chosen))
    return best
