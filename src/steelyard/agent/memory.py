"""Which templates must go, because they hold more memory than they may, and which may come back? Pure.

A template counts for what its end would give back (smaps_rollup's private bytes when it was ready, and its spare's), not for what
it shares with its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec

#: an environment that nothing deployed wants any more goes after so long; after the other, whatever has no children is the first
#: to make room
UNWANTED_NS = 60 * 1_000_000_000
STALE_NS = 1800 * 1_000_000_000


class NodeUse(IntEnum):
    """What a template is to those that sleep. Evicting a revision costs its next wake tens of ms, evicting an environment costs
    it the import of all packages: seconds."""

    REVISION = 0
    #: an environment or base without living children, that some deployed revision would be forked from
    WANTED = 1
    UNWANTED = 2
    #: has living children: its end would give little back, and they would lose the way to more of their kind
    PARENT = 3


class TemplateUse(msgspec.Struct, frozen=True):
    """One live template."""

    name: str
    own_bytes: int
    #: monotonic ns of its last fork (or of its start)
    last_used_ns: int
    kind: NodeUse = NodeUse.REVISION


def choose_return(
    missed: Sequence[TemplateUse], live: Sequence[TemplateUse], budget_bytes: int, spare_bytes: int
) -> tuple[str | None, list[str]]:
    """Which evicted revision comes back, and which go for it: the most recently missed one that fits the budget when those that
    were used before it was missed make way, least recently used first, and that the machine's spare memory holds twice over.
    One at a time: the next look sees what it cost."""
    held = sum(template.own_bytes for template in live)
    for template in sorted(missed, key=lambda item: (-item.last_used_ns, item.name)):
        if 2 * template.own_bytes > spare_bytes:
            continue
        over = held + template.own_bytes - budget_bytes
        out = _take(
            sorted(
                (each for each in live if each.kind is NodeUse.REVISION and each.last_used_ns < template.last_used_ns),
                key=lambda item: (item.last_used_ns, item.name),
            ),
            over,
        )
        if sum(each.own_bytes for each in out) >= over:
            return template.name, [each.name for each in out]
    return None, []


def choose_evictions(
    templates: Sequence[TemplateUse], now_ns: int, budget_bytes: int, available_bytes: int, reserve_bytes: int
) -> list[str]:
    """Names to evict so that templates hold at most `budget_bytes` together and the machine keeps `reserve_bytes` available
    (both as far as templates can help): stale environments, then revisions, then environments that have no child; in each the
    least recently used first, ties by name. What nothing wants goes anyway after a while."""
    unwanted = [each for each in templates if each.kind is NodeUse.UNWANTED and now_ns - each.last_used_ns > UNWANTED_NS]
    held = sum(template.own_bytes for template in templates)
    over = max(held - budget_bytes, reserve_bytes - available_bytes) - sum(each.own_bytes for each in unwanted)

    def rank(each: TemplateUse) -> tuple[int, int, str]:
        stale = each.kind is not NodeUse.REVISION and now_ns - each.last_used_ns > STALE_NS
        return (-1 if stale else int(each.kind), each.last_used_ns, each.name)

    rest = sorted((each for each in templates if each not in unwanted and each.kind is not NodeUse.PARENT), key=rank)
    return [each.name for each in (*unwanted, *_take(rest, over))]


def _take(ordered: Sequence[TemplateUse], over: int) -> list[TemplateUse]:
    """From the front, until so many bytes are had."""
    taken: list[TemplateUse] = []
    for each in ordered:
        if over <= 0:
            break
        taken.append(each)
        over -= each.own_bytes
    return taken
