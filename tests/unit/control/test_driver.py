"""Loops look when poked and when their tick is over; errors end nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from steelyard.clock import VirtualClock
from steelyard.control.driver import REST_MAX_S, REST_TIMES, Driver, choose_rest
from steelyard.control.watch import Watch, wait_for
from steelyard.errors import Conflict, EdgeFailed, StoreDamaged


class Counter:
    """A loop that counts its activations and does what the test says."""

    def __init__(self, name: str, act: Callable[[int], Sequence[str]] = lambda n: (), tick_s: float = 3600.0) -> None:
        self.name = name
        self.tick_s = tick_s
        self.count = 0
        self.act = act
        self.changed = asyncio.Event()

    async def activate(self) -> Sequence[str]:
        self.count += 1
        self.changed.set()
        return self.act(self.count)

    async def reached(self, count: int) -> None:
        async with asyncio.timeout(2):
            while self.count < count:
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def running(*loops: Counter) -> AsyncIterator[Driver]:
    driver = Driver(loops, VirtualClock())
    task = asyncio.create_task(driver.run())
    try:
        yield driver
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def rest() -> None:
    """Let every ready task run until nothing is ready any more."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_every_loop_looks_once_at_the_start_and_then_sleeps() -> None:
    async def main() -> None:
        loop = Counter("a")
        async with running(loop):
            await loop.reached(1)
            await rest()
            assert loop.count == 1

    asyncio.run(main())


def test_many_pokes_are_one_activation() -> None:
    async def main() -> None:
        loop = Counter("a")
        async with running(loop) as driver:
            await loop.reached(1)
            await rest()
            for _ in range(100):
                driver.poke("a")
            await loop.reached(2)
            await rest()
            assert loop.count == 2

    asyncio.run(main())


def test_a_poke_during_an_activation_is_not_lost() -> None:
    async def main() -> None:
        driver: Driver
        first = Counter("a", lambda n: driver.poke("a") or () if n == 1 else ())
        async with running(first) as driver:
            await first.reached(2)
            await rest()
            assert first.count == 2

    asyncio.run(main())


def test_a_loop_pokes_those_it_names() -> None:
    async def main() -> None:
        second = Counter("b")
        first = Counter("a", lambda n: ("b",) if n == 2 else ())
        async with running(first, second) as driver:
            await rest()
            driver.poke("a")
            await second.reached(2)

    asyncio.run(main())


def test_the_tick_replaces_a_lost_poke() -> None:
    async def main() -> None:
        loop = Counter("a", tick_s=0.001)
        async with running(loop):
            await loop.reached(3)

    asyncio.run(main())


@pytest.mark.parametrize("error", [EdgeFailed("disk"), RuntimeError("bug"), Conflict("moved on")])
def test_an_error_is_logged_and_the_next_activation_is_the_retry(error: Exception) -> None:
    def act(n: int) -> Sequence[str]:
        if n == 1:
            raise error
        return ()

    async def main() -> None:
        loop = Counter("a", act, tick_s=0.001)
        async with running(loop):
            await loop.reached(2)

    asyncio.run(main())


def test_a_conflict_is_looked_at_again_at_once() -> None:
    def act(n: int) -> Sequence[str]:
        if n == 1:
            raise Conflict("moved on")
        return ()

    async def main() -> None:
        loop = Counter("a", act)
        async with running(loop):
            await loop.reached(2)

    asyncio.run(main())


def test_a_damaged_store_ends_the_driver() -> None:
    def act(n: int) -> Sequence[str]:
        raise StoreDamaged("broken")

    async def main() -> None:
        with pytest.raises(StoreDamaged):
            async with asyncio.timeout(2):
                await Driver((Counter("a", act), Counter("b")), VirtualClock()).run()

    asyncio.run(main())


def test_a_watcher_hears_what_is_committed_after_it_subscribed() -> None:
    async def main() -> None:
        watch = Watch()
        with watch.subscribe("job/1") as news:
            assert not await wait_for(news, 0)
            watch.notify("job/2")
            assert not await wait_for(news, 0)
            watch.notify("job/1")
            assert await wait_for(news, 1)
            assert not await wait_for(news, 0)
            watch.stop()
            assert await wait_for(news, 1) and watch.stopping
        watch.notify("job/1")

    asyncio.run(main())


def test_a_loop_that_is_poked_all_the_time_rests_longer_and_longer() -> None:
    rests: list[float] = []
    times = 1
    for _ in range(6):
        rest_s, times = choose_rest(times, took_ns=2_000_000, quiet_ns=0)
        rests.append(rest_s)
    assert rests == pytest.approx([0.002, 0.004, 0.008, 0.016, 0.016, 0.016]) and times == REST_TIMES
    assert choose_rest(REST_TIMES, took_ns=20_000_000, quiet_ns=0)[0] == REST_MAX_S


def test_after_a_quiet_time_a_loop_looks_at_once() -> None:
    assert choose_rest(4, took_ns=2_000_000, quiet_ns=9_000_000) == (0.0, 1)
    assert choose_rest(4, took_ns=2_000_000, quiet_ns=5_000_000) == (pytest.approx(0.003), 8)
