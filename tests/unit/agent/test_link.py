"""What is told at once, and what when whoever woke has been served."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from steelyard.agent import link as link_module
from steelyard.agent.link import Link
from steelyard.model.ids import MachineId
from steelyard.wire.agent import Report

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


def test_a_report_tells_of_what_was_to_be_told_later_too() -> None:
    class Socket:
        def __init__(self) -> None:
            self.sent = asyncio.Event()

        async def send(self, frame: bytes) -> None:
            self.sent.set()

    async def main() -> None:
        link, socket = make_link(), Socket()
        link._make_report = lambda seq: Report(seq, MachineId("m"), "boot", 1)
        link.poke_later()
        link.poke()
        sending = asyncio.create_task(link._send_reports(cast(Any, socket)))
        await asyncio.wait_for(socket.sent.wait(), 5)
        assert link._timer is None and not link._changed.is_set()
        sending.cancel()

    asyncio.run(main())
