"""Deploys, shares, tags and going back over the in-memory store on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from control_world import MACHINE
from steelyard.clock import VirtualClock
from steelyard.control import ASSIGNMENT, JOBS
from steelyard.control.rollouts import STORE_S, Looks, RolloutsLoop, apply_look, changed_looks
from steelyard.control.traffic import deploy_revision, move_traffic, previous_good, roll_back
from steelyard.control.watch import Watch
from steelyard.errors import NoRoom, Refused
from steelyard.model.function import Function, FunctionSpec, Revision, RevisionState, Routes, Share
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, FunctionName, MachineId
from steelyard.model.job import Owner, Resources
from steelyard.model.machine import Core
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing
from steelyard.scaling.rollout import ERRORS_MAX, WINDOW_S
from steelyard.store import Tx
from steelyard.store.memory import MemoryStore
from steelyard.wire.agent import FunctionSeen, RevisionSeen

NAME = FunctionName("f")
A, B = MachineId("a"), MachineId("b")
OWNER = Owner("ann", 7)
READY, DEPLOYING, FAILED = RevisionState.READY, RevisionState.DEPLOYING, RevisionState.FAILED
DEDICATED = FunctionSpec(argv=("x",), resources=Resources(1.0, timing=Timing.DEDICATED))


class World:
    """`agent` reports what it is told to; routes are as the function wants them once its revisions are ready."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = VirtualClock()
        self.looks = Looks()
        self.loop = RolloutsLoop(self.store, self.clock, Watch(), self.looks)
        self.counts: dict[int, RevisionSeen] = {}

    async def write(self, fn: Callable[[Tx], Any]) -> Any:
        return await self.store.write(fn)

    async def row(self) -> Function:
        row = await self.store.read(lambda tx: tx.function(DEFAULT_PROJECT, NAME))
        assert row is not None
        return row

    async def revisions(self) -> dict[int, Revision]:
        return {each.revision: each for each in await self.store.read(lambda tx: tx.revisions(DEFAULT_PROJECT, NAME))}

    async def deploy(
        self, percent: int = 100, tag: str = "", errors_max: float | None = ERRORS_MAX, spec: FunctionSpec | None = None
    ) -> Function:
        spec, now = spec or FunctionSpec(argv=("x",)), self.clock.now_us()

        def change(tx: Tx) -> None:
            number = tx.bump("revision")
            new = Revision(NAME, DEFAULT_PROJECT, OWNER, 1, number, spec, now, "ann", errors_max)
            row = tx.function(DEFAULT_PROJECT, NAME) or Function(NAME, DEFAULT_PROJECT, OWNER, 0, number, spec, now)
            tx.put_function(deploy_revision(tx, row, new, percent, tag))

        await self.write(change)
        return await self.row()

    async def change(self, fn: Callable[[Tx, Function], Function]) -> Function:
        row = await self.row()
        await self.write(lambda tx: tx.put_function(fn(tx, row)))
        return await self.row()

    async def settle(self) -> None:
        """The agent made everything ready and routes as it should."""
        row = await self.row()
        shares = tuple(Share(key, each.percent) for key, each in row.live.items() if each.percent)
        tags = sorted((tag, key) for key, each in row.live.items() for tag in each.tags)
        routed = max(share.revision for share in shares)
        routes = Routes(shares, tuple(tags))
        await self.change(
            lambda _, row: msgspec.structs.replace(row, generation=row.generation + 1, routes=routes, routed_revision=routed)
        )
        for revision in routes.revisions:
            self.counts.setdefault(revision, RevisionSeen(revision, READY, since=revision))

    async def look(self, **counts: tuple[int, int]) -> tuple[str, ...]:
        """A report: `r2=(requests, errors)`, and the loop's answer to it."""
        for key, (requests, errors) in counts.items():
            seen = self.counts[int(key[1:])]
            self.counts[int(key[1:])] = msgspec.structs.replace(seen, requests=requests, errors=errors)
        row = await self.row()
        self.looks.take(OWN_MACHINE, [FunctionSeen(NAME, row.revision, row.state, revisions=tuple(self.counts.values()))])
        return tuple(await self.loop.activate())


def play(script: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(script(World()))


def wants(row: Function) -> dict[int, int]:
    return {key: each.percent for key, each in row.live.items()}


def test_a_new_revision_takes_all_or_a_part_and_the_ones_before_keep_the_rest() -> None:
    async def script(world: World) -> None:
        assert wants(await world.deploy(10)) == {1: 100}, "there is nobody to keep the rest"
        await world.settle()
        assert wants(await world.deploy(10)) == {1: 90, 2: 10}
        await world.settle()
        assert wants(await world.deploy()) == {3: 100}
        await world.settle()
        tagged = await world.deploy(0, "next")
        assert wants(tagged) == {3: 100, 4: 0} and tagged.live[4].tags == ("next",)
        moved = await world.deploy(0, "next")
        assert wants(moved) == {3: 100, 5: 0}, "the tag has moved, and nothing leads to 4 any more"

    play(script)


def test_too_many_errors_go_back_by_themselves_with_the_reason() -> None:
    async def script(world: World) -> None:
        await world.deploy()
        await world.settle()
        assert await world.look(r1=(100, 0)) == ()
        await world.deploy()
        await world.settle()
        assert await world.look(r2=(1, 0)) == ()
        rollout = (await world.row()).rollout
        assert rollout is not None and (rollout.since, rollout.old_requests) == (world.clock.now_us(), 100)
        assert await world.look(r2=(41, 20)) == (JOBS, ASSIGNMENT)
        row, rows = await world.row(), await world.revisions()
        assert (wants(row), row.revision, row.rollout) == ({1: 100}, 1, None)
        assert (rows[2].state, rows[2].reason) == (RevisionState.ROLLED_BACK, Reason.TOO_MANY_ERRORS)
        assert rows[2].detail == "20 of its 40 requests failed (50.0%), 0.0% before"
        assert (rows[2].requests, rows[2].errors, rows[1].requests) == (41, 20, 100)
        events = await world.store.read(lambda tx: tx.events("function", "f"))
        assert events[-1].text == f"went back from revision 2 to 1: {rows[2].detail}"
        assert wants(await world.deploy()) == {3: 100}, "the next number is a new one"

    play(script)


def test_starts_that_fail_go_back_too() -> None:
    async def script(world: World) -> None:
        await world.deploy()
        await world.settle()
        await world.deploy(10)
        await world.settle()
        world.counts[2] = msgspec.structs.replace(world.counts[2], failed_starts=3)
        assert await world.look() == (JOBS, ASSIGNMENT)
        rows = await world.revisions()
        assert (rows[2].state, rows[2].reason) == (RevisionState.ROLLED_BACK, Reason.CRASH_LOOP)

    play(script)


def test_without_a_threshold_or_after_the_window_nothing_goes_back() -> None:
    async def script(world: World) -> None:
        await world.deploy()
        await world.settle()
        await world.deploy(errors_max=None)
        await world.settle()
        assert await world.look(r2=(100, 100)) == () and wants(await world.row()) == {2: 100}
        await world.deploy()
        await world.settle()
        await world.look(r3=(10, 0))
        world.clock.advance(WINDOW_S + 1)
        assert await world.look(r3=(11, 0)) == () and (await world.row()).rollout is None
        assert await world.look(r3=(1000, 900)) == () and wants(await world.row()) == {3: 100}

    play(script)


def test_rollback_goes_to_the_newest_good_one_and_then_further() -> None:
    async def script(world: World) -> None:
        for _ in range(3):
            await world.deploy()
            await world.settle()
            await world.look()
        await world.deploy()  # never ready

        def back(tx: Tx, row: Function) -> Function:
            return roll_back(tx, row, (Share(previous_good(tx, row), 100),), None, "asked", 5, "ann")

        assert wants(await world.change(back)) == {2: 100}
        await world.settle()
        assert (await world.revisions())[3].state is RevisionState.ROLLED_BACK
        assert wants(await world.change(back)) == {1: 100}
        await world.settle()
        with pytest.raises(Refused, match="no revision before 1"):
            await world.change(back)
        again = await world.change(lambda tx, row: move_traffic(tx, row, [Share(3, 100)], None))
        assert wants(again) == {3: 100}
        assert (await world.revisions())[3].state is READY, "who asks for it takes it for good"

    play(script)


def test_traffic_moves_step_by_step_and_is_watched_from_where_it_began() -> None:
    async def script(world: World) -> None:
        await world.deploy()
        await world.settle()
        await world.deploy(10)
        await world.settle()
        await world.look(r2=(5, 0))
        more = await world.change(lambda tx, row: move_traffic(tx, row, [Share(1, 50), Share(2, 50)], None))
        assert more.rollout is not None and more.rollout.before == (Share(1, 100),)
        await world.settle()
        less = await world.change(lambda tx, row: move_traffic(tx, row, [Share(1, 100)], {"old": 2}))
        assert (wants(less), less.rollout) == ({1: 100, 2: 0}, None)
        for bad in ([Share(1, 60), Share(2, 50)], [Share(1, 50), Share(9, 50)]):
            with pytest.raises(Refused):
                await world.change(lambda tx, row, bad=bad: move_traffic(tx, row, bad, None))
        assert wants(await world.row()) == {1: 100, 2: 0}

    play(script)


def test_each_live_revision_has_its_own_cores_or_is_refused() -> None:
    async def script(world: World) -> None:
        cores = tuple(Core((n,)) for n in range(3))
        machine = msgspec.structs.replace(MACHINE, cores=cores)
        await world.write(lambda tx: tx.put_machine(machine))
        first = await world.deploy(spec=DEDICATED)
        await world.settle()
        both = await world.deploy(10, spec=DEDICATED)
        plans = [each.plan.cpus for each in both.live.values() if each.plan is not None]
        assert len(plans) == 2 and not set(plans[0]) & set(plans[1])
        await world.settle()
        with pytest.raises(NoRoom, match="keeps its own beside it"):
            await world.deploy(10, spec=DEDICATED)
        assert wants(await world.row()) == {1: 90, 2: 10}, "nothing was changed"
        last = await world.deploy(spec=DEDICATED)
        assert last.plan == first.plan, "whoever takes over all takes over the place"

    play(script)


def test_counts_go_on_over_agents_and_are_never_counted_twice() -> None:
    row = Revision(NAME, DEFAULT_PROJECT, OWNER, 1, 1, FunctionSpec(argv=("x",)), 0, "ann")
    first = apply_look(row, OWN_MACHINE, RevisionSeen(1, READY, 10, 100, 5))
    assert (first.state, first.requests, first.errors) == (READY, 100, 5)
    assert apply_look(first, OWN_MACHINE, RevisionSeen(1, READY, 10, 100, 5)) == first
    more = apply_look(first, OWN_MACHINE, RevisionSeen(1, READY, 10, 120, 6))
    other = apply_look(more, OWN_MACHINE, RevisionSeen(1, READY, 20, 7, 1))
    assert (other.requests, other.errors) == (127, 7), "an agent that took over counts from nothing"
    late = apply_look(other, OWN_MACHINE, RevisionSeen(1, RevisionState.RETIRED, 10, 120, 6))
    assert late == other, "a look at what ended before"
    # machines count by themselves, also where they began at the same moment
    for machine, since in ((A, 20), (B, 5)):
        before, look = other, RevisionSeen(1, READY, since, 10, 2)
        other = apply_look(before, machine, look)
        assert (other.requests - before.requests, other.errors - before.errors) == (10, 2)
        assert apply_look(other, machine, look) == other
    assert apply_look(other, A, RevisionSeen(1, READY, 20, 11, 2)).requests == other.requests + 1


def test_a_revision_on_several_machines_is_judged_by_all_of_them() -> None:
    async def script(world: World) -> None:
        for machine in (A, B):
            await world.write(lambda tx, machine=machine: tx.put_machine(msgspec.structs.replace(MACHINE, id=machine, pool="p")))
        await world.deploy()
        await world.settle()
        await world.deploy(50)
        await world.settle()
        for machine, failed_starts in ((A, 1), (B, 1)):
            # of so few no machine alone would say anything
            seen = (RevisionSeen(1, READY, 1, 15, 0), RevisionSeen(2, READY, 2, 12, 0, failed_starts))
            world.looks.take(machine, [FunctionSeen(NAME, 2, (await world.row()).state, revisions=seen)])
        assert await world.loop.activate() == ()
        rows = await world.revisions()
        assert (rows[1].requests, rows[2].requests) == (30, 24)
        for machine in (A, B):
            seen = (RevisionSeen(1, READY, 1, 30, 0), RevisionSeen(2, READY, 2, 24, 3, 1))
            world.looks.take(machine, [FunctionSeen(NAME, 2, (await world.row()).state, revisions=seen)])
        assert await world.loop.activate() == (JOBS, ASSIGNMENT), "six of 24 together"
        assert (await world.revisions())[2].detail == "6 of its 24 requests failed (25.0%), 0.0% before"

    play(script)


def test_starts_that_fail_on_several_machines_are_counted_together() -> None:
    async def script(world: World) -> None:
        for machine in (A, B):
            await world.write(lambda tx, machine=machine: tx.put_machine(msgspec.structs.replace(MACHINE, id=machine, pool="p")))
        await world.deploy()
        await world.settle()
        await world.deploy(50)
        await world.settle()
        for machine, failed_starts in ((A, 2), (B, 1)):
            # one that was here before and is not any more does not count
            past = RevisionSeen(2, RevisionState.RETIRED, 1, failed_starts=2)
            seen = (past, RevisionSeen(2, READY, 2, failed_starts=failed_starts))
            world.looks.take(machine, [FunctionSeen(NAME, 2, (await world.row()).state, revisions=seen)])
        assert await world.loop.activate() == (JOBS, ASSIGNMENT)
        assert (await world.revisions())[2].reason is Reason.CRASH_LOOP

    play(script)


def test_what_a_machine_counted_that_is_gone_stays_and_is_not_added_again() -> None:
    async def script(world: World) -> None:
        await world.write(lambda tx: tx.put_machine(msgspec.structs.replace(MACHINE, id=A, pool="p")))
        await world.deploy()
        await world.settle()
        world.looks.take(A, [FunctionSeen(NAME, 1, (await world.row()).state, revisions=(RevisionSeen(1, READY, 1, 15, 5),))])
        await world.loop.activate()
        await world.write(lambda tx: tx.delete_machine(A))
        for more in (1, 2):
            await world.look(r1=(more, 0))
            row = (await world.revisions())[1]
            assert (row.requests, row.errors, [each.machine for each in row.counted]) == (15 + more, 5, [OWN_MACHINE])

    play(script)


def test_a_revision_that_never_got_ready_is_remembered_as_failed_and_may_succeed_later() -> None:
    row = Revision(NAME, DEFAULT_PROJECT, OWNER, 1, 1, FunctionSpec(argv=("x",)), 0, "ann")
    failed = apply_look(row, OWN_MACHINE, RevisionSeen(1, FAILED, reason=Reason.IMPORT_FAILED, detail="no such module"))
    assert (failed.state, failed.reason, failed.detail) == (FAILED, Reason.IMPORT_FAILED, "no such module")
    ready = apply_look(failed, OWN_MACHINE, RevisionSeen(1, READY, 10))
    assert (ready.state, ready.reason, ready.detail) == (READY, None, "")
    back = msgspec.structs.replace(ready, state=RevisionState.ROLLED_BACK)
    assert apply_look(back, OWN_MACHINE, RevisionSeen(1, READY, 10)).state is RevisionState.ROLLED_BACK


def test_good_requests_are_stored_only_now_and_then_and_an_idle_loop_reads_nothing() -> None:
    async def script(world: World) -> None:
        await world.deploy()
        await world.settle()
        await world.look(r1=(1, 0))
        assert not world.looks.take(
            OWN_MACHINE,
            [FunctionSeen(NAME, 1, (await world.row()).state, revisions=(msgspec.structs.replace(world.counts[1], requests=2),))],
        ), "not worth a poke"
        assert world.loop.tick_s == STORE_S
        await world.loop.activate()
        assert (await world.revisions())[1].requests == 2
        await world.store.close()
        assert await world.loop.activate() == ()

    play(script)


def test_a_function_of_before_revisions_were_remembered_can_go_back_to_what_it_was() -> None:
    async def script(world: World) -> None:
        spec = FunctionSpec(argv=("old",))
        old = Function(NAME, DEFAULT_PROJECT, OWNER, 1, 1, spec, 5, routed_revision=1, routes=Routes((Share(1, 100),)))
        await world.write(lambda tx: (tx.put_function(old), tx.bump("revision")))
        await world.deploy()
        assert [(key, each.spec.argv, each.state) for key, each in (await world.revisions()).items()] == [
            (1, ("old",), READY), (2, ("x",), DEPLOYING)
        ]  # fmt: skip

    play(script)


def test_of_a_thousand_functions_those_count_that_are_told_otherwise() -> None:
    a, b = (RevisionSeen(1, READY, since=5),), (RevisionSeen(1, READY, since=5, requests=1),)
    one, two, three = FunctionName("one"), FunctionName("two"), FunctionName("three")
    assert changed_looks({one: a, two: a}, {one: a, two: b, three: a}) == [two, three]
    assert changed_looks({one: a, two: b}, {one: (RevisionSeen(1, READY, since=5),)}) == []
