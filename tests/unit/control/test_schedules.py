"""The loop of schedules over the in-memory store on a virtual clock: each time once, whatever is killed in between."""

from __future__ import annotations

import asyncio
import itertools

import msgspec
import pytest

from steelyard.clock import VirtualClock
from steelyard.control import CALLS, JOBS, SCHEDULES, schedules
from steelyard.control.schedules import IDLE_S, SLEEP_MAX_S, SchedulesLoop
from steelyard.control.zones import find_zone
from steelyard.model.call import Call, CallState
from steelyard.model.function import Function, FunctionSpec
from steelyard.model.ids import DEFAULT_PROJECT, CallId, FunctionName, ProjectName
from steelyard.model.job import Job, JobSpec, JobState, Owner, Resources
from steelyard.model.site import Schedule
from steelyard.store import Event
from steelyard.store.memory import MemoryStore

#: 2023-11-14T22:13:20Z
START = VirtualClock().now_us()


class World:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = VirtualClock()
        self.ids = itertools.count(1)
        self.loop = SchedulesLoop(self.store, self.clock, self.make_id)

    def make_id(self) -> CallId:
        return CallId(f"c-{next(self.ids)}")

    async def put(self, name: str, cron: str, **fields: object) -> None:
        spec = JobSpec("x", ("true",), "/", priority=70, held=True, resources=Resources(2.0))
        schedule = Schedule(name, DEFAULT_PROJECT, Owner("ann", 7), 1, cron, spec, done_until=self.clock.now_us())
        await self.store.write(lambda tx: tx.put_schedule(msgspec.structs.replace(schedule, **fields)))

    async def schedule(self, name: str) -> Schedule:
        found = await self.store.read(lambda tx: tx.schedule(DEFAULT_PROJECT, name))
        assert found is not None
        return found

    async def jobs(self) -> list[Job]:
        return await self.store.read(lambda tx: tx.jobs())

    async def events(self, name: str) -> list[Event]:
        return await self.store.read(lambda tx: tx.events("schedule", name))


def test_without_a_schedule_it_sleeps_and_with_one_until_its_time() -> None:
    async def main() -> None:
        world = World()
        assert await world.loop.activate() == []
        assert world.loop.tick_s == IDLE_S
        await world.put("s", "14 22 * * *")
        await world.loop.activate()
        assert world.loop.tick_s == pytest.approx(40.001)
        await world.put("later", "0 3 * * *")
        await world.put("paused", "* * * * *", paused=True)
        world.clock.advance(30)
        await world.loop.activate()
        assert world.loop.tick_s == pytest.approx(10.001)
        world.clock.advance(10)
        await world.loop.activate()
        # hours away, but the wall clock may be set meanwhile
        assert world.loop.tick_s == SLEEP_MAX_S

    asyncio.run(main())


def test_a_due_job_is_submitted_once_as_its_schedule_says() -> None:
    async def main() -> None:
        world = World()
        await world.put("s", "14 22 * * *")
        world.clock.advance(40)
        assert await world.loop.activate() == [JOBS]
        assert await world.loop.activate() == []
        (job,) = await world.jobs()
        assert (job.state, job.owner, job.priority, job.held) == (JobState.QUEUED, Owner("ann", 7), 70, True)
        schedule = await world.schedule("s")
        assert (schedule.last_job, schedule.done_until) == (job.id, START + 40_000_000)
        assert [event.text for event in await world.events("s")] == [f"submitted {job.id} for 2023-11-14T22:14+00:00"]

    asyncio.run(main())


def test_after_days_away_one_job_comes_and_the_rest_is_history() -> None:
    async def main() -> None:
        world = World()
        await world.put("s", "0 3 * * *", timezone="Europe/Berlin")
        world.clock.advance(3 * 86400)
        await SchedulesLoop(world.store, world.clock, world.make_id).activate()
        assert len(await world.jobs()) == 1
        (event,) = await world.events("s")
        assert "2 missed before it, since 2023-11-15T03:00+01:00" in event.text

    asyncio.run(main())


def test_killed_before_the_commit_it_submits_later_and_after_it_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world = World()
        await world.put("a", "14 22 * * *")
        await world.put("b", "14 22 * * *")
        world.clock.advance(40)

        class Killed(BaseException):
            pass

        def die(*_: object) -> str:
            raise Killed

        with monkeypatch.context() as patch:
            # the line of history is the last that is written: the job and `done_until` are in the transaction already
            patch.setattr(schedules, "render_firing", die)
            with pytest.raises(Killed):
                await world.loop.activate()
        assert await world.jobs() == []
        again = SchedulesLoop(world.store, world.clock, world.make_id)
        await again.activate()
        await SchedulesLoop(world.store, world.clock, world.make_id).activate()
        assert [(await world.schedule(name)).last_job for name in ("a", "b")] == [job.id for job in await world.jobs()]

    asyncio.run(main())


def test_a_schedule_that_changed_meanwhile_is_read_again() -> None:
    async def main() -> None:
        world = World()
        await world.put("s", "14 22 * * *")
        world.clock.advance(40)
        seen = await schedules.load(world.store)
        before = await world.schedule("s")
        paused = msgspec.structs.replace(before, generation=2, paused=True)
        await world.store.write(lambda tx: tx.put_schedule(paused))
        report = await schedules.carry_out(world.store, schedules.decide(seen, world.clock.now_us()), world.make_id)
        assert (report.submitted, report.skipped) == ((), 1)
        await world.store.write(lambda tx: tx.delete_schedule(ProjectName("default"), "s"))
        report = await schedules.carry_out(world.store, schedules.decide(seen, world.clock.now_us()), world.make_id)
        assert (report.submitted, report.skipped) == ((), 1)
        assert world.loop.name == SCHEDULES

    asyncio.run(main())


def test_a_time_zone_that_is_gone_stops_its_own_schedules_only(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        world = World()
        await world.put("lost", "14 22 * * *", timezone="Mars/Olympus")
        await world.put("kept", "14 22 * * *")
        world.clock.advance(40)
        await world.loop.activate()
        await world.loop.activate()
        assert len(await world.jobs()) == 1
        assert caplog.text.count("Mars/Olympus") == 1

    asyncio.run(main())


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../../etc/passwd", "/etc/passwd", "Europe", "Europe/Berlin\0", "x" * 5000])
def test_what_is_no_time_zone_is_none(name: str) -> None:
    assert find_zone(name) is None


def test_zones_are_found() -> None:
    assert find_zone("UTC") is not None
    assert find_zone("Europe/Berlin") is not None


FUNCTION = Function(FunctionName("refresh"), DEFAULT_PROJECT, Owner("ann", 7), 1, 1, FunctionSpec(), 0)


async def make_calling_world(**fields: object) -> World:
    world = World()
    await world.store.write(lambda tx: tx.put_function(FUNCTION))
    await world.put("s", **{"cron": "", "every_s": 300.0, "spec": None, "function": FUNCTION.name, **fields})
    return world


async def calls_of(world: World) -> list[Call]:
    return await world.store.read(lambda tx: tx.calls())


def test_a_period_makes_a_call_of_its_function_once_each_time() -> None:
    async def main() -> None:
        world = await make_calling_world()
        assert await world.loop.activate() == [] and world.loop.tick_s == SLEEP_MAX_S
        world.clock.advance(300)
        assert await world.loop.activate() == [CALLS]
        assert await world.loop.activate() == []
        (call,) = await calls_of(world)
        assert (call.function, call.owner, call.schedule, call.state) == ("refresh", Owner("ann", 7), "s", CallState.QUEUED)
        assert (await world.schedule("s")).last_call == call.id
        assert [event.text for event in await world.events("s")] == [f"called refresh as {call.id} for 2023-11-14T22:18+00:00"]

    asyncio.run(main())


def test_a_time_that_comes_while_the_call_before_goes_on_is_left_out() -> None:
    async def main() -> None:
        world = await make_calling_world()
        for _ in range(2):
            world.clock.advance(300)
            await world.loop.activate()
        (call,) = await calls_of(world)
        assert "c-1 has not ended: nothing was called" in (await world.events("s"))[-1].text
        ended = msgspec.structs.replace(call, generation=2, state=CallState.SUCCEEDED, ended_at=world.clock.now_us())
        await world.store.write(lambda tx: tx.put_call(ended))
        world.clock.advance(300)
        await world.loop.activate()
        assert [call.id for call in await calls_of(world)] == ["c-1", "c-2"]

    asyncio.run(main())


def test_of_many_missed_periods_one_is_made_up_for_and_the_grid_stays() -> None:
    async def main() -> None:
        world = await make_calling_world()
        world.clock.advance(3 * 300 + 17)
        await world.loop.activate()
        assert len(await calls_of(world)) == 1
        assert (await world.schedule("s")).done_until == START + 3 * 300_000_000
        assert "left out: 2 missed before it, since 2023-11-14T22:18" in (await world.events("s"))[-1].text
        assert world.loop.tick_s == SLEEP_MAX_S
        world.clock.advance(283)
        assert await world.loop.activate() == [], "the call before has not ended"
        assert (await world.schedule("s")).done_until == START + 4 * 300_000_000

    asyncio.run(main())


def test_a_function_that_is_gone_is_told_in_the_history_and_comes_back() -> None:
    async def main() -> None:
        world = await make_calling_world(cron="14 22 * * *", every_s=None)
        await world.store.write(lambda tx: tx.delete_function(DEFAULT_PROJECT, FUNCTION.name))
        world.clock.advance(40)
        assert await world.loop.activate() == []
        assert "there is no function refresh: nothing was called" in (await world.events("s"))[-1].text

    asyncio.run(main())
