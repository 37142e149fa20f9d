"""Which calls are asked now (tables), and is none lost whatever fails and whoever is killed (a model with faults)?"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from steelyard.clock import VirtualClock
from steelyard.control import CALLS
from steelyard.control.calls import CHANGES_MAX, FLYING_MAX, CallsLoop, Landed, Lane, Seen, carry_out, commit_call, decide
from steelyard.control.kept_calls import BATCH, KeptCallsLoop
from steelyard.control.watch import Watch
from steelyard.errors import NoRoom
from steelyard.lifecycle.call import KEPT_US, Came, Outcome, cancel_call
from steelyard.model.call import Call, CallState
from steelyard.model.function import Function, FunctionSpec
from steelyard.model.ids import DEFAULT_PROJECT, CallId, FunctionName
from steelyard.model.job import Owner
from steelyard.scaling.pace import Pace
from steelyard.store.call_files import CallFiles
from steelyard.store.memory import MemoryStore
from stores import make_call

NOTHING = Seen((), {}, frozenset(), (), frozenset(), None)


def lane(name: str, count: int, limit: int | None = 8, **fields: object) -> Lane:
    calls = tuple(make_call(f"{name}{number}", function=name) for number in range(count))
    return replace(Lane(limit, Pace(), 0, calls), **fields)


def running(name: str, attempt: int = 1) -> Call:
    return replace(make_call(name), state=CallState.RUNNING, attempt=attempt)


@pytest.mark.parametrize(
    ("lanes", "started"),
    [
        ((lane("a", 3),), ["a0", "a1", "a2"]),
        ((lane("a", 3, limit=2),), ["a0", "a1"]),
        ((lane("a", 3, limit=2, flying=1),), ["a0"]),
        ((lane("a", 3, limit=2, flying=5),), []),
        ((lane("a", 3, pace=Pace(1)),), ["a0"]),
        ((lane("a", 3, pace=Pace(1, 1_001)),), []),
        ((lane("a", 3, pace=Pace(2, 1_000)),), ["a0", "a1"]),
        ((lane("a", 4), lane("b", 2)), ["a0", "b0", "a1", "b1", "a2", "a3"]),
    ],
)
def test_the_oldest_of_each_function_start_in_turns_as_far_as_it_has_room(lanes: tuple[Lane, ...], started: list[str]) -> None:
    actions = decide(replace(NOTHING, lanes=lanes), 10, 1_000)
    assert list(actions.start) == started
    assert all(change.call.state is CallState.RUNNING for change in actions.changes)


def test_no_more_are_asked_at_a_time_than_the_server_can_hold() -> None:
    flying = frozenset(CallId(f"f{number}") for number in range(FLYING_MAX - 3))
    assert len(decide(replace(NOTHING, lanes=(lane("a", 9, 100),), flying=flying), 0, 0).start) == 3


def test_calls_of_a_function_that_is_gone_fail_and_those_that_are_too_old_expire() -> None:
    gone = decide(replace(NOTHING, lanes=(lane("a", 2, limit=None),)), 10, 0)
    assert [change.call.state for change in gone.changes] == [CallState.FAILED] * 2 and gone.start == ()
    old = decide(replace(NOTHING, lanes=(lane("a", 2),)), KEPT_US + 5, 0)
    assert [change.call.state for change in old.changes] == [CallState.EXPIRED] * 2 and old.start == ()


def test_what_landed_is_settled_and_a_late_result_of_an_earlier_attempt_is_nobodys() -> None:
    rows = {CallId("a"): running("a"), CallId("b"): running("b", attempt=2), CallId("c"): running("c")}
    landed = (
        *(Landed(running(name), Outcome(Came.ANSWERED, 200), 0.5) for name in "ab"),
        Landed(running("z"), Outcome(Came.ANSWERED, 200), 0.5),
    )
    actions = decide(Seen((), rows, frozenset({CallId("b"), CallId("y")}), landed, frozenset(map(CallId, "abyz")), None), 10, 0)
    assert [(change.call.id, change.call.state) for change in actions.changes] == [
        ("a", CallState.SUCCEEDED),
        ("c", CallState.QUEUED),
    ], "c runs by the store, and nobody asks it"
    assert actions.abandon == ("y",), "somebody cancelled it"


def test_it_looks_again_when_the_first_pause_is_over() -> None:
    assert decide(NOTHING, 10, 0).wait_s is None
    assert decide(replace(NOTHING, next_wake=2_000_010), 10, 0).wait_s == 2
    paused = (lane("a", 1, pace=Pace(1, 500_000_000)), lane("b", 1))
    assert decide(replace(NOTHING, lanes=paused, next_wake=2_000_010), 10, 0).wait_s == 0.5


# the loop, over the in-memory store


class FakeCarrier:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Call] = []
        self.waiting: dict[CallId, asyncio.Future[Outcome]] = {}
        self.abandoned: list[CallId] = []

    async def carry(self, call: Call, key: str, input: Path, result: Path) -> Outcome:
        assert key == "key of ann" and input.name == f"{call.id}.input" and result.name == f"{call.id}.result"
        self.asked.append(call)
        self.waiting[call.id] = asyncio.get_running_loop().create_future()
        try:
            return await self.waiting[call.id]
        except asyncio.CancelledError:
            self.abandoned.append(call.id)
            raise
        finally:
            del self.waiting[call.id]

    def answer(self, call: str, outcome: Outcome) -> None:
        self.waiting[CallId(call)].set_result(outcome)


class BrokenStore(MemoryStore):
    """Fails as many writes as it is told to, as a full disk does."""

    failing = 0

    async def write(self, fn: object) -> object:  # type: ignore[override]
        if self.failing:
            self.failing -= 1
            raise NoRoom("full", code="disk-full")
        return await super().write(fn)  # type: ignore[arg-type]


class World:
    def __init__(self, folder: Path, *functions: str, concurrency: int = 2) -> None:
        self.store, self.clock, self.carrier = BrokenStore(), VirtualClock(), FakeCarrier()
        self.files, self.watch = CallFiles(folder), Watch()
        self.functions, self.concurrency = functions, concurrency
        self.loop = self.restart()

    def restart(self) -> CallsLoop:
        self.pokes: list[str] = []
        self.loop = CallsLoop(
            self.store, self.clock, self.watch, self.files, self.carrier, lambda owner: f"key of {owner.user}", lambda: 1.0
        )
        self.loop.attach(lambda *names: self.pokes.extend(names))
        return self.loop

    async def deploy(self) -> None:
        spec = FunctionSpec(concurrency=self.concurrency)
        rows = [Function(FunctionName(name), DEFAULT_PROJECT, Owner("ann", 1000), 1, 1, spec, 0) for name in self.functions]
        await self.store.write(lambda tx: [tx.put_function(row) for row in rows])

    async def call(self, name: str, function: str, **fields: object) -> None:
        row = replace(make_call(name, function=function), submitted_at=self.clock.now_us(), **fields)
        await self.store.write(lambda tx: tx.put_call(row))

    async def settle(self) -> None:
        """Until nobody has anything to do any more."""
        again = True
        while again:
            again = CALLS in await self.loop.activate()
            for _ in range(5):
                await asyncio.sleep(0)
            again = again or bool(self.pokes)
            self.pokes.clear()

    async def states(self) -> dict[str, str]:
        return {call.id: call.state.value for call in await self.store.read(lambda tx: tx.calls())}


def run(folder: Path, story: object, *functions: str, **fields: int) -> None:
    async def main() -> None:
        world = World(folder, *functions, **fields)
        await world.deploy()
        await story(world)  # type: ignore[operator]
        await world.loop.close()

    asyncio.run(main())


def test_calls_go_by_age_within_the_functions_bound_and_free_places_are_filled(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for name in ("a1", "a2", "a3"):
            await world.call(name, "a")
            world.clock.advance(1)
        await world.settle()
        assert [call.id for call in world.carrier.asked] == ["a1", "a2"]
        with world.watch.subscribe("call/a1") as news:
            world.carrier.answer("a1", Outcome(Came.ANSWERED, 200, "x/y", 3))
            await world.settle()
            assert news.is_set()
        assert await world.states() == {"a1": "SUCCEEDED", "a2": "RUNNING", "a3": "RUNNING"}

    run(tmp_path, story, "a")


def test_a_busy_function_gets_one_call_after_a_pause_and_then_more_while_another_goes_on(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for name in ("a1", "a2", "a3", "b1"):
            await world.call(name, name[0])
        await world.settle()
        for name in ("a1", "a2"):
            world.carrier.answer(name, Outcome(Came.ANSWERED, 429))
        world.carrier.answer("b1", Outcome(Came.ANSWERED, 200))
        await world.settle()
        assert world.carrier.waiting == {} and world.loop.tick_s == pytest.approx(0.25)
        world.clock.advance(world.loop.tick_s)
        await world.settle()
        assert len(world.carrier.waiting) == 1, "one asks alone"
        world.carrier.answer(next(iter(world.carrier.waiting)), Outcome(Came.ANSWERED, 200))
        await world.settle()
        assert len(world.carrier.waiting) == 2

    run(tmp_path, story, "a", "b")


def test_an_outcome_that_could_not_be_stored_is_stored_later_and_not_asked_for_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.call("a1", "a")
        await world.settle()
        world.carrier.answer("a1", Outcome(Came.ANSWERED, 200))
        await asyncio.sleep(0)
        world.store.failing = 2
        for _ in range(2):
            with pytest.raises(NoRoom):
                await world.loop.activate()
        await world.settle()
        assert await world.states() == {"a1": "SUCCEEDED"} and len(world.carrier.asked) == 1

    run(tmp_path, story, "a")


def test_what_somebody_changed_meanwhile_is_left_out_and_the_others_are_kept(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for name in ("a1", "a2"):
            await world.call(name, "a")
        actions = decide(replace(NOTHING, lanes=(lane("a", 0, ready=tuple(await calls(world))),)), 0, 0)
        moved = replace((await calls(world))[0], generation=2, state=CallState.CANCELLED)
        await world.store.write(lambda tx: tx.put_call(moved))
        report = await carry_out(world.store, actions, 0)
        assert [call.id for call in report.committed] == ["a2"]
        assert await world.states() == {"a1": "CANCELLED", "a2": "RUNNING"}

    async def calls(world: World) -> list[Call]:
        return await world.store.read(lambda tx: tx.calls())

    run(tmp_path, story, "a")


def test_a_call_that_was_cancelled_is_let_go_of(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.call("a1", "a")
        await world.settle()

        def cancel(tx: object) -> None:
            change = cancel_call(tx.call(CallId("a1")), 9)  # type: ignore[attr-defined]
            assert change is not None
            commit_call(tx, change, 9)  # type: ignore[arg-type]

        await world.store.write(cancel)
        await world.settle()
        assert world.carrier.abandoned == ["a1"] and await world.states() == {"a1": "CANCELLED"}

    run(tmp_path, story, "a")


def test_more_results_at_once_than_fit_into_one_transaction_are_all_kept(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for number in range(FLYING_MAX):
            await world.call(f"a{number}", "a")
        await world.settle()
        for name in list(world.carrier.waiting):
            world.carrier.answer(name, Outcome(Came.ANSWERED, 200))
        await world.settle()
        assert Counter((await world.states()).values()) == {"SUCCEEDED": FLYING_MAX}

    assert CHANGES_MAX <= FLYING_MAX
    run(tmp_path, story, "a", concurrency=2 * FLYING_MAX)


_outcomes = st.sampled_from(
    [
        Outcome(Came.ANSWERED, 200),
        Outcome(Came.ANSWERED, 429),
        Outcome(Came.ANSWERED, 503),
        Outcome(Came.ANSWERED, 502),
        Outcome(Came.UNSENT),
        Outcome(Came.CUT),
        Outcome(Came.UNKEPT),
    ]
)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from("ab")),
        st.tuples(st.just("answer"), _outcomes),
        st.tuples(st.sampled_from(["kill", "full", "wait", "look"]), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(_steps, st.integers(0, 1 << 30))
def test_whatever_fails_and_whoever_is_killed_every_call_ends_and_none_is_asked_twice_at_a_time(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object]], seed: int
) -> None:
    chance = random.Random(seed)

    async def story(world: World) -> None:
        made = 0
        for what, detail in steps:
            match what:
                case "call":
                    with contextlib.suppress(NoRoom):  # one that was refused is not made
                        await world.call(f"c{made}", str(detail), retries=1)
                        made += 1
                case "answer" if world.carrier.waiting:
                    world.carrier.answer(chance.choice(sorted(world.carrier.waiting)), detail)  # type: ignore[arg-type]
                    await asyncio.sleep(0)
                case "kill":
                    await world.loop.close()
                    world.restart()
                case "full":
                    world.store.failing = chance.randrange(3)
                case "wait":
                    world.clock.advance(chance.random() * 40)
                case _:
                    pass
            with contextlib.suppress(NoRoom):
                await world.settle()
            rows = await world.store.read(lambda tx: tx.calls())
            assert sum(call.state is CallState.RUNNING for call in rows if call.function == "a") <= world.concurrency
        world.store.failing = 0
        for _ in range(200):
            await world.settle()
            for call in list(world.carrier.waiting):
                world.carrier.answer(call, Outcome(Came.ANSWERED, 200))
            world.clock.advance(60)
        states = await world.states()
        assert len(states) == made and set(states.values()) <= {"SUCCEEDED", "FAILED"}
        per_attempt = Counter((call.id, call.attempt) for call in world.carrier.asked)
        assert set(per_attempt.values()) <= {1}, "an attempt is asked once at most"

    run(tmp_path_factory.mktemp("calls"), story, "a", "b")


def test_calls_are_kept_seven_days_and_go_with_their_results(tmp_path: Path) -> None:
    async def main() -> None:
        store, clock, files = MemoryStore(), VirtualClock(), CallFiles(tmp_path)
        for number in range(BATCH + 2):
            name = f"a{number}"
            await store.write(lambda tx, name=name: tx.put_call(make_call(name, ended_at=clock.now_us())))
            files.result(CallId(name)).write_bytes(b"")
        loop = KeptCallsLoop(store, clock, files)
        clock.advance(7 * 86_400)
        assert await loop.activate() == [] and len(list(tmp_path.iterdir())) == BATCH + 2
        clock.advance(1)
        assert await loop.activate() == [loop.name]
        assert await loop.activate() == []
        assert [path.stem for path in tmp_path.iterdir()] == [f"a{BATCH + 1}"], "what changed last stays until something else did"

    asyncio.run(main())


def test_files_that_no_row_names_are_swept_at_the_start(tmp_path: Path) -> None:
    files = CallFiles(tmp_path)
    for name in ("a.input", "a.result", "b.input", "b.result", "c.input", "c.result", ".a.input.00.part", "readme"):
        (tmp_path / name).write_bytes(b"")
    files.sweep({CallId("a")}, {CallId("a"), CallId("b")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.input", "a.result", "b.result", "readme"]
