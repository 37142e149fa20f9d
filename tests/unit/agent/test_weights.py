"""Whose weights are kept while they sleep, and when they are read ahead, with the page cache stood in for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.agent import weights as weights_module
from steelyard.agent.weights import LOOK_NS, Weights, WeightsKeeper, choose_kept
from steelyard.clock import VirtualClock
from steelyard.host.page_cache import CachedFile
from steelyard.model.ids import FunctionName

GB = 10**9
A, B = FunctionName("a"), FunctionName("b")


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=12), st.integers(0, 100))
def test_what_is_kept_fits_and_who_was_awake_last_comes_first(rows: list[tuple[int, int]], budget: int) -> None:
    sizes = [(FunctionName(f"f{at:02}"), size, awake) for at, (size, awake) in enumerate(rows)]
    kept = choose_kept(sizes, budget)
    assert sum(size for name, size, _ in sizes if name in kept) <= budget
    newest = max(sizes, key=lambda each: each[2], default=None)
    if newest is not None and all(each[2] < newest[2] for each in sizes if each is not newest):
        assert (newest[0] in kept) is (newest[1] <= budget)


class World:
    """A machine of 100 GB, 50 of them for weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = VirtualClock()
        self.keeper = WeightsKeeper(cast(Any, SimpleNamespace(clock=self.clock, machine=SimpleNamespace(memory_bytes=100 * GB))))
        self.resident: dict[str, int] = {}
        self.sizes = {"/a": 30 * GB, "/b": 30 * GB}
        self.read: list[str] = []
        monkeypatch.setattr(weights_module, "list_files", self.list_files)
        monkeypatch.setattr(weights_module, "measure_resident", self.measure_resident)
        monkeypatch.setattr(weights_module, "read_ahead", self.read_ahead)

    def list_files(self, path: Path) -> list[CachedFile]:
        size = self.sizes.get(str(path), 0)
        return [CachedFile(str(path), size)] if size else []

    def measure_resident(self, files: list[CachedFile]) -> int:
        return sum(self.resident.get(file.path, 0) for file in files)

    def read_ahead(self, files: list[CachedFile], may_go_on: Callable[[], bool]) -> None:
        if may_go_on():
            self.read += [file.path for file in files]
            self.resident |= {file.path: file.size for file in files}

    async def look(self, *wanted: Weights, available_gb: int = 90) -> None:
        self.keeper.look(wanted, available_gb * GB)
        if self.keeper._working is not None:
            await self.keeper._working


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_weights_are_read_ahead_once_their_function_sleeps(world: World) -> None:
    async def life() -> None:
        await world.look(Weights(A, "/a", asleep=False))
        assert world.read == []
        assert world.keeper.tell(A) == " Of its weights 0.0 of 30.0 GB are in the page cache."
        await world.look(Weights(A, "/a", asleep=True))
        assert world.read == ["/a"]
        assert world.keeper.tell(A) == " Of its weights 30.0 of 30.0 GB are in the page cache."
        world.resident.clear()  # the kernel wanted the memory
        await world.look(Weights(A, "/a", asleep=True))
        assert world.read == ["/a"], "not looked at before its time"
        world.clock.advance(LOOK_NS / 1e9)
        await world.look(Weights(A, "/a", asleep=True))
        assert world.read == ["/a", "/a"]

    asyncio.run(life())


def test_nothing_is_read_while_memory_is_short(world: World) -> None:
    asyncio.run(world.look(Weights(A, "/a", asleep=True), available_gb=39))
    assert world.read == []


def test_who_slept_first_gives_way_where_both_do_not_fit(world: World) -> None:
    async def life() -> None:
        await world.look(Weights(A, "/a", asleep=True), Weights(B, "/b", asleep=False))
        world.clock.advance(1)
        await world.look(Weights(A, "/a", asleep=True), Weights(B, "/b", asleep=True))
        world.read.clear()
        world.resident.clear()
        world.clock.advance(LOOK_NS / 1e9)
        await world.look(Weights(A, "/a", asleep=True), Weights(B, "/b", asleep=True))
        assert world.read == ["/b"]
        assert "do not fit beside others into the 50.0 GB" in world.keeper.tell(A)

    asyncio.run(life())


def test_weights_that_are_not_there_are_said_not_to_be(world: World) -> None:
    asyncio.run(world.look(Weights(A, "/absent", asleep=True)))
    assert world.keeper.tell(A) == " There are no weights in /absent."
    assert world.keeper.tell(B) == ""


def test_a_function_that_is_gone_is_forgotten(world: World) -> None:
    async def life() -> None:
        await world.look(Weights(A, "/a", asleep=True))
        await world.look()
        assert world.keeper.tell(A) == ""

    asyncio.run(life())
