"""What is told at once, and what when whoever woke has been served."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from steelyard.agent import link as link_module
from steelyard.agent.link import Link

NOTHING = cast(Any, None)


def make_link() -> Link:
    return Link(NOTHING, Path("token"), NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)


def test_wakes_gather_for_one_report_and_anything_else_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        link = make_link()
        link.poke_later()
        link.poke_later()
        assert not link._changed.is_set()
        link.poke()
        assert link._changed.is_set()
        link._changed.clear()
        monkeypatch.setattr(link_module, "LATER_S", 0.0)
        await asyncio.wait_for(link._changed.wait(), 5)  # of the first two, once
        link._changed.clear()
        link.poke_later()
        await asyncio.wait_for(link._changed.wait(), 5)

    asyncio.run(main())
