"""The loops over the in-memory store on a virtual clock: what is queued gets planned, handed out, observed and ended."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from control_world import MACHINE, OWNER, World, attempt, make_world
from steelyard.control import ASSIGNMENT, JOBS, answers, assignment, jobs, reports
from steelyard.control.assignment import AssignmentLoop, begin_epoch
from steelyard.control.reports import greet
from steelyard.errors import Conflict
from steelyard.lifecycle.job import stop_job
from steelyard.model.coldstart import ColdStart, Road
from steelyard.model.function import ApiKey, Function, FunctionSpec, FunctionState
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, JobId
from steelyard.model.job import Job, JobSpec, JobState, Plan
from steelyard.model.reason import Reason
from steelyard.store import StoredAnswer
from steelyard.wire.agent import Assignment, FunctionSeen, HealthEvent


def test_a_job_goes_from_queue_to_agent_to_its_end() -> None:
    async def main() -> None:
        world = await make_world()
        id_ = await world.submit()
        assert await world.jobs.activate() == [ASSIGNMENT]
        assert (await world.job(id_)).state is JobState.STARTING
        await world.assignment.activate()
        assert [job.attempt for job in world.agents.offers[-1].jobs] == [f"{id_}.1"]
        assert await world.observe(attempt(f"{id_}.1", "running", started_at=5)) == ()
        assert (await world.job(id_)).state is JobState.RUNNING
        assert await world.observe(attempt(f"{id_}.1", "ended", exit_code=0)) == (JOBS, ASSIGNMENT)
        assert (await world.job(id_)).state is JobState.SUCCEEDED
        await world.assignment.activate()
        assert world.agents.offers[-1].jobs == ()
        assert world.agents.acks == [1, 2]
        texts = [event.text for event in await world.store.read(lambda tx: tx.events("job", id_))]
        assert texts == ["QUEUED -> STARTING (placed)", "STARTING -> RUNNING", "RUNNING -> SUCCEEDED (exited)"]

    asyncio.run(main())


def test_a_freed_core_goes_to_the_next_in_the_queue() -> None:
    async def main() -> None:
        world = await make_world()
        first, second = await world.submit(2.0), await world.submit(0.5)
        await world.settle()
        assert (await world.job(second)).reason is Reason.NO_CORES_LEFT
        assert await world.observe(attempt(f"{first}.1", "ended", exit_code=1)) == (JOBS, ASSIGNMENT)
        await world.settle()
        after = await world.job(second)
        assert (after.state, after.reason, after.detail) == (JobState.STARTING, None, "")

    asyncio.run(main())


def test_waiting_jobs_are_written_once() -> None:
    async def main() -> None:
        world = await make_world()
        await world.submit(2.0)
        waiting = [await world.submit(1.0) for _ in range(3)]
        await world.settle()
        before = [await world.job(id_) for id_ in waiting]
        assert [job.reason for job in before] == [Reason.NO_CORES_LEFT, *[Reason.BEHIND_EARLIER_JOB] * 2]
        for _ in range(3):
            await world.jobs.activate()
        assert [await world.job(id_) for id_ in waiting] == before

    asyncio.run(main())


def test_the_applier_drops_a_plan_that_no_longer_fits() -> None:
    async def main() -> None:
        world = await make_world()
        await world.submit(2.0)
        stale = jobs.decide(await jobs.load(world.store, world.live), 1)
        report = await jobs.carry_out(world.store, stale)
        assert len(report.started) == 1
        again = await jobs.carry_out(world.store, stale)
        assert (again.started, again.skipped) == ((), 1)
        other = await world.submit(2.0)
        seen = await jobs.load(world.store, world.live)
        nothing = msgspec.structs.replace(seen.snapshot, holding=())
        blind = jobs.decide(msgspec.structs.replace(seen, snapshot=nothing), 1)
        blind = msgspec.structs.replace(blind, seen=seen)
        late = await jobs.carry_out(world.store, blind)
        assert (late.started, late.skipped, late.dropped) == ((), 0, 1)
        assert (await world.job(other)).state is JobState.QUEUED

    asyncio.run(main())


def test_a_job_that_the_machine_can_never_hold_fails_and_blocks_nobody() -> None:
    async def main() -> None:
        world = await make_world()
        giant, small = await world.submit(64.0), await world.submit(1.0)
        await world.settle()
        assert (await world.job(giant)).state is JobState.FAILED
        assert (await world.job(giant)).reason is Reason.CORES_BEYOND_MACHINE
        assert (await world.job(small)).state is JobState.STARTING

    asyncio.run(main())


def test_jobs_wait_for_the_first_agent() -> None:
    async def main() -> None:
        world = World()
        id_ = await world.submit()
        await world.settle()
        assert (await world.job(id_)).reason is Reason.NO_MACHINE
        await greet(world.store, MACHINE, 1)
        await world.settle()
        assert (await world.job(id_)).state is JobState.STARTING

    asyncio.run(main())


def test_the_generation_goes_up_only_with_the_content_and_the_epoch_with_the_server() -> None:
    async def main() -> None:
        world = await make_world()
        assert await begin_epoch(world.store) == 1
        await world.assignment.activate()
        await world.assignment.activate()
        id_ = await world.submit()
        await world.settle()
        await world.observe(attempt(f"{id_}.1", "running", started_at=5))
        await world.assignment.activate()
        assert [(offer.epoch, offer.generation) for offer in world.agents.offers] == [(1, 1), (1, 2)]
        assert await begin_epoch(world.store) == 2
        again = AssignmentLoop(world.store, world.agents, world.live, world.tokens)
        await again.activate()
        assert (world.agents.offers[-1].epoch, world.agents.offers[-1].generation) == (2, 1)
        assert world.agents.offers[-1].jobs == world.agents.offers[-2].jobs

    asyncio.run(main())


def test_a_stop_reaches_the_agent() -> None:
    async def main() -> None:
        world = await make_world()
        id_ = await world.submit()
        await world.settle()
        job = await world.job(id_)
        change = stop_job(job, 2, 3.0, 1)
        assert change is not None
        await world.store.write(lambda tx: tx.put_job(change.job))
        await world.assignment.activate()
        [assigned] = world.agents.offers[-1].jobs
        assert (assigned.stop_signal, assigned.stop_grace_s) == (2, 3.0)

    asyncio.run(main())


def test_functions_and_keys_are_assigned_by_revision_and_not_by_what_they_do() -> None:
    async def main() -> None:
        world = await make_world()
        function = Function(FunctionName("f"), DEFAULT_PROJECT, OWNER, 1, 4, FunctionSpec(file="a.py", attr="app"), 0)
        await world.store.write(lambda tx: tx.put_function(function))
        await world.store.write(lambda tx: tx.put_key(ApiKey("k", DEFAULT_PROJECT, OWNER, 1, "sk-1", 0)))
        await world.assignment.activate()
        offer = world.agents.offers[-1]
        assert [(assigned.name, assigned.revision) for assigned in offer.functions] == [("f", 4)]
        assert offer.keys == ("sk-1", world.tokens.call_key(OWNER)), "and what the owner's own processes call functions by"
        row = FunctionSeen(FunctionName("f"), 4, FunctionState.RUNNING, routed_revision=4, replicas=1)
        await world.observe(functions=(row,))
        await world.assignment.activate()
        assert world.agents.offers == [offer]
        stored = await world.store.read(lambda tx: tx.functions())
        assert (stored[0].state, stored[0].routed_revision, stored[0].generation) == (FunctionState.RUNNING, 4, 2)

    asyncio.run(main())


def test_news_of_an_older_revision_say_nothing_about_the_newest() -> None:
    before = Function(FunctionName("f"), DEFAULT_PROJECT, OWNER, 1, 2, FunctionSpec(), 0)
    seen = FunctionSeen(FunctionName("f"), 1, FunctionState.FAILED, routed_revision=1, replicas=3, detail="old")
    after = reports.apply_function(before, seen)
    assert after is not None
    assert (after.state, after.detail, after.routed_revision, after.replicas) == (FunctionState.DEPLOYING, "", 1, 3)
    assert reports.apply_function(after, seen) is None


def test_a_report_that_changes_nothing_is_acknowledged_without_a_write() -> None:
    async def main() -> None:
        world = await make_world()
        id_ = await world.submit()
        await world.settle()
        await world.observe(attempt(f"{id_}.1", "running", started_at=1))

        async def refuse(fn: object) -> None:
            raise AssertionError("wrote")

        world.store.write = refuse  # type: ignore[method-assign]
        await world.observe(attempt(f"{id_}.1", "running", started_at=1))
        assert world.agents.acks == [1, 2]

    asyncio.run(main())


def test_a_report_is_not_acknowledged_when_its_commit_failed() -> None:
    async def main() -> None:
        world = await make_world()
        id_ = await world.submit()
        await world.settle()
        real = world.store.read

        async def change_meanwhile(fn: object) -> object:
            seen = await real(fn)  # type: ignore[arg-type]
            job = await real(lambda tx: tx.job(id_))
            assert job is not None
            await world.store.write(lambda tx: tx.put_job(msgspec.structs.replace(job, generation=job.generation + 1)))
            return seen

        world.store.read = change_meanwhile  # type: ignore[method-assign, assignment]
        with pytest.raises(Conflict):
            await world.observe(attempt(f"{id_}.1", "running"))
        assert world.agents.acks == [] and world.agents.report is not None
        world.store.read = real  # type: ignore[method-assign]
        await world.reports.activate()
        assert world.agents.acks == [1] and (await world.job(id_)).state is JobState.RUNNING

    asyncio.run(main())


def test_cold_starts_are_stored_once_however_often_they_are_reported() -> None:
    async def main() -> None:
        world = await make_world()
        row = ColdStart("c1", FunctionName("f"), DEFAULT_PROJECT, 1, 5, Road.TEMPLATE, Reason.TEMPLATE_READY, 3.0, {})
        await world.observe(coldstarts=(row,))
        await world.observe(coldstarts=(row,))
        assert await world.store.read(lambda tx: tx.coldstarts()) == [row]

    asyncio.run(main())


def test_an_illegal_transition_is_one_error_event_however_often_it_is_reported() -> None:
    async def main() -> None:
        world = await make_world()
        id_ = await world.submit()
        await world.settle()
        await world.observe(attempt(f"{id_}.1", "ended", exit_code=0))
        done = await world.job(id_)
        for _ in range(3):
            await world.observe(attempt(f"{id_}.1", "running"))
        assert await world.job(id_) == done
        events = await world.store.read(lambda tx: tx.events("job", id_))
        assert sum("illegal" in event.text for event in events) == 1

    asyncio.run(main())


def test_after_a_restart_of_the_machine_only_what_is_reported_goes_on() -> None:
    async def main() -> None:
        world = await make_world()
        lost, ended, back = [await world.submit(0.1) for _ in range(3)]
        waiting = await world.submit(64.0, state=JobState.QUEUED)
        await world.settle()
        await world.observe(*[attempt(f"{id_}.1", "running") for id_ in (lost, ended, back)])
        assert await greet(world.store, msgspec.structs.replace(MACHINE, boot_id="boot-2"), 9)
        assert {(await world.job(id_)).state for id_ in (lost, ended, back)} == {JobState.UNKNOWN}
        # a report of the old boot, still on its way, decides nothing
        await world.observe(attempt(f"{lost}.1", "running"))
        assert (await world.job(lost)).state is JobState.UNKNOWN
        reported = (attempt(f"{ended}.1", "ended", exit_code=0), attempt(f"{back}.1", "running"))
        assert await world.observe(*reported, boot="boot-2") == (JOBS, ASSIGNMENT)
        assert ((await world.job(lost)).state, (await world.job(lost)).reason) == (JobState.FAILED, Reason.NODE_LOST)
        assert (await world.job(ended)).state is JobState.SUCCEEDED
        assert (await world.job(back)).state is JobState.RUNNING
        assert (await world.job(waiting)).attempt == 0

    asyncio.run(main())


def test_the_same_agent_coming_back_puts_nothing_in_doubt() -> None:
    async def main() -> None:
        world = await make_world()
        id_ = await world.submit()
        await world.settle()
        assert not await greet(world.store, MACHINE, 9)
        assert not await greet(world.store, msgspec.structs.replace(MACHINE, kernel="newer"), 9)
        assert (await world.job(id_)).state is JobState.STARTING

    asyncio.run(main())


def test_answers_are_forgotten_after_a_day() -> None:
    async def main() -> None:
        world = World()
        for key, at in (("old", 0), ("new", answers.KEPT_US)):
            row = StoredAnswer(key, DEFAULT_PROJECT, "h", 201, b"{}", world.clock.now_us() + at)
            await world.store.write(lambda tx, row=row: tx.put_answer(row))
        world.clock.advance(24 * 3600 + 1)
        await answers.AnswersLoop(world.store, world.clock).activate()
        assert await world.store.read(lambda tx: tx.answer(DEFAULT_PROJECT, "old")) is None
        assert await world.store.read(lambda tx: tx.answer(DEFAULT_PROJECT, "new")) is not None

    asyncio.run(main())


def test_rendering_is_pure_and_skips_jobs_without_a_plan() -> None:
    job = Job(JobId("j"), DEFAULT_PROJECT, OWNER, 1, 1, JobSpec("x", ("a",), "/"), JobState.UNKNOWN, 0)
    seen = assignment.Seen((job,), (), (), epoch=3, offered={})
    assert assignment.render_assignment(seen, lambda job: "") == Assignment(epoch=3, generation=0, images=())


def test_a_machine_out_of_use_starts_nothing_and_jobs_say_why() -> None:
    async def case() -> None:
        world = await make_world()
        event = HealthEvent(1, 5, "node: READY -> DRAINED (xid: it broke)")
        assert JOBS in await world.observe(blocked=("node",), health_events=(event,))
        job = await world.submit()
        await world.jobs.activate()
        assert ((await world.job(job)).state, (await world.job(job)).reason) == (JobState.QUEUED, Reason.NODE_DRAINED)
        await greet(world.store, MACHINE, world.clock.now_us())
        await world.jobs.activate()
        assert (await world.job(job)).state is JobState.QUEUED
        await world.observe(blocked=("node",), health_events=(event,))
        told = await world.store.read(lambda tx: [line.text for line in tx.events("machine")])
        assert told.count(event.text) == 1, "a report that repeats what was not acknowledged tells nothing new"
        assert JOBS in await world.observe()
        await world.jobs.activate()
        assert (await world.job(job)).state is JobState.STARTING

    asyncio.run(case())


def test_a_plan_whose_device_has_been_taken_out_of_use_since_is_dropped_when_it_is_committed() -> None:
    async def case() -> None:
        world = await make_world()
        job = await world.submit()
        actions = jobs.decide(await jobs.load(world.store, world.live), world.clock.now_us())
        ((before, change),) = actions.starts
        plan = msgspec.structs.replace(change.job.plan or Plan(), gpus=("0000:0f:00.0",))
        planned = msgspec.structs.replace(change, job=msgspec.structs.replace(change.job, plan=plan))
        await world.observe(blocked=("0000:0f:00.0",))
        done = await jobs.carry_out(world.store, msgspec.structs.replace(actions, starts=((before, planned),)))
        assert (done.started, done.skipped, done.dropped) == ((), 0, 1)
        assert (await world.job(job)).state is JobState.QUEUED

    asyncio.run(case())


def test_a_line_of_history_that_a_report_repeats_is_kept_once() -> None:
    async def case() -> None:
        world = await make_world()
        first, second = HealthEvent(1, 5, "gpu: READY -> DRAINED"), HealthEvent(2, 6, "gpu: DRAINED -> CHECKING")
        await world.observe(health_events=(first,))
        await world.observe(health_events=(first, second))
        await world.observe(health_events=(first, second, HealthEvent(3, 9, first.text)))
        lines = [(each.at, each.text) for each in await world.store.read(lambda tx: tx.events("machine", MACHINE.id))]
        assert [each for each in lines if each[1].startswith("gpu")] == [(5, first.text), (6, second.text), (9, first.text)]

    asyncio.run(case())
