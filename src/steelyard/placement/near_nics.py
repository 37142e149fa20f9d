"""Which network cards are nearest to a set of GPUs, and which cards are worth choosing among?

Of `count` chosen cards each GPU uses its nearest. Better is first the larger rank of the worst-off GPU, then the larger sum of
ranks over all GPUs (ranks of `pair_value.py`): by that sets of GPUs are compared. Cards of one set that are equal in it are taken
by the sum of ranks over all pairs of a card and a GPU, so that the second and third card are near too; then by lowest address.
Chosen among: cards that are free and not down. Can one kind (same speed, same answer to "does it do RDMA?") give all that are
asked, the best such kind alone; else all that do RDMA, where those are enough; else all. RDMA counts before speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from operator import itemgetter

from steelyard.model.topology import Nic
from steelyard.placement.best_sets import bits
from steelyard.placement.budget import Budget
from steelyard.placement.pair_value import Rows, address_key

#: more combinations than that are not tabled, each set of GPUs is looked at by itself
_TABLE_MAX = 128


def is_down(nic: Nic) -> bool:
    return bool(nic.ports) and all(port.up is False for port in nic.ports)


def choose_candidates(nics: Sequence[Nic], count: int) -> list[Nic]:
    """Cards to choose `count` from, in address order. `nics` are free; there may be too few."""
    usable = sorted((nic for nic in nics if not is_down(nic)), key=lambda nic: address_key(nic.id))
    kinds: dict[tuple[bool, float], list[Nic]] = {}
    for nic in usable:
        kinds.setdefault((nic.rdma is True, nic.gbps or 0.0), []).append(nic)
    for kind in sorted(kinds, reverse=True):
        if len(kinds[kind]) >= count:
            return kinds[kind]
    able = [nic for nic in usable if nic.rdma is True]
    return able if len(able) >= count else usable


def keep_nearest(columns: Rows, sets: Sequence[int], count: int, budget: Budget) -> list[int]:
    """Those of `sets` (bit masks of GPUs, all of one size) whose best choice of `count` cards is best."""
    if len(sets) < 2 or not count or not columns:
        return list(sets)
    kinds = sorted(set(columns))
    size = sets[0].bit_count()
    if count >= min(size, len(kinds)):
        return _keep_by(sets, [tuple(map(max, zip(*kinds, strict=True)))])
    combinations = list(itertools.islice(itertools.combinations(kinds, count), _TABLE_MAX + 1))
    if len(combinations) <= _TABLE_MAX:
        return _keep_by(sets, [tuple(map(max, zip(*chosen, strict=True))) for chosen in combinations])
    values = [choose_nics(columns, chosen, count, budget)[0][:2] for chosen in sets]
    best = max(values)
    return [chosen for chosen, value in zip(sets, values, strict=True) if value == best]


def choose_nics(columns: Rows, gpus: int, count: int, budget: Budget) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """The value (smallest rank, sum of ranks, sum over all cards) of the best `count` cards, and their numbers, of equal ones the
    lowest."""
    if not gpus:
        return (0, 0, 0), tuple(range(count))
    places = list(bits(gpus))
    own = [tuple(column[place] for place in places) for column in columns]
    reached, rough = _choose_greedily(own, count)
    search = _NicSearch(own, count, reached, budget)
    search.extend((), (0,) * len(places), 0)
    # nothing is found only where the budget was spent first
    return (search.value, search.chosen) if search.chosen or not count else (reached, rough)


def _keep_by(sets: Sequence[int], offers: Sequence[tuple[int, ...]]) -> list[int]:
    """`offers`: what each way to choose cards gives each GPU. A set is worth its best offer."""
    size = sets[0].bit_count()
    picks = [_getter(tuple(bits(chosen))) for chosen in sets]
    least, most = 0, 0
    kept: set[int] = set()
    union = [place for place in range(len(offers[0])) if any(chosen >> place & 1 for chosen in sets)]
    # what the best `size` GPUs would get, were they a set: no set can have more
    tops = {offer: sorted(offer[place] for place in union)[-size:] for offer in offers}
    for promise, offer in sorted((((top[0], sum(top)), offer) for offer, top in tops.items()), reverse=True):
        if promise < (least, most):
            break
        for chosen, pick in zip(sets, picks, strict=True):
            seen = pick(offer)
            low = min(seen)
            if low < least:
                continue
            total = sum(seen)
            if low > least or total > most:
                least, most = low, total
                kept = {chosen}
            elif total == most:
                kept.add(chosen)
    return [chosen for chosen in sets if chosen in kept]


def _getter(places: Sequence[int]) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """What an offer has at some places. (itemgetter gives no tuple for a single place.)"""
    first = places[0]
    return itemgetter(*places) if len(places) > 1 else lambda offer: (offer[first],)


def _choose_greedily(columns: Sequence[tuple[int, ...]], count: int) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """A good choice and its value: the card that adds most, one after the other."""
    given = (0,) * len(columns[0]) if columns else (0,)
    chosen: list[int] = []
    for _ in range(count):
        left = [card for card in range(len(columns)) if card not in chosen]
        chosen.append(max(left, key=lambda card: (sum(map(max, given, columns[card])), sum(columns[card]))))
        given = tuple(map(max, given, columns[chosen[-1]]))
    return (min(given), sum(given), sum(sum(columns[card]) for card in chosen)), tuple(sorted(chosen))


class _NicSearch:
    """Tries cards in address order. A branch ends where all its cards together, or the largest gains of as many as are still
    missing (gains only shrink while cards are added), can't beat what was found."""

    def __init__(self, columns: Sequence[tuple[int, ...]], count: int, reached: tuple[int, int, int], budget: Budget) -> None:
        """`reached`: what some choice is known to give."""
        self.value = (reached[0], reached[1], reached[2] - 1)
        self.chosen: tuple[int, ...] = ()
        self._columns, self._count, self._budget = columns, count, budget
        #: what the cards from each place on give each GPU at best
        self._ahead: list[tuple[int, ...]] = [(0,) * len(columns[0])] if columns else [()]
        for column in reversed(columns):
            self._ahead.append(tuple(map(max, self._ahead[-1], column)))
        self._ahead.reverse()
        self._sums = [sum(column) for column in columns]

    def extend(self, chosen: tuple[int, ...], given: tuple[int, ...], start: int, total: int = 0) -> None:
        missing = self._count - len(chosen)
        if not missing:
            value = (min(given), sum(given), total)
            if value > self.value:
                self.value, self.chosen = value, chosen
            return
        if not self._budget.step(1 + len(self._columns) // 4):
            return
        have = sum(given)
        after = [tuple(map(max, given, column)) for column in self._columns[start:]]
        gains = [sum(row) - have for row in after]
        for at in range(len(after) - missing + 1):
            ideal = tuple(map(max, given, self._ahead[start + at]))
            most = have + sum(sorted(gains[at:], reverse=True)[:missing])
            all_of_them = total + sum(sorted(self._sums[start + at :], reverse=True)[:missing])
            if (min(ideal), min(sum(ideal), most), all_of_them) <= self.value:
                return
            self.extend((*chosen, start + at), after[at], start + at + 1, total + self._sums[start + at])
