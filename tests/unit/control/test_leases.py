"""The loop of leases over the in-memory store on a virtual clock."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from steelyard.clock import VirtualClock
from steelyard.control import ASSIGNMENT, CALLS, JOBS
from steelyard.control.leases import IDLE_S, Actions, LeasesLoop, carry_out, decide, load
from steelyard.control.watch import Watch
from steelyard.model.function import Function, FunctionSpec
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, MachineId
from steelyard.model.job import Owner
from steelyard.store.memory import MemoryStore


class World:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = VirtualClock()
        self.lost: set[MachineId] = set()
        self.loop = LeasesLoop(self.store, self.clock, Watch(), self.lost.__contains__)

    async def put(self, name: str, lease_s: float | None) -> None:
        now = self.clock.now_us()
        row = Function(FunctionName(name), DEFAULT_PROJECT, Owner("ann", 7), 1, 1, FunctionSpec(argv=("x",)), now)
        until = None if lease_s is None else now + round(lease_s * 1e6)
        await self.store.write(lambda tx: tx.put_function(msgspec.structs.replace(row, expires_at=until)))

    async def renew(self, name: str, lease_s: float) -> None:
        row = await self.store.read(lambda tx: tx.function(DEFAULT_PROJECT, FunctionName(name)))
        assert row is not None
        until = self.clock.now_us() + round(lease_s * 1e6)
        after = msgspec.structs.replace(row, generation=row.generation + 1, expires_at=until)
        await self.store.write(lambda tx: tx.put_function(after))

    async def names(self) -> list[str]:
        return [row.name for row in await self.store.read(lambda tx: tx.functions())]


def test_without_a_lease_it_sleeps_and_with_one_until_it_ends() -> None:
    async def main() -> None:
        world = World()
        await world.put("stays", None)
        assert await world.loop.activate() == []
        assert world.loop.tick_s == IDLE_S
        await world.put("goes", 15)
        await world.put("goes-later", 30)
        assert await world.loop.activate() == []
        assert world.loop.tick_s == pytest.approx(15.001)
        world.clock.advance(15)
        assert await world.loop.activate() == [JOBS, ASSIGNMENT, CALLS]
        assert await world.names() == ["stays", "goes-later"]
        assert world.loop.tick_s == pytest.approx(15.001)
        events = await world.store.read(lambda tx: tx.events("function", "goes"))
        assert [event.text for event in events] == ["deleted: its lease was not renewed"]

    asyncio.run(main())


def test_one_that_was_renewed_stays() -> None:
    async def main() -> None:
        world = World()
        await world.put("kept", 15)
        await world.loop.activate()
        world.clock.advance(14)
        await world.renew("kept", 15)
        world.clock.advance(2)
        assert await world.loop.activate() == []
        assert await world.names() == ["kept"]
        assert world.loop.tick_s == pytest.approx(13.001)

    asyncio.run(main())


def test_one_that_was_renewed_after_it_was_read_stays() -> None:
    async def main() -> None:
        world = World()
        await world.put("kept", 15)
        world.clock.advance(16)
        actions: Actions = decide(await load(world.store), world.clock.now_us())
        assert [row.name for row in actions.expired] == ["kept"]
        await world.renew("kept", 15)
        assert (await carry_out(world.store, actions, world.lost.__contains__)).deleted == ()
        assert await world.names() == ["kept"]

    asyncio.run(main())
