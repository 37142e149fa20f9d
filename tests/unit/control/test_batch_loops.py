"""The batch half over the in-memory store on a virtual clock: order, giving way, backoff, dependencies, arrays, usage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from control_world import MACHINE, OWNER, World, attempt, make_world
from steelyard.api.submission import insert_jobs
from steelyard.control import JOBS, assignment
from steelyard.control.reports import greet
from steelyard.model.batch import Dependency, DependencyKind, Preemption, PreemptMode, RetryOn, RetryRule
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Resources
from steelyard.model.reason import Reason
from steelyard.model.site import Quota

GIVES_WAY = Resources(2.0, preemptible=True)


async def submit(world: World, array: str | None = None, cpus: float = 2.0, **fields: object) -> list[JobId]:
    spec = msgspec.structs.replace(JobSpec("x", ("true",), "/", resources=Resources(cpus)), **fields)
    now = world.clock.now_us()
    jobs = await world.store.write(lambda tx: insert_jobs(tx, spec, OWNER, now, root=True, array=array))
    return [job.id for job in jobs]


async def run(world: World, job: JobId) -> Job:
    """The agent says that its newest attempt runs."""
    row = await world.job(job)
    await world.observe(attempt(row.attempt_id, "running", started_at=world.clock.now_us()))
    return await world.job(job)


async def states(world: World, jobs: Sequence[JobId]) -> list[str]:
    return [(await world.job(job)).state.value for job in jobs]


def test_a_higher_priority_starts_first() -> None:
    async def story() -> None:
        world = await make_world()
        (low,), (high,) = await submit(world, priority=10), await submit(world, priority=60)
        await world.settle()
        assert await states(world, [low, high]) == ["QUEUED", "STARTING"]

    asyncio.run(story())


def test_a_preemptible_job_is_ended_for_another_and_queued_again() -> None:
    async def story() -> None:
        world = await make_world()
        (victim,) = await submit(world, resources=GIVES_WAY, preemption=Preemption(signal=10, grace_s=3.0))
        await world.settle()
        await run(world, victim)
        world.clock.advance(60.0)
        (other,) = await submit(world, priority=60)
        await world.settle()
        row = await world.job(victim)
        assert (row.state, row.stop_signal, row.stop_reason) == (JobState.STOPPING, 10, Reason.PREEMPTED)
        assert (world.agents.offers[-1].jobs[0].stop_signal, (await world.job(other)).reason) == (10, Reason.PREEMPTING)
        await world.observe(attempt(row.attempt_id, "ended", exit_code=1))
        await world.settle()
        assert await states(world, [victim, other]) == ["QUEUED", "STARTING"]
        assert (await world.job(victim)).restarts == 1

    asyncio.run(story())


def test_a_suspended_job_goes_on_when_the_other_has_ended() -> None:
    async def story() -> None:
        world = await make_world()
        (victim,) = await submit(world, resources=GIVES_WAY, preemption=Preemption(PreemptMode.SUSPEND))
        await world.settle()
        await run(world, victim)
        (other,) = await submit(world, priority=60)
        await world.settle()
        # one decision frees the cores, the next one gives them away
        await world.settle()
        assert await states(world, [victim, other]) == ["SUSPENDED", "STARTING"]
        assert [job.suspended for job in world.agents.offers[-1].jobs] == [True, False]
        await world.observe(attempt((await world.job(other)).attempt_id, "ended", exit_code=0))
        await world.settle()
        row = await world.job(victim)
        assert (row.state, row.suspended_at) == (JobState.RUNNING, None)
        assert [job.suspended for job in world.agents.offers[-1].jobs] == [False]

    asyncio.run(story())


def test_a_retry_waits_for_its_time_and_the_loop_looks_then() -> None:
    async def story() -> None:
        world = await make_world()
        (job,) = await submit(world, retry=(RetryRule(RetryOn.ERROR, 1, 2.0),))
        await world.settle()
        row = await run(world, job)
        await world.observe(attempt(row.attempt_id, "ended", exit_code=1))
        await world.settle()
        assert await states(world, [job]) == ["QUEUED"]
        assert 0 < world.jobs.tick_s <= 2.0
        world.clock.advance(2.0)
        await world.settle()
        assert ((await world.job(job)).state, (await world.job(job)).attempt) == (JobState.STARTING, 2)

    asyncio.run(story())


def test_dependents_start_or_fail_with_what_they_wait_for() -> None:
    async def story() -> None:
        world = await make_world()
        (first,) = await submit(world)
        (then,) = await submit(world, after=(Dependency(first),))
        (otherwise,) = await submit(world, after=(Dependency(first, DependencyKind.NOT_OK),))
        (last,) = await submit(world, after=(Dependency(otherwise, DependencyKind.OK),))
        await world.settle()
        assert await states(world, [first, then, otherwise, last]) == ["STARTING", "QUEUED", "QUEUED", "QUEUED"]
        row = await run(world, first)
        await world.observe(attempt(row.attempt_id, "ended", exit_code=0))
        # what can never start is a change of its own, which others wait for
        for _ in range(3):
            await world.settle()
        assert await states(world, [first, then, otherwise, last]) == ["SUCCEEDED", "STARTING", "FAILED", "FAILED"]
        assert (await world.job(last)).reason is Reason.DEPENDENCY_FAILED

    asyncio.run(story())


def test_an_array_runs_no_more_elements_at_a_time_than_it_may() -> None:
    async def story() -> None:
        world = await make_world()
        jobs = await submit(world, "0-4%2", cpus=0.1)
        await world.settle()
        assert await states(world, jobs) == ["STARTING"] * 2 + ["QUEUED"] * 3
        assert (await world.job(jobs[2])).reason is Reason.ARRAY_LIMIT
        await world.observe(attempt(f"{jobs[0]}.1", "ended", exit_code=0))
        await world.settle()
        assert await states(world, jobs) == ["SUCCEEDED"] + ["STARTING"] * 2 + ["QUEUED"] * 2

    asyncio.run(story())


def test_a_quota_holds_back_its_own_project_only() -> None:
    async def story() -> None:
        world = await make_world()
        await world.store.write(lambda tx: tx.put_quota(Quota(DEFAULT_PROJECT, OWNER, 1, running_jobs=1)))
        first, second = await submit(world, cpus=0.5), await submit(world, cpus=0.5)
        await world.settle()
        assert await states(world, [*first, *second]) == ["STARTING", "QUEUED"]
        assert (await world.job(second[0])).reason is Reason.QUOTA

    asyncio.run(story())


def test_an_attempt_is_charged_to_its_account_once() -> None:
    async def story() -> None:
        world = await make_world()
        (job,) = await submit(world, account="lab/ann")
        await world.settle()
        row = await run(world, job)
        world.clock.advance(100.0)
        ended = attempt(row.attempt_id, "ended", exit_code=0, started_at=row.started_at, ended_at=world.clock.now_us())
        assert JOBS in await world.observe(ended)
        await world.observe(ended)
        account = await world.store.read(lambda tx: tx.account("lab/ann"))
        assert account is not None and 199.0 < account.usage < 201.0, "2 cores for 100 seconds"

    asyncio.run(story())


def test_an_attempt_whose_end_is_the_first_that_is_heard_of_it_is_charged_for_as_long_as_it_ran() -> None:
    async def story() -> None:
        world = await make_world()
        (job,) = await submit(world, account="lab/ann", retry=(RetryRule(RetryOn.ERROR, 1, 0.0),))
        for number, code in ((1, 1), (2, 0)):
            await world.settle()
            begin = world.clock.now_us()
            world.clock.advance(1000.0)
            ended = attempt(f"{job}.{number}", "ended", exit_code=code, started_at=begin, ended_at=begin + 10_000_000)
            await world.observe(ended)
        account = await world.store.read(lambda tx: tx.account("lab/ann"))
        assert account is not None and 39.0 < account.usage < 41.0, "2 cores for 10 seconds, twice"

    asyncio.run(story())


def test_nobody_waits_for_a_tick_once_a_job_was_suspended_for_it() -> None:
    async def story() -> None:
        world = await make_world()
        (victim,) = await submit(world, resources=GIVES_WAY, preemption=Preemption(PreemptMode.SUSPEND))
        await world.settle()
        await run(world, victim)
        (other,) = await submit(world, priority=60)
        assert JOBS in await world.jobs.activate()
        assert JOBS not in await world.jobs.activate()
        assert await states(world, [victim, other]) == ["SUSPENDED", "STARTING"]

    asyncio.run(story())


def test_after_a_restart_of_the_machine_nothing_is_assigned_before_its_first_report_is_taken_note_of() -> None:
    async def story() -> None:
        world = await make_world()
        (job,) = await submit(world, retry=(RetryRule(RetryOn.NODE_LOST, 1, 0.0),))
        await world.jobs.activate()
        await greet(world.store, msgspec.structs.replace(MACHINE, boot_id="boot-2"), world.clock.now_us())
        await world.assignment.activate()
        assert world.agents.offers == [], "its agent may never have heard of the attempt, and would start it now"
        await world.observe(boot="boot-2")
        await world.settle()
        assert [each.attempt for each in world.agents.offers[-1].jobs] == [f"{job}.2"]

    asyncio.run(story())


def test_an_assignment_that_was_rendered_before_the_machine_restarted_is_not_sent_after_it() -> None:
    async def story() -> None:
        world = await make_world()
        await submit(world)
        await world.jobs.activate()
        stale = assignment.decide(await assignment.load(world.store, world.live, {}), 0, world.tokens)
        assert stale.assignments
        await greet(world.store, msgspec.structs.replace(MACHINE, boot_id="boot-2"), world.clock.now_us())
        await assignment.carry_out(world.store, world.agents, stale, 1)
        assert world.agents.offers == []

    asyncio.run(story())


def test_an_assignment_that_was_compared_with_what_a_restart_dropped_is_not_sent_after_it() -> None:
    async def story() -> None:
        world = await make_world()
        await submit(world, cpus=1.0)
        await world.settle()
        held = {MACHINE.place: world.agents.offers[-1]}
        await submit(world, cpus=1.0)
        await world.jobs.activate()
        stale = assignment.decide(await assignment.load(world.store, world.live, held), 0, world.tokens)
        assert stale.assignments
        await greet(world.store, msgspec.structs.replace(MACHINE, boot_id="boot-2"), world.clock.now_us())
        world.agents.forget(MACHINE.place)
        await assignment.carry_out(world.store, world.agents, stale, 2, held)
        assert world.agents.offers == []

    asyncio.run(story())


def test_the_store_is_read_once_for_a_job_that_waits_for_no_other() -> None:
    async def story() -> None:
        world = await make_world()
        reads = 0
        read = world.store.read

        async def count(fn: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(fn)

        (first,) = await submit(world, cpus=1.0)
        world.store.read = count  # type: ignore[method-assign]
        await world.jobs.activate()
        assert (await states(world, [first]), reads) == (["STARTING"], 2), "one of these is this test's own"
        await submit(world, cpus=1.0, after=(Dependency(first),))
        await world.jobs.activate()
        assert reads == 4, "which dependencies there are is known only then"

    asyncio.run(story())
