"""Which durable calls are asked now, and what became of those that were? The only place that carries calls out.

A call is asked over the gateway like any other request. Its row says RUNNING before it is sent, and what came of it is committed
here too, many at a time: killed at any moment, a call is asked again or was not asked yet. One whose row says RUNNING while
nobody asks it was left by a server that is gone. The oldest go first, functions take turns, and one that is busy is left alone
for a while.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from steelyard.clock import Clock
from steelyard.control import CALLS
from steelyard.control.live_calls import LiveCalls
from steelyard.control.watch import Watch
from steelyard.lifecycle.call import (
    CallChange,
    Came,
    Outcome,
    drop_call,
    expire_call,
    is_refusal,
    orphan_call,
    settle_call,
    start_call,
)
from steelyard.model.call import Call, CallState
from steelyard.model.ids import DEFAULT_PROJECT, CallId, FunctionName
from steelyard.model.job import Owner
from steelyard.scaling.pace import Pace, quicken, slow
from steelyard.store import Event, Store, Tx
from steelyard.store.call_files import CallFiles

_log = logging.getLogger("steelyard.calls")

#: calls that are being asked at a time, of all functions together
FLYING_MAX = 512
#: changes committed in one transaction
CHANGES_MAX = 512
IDLE_S = 60.0


class Carrier(Protocol):
    """Asks a function (`gateway/carrier.py`)."""

    async def carry(self, call: Call, key: str, input: Path, result: Path) -> Outcome:
        """Send the input; the answer is in `result`, on disk, when this returns. Never raises but when it is cancelled, which
        closes the connection."""
        ...


class Landed(msgspec.Struct, frozen=True):
    """What came of asking, not committed yet."""

    call: Call
    outcome: Outcome
    jitter: float


class Lane(msgspec.Struct, frozen=True):
    """A function with calls that could be asked now."""

    #: None: there is no such function
    limit: int | None
    pace: Pace
    flying: int
    #: the oldest, as many as could be started at most
    ready: tuple[Call, ...]


class Seen(msgspec.Struct, frozen=True):
    lanes: tuple[Lane, ...]
    #: RUNNING, by the store
    running: Mapping[CallId, Call]
    #: being asked by this server
    flying: frozenset[CallId]
    #: at most `CHANGES_MAX`
    landed: tuple[Landed, ...]
    #: `flying`, and all that have landed
    held: frozenset[CallId]
    #: when the pause of the first call is over
    next_wake: int | None


class Actions(msgspec.Struct, frozen=True):
    changes: tuple[CallChange, ...]
    #: of those, what is asked once that is committed
    start: tuple[CallId, ...]
    #: close the connection: it was cancelled
    abandon: tuple[CallId, ...]
    #: to look again; None: nobody waits for anything but a poke
    wait_s: float | None


class Report(msgspec.Struct, frozen=True):
    committed: tuple[Call, ...] = ()


def decide(seen: Seen, now: int, mono_ns: int) -> Actions:
    """`now` in microseconds of the wall clock, `mono_ns` of the monotonic one."""
    changes: list[CallChange | None] = [
        settle_call(row, landed.outcome, now, landed.jitter)
        for landed in seen.landed
        # a late result of an earlier attempt is nobody's (R3)
        if (row := seen.running.get(landed.call.id)) is not None and row.attempt == landed.call.attempt
    ]
    changes += [orphan_call(call) for id_, call in seen.running.items() if id_ not in seen.held]
    for lane in seen.lanes:
        # what is oldest expires first
        changes += [drop_call(call, now) if lane.limit is None else expire_call(call, now) for call in lane.ready]
    settled = [change for change in changes if change is not None][:CHANGES_MAX]
    gone = {change.call.id for change in settled}
    starts = [
        change
        for call in _take_turns(seen.lanes, min(FLYING_MAX - len(seen.flying), CHANGES_MAX - len(settled)), mono_ns)
        if call.id not in gone and (change := start_call(call, now)) is not None
    ]
    waits = [(seen.next_wake - now) / 1e6] if seen.next_wake is not None else []
    waits += [(lane.pace.not_before_ns - mono_ns) / 1e9 for lane in seen.lanes if lane.pace.not_before_ns > mono_ns]
    return Actions(
        (*settled, *starts),
        tuple(change.call.id for change in starts),
        tuple(id_ for id_ in seen.flying if id_ not in seen.running),
        min(waits, default=None),
    )


def _take_turns(lanes: Sequence[Lane], count: int, mono_ns: int) -> list[Call]:
    """The oldest of each function that has room, one after the other, then the next of each."""
    room = [
        list(lane.ready[: max(0, min(lane.limit, lane.pace.window) - lane.flying)])
        for lane in lanes
        if lane.limit is not None and lane.pace.not_before_ns <= mono_ns
    ]
    rounds = max(map(len, room), default=0)
    return [calls[turn] for turn in range(rounds) for calls in room if turn < len(calls)][: max(0, count)]


async def carry_out(store: Store, actions: Actions, now: int) -> Report:
    """Changes of rows that moved on since they were read are left out: the next look sees them."""
    if not actions.changes:
        return Report()

    def commit(tx: Tx) -> Report:
        done: list[Call] = []
        for change in actions.changes:
            stored = tx.call(change.call.id)
            if stored is not None and stored.generation == change.call.generation - 1:
                commit_call(tx, change, now)
                done.append(change.call)
        return Report(tuple(done))

    return await store.write(commit)


class CallsLoop:
    name = CALLS

    def __init__(
        self,
        store: Store,
        clock: Clock,
        watch: Watch,
        files: CallFiles,
        carrier: Carrier,
        key: Callable[[Owner], str],
        random: Callable[[], float],
    ) -> None:
        self._store, self._clock, self._watch = store, clock, watch
        self._files, self._carrier, self._key, self._random = files, carrier, key, random
        self._live = LiveCalls()
        self._flying: dict[CallId, asyncio.Task[None]] = {}
        #: how many of each function
        self._flying_of: dict[FunctionName, int] = {}
        self._landed: dict[CallId, Landed] = {}
        self._paces: dict[FunctionName, Pace] = {}
        self._poke: Callable[..., None] = lambda *names: None
        self._wait_s: float | None = None

    def attach(self, poke: Callable[..., None]) -> None:
        """Whom to poke when an answer came."""
        self._poke = poke

    @property
    def waiting(self) -> int:
        return self._live.waiting

    @property
    def tick_s(self) -> float:
        return IDLE_S if self._wait_s is None else min(IDLE_S, max(0.001, self._wait_s))

    async def activate(self) -> Sequence[str]:
        # before the store is read: what ends in between still counts as asked
        flying, held = frozenset(self._flying), frozenset(self._flying) | frozenset(self._landed)
        landed = tuple(itertools.islice(self._landed.values(), CHANGES_MAX))
        seen = await self._load(flying, held, landed)
        actions = decide(seen, self._clock.now_us(), self._clock.mono_ns())
        self._wait_s = actions.wait_s
        report = await carry_out(self._store, actions, self._clock.now_us())
        for each in landed:
            self._landed.pop(each.call.id, None)
        for id_ in actions.abandon:
            if (task := self._flying.get(id_)) is not None:
                task.cancel()
        self._start([call for call in report.committed if call.id in set(actions.start)])
        ended = [call.id for call in report.committed if call.state.terminal]
        if ended:
            await asyncio.to_thread(self._forget_inputs, ended)
        for id_ in ended:
            self._watch.notify(f"call/{id_}")
        # what was queued again was none of those that wait when this look began
        queued = any(call.state is CallState.QUEUED for call in report.committed)
        return [CALLS] if queued or self._landed or len(actions.changes) >= CHANGES_MAX else []

    async def close(self) -> None:
        """Let go of what is asked: the next server asks again."""
        tasks = list(self._flying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, flying: frozenset[CallId], held: frozenset[CallId], landed: tuple[Landed, ...]) -> Seen:
        live = self._live
        live.wake(self._clock.now_us())
        since, names = live.change, set(live.functions)

        def read(tx: Tx) -> tuple[int, list[Call], dict[FunctionName, int | None]]:
            newest, changed = tx.calls_changed(since)
            asked = names | {call.function for call in changed if call.state is CallState.QUEUED}
            return newest, changed, {name: _limit(tx, name) for name in asked}

        newest, changed, limits = await self._store.read(read)
        live.apply(newest, changed)
        ready = live.functions
        self._paces = {name: pace for name, pace in self._paces.items() if name in ready or name in self._flying_of}
        lanes = tuple(self._make_lane(name, limits[name]) for name in ready)
        return Seen(lanes, dict(live.running), flying, landed, held, live.next_wake)

    def _make_lane(self, name: FunctionName, limit: int | None) -> Lane:
        pace, flying = self._paces.get(name, Pace()), self._flying_of.get(name, 0)
        room = CHANGES_MAX if limit is None else max(1, min(limit, pace.window) - flying)
        return Lane(limit, pace, flying, self._live.oldest(name, room))

    def _start(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self._flying_of[call.function] = self._flying_of.get(call.function, 0) + 1
            self._flying[call.id] = asyncio.create_task(self._fly(call), name=f"call-{call.id}")

    async def _fly(self, call: Call) -> None:
        files = self._files
        try:
            try:
                outcome = await self._carrier.carry(call, self._key(call.owner), files.input(call.id), files.result(call.id))
            except Exception as err:
                _log.exception("asking %s for call %s failed", call.function, call.id)
                outcome = Outcome(Came.CUT, detail=repr(err))
            self._landed[call.id] = Landed(call, outcome, self._random())
            self._keep_pace(call.function, outcome)
        finally:
            del self._flying[call.id]
            self._flying_of[call.function] -= 1
            if not self._flying_of[call.function]:
                del self._flying_of[call.function]
            self._poke(CALLS)

    def _keep_pace(self, function: FunctionName, outcome: Outcome) -> None:
        pace = self._paces.get(function, Pace())
        if is_refusal(outcome):
            self._paces[function] = slow(pace, self._clock.mono_ns(), self._random())
        elif pace != Pace():
            self._paces[function] = quicken(pace)

    def _forget_inputs(self, calls: Sequence[CallId]) -> None:
        for call in calls:
            self._files.forget_input(call)


def commit_call(tx: Tx, change: CallChange, now: int) -> None:
    tx.put_call(change.call)
    tx.add_event(make_call_event(change.call, change.event, now))


def make_call_event(call: Call, text: str, now: int) -> Event:
    return Event(at=now, project=call.project, owner=call.owner.user, kind="call", subject=call.id, text=text)


def _limit(tx: Tx, name: FunctionName) -> int | None:
    """How many requests its replicas hold."""
    function = tx.function(DEFAULT_PROJECT, name)
    return None if function is None else function.spec.replicas_max * function.spec.concurrency
