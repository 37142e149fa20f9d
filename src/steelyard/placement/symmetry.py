"""Which devices of a machine can trade places without anything changing? So that equal choices are looked at once.

A swap exchanges blocks of devices (two GPUs; two switches with their GPUs; two sockets) such that all pair values stay, and the
NICs can be renumbered so that their distances stay too. If a set is turned by a swap into one with lower addresses, it is never
the answer: the other is equal in everything else and wins by address. All such rules together are safe, because the answer
itself, the lowest of all equal sets, breaks none of them. A swap that is not found costs time, never the right answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeAlias

import msgspec

from steelyard.placement.pair_value import Rows

#: pairs of devices that trade places; in each the lower number first
Swap: TypeAlias = tuple[tuple[int, int], ...]


class Rule(msgspec.Struct, frozen=True, gc=False):
    """A device may not be chosen while `partner` is left out and all pairs `before` are alike (both chosen, or neither)."""

    #: bit of the device with the lower address
    partner: int
    #: bits of the swap's pairs that come first
    before: tuple[tuple[int, int], ...] = ()


def find_rules(rows: Rows, columns: Rows, labels: Sequence[Hashable]) -> list[list[Rule]]:
    """Per device, what forbids choosing it. `labels`: devices with different labels never trade places."""
    rules: list[list[Rule]] = [[] for _ in rows]
    for swap in find_swaps(rows, columns, labels):
        ordered = sorted(swap)
        for at, (low, high) in enumerate(ordered):
            before = ordered[:at]
            # devices are decided in ascending order: a rule must not ask about one that is still open
            if all(later < high for _, later in before):
                rules[high].append(Rule(1 << low, tuple((1 << a, 1 << b) for a, b in before)))
    return rules


def find_swaps(rows: Rows, columns: Rows, labels: Sequence[Hashable]) -> list[Swap]:
    """Swaps of single devices, then of blocks made of those, and so on while blocks grow."""
    marks = [(labels[a], tuple(sorted(rows[a])), tuple(sorted(column[a] for column in columns))) for a in range(len(rows))]
    blocks: list[tuple[int, ...]] = [(a,) for a in range(len(rows))]
    swaps: list[Swap] = []
    while True:
        families: dict[Hashable, list[list[tuple[int, ...]]]] = {}
        for block in blocks:
            alike = families.setdefault(tuple(marks[a] for a in block), [])
            for family in alike:
                swap = _pair_up(family[-1], block)
                if _changes_nothing(rows, columns, swap):
                    family.append(block)
                    swaps.append(swap)
                    break
            else:
                alike.append([block])
        grown = [tuple(a for block in family for a in block) for alike in families.values() for family in alike]
        if len(grown) in (1, len(blocks)):
            return swaps
        blocks = sorted(grown)


def _pair_up(a: Sequence[int], b: Sequence[int]) -> Swap:
    return tuple((min(x, y), max(x, y)) for x, y in zip(a, b, strict=True))


def _changes_nothing(rows: Rows, columns: Rows, swap: Swap) -> bool:
    after = list(range(len(rows)))
    for a, b in swap:
        after[a], after[b] = b, a
    for pair in swap:
        for a in pair:
            row = rows[after[a]]
            if tuple([row[x] for x in after]) != rows[a]:
                return False
    before: list[tuple[int, ...]] = []
    turned: list[tuple[int, ...]] = []
    for column in columns:
        if any(column[a] != column[b] for a, b in swap):
            before.append(column)
            turned.append(tuple([column[x] for x in after]))
    return sorted(before) == sorted(turned)
