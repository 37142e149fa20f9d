"""Which `n` machines cost least, when the cost is counted per group they touch? Exact, by dynamic programming over groups.

The objective of `placement/fabric.py` is a vector of sums over touched groups and chosen machines, compared place by place.
Written as one integer with a digit per place (wide enough that no sum overflows into the next), comparing vectors is comparing
numbers. Then `best[group][k]`, the least cost of k machines from a group, is a prefix sum inside an innermost group and a
min-plus convolution of its children above. Numbers fit 64 bits for usual gangs; where they do not, the same arrays hold
Python's integers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from steelyard.placement.fabric_state import FabricState, Ints

#: integers, of 64 bits or Python's own
Costs = npt.NDArray[Any]
_BITS_MAX = 60


class Pool(NamedTuple):
    """The machines that could take a member, in the order in which each innermost group would use them."""

    #: rows, by innermost group, then cheapest first
    rows: Ints
    #: [innermost group] -> its first place in `rows`; one more for the end
    start: Ints
    #: per place in `rows`: nobody is on it; a whole GPU would be broken for a share; free thousandths
    untouched: Ints
    breaks_gpu: Ints
    milli: Ints
    #: [level][group] -> machines of the pool
    possible: tuple[Ints, ...]
    #: [level][group] -> 1 where nobody is on any machine of the group
    whole: tuple[Ints, ...]


class Chosen(NamedTuple):
    #: in the fabric's order
    rows: Ints
    #: places in `Pool.rows`, in the same order
    places: Ints


class _Weights(NamedTuple):
    #: [level] -> cost of touching a group, of breaking a whole one, of each machine of the pool in it, of each square
    touch: list[int]
    broken: list[int]
    tight: list[int]
    square: list[int]
    node_broken: int
    gpu_broken: int
    milli: int
    large: bool
    #: more than any cost
    never: int


def choose(state: FabricState, pool: Pool, nodes: int, level: int, scopes: Ints, preferred: int | None) -> list[Chosen]:
    """The best `nodes` machines inside each of the groups `scopes` of `level`; the pool has at least that many in each."""
    search = _Search(state, pool, nodes, level, scopes, preferred)
    found: list[Chosen] = []
    for scope in scopes:
        taken: list[int] = []
        search.take(level, int(scope), nodes, taken)
        places = np.asarray(taken, dtype=np.int64)
        places = places[np.argsort(pool.rows[places])]
        found.append(Chosen(pool.rows[places], places))
    return found


def _weigh(nodes: int, most: tuple[int, int], ranges: tuple[int, int, int], same: list[bool], preferred: int | None) -> _Weights:
    """One digit per place of the objective, the least important first, each as wide as it must be.

    `most`: possible machines, and all machines, of the largest scope. `ranges`: of untouched, breaks_gpu and milli. `same`: a
    level whose groups are those of the level around it would repeat every digit, so it has none.
    """
    at = 1

    def digit(largest: int) -> int:
        nonlocal at
        weight, at = at, at * (largest + 1)
        return weight

    possible, width = most
    untouched, breaks_gpu, free = ranges
    digit(nodes * width)  # places: weight 1
    square = [0 if twin else digit(nodes * nodes) for twin in same]
    milli = digit(nodes * free)
    tight = [0 if twin else digit(possible) for twin in same]
    gpu_broken = digit(nodes * breaks_gpu)
    node_broken = digit(nodes * untouched)
    broken = [0 if twin else digit(nodes) for twin in same]
    touch = [0 if twin else digit(nodes) for twin in same]
    if preferred is not None and preferred < len(same):
        touch[preferred] += digit(nodes)
    return _Weights(touch, broken, tight, square, node_broken, gpu_broken, milli, at.bit_length() > _BITS_MAX, at)


def _steps(values: Ints) -> tuple[Ints, int]:
    """From 0, in steps of their common divisor, and the largest: a set of a fixed size is compared just the same."""
    if not len(values):
        return values, 0
    values = values - values.min()
    divisor = int(np.gcd.reduce(values)) or 1
    return values // divisor, int(values.max()) // divisor


class _Search:
    """Tables of all groups of a level at once: `costs[i, k]` is the least cost of k machines of the i-th group."""

    def __init__(self, state: FabricState, pool: Pool, nodes: int, level: int, scopes: Ints, preferred: int | None) -> None:
        self.state, self.pool, self.nodes = state, pool, nodes
        start = state.start[level]
        most = (int(pool.possible[level][scopes].max()), int(np.diff(start)[scopes].max()))
        steps = [_steps(values) for values in (pool.untouched, pool.breaks_gpu, pool.milli)]
        ranges = (steps[0][1], steps[1][1], steps[2][1])
        same = [at + 1 < level and len(state.start[at]) == len(state.start[at + 1]) for at in range(level)]
        self.weights = _weigh(nodes, most, ranges, same, preferred)
        self.own = [values for values, _ in steps]
        self.dtype: Any = object if self.weights.large else np.int64
        #: [level above the innermost] -> group -> (its row, its children), and per n-th child the best split of each total
        self.children: dict[tuple[int, int], tuple[int, list[int]]] = {}
        self.splits: list[list[Ints]] = []
        wanted = np.zeros(len(start) - 1, dtype=np.bool_)
        wanted[scopes] = True
        groups = self._inside(0, level, wanted)
        costs = self._prefixes(groups, start[state.group[level][pool.rows]])
        for at in range(1, level + 1):
            self._touch(at - 1, groups, costs)
            outer = self._inside(at, level, wanted)
            costs = self._fold(at, groups, outer, costs)
            groups = outer

    def take(self, level: int, group: int, nodes: int, taken: list[int]) -> None:
        """Adds the places of the best `nodes` machines of a group."""
        if nodes == 0:
            return
        if level == 0:
            start = int(self.pool.start[group])
            taken.extend(range(start, start + nodes))
            return
        row, children = self.children[level, group]
        splits = self.splits[level - 1]
        for place in reversed(range(len(children))):
            here = int(splits[place][row, nodes])
            self.take(level - 1, children[place], here, taken)
            nodes -= here

    def _inside(self, at: int, level: int, wanted: npt.NDArray[np.bool_]) -> Ints:
        """Groups of a level with possible machines, inside the scopes."""
        groups = np.flatnonzero(self.pool.possible[at])
        return groups[wanted[self.state.group[level][self.state.start[at][groups]]]]

    def _prefixes(self, groups: Ints, first: Ints) -> Costs:
        """Innermost groups use machines in the pool's order, so k of them cost a prefix sum. Sums that wrap do no harm."""
        pool, weights = self.pool, self.weights
        each: Costs = (pool.rows - first).astype(self.dtype)
        for values, digit in zip(self.own, (weights.node_broken, weights.gpu_broken, weights.milli), strict=True):
            each += values.astype(self.dtype) * digit
        sums: Costs = np.zeros(len(each) + 1, dtype=self.dtype)
        np.cumsum(each, out=sums[1:])
        count = pool.possible[0][groups]
        number = np.arange(min(self.nodes, int(count.max())) + 1)
        start = pool.start[groups]
        ends = np.minimum(start[:, None] + number, len(each))
        return np.where(number <= count[:, None], sums[ends] - sums[start][:, None], weights.never)

    def _touch(self, at: int, groups: Ints, costs: Costs) -> None:
        """Adds what it costs to take any machine of a group, and how many."""
        weights, pool = self.weights, self.pool
        touch: Costs = pool.possible[at][groups].astype(self.dtype) * weights.tight[at]
        touch += pool.whole[at][groups].astype(self.dtype) * weights.broken[at] + weights.touch[at]
        number: Costs = np.arange(1, costs.shape[1], dtype=np.int64).astype(self.dtype)
        costs[:, 1:] += touch[:, None] + number * number * weights.square[at]
        np.minimum(costs, weights.never, out=costs)

    def _fold(self, at: int, inner: Ints, outer: Ints, costs: Costs) -> Costs:
        """The tables of a level from those of the level inside it: one child of every group at a time."""
        parent = np.searchsorted(outer, self.state.group[at][self.state.start[at - 1][inner]])
        first = np.searchsorted(parent, np.arange(len(outer) + 1))
        number = np.diff(first)
        for row, group in enumerate(outer):
            self.children[at, int(group)] = (row, [int(child) for child in inner[first[row] : first[row + 1]]])
        size = min(self.nodes, int(self.pool.possible[at][outer].max())) + 1
        total: Costs = np.full((len(outer), size), self.weights.never, dtype=self.dtype)
        total[:, 0] = 0
        splits: list[Ints] = []
        for place in range(int(number.max())):
            rows = np.flatnonzero(number > place)
            split = np.zeros((len(outer), size), dtype=np.int64)
            total[rows], split[rows] = _convolve(total[rows], costs[first[rows] + place], self.weights.never)
            splits.append(split)
        self.splits.append(splits)
        return total


def _convolve(a: Costs, b: Costs, never: int) -> tuple[Costs, Ints]:
    """Row by row: out[n] = min over k of a[n-k] + b[k], and that k; the smallest k among equals."""
    rows, size = a.shape
    width = min(b.shape[1], size)
    padded: Costs = np.full((rows, width - 1 + size), never, dtype=a.dtype)
    padded[:, width - 1 :] = a
    sums = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)[:, :, ::-1] + b[:, None, :width]
    split = np.argmin(sums, axis=2)
    best = np.take_along_axis(sums, split[:, :, None], axis=2)[:, :, 0]
    return np.minimum(best, never), split
