"""Which `n` of these machines cost least, when the cost is counted per group they touch? Exact, by dynamic programming over the groups.

The objective of `placement/fabric.py` is a vector of sums over touched groups and chosen machines, compared place by place. Written as
one integer with a digit per place (wide enough that no sum overflows into the next), comparing vectors is comparing numbers. Then
`best[group][k]`, the least cost of k machines from a group, is a prefix sum inside an innermost group and a min-plus convolution of its
children above. Numbers fit 64 bits for usual gangs; where they do not, the same arrays hold Python's integers.
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
    count: tuple[Ints, ...]
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


def choose(state: FabricState, pool: Pool, nodes: int, level: int, scope: int, preferred: int | None) -> Chosen:
    """The best `nodes` machines inside group `scope` of `level`; the pool has at least that many there."""
    first, end = int(state.start[level][scope]), int(state.start[level][scope + 1])
    weights = _weigh(pool, nodes, level, scope, preferred, end - first, state.milli.shape[1])
    search = _Search(state, pool, nodes, first, weights)
    taken: list[int] = []
    search.take(level, scope, nodes, taken)
    places = np.asarray(taken, dtype=np.int64)
    order = np.argsort(pool.rows[places])
    return Chosen(pool.rows[places][order], places[order])


def _weigh(pool: Pool, nodes: int, level: int, scope: int, preferred: int | None, width: int, gpus: int) -> _Weights:
    """One digit per place of the objective, the least important first."""
    at = 1

    def digit(most: int) -> int:
        nonlocal at
        weight, at = at, at * (most + 1)
        return weight

    inner = range(level)
    groups_max = nodes
    eligible = int(pool.count[level][scope])
    position = digit(nodes * width)
    assert position == 1
    square = [digit(nodes * nodes) for _ in inner]
    milli = digit(nodes * gpus * 1000)
    tight = [digit(eligible) for _ in inner]
    gpu_broken = digit(nodes)
    node_broken = digit(nodes)
    broken = [digit(groups_max) for _ in inner]
    touch = [digit(groups_max) for _ in inner]
    if preferred is not None and preferred < level:
        touch[preferred] += digit(groups_max)
    return _Weights(touch, broken, tight, square, node_broken, gpu_broken, milli, at.bit_length() > _BITS_MAX, at)


class _Search:
    def __init__(self, state: FabricState, pool: Pool, nodes: int, first: int, weights: _Weights) -> None:
        self.state, self.pool, self.nodes, self.weights = state, pool, nodes, weights
        self.dtype: Any = object if weights.large else np.int64
        rows = pool.rows - first
        own = [pool.untouched, pool.breaks_gpu, pool.milli, rows]
        digits = [weights.node_broken, weights.gpu_broken, weights.milli, 1]
        self.own = own
        self.digits = digits
        #: (level, group) -> children, and per child the best split of each total
        self.splits: dict[tuple[int, int], tuple[list[int], list[Ints]]] = {}

    def take(self, level: int, group: int, nodes: int, taken: list[int]) -> None:
        """Adds the places of the best `nodes` machines of a group."""
        if nodes == 0:
            return
        if level == 0:
            start = int(self.pool.start[group])
            taken.extend(range(start, start + nodes))
            return
        if (level, group) not in self.splits:
            self._fold(level, group)
        children, splits = self.splits[level, group]
        left = nodes
        for child, split in zip(reversed(children), reversed(splits), strict=True):
            here = int(split[left])
            self.take(level - 1, child, here, taken)
            left -= here

    def _best(self, level: int, group: int) -> Costs:
        """[k] -> the least cost of k machines of the group, touching it included."""
        costs = self._prefix(group) if level == 0 else self._fold(level, group)
        weights, count = self.weights, int(self.pool.count[level][group])
        touch = weights.touch[level] + weights.tight[level] * count
        touch += weights.broken[level] * int(self.pool.whole[level][group])
        number = np.arange(len(costs), dtype=np.int64).astype(self.dtype)
        costs[1:] += touch + weights.square[level] * number[1:] * number[1:]
        return costs

    def _prefix(self, group: int) -> Costs:
        start, end = int(self.pool.start[group]), int(self.pool.start[group + 1])
        end = min(end, start + self.nodes)
        costs: Costs = np.zeros(end - start + 1, dtype=self.dtype)
        each: Costs = np.zeros(end - start, dtype=self.dtype)
        for values, digit in zip(self.own, self.digits, strict=True):
            each += values[start:end].astype(self.dtype) * digit
        np.cumsum(each, out=costs[1:])
        return costs

    def _fold(self, level: int, group: int) -> Costs:
        inner = self.state.start[level - 1]
        low = int(np.searchsorted(inner, self.state.start[level][group]))
        high = int(np.searchsorted(inner, self.state.start[level][group + 1]))
        children = [int(child) for child in low + np.flatnonzero(self.pool.count[level - 1][low:high])]
        costs: Costs = np.zeros(1, dtype=self.dtype)
        splits: list[Ints] = []
        for child in children:
            costs, split = _convolve(costs, self._best(level - 1, child), self.nodes, self.weights.never)
            splits.append(split)
        self.splits[level, group] = (children, splits)
        return costs


def _convolve(a: Costs, b: Costs, most: int, never: int) -> tuple[Costs, Ints]:
    """out[n] = min over k of a[n-k] + b[k], and the k; the smallest k among equals."""
    size = min(most, len(a) + len(b) - 2) + 1
    width = min(len(b), size)
    padded: Costs = np.full(width - 1 + size, never, dtype=a.dtype)
    padded[width - 1 : width - 1 + min(len(a), size)] = a[:size]
    rows = np.lib.stride_tricks.sliding_window_view(padded, width)[:, ::-1]
    sums = rows + b[:width]
    split = np.argmin(sums, axis=1)
    return np.minimum(sums[np.arange(size), split], never), split
