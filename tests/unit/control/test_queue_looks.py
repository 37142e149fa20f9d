"""One request tells all loops of a cluster's queue, and none comes before its time."""

from __future__ import annotations

import asyncio

from steelyard.clock import VirtualClock
from steelyard.control.queue_looks import LOOK_EACH_S, LOOK_MAX_S, SILENT_LOOKS, Look, QueueLooks
from steelyard.engine.fake import FakeEngine
from steelyard.model.slurm import QueueEntry


class Caller:
    """A loop that judges each look once."""

    def __init__(self, looks: QueueLooks, every_s: float) -> None:
        self._looks, self._every_s, self._since_ns = looks, every_s, -1

    async def turn(self, engine: FakeEngine) -> Look | None:
        look = await self._looks.take(engine, self._since_ns, self._every_s)
        self._since_ns = self._since_ns if look is None else look.at_ns
        return look


def test_two_loops_cost_no_more_requests_than_the_one_that_asks_more_often() -> None:
    clock, engine = VirtualClock(), FakeEngine()
    looks = QueueLooks(clock)
    often, seldom = Caller(looks, 1.0), Caller(looks, 2.0)
    news = [0, 0]

    async def turn() -> None:
        for at, look in enumerate(await asyncio.gather(often.turn(engine), seldom.turn(engine))):
            news[at] += look is not None

    for _ in range(100):
        asyncio.run(turn())
        clock.advance(0.1)
    assert engine.looks == 10 and news == [10, 10]


def test_a_look_that_failed_is_told_to_all_and_not_repeated_before_its_time() -> None:
    clock, engine = VirtualClock(), FakeEngine()
    looks = QueueLooks(clock)
    callers = [Caller(looks, 1.0), Caller(looks, 1.0)]
    engine.away = True
    for _ in range(SILENT_LOOKS):
        assert looks.silent == ""
        for caller in callers:
            look = asyncio.run(caller.turn(engine))
            assert look is not None and look.queue is None
        clock.advance(1.0)
    assert looks.silent and engine.looks == SILENT_LOOKS
    engine.away = False
    asyncio.run(callers[0].turn(engine))
    assert looks.silent == ""


def test_another_cluster_is_asked_at_once() -> None:
    clock, one, other = VirtualClock(), FakeEngine(), FakeEngine()
    caller = Caller(QueueLooks(clock), 1.0)
    asyncio.run(caller.turn(one))
    clock.advance(0.1)
    assert asyncio.run(caller.turn(other)) is not None and other.looks == 1


def test_many_jobs_are_looked_at_less_often_but_not_for_ever() -> None:
    clock = VirtualClock()

    class Long(FakeEngine):
        count = 0

        async def look(self) -> dict[str, QueueEntry]:
            return dict.fromkeys(map(str, range(self.count)), QueueEntry("1", "PENDING"))

    engine = Long()
    looks = QueueLooks(clock)
    for engine.count, wanted_s in ((10, 1.0), (5000, 5000 * LOOK_EACH_S), (10**6, LOOK_MAX_S)):
        asyncio.run(Caller(looks, 0.0).turn(engine))
        clock.advance(60.0)
        asyncio.run(Caller(looks, 0.0)._looks.take(engine, clock.mono_ns() - 1, 1.0))
        assert (looks.due_ns(1.0) - clock.mono_ns()) / 1e9 == wanted_s
