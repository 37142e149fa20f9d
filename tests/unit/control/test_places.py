"""Functions in pools: where they are, who is told of them, and how one machine hands them on without a failed request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from control_world import MACHINE, World, make_pilot, make_world
from steelyard.control.leases import LeasesLoop
from steelyard.control.places import PlacesLoop, end_function, place_now
from steelyard.control.reports import greet
from steelyard.control.rollouts import Actions, carry_out
from steelyard.control.traffic import deploy_revision
from steelyard.errors import NoRoom
from steelyard.model.function import Function, FunctionSpec, FunctionState, Reach, Revision, Rollout, Routes, Share
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, FunctionName, MachineId
from steelyard.model.job import Owner, Resources
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing
from steelyard.wire.agent import AwayFunction, FunctionSeen, HealthEvent, Report

NAME, OWNER = FunctionName("f"), Owner("ann", 7)
P1, P2, P3 = (MachineId(f"train-{number}") for number in (1, 2, 3))
PLAIN = FunctionSpec(argv=("x",), pool="train")
DEDICATED = FunctionSpec(argv=("x",), pool="train", resources=Resources(1.0, timing=Timing.DEDICATED))


class Pool:
    """The server's loops, agents of machines that carry out what they were offered when they are asked to, and a home's gateway
    that does the same."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lost: set[MachineId] = set()
        self.certified: list[int] = []
        self.places = PlacesLoop(world.store, world.clock, world.watch, self.lost.__contains__, self.certified.append)
        #: what each machine's gateway leads to, and what the home's does
        self.routed: dict[MachineId, Routes] = {}
        self.away: tuple[AwayFunction, ...] = ()
        #: the home's gateway may lead to revisions itself
        self.leads = False

    async def add(self, *names: MachineId, **fields: object) -> None:
        for number, name in enumerate(names):
            made = msgspec.structs.replace(MACHINE, id=name, pool="train", gateway=f"10.0.0.{number + 2}:7000")
            await self.world.store.write(lambda tx, name=name: None if tx.pilot(name) else tx.put_pilot(make_pilot(name)))
            await greet(self.world.store, msgspec.structs.replace(made, **fields), self.world.clock.now_us())
            self.routed.setdefault(name, Routes())

    async def change(self, name: MachineId, **fields: object) -> None:
        def commit(tx: Any) -> None:
            machine = tx.machine(name)
            if machine is not None:
                tx.put_machine(msgspec.structs.replace(machine, **fields))

        await self.world.store.write(commit)

    async def deploy(self, spec: FunctionSpec = PLAIN, percent: int = 100, errors_max: float | None = None) -> None:
        def commit(tx: Any) -> None:
            number, now = tx.bump("revision"), self.world.clock.now_us()
            new = Revision(NAME, DEFAULT_PROJECT, OWNER, 1, number, spec, now, "ann", errors_max)
            row = tx.function(DEFAULT_PROJECT, NAME) or Function(NAME, DEFAULT_PROJECT, OWNER, 0, number, spec, now)
            tx.put_function(place_now(tx, row, deploy_revision(tx, row, new, percent, ""), self.lost.__contains__))

        await self.world.store.write(commit)

    async def row(self) -> Function:
        row = await self.world.store.read(lambda tx: tx.function(DEFAULT_PROJECT, NAME))
        assert row is not None
        return row

    async def finishing(self, name: MachineId) -> tuple[FunctionName, ...]:
        machine = await self.world.store.read(lambda tx: tx.machine(name))
        assert machine is not None
        return machine.finishing

    async def decide(self) -> None:
        await self.places.activate()
        await self.world.assignment.activate()

    async def node(self, name: MachineId, **fields: object) -> None:
        """That machine's agent carries out the newest assignment and says so."""
        offers = self.world.agents.away.get(name)
        told = [] if not offers else [each for each in offers[-1].functions if each.name == NAME]
        shares = tuple(Share(each.revision, each.percent) for each in told if each.percent)
        self.routed[name] = Routes(shares)
        newest = max((each.revision for each in told), default=0)
        reach = tuple(Reach(share.revision, 8, 100, 5.0) for share in shares) if self.leads else ()
        seen = FunctionSeen(NAME, newest, FunctionState.SLEEPING, routes=self.routed[name], reach=reach)
        functions = (msgspec.structs.replace(seen, **fields),) if told else ()
        await self.say(name, functions=functions)

    async def home(self) -> None:
        """The home's agent does, and so its gateway."""
        if self.world.agents.offers:
            self.away = self.world.agents.offers[-1].away
        await self.say(OWN_MACHINE, away=self.away)

    async def say(self, place: MachineId, **fields: object) -> None:
        self.world.seq += 1
        report = Report(self.world.seq, place or MACHINE.id, "boot-1", generation=0)
        self.world.agents.reports[place] = msgspec.structs.replace(report, **fields)
        await self.world.reports.activate()

    async def settle(self) -> None:
        for _ in range(4):
            await self.decide()
            for name in list(self.routed):
                await self.node(name)
            await self.home()
        await self.decide()

    @property
    def reached(self) -> tuple[MachineId, ...]:
        return self.away[0].machines if self.away else ()


def play(script: Callable[[Pool], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await script(Pool(await make_world()))

    asyncio.run(run())


def test_a_function_waits_for_a_machine_of_its_pool_and_says_so() -> None:
    async def script(pool: Pool) -> None:
        await pool.deploy()
        await pool.decide()
        row = await pool.row()
        assert (row.state, row.reason) == (FunctionState.DEPLOYING, Reason.NO_MACHINE) and "has no machine yet" in row.detail
        assert pool.world.agents.offers[-1].functions == ()
        assert pool.world.agents.offers[-1].away == (AwayFunction(NAME, False),)
        assert not pool.certified, "there is nobody to be known to"
        await pool.add(P1, gateway="")
        await pool.decide()
        assert "takes work now" in (await pool.row()).detail, "its gateway could not be reached"
        await pool.change(P1, gateway="10.0.0.2:7000")
        await pool.settle()
        row = await pool.row()
        assert (row.state, row.reason, row.routed_revision, row.reached) == (FunctionState.SLEEPING, None, 1, (P1,))
        assert pool.certified
        (neighbour,) = pool.world.agents.offers[-1].neighbours
        assert (neighbour.machine, neighbour.host, neighbour.port) == (P1, "10.0.0.2", 7000)

    play(script)


def test_requests_are_sent_only_where_the_function_is_ready() -> None:
    async def script(pool: Pool) -> None:
        await pool.add(P1)
        await pool.deploy()
        await pool.decide()
        await pool.home()
        await pool.decide()
        assert pool.reached == () and (await pool.row()).state is FunctionState.DEPLOYING
        await pool.node(P1)
        assert (await pool.row()).state is FunctionState.DEPLOYING, "the home's gateway does not lead there yet"
        await pool.decide()
        await pool.home()
        assert pool.reached == (P1,) and (await pool.row()).state is FunctionState.SLEEPING
        await pool.node(P1, state=FunctionState.FAILED, reason=Reason.CRASH_LOOP, detail="it died")
        row = await pool.row()
        assert (row.state, row.reason, row.detail) == (FunctionState.FAILED, Reason.CRASH_LOOP, "it died")

    play(script)


def test_packed_on_one_machine_spread_on_all() -> None:
    async def script(pool: Pool) -> None:
        await pool.add(P1, P2)
        await pool.deploy()
        await pool.settle()
        assert pool.reached == (P1,)
        await pool.deploy(msgspec.structs.replace(PLAIN, spread=True))
        await pool.settle()
        assert pool.reached == (P1, P2)
        await pool.add(P3)
        await pool.settle()
        assert pool.reached == (P1, P2, P3)
        assert {name: pool.routed[name].revisions for name in pool.routed} == {P1: {2}, P2: {2}, P3: {2}}
        await pool.deploy()
        await pool.settle()
        assert pool.reached == (P1,) and pool.routed[P2] == pool.routed[P3] == Routes()

    play(script)


def test_a_revision_is_routed_once_the_home_leads_to_it_and_the_one_before_stays_until_then() -> None:
    async def script(pool: Pool) -> None:
        def led() -> tuple[int, ...]:
            return pool.world.agents.away[P1][-1].functions[-1].led

        pool.leads = True
        await pool.add(P1)
        await pool.deploy()
        await pool.settle()
        (lead,) = pool.away[0].leads
        assert (lead.reach, lead.machines, lead.percent) == (Reach(1, 8, 100, 5.0), (P1,), 100)
        assert (await pool.row()).routed_revision == 1 and led() == (1,)
        await pool.deploy()
        await pool.decide()
        await pool.node(P1)
        await pool.decide()
        assert pool.routed[P1].revisions == {2} and led() == (1, 2)
        assert (await pool.row()).state is FunctionState.DEPLOYING, "the home leads to revision 1"
        await pool.home()
        assert (await pool.row()).routed_revision == 2
        await pool.decide()
        assert led() == (2,)
        # a program whose requests have to be handed over
        pool.leads = False
        await pool.deploy()
        await pool.settle()
        assert pool.away[0].leads == () and pool.reached == (P1,)
        assert (await pool.row()).routed_revision == 3 and led() == ()

    play(script)


@pytest.mark.parametrize("why", ["draining", "sick", "silent"])
def test_a_machine_hands_its_functions_on_before_it_is_left(why: str) -> None:
    async def script(pool: Pool) -> None:
        await pool.add(P1)
        await pool.deploy()
        await pool.settle()
        if why == "silent":
            pool.lost.add(P1)
        else:
            await pool.change(P1, **({"draining": "its time is over"} if why == "draining" else {"blocked": ("node",)}))
        if why != "sick":  # its own reports would say that it is well
            await pool.settle()
        else:
            await pool.decide()
        assert pool.reached == (P1,) and pool.routed[P1].shares, "nobody takes over: it stays"
        assert (await pool.row()).reason is Reason.NO_MACHINE
        await pool.add(P2)
        await pool.decide()
        await pool.home()
        assert pool.reached == (P1,)
        await pool.node(P2)
        await pool.decide()
        assert pool.routed[P1].shares and [place.machine for place in (await pool.row()).places] == [P1, P2]
        await pool.home()
        await pool.decide()
        assert pool.reached == (P2,) and [place.machine for place in (await pool.row()).places] == [P2]
        assert [each.name for each in pool.world.agents.away[P1][-1].functions] == []

    play(script)


def test_cores_of_its_own_are_had_on_that_machine_or_the_next() -> None:
    async def script(pool: Pool) -> None:
        await pool.add(P1, P2)
        await pool.deploy(DEDICATED)
        await pool.settle()
        (place,) = (await pool.row()).places
        assert [(revision, plan.cpus, plan.machine) for revision, plan in place.plans] == [(1, (1,), P1)]
        (told,) = pool.world.agents.away[P1][-1].functions
        assert told.plan == place.plans[0][1]
        await pool.deploy(DEDICATED)
        await pool.settle()
        (place,) = (await pool.row()).places
        assert [(revision, plan.cpus) for revision, plan in place.plans] == [(2, (1,))], "what revision 1 leaves is taken over"
        with pytest.raises(NoRoom, match=r"f can't be deployed now.*: train-1: .*asked. Nothing was changed"):
            await pool.deploy(msgspec.structs.replace(DEDICATED, resources=Resources(2.0, timing=Timing.DEDICATED)))
        await pool.settle()
        assert [each.revision for each in pool.world.agents.away[P1][-1].functions] == [2]

    play(script)


def test_who_goes_back_has_its_cores_at_once() -> None:
    async def script(pool: Pool) -> None:
        await pool.add(P1)
        await pool.deploy(DEDICATED)
        await pool.settle()
        await pool.deploy(DEDICATED, errors_max=0.1)
        await pool.settle()
        row = await pool.row()
        rollout = Rollout(2, (Share(1, 100),), 0.1)
        back = msgspec.structs.replace(row, generation=row.generation + 1, rollout=rollout)
        await pool.world.store.write(lambda tx: tx.put_function(back))
        actions = Actions(1, back=((back, Reason.TOO_MANY_ERRORS, "too many"),))
        assert (await carry_out(pool.world.store, actions)).back == (NAME,)
        await pool.world.assignment.activate()
        (told,) = pool.world.agents.away[P1][-1].functions
        assert told.revision == 1 and told.plan is not None and told.plan.cpus == (1,)

    play(script)


def test_nothing_is_assigned_without_what_it_asks_for() -> None:
    async def script(pool: Pool) -> None:
        await pool.add(P1)
        await pool.deploy(msgspec.structs.replace(DEDICATED, resources=Resources(2.0, timing=Timing.DEDICATED)))
        await pool.settle()
        row = await pool.row()
        assert row.reason is Reason.NO_MACHINE and "train-1: " in row.detail, "one core always stays shared"
        assert pool.world.agents.away[P1][-1].functions == ()

    play(script)


def test_a_machine_that_is_gone_is_not_asked_any_more() -> None:
    async def script(pool: Pool) -> None:
        await pool.add(P1, P2)
        await pool.deploy()
        await pool.settle()
        await pool.world.store.write(lambda tx: tx.delete_machine(P1))
        pool.routed.pop(P1)
        await pool.decide()
        assert pool.world.agents.offers[-1].away[0].machines == (), "the next is not ready yet"
        await pool.settle()
        assert pool.reached == (P2,)

    play(script)


@pytest.mark.parametrize("by", ["a look", "a deploy"])
def test_a_machine_that_is_left_has_work_until_its_agent_says_that_nothing_is_left(by: str) -> None:
    async def script(pool: Pool) -> None:
        await pool.add(P1, P2)
        await pool.deploy()
        await pool.settle()
        stale = FunctionSeen(NAME, 1, FunctionState.SLEEPING, routes=pool.routed[P1])
        await pool.change(P1, draining="its time is over")
        await pool.decide()
        await pool.node(P2)
        await pool.decide()
        await pool.home()
        await (pool.decide() if by == "a look" else pool.deploy())
        assert [place.machine for place in (await pool.row()).places] == [P2]
        assert await pool.finishing(P1) == (NAME,), "before its agent knows of it"
        await pool.say(P1, functions=(stale,), health_events=(HealthEvent(1, 1, "x"),))
        assert await pool.finishing(P1) == (NAME,), "by what it said before it knew"
        await pool.say(P1, finishing=(NAME,))
        assert await pool.finishing(P1) == (NAME,)
        await pool.say(P1)
        assert await pool.finishing(P1) == ()

    play(script)


@pytest.mark.parametrize("by", ["its owner", "the end of its lease"])
def test_a_machine_has_work_until_what_a_deleted_function_began_is_answered(by: str) -> None:
    async def script(pool: Pool) -> None:
        await pool.add(P1, P2)
        await pool.deploy(msgspec.structs.replace(PLAIN, spread=True))
        await pool.settle()
        row = await pool.row()
        assert {place.machine for place in row.places} == {P1, P2}
        pool.lost.add(P2)
        if by == "its owner":
            await pool.world.store.write(lambda tx: end_function(tx, row, pool.lost.__contains__))
        else:
            leased = msgspec.structs.replace(row, generation=row.generation + 1, expires_at=pool.world.clock.now_us())
            await pool.world.store.write(lambda tx: tx.put_function(leased))
            await LeasesLoop(pool.world.store, pool.world.clock, pool.world.watch, pool.lost.__contains__).activate()
        assert await pool.world.store.read(lambda tx: tx.function(DEFAULT_PROJECT, NAME)) is None
        assert (await pool.finishing(P1), await pool.finishing(P2)) == ((NAME,), ()), "before its agent knows of it"
        await pool.say(P1)
        assert await pool.finishing(P1) == ()

    play(script)


class Handover(RuleBasedStateMachine):
    """Machines come, drain, fall silent and go; agents and the home's gateway carry out what they were told at any time later. A
    request is never sent to a machine that is there and does not serve the function."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.pool = Pool(self.do(make_world()))
        self.count = 0
        self.served = False
        self.do(self.pool.deploy())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.do(self.pool.world.store.close())
        self.loop.close()

    @property
    def names(self) -> list[MachineId]:
        return sorted(self.pool.routed)

    def pick(self, data: st.DataObject) -> MachineId:
        return data.draw(st.sampled_from(self.names))

    @precondition(lambda self: len(self.names) < 4)
    @rule()
    def machine_comes(self) -> None:
        self.count += 1
        self.do(self.pool.add(MachineId(f"train-{self.count}")))

    @precondition(lambda self: self.names)
    @rule(data=st.data(), on=st.booleans())
    def machine_drains(self, data: st.DataObject, on: bool) -> None:
        self.do(self.pool.change(self.pick(data), draining="told to" if on else ""))

    @precondition(lambda self: self.names)
    @rule(data=st.data(), on=st.booleans())
    def machine_is_silent(self, data: st.DataObject, on: bool) -> None:
        (self.pool.lost.add if on else self.pool.lost.discard)(self.pick(data))

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def machine_without_functions_ends(self, data: st.DataObject) -> None:
        name = self.pick(data)
        row = self.do(self.pool.row())
        if name not in [place.machine for place in row.places] and name not in self.pool.reached:
            self.do(self.pool.world.store.write(lambda tx: tx.delete_machine(name)))
            self.pool.routed.pop(name)
            self.pool.lost.discard(name)

    @rule(spread=st.booleans())
    def deployed(self, spread: bool) -> None:
        self.do(self.pool.deploy(msgspec.structs.replace(PLAIN, spread=spread)))

    @rule()
    def all_is_carried_out(self) -> None:
        lost = {name: self.pool.routed.pop(name) for name in self.pool.lost if name in self.pool.routed}
        self.do(self.pool.settle())
        self.pool.routed |= lost

    @rule()
    def server_looks(self) -> None:
        self.do(self.pool.decide())

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def node_carries_out(self, data: st.DataObject) -> None:
        name = self.pick(data)
        if name not in self.pool.lost:
            self.do(self.pool.node(name))

    @rule()
    def gateway_carries_out(self) -> None:
        self.do(self.pool.home())

    @invariant()
    def whoever_is_asked_serves(self) -> None:
        for machine in self.pool.reached:
            assert self.pool.routed[machine].shares, machine
        self.served |= bool(self.pool.reached)
        if self.served:
            assert self.pool.reached, "it was reached, and is not any more"


TestHandover = Handover.TestCase
TestHandover.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
