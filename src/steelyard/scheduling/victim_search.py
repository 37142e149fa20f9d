"""Which of these have to go, so that the least is lost and there is room? Exact, by branch and bound, within a budget.

Every set of victims has a price: (GPU time lost, core time lost, how many). Of sets with the same price the one that spares the
costliest is taken: members are compared from the costliest down, of equal loss the older one counts as costlier. So the answer is
one set, the same for the same question.
The search relies on one thing: if there is room without some, there is room without those and more.
1. From the costliest on, each is first spared, and only then taken. A branch in which there would be no room even without all
   that are still undecided ends.
2. What is lacking (so many GPUs, so many cores) can't cost less than the cheapest pieces of it, the last one cut to size. A
   branch ends where that comes to more than the best known.
3. Of those that are alike nobody is taken while a cheaper one is spared.
With the budget spent: the best that was found, at worst what a greedy choice gives (the cheapest until there is room, then the
costliest of these that are not needed are spared again).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias

import msgspec

from steelyard.placement.budget import Budget

#: questions about room, and branches looked at: some tens of milliseconds
STEPS_MAX = 500

#: GPU time, core time, how many
Price: TypeAlias = tuple[int, int, int]


class Candidate(msgspec.Struct, frozen=True):
    #: lost when it goes; any unit, the same for all
    gpu_time: int
    core_time: int
    #: the larger the older; no two have the same
    age: int
    #: what its going gives at most, of each thing in `lacks`
    gives: tuple[int, ...] = ()
    #: those of one kind give the same, whichever of them goes; None: nobody is like it
    kind: Hashable = None


class Found(msgspec.Struct, frozen=True):
    #: places in the sequence that was given, ascending
    chosen: tuple[int, ...]
    #: False: the budget was spent before all that could be better was looked at
    exact: bool


def find_victims(
    candidates: Sequence[Candidate],
    fits: Callable[[Sequence[int]], bool],
    lacks: Sequence[int] = (),
    budget: Budget | None = None,
) -> Found | None:
    """`fits`: is there room without these (places of candidates)? `lacks`: what is missing at least, in the units of
    `Candidate.gives`. None: there is no room even without all of them."""
    search = _Search(candidates, fits, lacks, budget or Budget(STEPS_MAX))
    if not search.has_room((1 << len(candidates)) - 1):
        return None
    search.choose_greedily()
    search.look_through()
    return Found(tuple(sorted(search.order[place] for place in _places(search.best))), search.exact)


class _Search:
    """Works on places in `order`, the costliest first; a set of them is a bit mask."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        fits: Callable[[Sequence[int]], bool],
        lacks: Sequence[int],
        budget: Budget,
    ) -> None:
        self.order = sorted(range(len(candidates)), key=lambda at: _loss(candidates[at]), reverse=True)
        self.exact = True
        self.best = 0
        self._price: Price = (0, 0, 0)
        self._items = [candidates[at] for at in self.order]
        self._fits, self._budget = fits, budget
        self._answers: dict[int, bool] = {}
        self._lacks = [(kind, lack) for kind, lack in enumerate(lacks) if lack > 0]
        #: per place the one before it of its kind: it costs more
        self._before = _find_alike(self._items)
        #: per thing that lacks the places by the price of a piece of it, the cheapest first
        self._cheapest = [
            [sorted(range(len(self._items)), key=lambda at: _piece(self._items[at], kind, rate)) for rate in range(3)]
            for kind, _ in self._lacks
        ]

    def has_room(self, gone: int) -> bool:
        known = self._answers.get(gone)
        if known is None:
            places = _places(gone)
            enough = all(sum(self._items[place].gives[kind] for place in places) >= lack for kind, lack in self._lacks)
            known = self._answers[gone] = enough and self._fits([self.order[place] for place in places])
        return known

    def choose_greedily(self) -> None:
        count = len(self._items)
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if self.has_room(self._last(middle)):
                high = middle
            else:
                low = middle + 1
        self.best = self._last(low)
        for place in range(count - low, count):
            if not self._budget.step():
                break
            if self.has_room(self.best & ~(1 << place)):
                self.best &= ~(1 << place)
        self._price = self._sum(self.best)

    def look_through(self) -> None:
        count = len(self._items)
        #: (next place to decide, those taken); the end is looked at first
        open_: list[tuple[int, int]] = [(0, 0)]
        # what the greedy choice found may be one of several with its price, and not the one to take
        ties = True
        while open_:
            if not self._budget.step():
                self.exact = False
                return
            place, taken = open_.pop()
            known = self._price if ties else (*self._price[:2], self._price[2] - 1)
            if self._exceeds(place, taken, known):
                continue
            if place == count:
                self.best, self._price, ties = taken, self._sum(taken), False
                continue
            open_.append((place + 1, taken | 1 << place))
            before = self._before[place]
            alike_taken = before is not None and taken >> before & 1
            if not alike_taken and self.has_room(taken | self._last(count - place - 1)):
                open_.append((place + 1, taken))

    def _last(self, count: int) -> int:
        """The `count` cheapest."""
        total = len(self._items)
        return ((1 << count) - 1) << (total - count)

    def _sum(self, taken: int) -> Price:
        items = [self._items[place] for place in _places(taken)]
        return sum(item.gpu_time for item in items), sum(item.core_time for item in items), len(items)

    def _exceeds(self, place: int, taken: int, known: Price) -> bool:
        """Does the branch cost more than `known`, whatever it takes from `place` on?"""
        missing = [lack - sum(self._items[at].gives[kind] for at in _places(taken)) for kind, lack in self._lacks]
        for rate, (paid, limit) in enumerate(zip(self._sum(taken), known, strict=True)):
            least = paid + max(
                (self._least(which, rate, place, lack) for which, lack in enumerate(missing) if lack > 0), default=0
            )
            if least != limit:
                return least > limit
        return False

    def _least(self, which: int, rate: int, place: int, lack: int) -> int:
        """What `lack` pieces of one thing cost at least, from those that are undecided."""
        kind, total = self._lacks[which][0], 0
        for at in self._cheapest[which][rate]:
            gives = self._items[at].gives[kind]
            if at < place or not gives:
                continue
            if gives >= lack:
                return total + -(-_rate(self._items[at], rate) * lack // gives)
            total += _rate(self._items[at], rate)
            lack -= gives
        return total


def _places(mask: int) -> list[int]:
    found: list[int] = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _loss(item: Candidate) -> tuple[int, int, int]:
    return item.gpu_time, item.core_time, item.age


def _rate(item: Candidate, rate: int) -> int:
    return (item.gpu_time, item.core_time, 1)[rate]


def _piece(item: Candidate, kind: int, rate: int) -> int:
    """The price of a piece, in fractions so fine that amounts below 2 ** 50 are in their true order."""
    gives = item.gives[kind]
    return (_rate(item, rate) << 100) // gives if gives else 0


def _find_alike(items: Sequence[Candidate]) -> list[int | None]:
    latest: dict[Hashable, int] = {}
    before: list[int | None] = []
    for place, item in enumerate(items):
        before.append(None if item.kind is None else latest.get(item.kind))
        if item.kind is not None:
            latest[item.kind] = place
    return before
