"""Several machines: each agent hears and speaks of its own machine's work alone; a machine that is gone takes its work along."""

from __future__ import annotations

import asyncio

import msgspec

from control_world import MACHINE, OWNER, World, attempt, make_pilot, make_world
from steelyard.control import jobs
from steelyard.control.machines import lose_machine
from steelyard.control.reports import greet
from steelyard.lifecycle.job import start_job, stop_job
from steelyard.model.batch import RetryOn, RetryRule
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, JobId, MachineId
from steelyard.model.job import Job, JobSpec, JobState, Plan, Resources
from steelyard.model.pool import Pool, PoolSpec
from steelyard.model.reason import Reason
from steelyard.wire.agent import AttemptState, Report

P1, P2 = MachineId("train-1"), MachineId("train-2")


async def make_pool(*names: MachineId) -> World:
    world = await make_world()
    for name in names:
        await world.store.write(lambda tx, name=name: tx.put_pilot(make_pilot(name)))
        await greet(world.store, msgspec.structs.replace(MACHINE, id=name, pool="train"), world.clock.now_us())
    return world


async def start(world: World, name: str, machine: MachineId, **fields: object) -> Job:
    spec = msgspec.structs.replace(JobSpec("x", ("true",), "/", resources=Resources(0.5), pool="train"), **fields)
    queued = Job(JobId(name), DEFAULT_PROJECT, OWNER, 1, 0, spec, JobState.QUEUED, world.clock.now_us())
    started = start_job(queued, Plan(share=0.5, machine=machine)).job
    await world.store.write(lambda tx: [tx.put_job(queued), tx.put_job(started)])
    return started


async def say(world: World, machine: MachineId, *attempts: AttemptState, boot: str = "boot-1") -> None:
    world.seq += 1
    world.agents.reports[machine] = Report(world.seq, machine or MACHINE.id, boot, generation=0, attempts=attempts)
    await world.reports.activate()


async def state(world: World, name: str) -> JobState:
    return (await world.job(JobId(name))).state


def test_each_agent_is_told_the_work_of_its_own_machine() -> None:
    async def story() -> None:
        world = await make_pool(P1, P2)
        for name, machine in (("a", P1), ("b", P2), ("c", OWN_MACHINE), ("d", P1)):
            await start(world, name, machine)
        await world.assignment.activate()
        told = {place: [job.job for job in offers[-1].jobs] for place, offers in world.agents.away.items()}
        assert told == {P1: ["a", "d"], P2: ["b"]}
        assert [job.job for job in world.agents.offers[-1].jobs] == ["c"]
        await say(world, P1, attempt("a.1", "ended", exit_code=0))
        await world.assignment.activate()
        assert [job.job for job in world.agents.away[P1][-1].jobs] == ["d"]
        assert (len(world.agents.away[P2]), len(world.agents.offers)) == (1, 1), "nothing has changed for the others"

    asyncio.run(story())


def test_nobody_is_believed_about_another_machines_work() -> None:
    async def story() -> None:
        world = await make_pool(P1, P2)
        await start(world, "a", P1)
        await say(world, P2, attempt("a.1", "ended", exit_code=0))
        assert await state(world, "a") is JobState.STARTING
        await say(world, P1, attempt("a.1", "running", started_at=5))
        assert await state(world, "a") is JobState.RUNNING

    asyncio.run(story())


def test_a_machine_that_restarted_puts_only_its_own_work_in_doubt() -> None:
    async def story() -> None:
        world = await make_pool(P1, P2)
        for name, machine in (("a", P1), ("b", P2), ("c", OWN_MACHINE)):
            await start(world, name, machine)
        again = msgspec.structs.replace(MACHINE, id=P1, pool="train", boot_id="boot-2")
        await greet(world.store, again, world.clock.now_us())
        states = [await state(world, name) for name in "abc"]
        assert states == [JobState.UNKNOWN, JobState.STARTING, JobState.STARTING]
        await world.assignment.activate()
        assert P1 not in world.agents.away, "nothing is assigned there before its first report"
        assert world.agents.away[P2] and world.agents.offers
        await say(world, P2)
        assert await state(world, "a") is JobState.UNKNOWN, "another machine's report settles nothing"
        await say(world, P1, boot="boot-2")
        assert (await world.job(JobId("a"))).reason is Reason.NODE_LOST

    asyncio.run(story())


def test_work_of_a_machine_that_is_gone_ends_as_lost_or_is_queued_again() -> None:
    async def story() -> None:
        world = await make_pool(P1, P2)
        await start(world, "a", P1)
        await start(world, "b", P1, retry=(RetryRule(RetryOn.NODE_LOST, 1, 0.0),))
        await start(world, "c", P2)
        stopping = stop_job(await start(world, "d", P1), 15, 10.0, 0)
        assert stopping is not None
        await world.store.write(lambda tx: tx.put_job(stopping.job))
        await world.assignment.activate()
        await world.store.write(lambda tx: lose_machine(tx, P1, "its allocation ended", world.clock.now_us()))
        states = [await state(world, name) for name in "abcd"]
        assert states == [JobState.FAILED, JobState.QUEUED, JobState.STARTING, JobState.FAILED]
        assert (await world.job(JobId("a"))).detail == "its allocation ended while it ran on train-1; submit it again"
        await world.assignment.activate()
        assert world.agents.dropped == [P1]
        # who still speaks for it speaks of nothing that is known
        await say(world, P1, attempt("b.1", "running", started_at=5))
        assert await state(world, "b") is JobState.QUEUED
        assert (await world.job(JobId("b"))).machine == P1, "where its log is"

    asyncio.run(story())


def test_what_decides_that_a_machine_is_drained_is_not_undone_by_its_agent() -> None:
    async def story() -> None:
        world = await make_pool(P1)
        machine = await world.store.read(lambda tx: tx.machine(P1))
        assert machine is not None
        await world.store.write(lambda tx: tx.put_machine(msgspec.structs.replace(machine, draining="its time is nearly over")))
        world.agents.reports[P1] = Report(9, P1, "boot-1", generation=0, blocked=("node",))
        await world.reports.activate()
        await greet(world.store, msgspec.structs.replace(MACHINE, id=P1, pool="train", kernel="newer"), world.clock.now_us())
        known = await world.store.read(lambda tx: tx.machine(P1))
        assert known is not None
        assert (known.draining, known.blocked, known.kernel) == ("its time is nearly over", ("node",), "newer")

    asyncio.run(story())


def test_a_job_that_would_be_over_too_late_waits_until_its_machine_is_known_to_stay() -> None:
    async def story() -> None:
        world = await make_pool(P1)
        pool = Pool(PoolSpec("train"), DEFAULT_PROJECT, OWNER, 1, 0)
        await world.store.write(lambda tx: tx.put_pool(pool))
        job = await world.submit(spec=JobSpec("x", ("true",), "/", pool="train", max_duration_s=600.0))
        await world.settle()
        waiting = await world.job(job)
        assert (waiting.state, waiting.reason) == (JobState.QUEUED, Reason.NO_TIME_LEFT)
        now = world.clock.now_us()
        for end, state in ((now + 599_000_000, JobState.QUEUED), (now + 601_000_000, JobState.STARTING)):
            pilot = await world.store.read(lambda tx: tx.pilot(P1))
            assert pilot is not None
            told = msgspec.structs.replace(pilot, generation=pilot.generation + 1, started_at=now, ends_at=end)
            await world.store.write(lambda tx, told=told: tx.put_pilot(told))
            await world.settle()
            assert (await world.job(job)).state is state

    asyncio.run(story())


def test_a_job_of_a_pool_is_placed_on_its_machine_and_a_plan_for_one_that_drains_is_dropped() -> None:
    async def story() -> None:
        world = await make_pool(P1)
        spec = JobSpec("x", ("true",), "/", resources=Resources(1.0), pool="train")
        first = await world.submit(spec=spec)
        await world.settle()
        assert [job.job for job in world.agents.away[P1][-1].jobs] == [first] and world.agents.offers[-1].jobs == ()
        assert (await world.job(first)).machine == P1
        second = await world.submit(spec=spec)
        seen = await jobs.load(world.store, world.live)
        actions = jobs.decide(seen, world.clock.now_us())
        assert [job.id for job, _ in actions.starts] == [second]
        machine = await world.store.read(lambda tx: tx.machine(P1))
        assert machine is not None
        await world.store.write(lambda tx: tx.put_machine(msgspec.structs.replace(machine, draining="its time is over")))
        report = await jobs.carry_out(world.store, actions)
        assert (report.started, report.dropped) == ((), 1)
        await world.settle()
        waiting = await world.job(second)
        assert (waiting.state, waiting.reason) == (JobState.QUEUED, Reason.NODE_DRAINED)

    asyncio.run(story())
