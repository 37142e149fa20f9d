"""Do both stores keep what `steelyard.store` promises? One suite for both, and a state machine that compares them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from steelyard.errors import Conflict, EdgeFailed, SteelyardError
from steelyard.model.batch import ArrayPlace
from steelyard.model.built_image import Image, ImageSpec, ImageState, PythonBase
from steelyard.model.call import CallState
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, ImageId, JobId, MachineId, ProjectName
from steelyard.model.job import JobState, Owner
from steelyard.model.pool import NodeShape, Pilot, PilotState, Pool, PoolSpec, make_pilot_id
from steelyard.model.site import Account, Quota, Schedule
from steelyard.model.volume import Volume
from steelyard.store import Tx
from steelyard.store.memory import MemoryStore
from steelyard.store.sql import open_store
from stores import (
    NAME,
    OWNER,
    Fn,
    Held,
    make_answer,
    make_call,
    make_coldstart,
    make_event,
    make_function,
    make_job,
    make_key,
    make_machine,
    make_revision,
    make_secret,
)


def test_objects_come_back_as_they_were_put(held: Held) -> None:
    job, function, key, machine, answer = make_job(), make_function(), make_key(), make_machine(), make_answer()

    def put(tx: Tx) -> None:
        tx.put_job(job)
        tx.put_job(make_job(generation=2))
        tx.put_function(function)
        tx.put_key(key)
        tx.put_machine(machine)
        tx.put_answer(answer)
        tx.add_event(make_event(1))
        tx.add_coldstarts([make_coldstart(1)])

    held.write(put)
    assert held.read(lambda tx: tx.job(job.id)) == make_job(generation=2)
    assert held.read(lambda tx: tx.function(DEFAULT_PROJECT, NAME)) == function
    assert held.read(lambda tx: tx.keys()) == [key]
    assert held.read(lambda tx: tx.machine()) == machine
    assert held.read(lambda tx: tx.answer(DEFAULT_PROJECT, "x")) == answer
    assert held.read(lambda tx: tx.events()) == [make_event(1)]
    assert held.read(lambda tx: tx.coldstarts()) == [make_coldstart(1)]


def test_what_is_not_there_is_none_or_empty(held: Held) -> None:
    def look(tx: Tx) -> list[object]:
        return [
            tx.job(JobId("a")),
            tx.function(DEFAULT_PROJECT, NAME),
            tx.answer(DEFAULT_PROJECT, "x"),
            tx.machine(),
            tx.jobs(),
            tx.functions(),
            tx.keys(),
            tx.secrets(),
            tx.events(),
            tx.coldstarts(),
            tx.counter("epoch"),
        ]

    assert held.read(look) == [None, None, None, None, [], [], [], [], [], [], 0]


def test_secrets_come_back_as_they_were_put_and_go(held: Held) -> None:
    held.write(lambda tx: tx.put_secret(make_secret("a")))
    held.write(lambda tx: tx.put_secret(make_secret("b")))
    held.write(lambda tx: tx.put_secret(make_secret("a", 2)))
    assert held.read(lambda tx: tx.secrets()) == [make_secret("a", 2), make_secret("b")]
    assert held.read(lambda tx: tx.secret(DEFAULT_PROJECT, "b")) == make_secret("b")
    assert held.read(lambda tx: tx.secret(ProjectName("other"), "b")) is None
    assert held.write(lambda tx: tx.delete_secret(DEFAULT_PROJECT, "b"))
    assert not held.write(lambda tx: tx.delete_secret(DEFAULT_PROJECT, "b"))
    assert held.read(lambda tx: tx.secret(DEFAULT_PROJECT, "b")) is None


def test_a_generation_follows_exactly_the_stored_one(held: Held) -> None:
    for put, make in (
        ("put_job", make_job),
        ("put_function", make_function),
        ("put_key", make_key),
        ("put_secret", make_secret),
    ):
        for generation, allowed in ((0, False), (2, False), (1, True), (1, False), (3, False), (2, True), (2, False), (1, False)):
            thing = make(generation=generation)
            if allowed:
                held.write(lambda tx, put=put, thing=thing: getattr(tx, put)(thing))
            else:
                with pytest.raises(Conflict):
                    held.write(lambda tx, put=put, thing=thing: getattr(tx, put)(thing))
    assert held.read(lambda tx: tx.job(JobId("a"))) == make_job(generation=2)


def test_a_conflict_may_be_caught_and_the_transaction_goes_on(held: Held) -> None:
    def put(tx: Tx) -> str:
        tx.put_job(make_job("a"))
        with pytest.raises(Conflict):
            tx.put_job(make_job("a"))
        tx.put_job(make_job("b"))
        return "done"

    assert held.write(put) == "done"
    assert [job.id for job in held.read(lambda tx: tx.jobs())] == ["a", "b"]


def test_a_function_that_raises_leaves_nothing_and_the_others_of_its_batch_stay(held: Held) -> None:
    def fail(tx: Tx) -> None:
        tx.put_job(make_job("bad"))
        tx.bump("job")
        tx.add_event(make_event(1))
        raise ZeroDivisionError

    def put(name: str) -> Fn:
        return lambda tx: tx.put_job(make_job(name)) or tx.bump("job")

    outcomes = held.write_together([put("a"), fail, put("b"), fail, put("c")])
    assert [type(outcome) if isinstance(outcome, Exception) else outcome for outcome in outcomes] == [
        1,
        ZeroDivisionError,
        2,
        ZeroDivisionError,
        3,
    ]
    assert [job.id for job in held.read(lambda tx: tx.jobs())] == ["a", "b", "c"]
    assert held.read(lambda tx: tx.events()) == []


def test_an_undone_delete_keeps_the_order(held: Held) -> None:
    def fail(tx: Tx) -> None:
        assert tx.delete_function(DEFAULT_PROJECT, FunctionName("a"))
        tx.put_machine(make_machine("m1"))
        raise ZeroDivisionError

    held.write(lambda tx: [tx.put_function(make_function(name)) for name in "ab"])
    held.write(lambda tx: [tx.put_machine(make_machine(name)) for name in ("m1", "m2")])
    with pytest.raises(ZeroDivisionError):
        held.write(fail)
    assert [function.name for function in held.read(lambda tx: tx.functions())] == ["a", "b"]
    assert held.read(lambda tx: tx.machine()).id == "m2"


def test_writes_take_effect_in_the_order_they_were_asked_for(held: Held) -> None:
    fns = [lambda tx: tx.bump("job")] * 200
    assert held.write_together(fns) == list(range(1, 201))


def test_a_read_sees_every_write_that_was_answered(held: Held) -> None:
    for number in range(1, 50):
        held.write(lambda tx: tx.bump("job"))
        assert held.read(lambda tx: tx.counter("job")) == number


def test_a_read_sees_one_moment_while_writes_go_on(held: Held) -> None:
    """Two counters that always move together are never seen apart."""

    async def race() -> set[int]:
        seen: set[int] = set()
        for _ in range(60):
            writes = [held.store.write(lambda tx: (tx.bump("a"), tx.bump("b"))) for _ in range(5)]
            reads = [held.store.read(lambda tx: (tx.counter("a"), tx.counter("b"))) for _ in range(5)]
            for pair in (await asyncio.gather(*writes, *reads))[5:]:
                assert pair[0] == pair[1]
                seen.add(pair[0])
        return seen

    assert len(held.runner.run(race())) > 1


def test_a_read_goes_on_seeing_its_moment_while_a_write_is_committed(tmp_path: Path) -> None:
    """Only the store with threads can be caught in the middle of a read."""
    held = Held(open_store(tmp_path / "steelyard.db"))
    looked, written = threading.Event(), threading.Event()

    def look_twice(tx: Tx) -> tuple[int, int]:
        before = tx.counter("a")
        looked.set()
        assert written.wait(10)
        return before, tx.counter("a")

    async def race() -> tuple[int, int]:
        reading = asyncio.ensure_future(held.store.read(look_twice))
        assert await asyncio.to_thread(looked.wait, 10)
        assert await held.store.write(lambda tx: tx.bump("a")) == 1
        written.set()
        return await reading

    try:
        assert held.runner.run(race()) == (0, 0)
        assert held.read(lambda tx: tx.counter("a")) == 1
    finally:
        held.close()


def test_a_read_may_not_write(held: Held) -> None:
    for fn in (
        lambda tx: tx.put_job(make_job()),
        lambda tx: tx.bump("job"),
        lambda tx: tx.add_event(make_event(1)),
        lambda tx: tx.delete_key(DEFAULT_PROJECT, "k"),
        lambda tx: tx.delete_secret(DEFAULT_PROJECT, "s"),
    ):
        with pytest.raises(EdgeFailed) as caught:
            held.read(fn)
        assert caught.value.code == "store-failed"
    assert held.read(lambda tx: tx.jobs()) == []


def test_jobs_by_state_and_newest_first_cut(held: Held) -> None:
    states = [JobState.QUEUED, JobState.RUNNING, JobState.QUEUED, JobState.SUCCEEDED]
    held.write(lambda tx: [tx.put_job(make_job(str(n), state=state)) for n, state in enumerate(states)])

    def ids(*args: object) -> list[str]:
        return [job.id for job in held.read(lambda tx: tx.jobs(*args))]

    assert ids() == ["0", "1", "2", "3"]
    assert ids(None, 2) == ["2", "3"]
    assert ids({JobState.QUEUED, JobState.SUCCEEDED}) == ["0", "2", "3"]
    assert ids({JobState.QUEUED, JobState.SUCCEEDED}, 2) == ["2", "3"]
    assert ids(set()) == ids(None, 0) == []
    moved = replace(make_job("0"), generation=2, state=JobState.RUNNING)
    held.write(lambda tx: tx.put_job(moved))
    assert ids([JobState.RUNNING]) == ["0", "1"]


def test_what_changed_since_a_look_comes_once_and_as_it_is_now(held: Held) -> None:
    held.write(lambda tx: [tx.put_job(make_job(name)) for name in "abc"])
    held.write(lambda tx: tx.put_job(make_job("c", 2, JobState.FAILED)))
    seen, alive = held.read(lambda tx: tx.jobs_changed(0))
    assert [job.id for job in alive] == ["a", "b"], "the first look is for what is alive"
    assert held.read(lambda tx: tx.jobs_changed(seen)) == (seen, [])
    held.write(
        lambda tx: [tx.put_job(make_job("b", 2)), tx.put_job(make_job("b", 3, JobState.FAILED)), tx.put_job(make_job("d"))]
    )
    newest, changed = held.read(lambda tx: tx.jobs_changed(seen))
    assert newest > seen
    assert sorted((job.id, job.generation, job.state.value) for job in changed) == [("b", 3, "FAILED"), ("d", 1, "QUEUED")]


def test_an_array_is_found_by_its_id(held: Held) -> None:
    place = ArrayPlace(JobId("j"), 0, 2, 0, 4, 4)
    for index in (0, 4):
        job = replace(make_job(f"j_{index}"), array=replace(place, index=index))
        held.write(lambda tx, job=job: tx.put_job(job))
    held.write(lambda tx: tx.put_job(make_job("j")))
    assert [job.id for job in held.read(lambda tx: tx.jobs_of_array(JobId("j")))] == ["j_0", "j_4"]
    assert held.read(lambda tx: tx.jobs_of_array(JobId("k"))) == []


def test_an_array_has_one_head_in_a_list_and_does_not_push_others_out_of_it(held: Held) -> None:
    place = ArrayPlace(JobId("j"), 0, 4, 0, 3)
    states = [JobState.SUCCEEDED, JobState.RUNNING, JobState.QUEUED, JobState.QUEUED]
    held.write(lambda tx: tx.put_job(make_job("a")))
    for index, state in enumerate(states):
        job = replace(make_job(f"j_{index}", state=state), array=replace(place, index=index))
        held.write(lambda tx, job=job: tx.put_job(job))
    held.write(lambda tx: tx.put_job(make_job("b", state=JobState.RUNNING)))

    def ids(states: set[JobState] | None, limit: int) -> list[str]:
        return [job.id for job in held.read(lambda tx: tx.job_heads(states, limit))]

    assert ids(None, 10) == ["a", "j_3", "b"]
    assert ids(None, 2) == ["j_3", "b"]
    assert ids({JobState.RUNNING}, 10) == ["j_1", "b"]
    assert ids({JobState.QUEUED}, 10) == ["a", "j_3"]
    assert ids({JobState.FAILED}, 10) == ids(None, 0) == []


def test_accounts_and_quotas_come_back_as_they_were_put(held: Held) -> None:
    account = Account("lab/ann", DEFAULT_PROJECT, OWNER, 1, shares=2.5, usage=7.25, usage_at=9)
    quota = Quota(DEFAULT_PROJECT, OWNER, 1, cores=4, running_jobs=2)
    held.write(lambda tx: (tx.put_account(account), tx.put_quota(quota)))
    held.write(lambda tx: tx.put_account(replace(account, generation=2, usage=8.0)))
    assert held.read(lambda tx: tx.account("lab/ann")) == replace(account, generation=2, usage=8.0)
    assert held.read(lambda tx: (len(tx.accounts()), tx.account("lab"), tx.quotas())) == (1, None, [quota])
    assert held.write(lambda tx: tx.delete_quota(DEFAULT_PROJECT)) is True
    assert held.read(lambda tx: tx.quotas()) == []


def test_schedules_come_back_as_they_were_put(held: Held) -> None:
    schedule = Schedule(
        "nightly", DEFAULT_PROJECT, OWNER, 1, "0 3 * * *", make_job().spec, timezone="Europe/Berlin", done_until=9
    )
    other = replace(schedule, project=ProjectName("other"))
    held.write(lambda tx: (tx.put_schedule(schedule), tx.put_schedule(other)))
    moved = replace(schedule, generation=2, done_until=10, last_job="j-000001", paused=True)
    held.write(lambda tx: tx.put_schedule(moved))
    with pytest.raises(Conflict):
        held.write(lambda tx: tx.put_schedule(moved))
    assert held.read(lambda tx: tx.schedule(DEFAULT_PROJECT, "nightly")) == moved
    assert held.read(lambda tx: (tx.schedule(DEFAULT_PROJECT, "none"), tx.schedules())) == (None, [moved, other])
    assert held.write(lambda tx: [tx.delete_schedule(DEFAULT_PROJECT, "nightly") for _ in range(2)]) == [True, False]
    assert held.read(lambda tx: tx.schedules()) == [other]


def test_coldstarts_that_are_there_already_are_skipped(held: Held) -> None:
    changed = replace(make_coldstart(1), wall_ms=99.0)
    held.write(lambda tx: tx.add_coldstarts([make_coldstart(1), make_coldstart(2, "other")]))
    held.write(lambda tx: tx.add_coldstarts([changed, make_coldstart(3), make_coldstart(3)]))
    held.write(lambda tx: tx.add_coldstarts([]))
    assert held.read(lambda tx: tx.coldstarts()) == [make_coldstart(1), make_coldstart(2, "other"), make_coldstart(3)]
    assert held.read(lambda tx: tx.coldstarts(NAME, 1)) == [make_coldstart(3)]


def test_an_answer_is_never_replaced_and_is_forgotten_by_age(held: Held) -> None:
    held.write(lambda tx: [tx.put_answer(make_answer("x", 10)), tx.put_answer(make_answer("y", 20))])
    held.write(lambda tx: tx.put_answer(make_answer("x", 10, "other")))
    with pytest.raises(Conflict):
        held.write(lambda tx: tx.put_answer(make_answer("x", 30)))
    held.write(lambda tx: tx.forget_answers(20))
    assert held.read(lambda tx: tx.answer(DEFAULT_PROJECT, "x")) is None
    assert held.read(lambda tx: tx.answer(DEFAULT_PROJECT, "y")) == make_answer("y", 20)


def test_events_by_kind_and_subject(held: Held) -> None:
    events = [make_event(1, "job", "a"), make_event(2, "job", "b"), make_event(3, "key", "a")]
    held.write(lambda tx: [tx.add_event(event) for event in events])
    assert held.read(lambda tx: tx.events()) == events
    assert held.read(lambda tx: tx.events("job")) == events[:2]
    assert held.read(lambda tx: tx.events(subject="a")) == [events[0], events[2]]
    assert held.read(lambda tx: tx.events("job", limit=1)) == [events[1]]


def test_the_machine_that_said_hello_last(held: Held) -> None:
    for name, boot in (("a", "1"), ("b", "1"), ("a", "2")):
        held.write(lambda tx, name=name, boot=boot: tx.put_machine(make_machine(name, boot)))
    assert held.read(lambda tx: tx.machine()) == make_machine("a", "2")


def test_machines_of_pools_stand_beside_the_homes_own(held: Held) -> None:
    said = (("a", ""), ("p2", "big"), ("p1", "big"), ("p3", "any"), ("b", ""), ("p2", "big"))
    held.write(lambda tx: [tx.put_machine(make_machine(name, pool=pool)) for name, pool in said])
    assert held.read(lambda tx: tx.machine()).id == "b"
    assert [machine.id for machine in held.read(lambda tx: tx.machines())] == ["b", "p3", "p1", "p2"]
    assert held.read(lambda tx: tx.machine(MachineId("p1"))) == make_machine("p1", pool="big")
    assert held.read(lambda tx: tx.machine(MachineId("a"))) is None
    assert held.write(lambda tx: [tx.delete_machine(MachineId("p1")) for _ in range(2)]) == [True, False]
    assert held.read(lambda tx: tx.machine(MachineId("p1"))) is None


def test_a_closed_store_says_so(held: Held) -> None:
    held.runner.run(held.store.close())
    for ask in (held.read, held.write):
        with pytest.raises(EdgeFailed, match="closed"):
            ask(lambda tx: tx.jobs())


def test_a_caller_that_gives_up_harms_nobody(held: Held) -> None:
    async def give_up() -> list[Any]:
        asked = [asyncio.ensure_future(held.store.write(lambda tx: tx.bump("job"))) for _ in range(20)]
        await asyncio.sleep(0)
        for task in asked[::2]:
            task.cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    outcomes = held.runner.run(give_up())
    values = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert len(values) >= 10
    assert values == sorted(set(values))
    assert held.write(lambda tx: tx.bump("job")) > values[-1]


# Both stores side by side


def _outcome(ask: Callable[[Fn], Any], fn: Fn) -> object:
    try:
        return ask(fn)
    except SteelyardError as err:
        return type(err), err.public
    except ZeroDivisionError as err:
        return type(err)


def _content(tx: Tx) -> list[object]:
    """Everything that can be seen of a store."""
    names = ["a", "b", "c"]
    return [
        tx.jobs(),
        *(tx.jobs({state}) for state in _STATES),
        tx.jobs(_STATES[:2], 2),
        *(tx.job(JobId(name)) for name in names),
        tx.functions(),
        *(tx.function(DEFAULT_PROJECT, FunctionName(name)) for name in names),
        *(tx.revisions(DEFAULT_PROJECT, FunctionName(name)) for name in names),
        tx.revision(DEFAULT_PROJECT, FunctionName("a"), 2),
        tx.keys(),
        tx.secrets(),
        tx.calls(),
        tx.calls(FunctionName("a"), {CallState.SUCCEEDED}, 2),
        [call.id for call in tx.calls_changed(0)[1]],
        tx.coldstarts(),
        tx.coldstarts(FunctionName("a"), 2),
        tx.events(),
        tx.events("job", "a", 2),
        *(tx.answer(DEFAULT_PROJECT, name) for name in names),
        *(tx.machine(MachineId(name)) for name in ("", *names)),
        tx.machines(),
        *(tx.counter(name) for name in names),
    ]


_STATES = [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
_names = st.sampled_from(["a", "b", "c"])
_numbers = st.lists(st.integers(0, 9))
#: mostly what is accepted: 1 for something new, then the next
_generations = st.sampled_from([1, 1, 1, 1, 2, 2, 3])
_changes: st.SearchStrategy[Fn] = st.one_of(
    st.builds(lambda n, g, s: lambda tx: tx.put_job(make_job(n, g, s)), _names, _generations, st.sampled_from(_STATES)),
    st.builds(lambda n, g: lambda tx: tx.put_function(make_function(n, g)), _names, _generations),
    st.builds(lambda n: lambda tx: tx.delete_function(DEFAULT_PROJECT, FunctionName(n)), _names),
    st.builds(lambda n, g, r: lambda tx: tx.put_revision(make_revision(n, r, g)), _names, _generations, st.integers(1, 4)),
    st.builds(lambda n, keep: lambda tx: tx.forget_revisions(DEFAULT_PROJECT, FunctionName(n), keep), _names, st.integers(0, 3)),
    st.builds(lambda n, g: lambda tx: tx.put_key(make_key(n, g)), _names, _generations),
    st.builds(lambda n, g, e: lambda tx: tx.put_call(make_call(n, g, e, n)), _names, _generations, st.none() | st.integers(0, 9)),
    st.builds(lambda at, most: lambda tx: tx.forget_calls(at, most), st.integers(0, 9), st.integers(0, 3)),
    st.builds(lambda n: lambda tx: tx.delete_key(DEFAULT_PROJECT, n), _names),
    st.builds(lambda n, g: lambda tx: tx.put_secret(make_secret(n, g)), _names, _generations),
    st.builds(lambda n: lambda tx: tx.delete_secret(DEFAULT_PROJECT, n), _names),
    st.builds(
        lambda ns, f: lambda tx: tx.add_coldstarts([make_coldstart(n, f) for n in ns]), st.lists(st.integers(0, 9)), _names
    ),
    st.builds(lambda n, at: lambda tx: tx.put_answer(make_answer(n, at)), _names, st.integers(0, 5)),
    st.builds(lambda at: lambda tx: tx.forget_answers(at), st.integers(0, 6)),
    st.builds(lambda n, k: lambda tx: tx.add_event(make_event(1, k, n)), _names, st.sampled_from(["job", "key", "call"])),
    st.builds(lambda n, b, p: lambda tx: tx.put_machine(make_machine(n, b, p)), _names, _names, st.sampled_from(["", "p", "q"])),
    st.builds(lambda n: lambda tx: tx.delete_machine(MachineId(n)), _names),
    st.builds(lambda n: lambda tx: tx.bump(n), _names),
)


def _chain(changes: Sequence[Fn], *, fails: bool) -> Fn:
    """Several changes in one transaction, and perhaps an error after all of them."""

    def fn(tx: Tx) -> list[object]:
        answers = [change(tx) for change in changes]
        return [1 // 0] if fails else answers

    return fn


_transactions = st.builds(
    lambda changes, fails: _chain(changes, fails=fails), st.lists(_changes, min_size=1, max_size=4), st.booleans()
)


class BothStores(RuleBasedStateMachine):
    """Whatever is done to one is done to the other; they must never be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="steelyard-store-"))
        self.sql = Held(open_store(self.folder / "steelyard.db"))
        self.memory = Held(MemoryStore())

    @rule(fn=_changes)
    def write(self, fn: Fn) -> None:
        assert _outcome(self.sql.write, fn) == _outcome(self.memory.write, fn)

    @rule(fns=st.lists(_transactions, min_size=2, max_size=6))
    def write_together(self, fns: Sequence[Fn]) -> None:
        both = [
            [(type(found), str(found)) if isinstance(found, Exception) else found for found in held.write_together(fns)]
            for held in (self.sql, self.memory)
        ]
        assert both[0] == both[1]

    @rule()
    def reopen(self) -> None:
        self.sql.close()
        self.sql = Held(open_store(self.folder / "steelyard.db"))

    @invariant()
    def same_content(self) -> None:
        assert self.sql.read(_content) == self.memory.read(_content)

    def teardown(self) -> None:
        self.sql.close()
        self.memory.close()
        shutil.rmtree(self.folder)


BothStores.TestCase.settings = settings(max_examples=30, stateful_step_count=20, suppress_health_check=list(HealthCheck))
TestBothStores = BothStores.TestCase


def test_pools_come_back_as_they_were_put(held: Held) -> None:
    pool = Pool(PoolSpec("train", 1, 4, NodeShape(cpus=8), partition="gpu"), DEFAULT_PROJECT, OWNER, 1, 5)
    held.write(lambda tx: tx.put_pool(pool))
    going = replace(pool, generation=2, deleting=True, complaint="no")
    held.write(lambda tx: tx.put_pool(going))
    with pytest.raises(Conflict):
        held.write(lambda tx: tx.put_pool(going))
    assert held.read(lambda tx: (tx.pools(), tx.pool("train"), tx.pool("none"))) == ([going], going, None)
    assert held.write(lambda tx: [tx.delete_pool("train") for _ in range(2)]) == [True, False]


def test_pilots_that_have_ended_are_kept_for_those_who_ask_for_them_until_they_are_forgotten(held: Held) -> None:
    first, second = (
        Pilot(make_pilot_id("train", number), "train", DEFAULT_PROJECT, OWNER, 1, PilotState.SUBMITTED, 5) for number in (1, 2)
    )
    held.write(lambda tx: (tx.put_pilot(first), tx.put_pilot(second)))
    ended = replace(first, generation=2, state=PilotState.ENDED, ended_at=9)
    held.write(lambda tx: tx.put_pilot(ended))
    assert held.read(lambda tx: (tx.pilots(), tx.pilots(ended=True), tx.pilot(first.id))) == ([second], [ended, second], ended)
    held.write(lambda tx: tx.forget_pilots(9))
    assert held.read(lambda tx: len(tx.pilots(ended=True))) == 2
    held.write(lambda tx: tx.forget_pilots(10))
    assert held.read(lambda tx: (tx.pilots(ended=True), tx.pilot(first.id))) == ([second], None)


def test_volumes_come_back_as_they_were_put(held: Held) -> None:
    volume = Volume("data", DEFAULT_PROJECT, OWNER, 1, "/srv/volumes/data", 5)
    other = replace(volume, project=ProjectName("other"))
    held.write(lambda tx: (tx.put_volume(volume), tx.put_volume(other)))
    going = replace(volume, generation=2, deleting=True)
    held.write(lambda tx: tx.put_volume(going))
    with pytest.raises(Conflict):
        held.write(lambda tx: tx.put_volume(going))
    assert held.read(lambda tx: (tx.volume(DEFAULT_PROJECT, "data"), tx.volume(DEFAULT_PROJECT, "none"))) == (going, None)
    assert held.write(lambda tx: [tx.delete_volume(DEFAULT_PROJECT, "data") for _ in range(2)]) == [True, False]
    assert held.read(lambda tx: tx.volumes()) == [other]


def test_images_of_two_owners_are_two(held: Held) -> None:
    image = Image(ImageId("a" * 64), DEFAULT_PROJECT, OWNER, 1, ImageSpec(PythonBase("3.11")), JobId("j-000001"), 5, 5)
    other = replace(image, owner=Owner("bob", OWNER.uid + 1))
    held.write(lambda tx: (tx.put_image(image), tx.put_image(other)))
    ready = replace(image, generation=2, state=ImageState.READY, python="3.11.2")
    held.write(lambda tx: tx.put_image(ready))
    with pytest.raises(Conflict):
        held.write(lambda tx: tx.put_image(ready))
    assert held.read(lambda tx: (tx.image(OWNER.uid, image.id), tx.image(OWNER.uid, ImageId("b" * 64)))) == (ready, None)
    assert held.write(lambda tx: [tx.delete_image(OWNER.uid, image.id) for _ in range(2)]) == [True, False]
    assert held.read(lambda tx: tx.images()) == [other]
