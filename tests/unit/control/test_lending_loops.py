"""A function's GPU over a night: lent while it sleeps, taken back on a wake, lent again. Over the in-memory store."""

from __future__ import annotations

import asyncio

import msgspec

from control_world import MACHINE, OWNER, World, attempt
from queues import small_machine
from steelyard.api.submission import insert_jobs
from steelyard.control import JOBS, jobs
from steelyard.control.reports import greet
from steelyard.model.batch import Preemption
from steelyard.model.function import Function, FunctionSpec, FunctionState
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, JobId
from steelyard.model.job import JobSpec, JobState, Plan, Resources
from steelyard.model.reason import Reason
from steelyard.wire.agent import FunctionSeen

WITH_GPU = msgspec.structs.replace(small_machine(gpus=1), id=MACHINE.id, boot_id=MACHINE.boot_id)
GPU = WITH_GPU.topology.gpus[0].id if WITH_GPU.topology else ""
ASKS = Resources(1.0, gpus=GpuDemand(), preemptible=True)
GAVE_WAY = "gave way to the function f, which woke"


def seen(state: FunctionState, lends: bool = False) -> tuple[FunctionSeen, ...]:
    serving = int(state is FunctionState.RUNNING)
    return (FunctionSeen(FunctionName("f"), 1, state, routed_revision=1, replicas=serving, lends=lends),)


async def make_night() -> tuple[World, JobId]:
    """A function that holds the only GPU and lends it while it sleeps, and a job that would take it."""
    world = World()
    await greet(world.store, WITH_GPU, world.clock.now_us())
    spec = FunctionSpec(file="a.py", attr="app", resources=Resources(gpus=GpuDemand()), wake_bound_s=2.0)
    row = Function(FunctionName("f"), DEFAULT_PROJECT, OWNER, 1, 1, spec, 0, plan=Plan(gpus=(GPU,)))
    await world.store.write(lambda tx: tx.put_function(row))
    await world.observe(functions=seen(FunctionState.RUNNING))
    asked = JobSpec("x", ("true",), "/", resources=ASKS, preemption=Preemption(grace_s=1.0))
    [job] = await world.store.write(lambda tx: insert_jobs(tx, asked, OWNER, world.clock.now_us(), root=True))
    await world.settle()
    return world, job.id


def test_a_job_runs_on_what_a_function_lends_gives_it_back_and_gets_it_again() -> None:
    async def story() -> None:
        world, job = await make_night()
        assert (await world.job(job)).reason is Reason.NO_GPUS_LEFT
        assert JOBS in await world.observe(functions=seen(FunctionState.SLEEPING, lends=True)), "whoever waits is looked at"
        await world.settle()
        row = await world.job(job)
        assert row.state is JobState.STARTING and row.plan is not None and row.plan.gpus == (GPU,)
        await world.observe(attempt(row.attempt_id, "running", started_at=world.clock.now_us()))
        world.clock.advance(3600.0)
        ended = attempt(row.attempt_id, "ended", reason=Reason.PREEMPTED, detail=GAVE_WAY, signal=15)
        await world.observe(ended, functions=seen(FunctionState.WAKING))
        row = await world.job(job)
        assert (row.state, row.reason, row.restarts) == (JobState.QUEUED, Reason.PREEMPTED, 1)
        assert row.detail == f"attempt 1 {GAVE_WAY}; another one follows"
        await world.settle()
        assert (await world.job(job)).reason is Reason.NO_GPUS_LEFT
        await world.observe(functions=seen(FunctionState.SLEEPING, lends=True))
        await world.settle()
        assert (await world.job(job)).attempt_id == f"{job}.2"

    asyncio.run(story())


def test_a_plan_made_while_the_function_slept_is_dropped_when_it_woke_before_the_commit() -> None:
    async def story() -> None:
        world, job = await make_night()
        await world.observe(functions=seen(FunctionState.SLEEPING, lends=True))
        actions = jobs.decide(await jobs.load(world.store, world.live), world.clock.now_us())
        assert len(actions.starts) == 1
        await world.observe(functions=seen(FunctionState.WAKING))
        report = await jobs.carry_out(world.store, actions)
        assert (report.started, report.dropped) == ((), 1)
        assert (await world.job(job)).attempt == 0

    asyncio.run(story())


def test_a_job_that_the_function_always_just_beats_fails_never() -> None:
    async def story() -> None:
        world, job = await make_night()
        for count in range(1, 6):
            await world.observe(functions=seen(FunctionState.SLEEPING, lends=True))
            await world.settle()
            late = attempt(f"{job}.{count}", "not-started", reason=Reason.PREEMPTED, detail="it woke")
            await world.observe(late, functions=seen(FunctionState.RUNNING))
            row = await world.job(job)
            assert (row.state, row.reason, row.attempt) == (JobState.QUEUED, Reason.PREEMPTED, count)

    asyncio.run(story())


def test_a_function_that_its_agent_lost_sight_of_lends_nothing_new() -> None:
    """A newer revision than the one the agent speaks of."""

    async def story() -> None:
        world, job = await make_night()
        newer = msgspec.structs.replace((await world.store.read(lambda tx: tx.functions()))[0], revision=2, generation=3)
        await world.store.write(lambda tx: tx.put_function(newer))
        await world.observe(functions=seen(FunctionState.SLEEPING, lends=True))
        await world.settle()
        assert (await world.job(job)).state is JobState.QUEUED

    asyncio.run(story())
