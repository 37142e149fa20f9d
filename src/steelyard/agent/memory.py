"""Which templates must go, because they hold more memory than they may, and which may come back? Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class TemplateUse(msgspec.Struct, frozen=True):
    """One live template."""

    name: str
    rss_bytes: int
    #: monotonic ns of its last fork (or of its start)
    last_used_ns: int


def choose_return(missed: Sequence[TemplateUse], held_bytes: int, budget_bytes: int, spare_bytes: int) -> str | None:
    """Which evicted template comes back: the most recently missed one, if it (by the memory it had) fits the budget and the
    machine's spare memory twice over, so that it is not evicted again at once. One at a time: the next look sees what it cost."""
    for template in sorted(missed, key=lambda item: (-item.last_used_ns, item.name)):
        if held_bytes + template.rss_bytes <= budget_bytes and 2 * template.rss_bytes <= spare_bytes:
            return template.name
    return None


def choose_evictions(templates: Sequence[TemplateUse], budget_bytes: int, available_bytes: int, reserve_bytes: int) -> list[str]:
    """Names to evict so that templates hold at most `budget_bytes` together and the machine keeps `reserve_bytes` available
    (both as far as templates can help). Ties go by name. Memory shared between templates is counted for each: that evicts
    early rather than late."""
    held = sum(template.rss_bytes for template in templates)
    over = max(held - budget_bytes, reserve_bytes - available_bytes)
    evicted: list[str] = []
    for template in sorted(templates, key=lambda item: (item.last_used_ns, item.name)):
        if over <= 0:
            break
        evicted.append(template.name)
        over -= template.rss_bytes
    return evicted
