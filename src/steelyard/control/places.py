"""On which machines of their pools are functions? Gives them places when machines come, go, drain or fall silent, and when
functions are deployed; what becomes of a place `scaling/places.py` says.

Nothing is started here: a place is in the next assignment of its machine, and in that of the home's gateway once it is ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.control import ASSIGNMENT, JOBS, PLACES
from steelyard.control.jobs import hold_functions, hold_jobs, make_room
from steelyard.control.live import HOLDING
from steelyard.control.watch import Watch
from steelyard.errors import NoRoom
from steelyard.model.function import Function, LiveRevision, Place
from steelyard.model.health import NODE
from steelyard.model.ids import FunctionName, MachineId
from steelyard.model.job import Job, Resources
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.placement.refusal import Refusal
from steelyard.scaling.places import Fleet, Plans, decide_places, sum_up
from steelyard.scheduling.snapshot import Holding
from steelyard.store import Event, Store, Tx
from steelyard.wire.agent import AwayFunction, FunctionSeen

#: a machine that fell silent, or is heard again, is noticed after that long
TICK_S, IDLE_S = 2.0, 60.0


class Seen(msgspec.Struct, frozen=True):
    """`functions`: all; `lost`: machines that are not heard."""

    functions: tuple[Function, ...]
    machines: tuple[Machine, ...]
    jobs: tuple[Job, ...]
    lost: frozenset[MachineId]


class Actions(msgspec.Struct, frozen=True):
    #: rows as they should be, each a generation further
    functions: tuple[Function, ...] = ()
    events: tuple[Event, ...] = ()
    #: of `_find_left`
    left: tuple[tuple[MachineId, FunctionName], ...] = ()


class Report(msgspec.Struct, frozen=True):
    functions: tuple[Function, ...] = ()


async def load(store: Store, is_lost: Callable[[MachineId], bool]) -> Seen:
    return await store.read(lambda tx: _look(tx, is_lost))


def _look(tx: Tx, is_lost: Callable[[MachineId], bool], more: str = "") -> Seen:
    """`more`: a pool that is looked at although nothing stored is in one."""
    functions = tuple(tx.functions())
    if not (more or any(function.spec.pool for function in functions)):
        return Seen((), (), (), frozenset())
    machines = tuple(machine for machine in tx.machines() if machine.pool)
    lost = frozenset(machine.id for machine in machines if is_lost(machine.id))
    return Seen(functions, machines, tuple(tx.jobs(HOLDING)), lost)


def place_now(tx: Tx, before: Function, row: Function, is_lost: Callable[[MachineId], bool]) -> Function:
    """`row` with its places, in the transaction that deploys a revision or moves traffic; `before`: as it was. Raises NoRoom
    where that would leave what serves now without a place."""
    if not row.spec.pool:
        return row
    seen = _look(tx, is_lost, row.spec.pool)
    others = [each for each in seen.functions if (each.project, each.name) != (row.project, row.name)]
    former = {key: each.spec.reserved for key, each in before.live.items()}
    fleet = make_fleet(row.spec.pool, seen, [*others, row])
    places, missing = decide_places(row, fleet, _Reserve(seen, [*others, row], row, former))
    served = any(place.plans and place.ready and not place.leaving for place in before.places)
    if missing and served:
        raise NoRoom(f"{row.name} can't be deployed now. {missing}. Nothing was changed.", code="no-room")
    after = sum_up(msgspec.structs.replace(row, places=places), missing)
    _note_left(tx, _find_left(row, after, seen.lost))
    return after


def decide(seen: Seen, now: int) -> Actions:
    changed: list[Function] = []
    events: list[Event] = []
    left: list[tuple[MachineId, FunctionName]] = []
    functions = {(function.project, function.name): function for function in seen.functions}
    for key, before in functions.items():
        if not before.spec.pool:
            continue
        fleet = make_fleet(before.spec.pool, seen, [*functions.values()])
        places, missing = decide_places(before, fleet, _Reserve(seen, [*functions.values()], before))
        after = sum_up(msgspec.structs.replace(before, places=places), missing)
        if after == before:
            continue
        functions[key] = after = msgspec.structs.replace(after, generation=before.generation + 1)
        changed.append(after)
        left += _find_left(before, after, seen.lost)
        told = [[place.machine for place in each.places if not place.leaving] for each in (before, after)]
        if told[0] != told[1]:
            text = f"on {', '.join(told[1])}" if told[1] else "on no machine"
            events.append(Event(now, after.project, after.owner.user, "function", after.name, text))
    return Actions(tuple(changed), tuple(events), tuple(left))


def end_function(tx: Tx, row: Function, is_lost: Callable[[MachineId], bool]) -> None:
    """`row` is deleted, in this transaction. What it began is answered still: machines of its pool are kept for that."""
    lost = {place.machine for place in row.places if is_lost(place.machine)}
    _note_left(tx, _find_left(row, msgspec.structs.replace(row, places=()), lost))
    tx.delete_function(row.project, row.name)


def _find_left(before: Function, after: Function, lost: Collection[MachineId]) -> list[tuple[MachineId, FunctionName]]:
    """Machines that are heard, and that it leaves."""
    here = {place.machine for place in after.places}
    return [(place.machine, after.name) for place in before.places if place.machine not in here and place.machine not in lost]


def _note_left(tx: Tx, left: Sequence[tuple[MachineId, FunctionName]]) -> None:
    """What they began there they still answer: such a machine is not given back before its agent said that nothing is left."""
    for id_, name in left:
        if (machine := tx.machine(id_)) is not None:
            tx.put_machine(msgspec.structs.replace(machine, finishing=tuple(sorted({*machine.finishing, name}))))


def make_fleet(pool: str, seen: Seen, functions: Sequence[Function]) -> Fleet:
    machines = [machine for machine in seen.machines if machine.pool == pool]
    counts = {machine.id: 0 for machine in machines if _takes_work(machine) and machine.id not in seen.lost}
    for function in functions:
        for place in function.places:
            if place.machine in counts:
                counts[place.machine] += 1
    return Fleet(frozenset(machine.id for machine in machines), counts)


def _takes_work(machine: Machine) -> bool:
    return bool(machine.gateway) and not machine.draining and NODE not in machine.blocked


class _Reserve:
    """Cores and devices for what is live of one function on a machine."""

    def __init__(
        self,
        seen: Seen,
        functions: Sequence[Function],
        function: Function,
        former: Mapping[int, Resources | None] | None = None,
    ) -> None:
        """`former`: what revisions asked for that may be about to leave their place to another."""
        self._seen, self._functions, self._function = seen, functions, function
        self._former = former or {}

    def __call__(self, machine: MachineId, plans: Plans) -> Plans | str:
        live = {key: each for key, each in self._function.live.items() if each.spec.reserved is not None}
        kept = tuple((key, plan) for key, plan in plans if key in live)
        left = [(self._former.get(key), plan) for key, plan in plans if key not in live]
        for key, each in live.items():
            found = next((pair for pair in left if key not in dict(kept) and pair[0] == each.spec.reserved), None)
            if found is not None:
                left.remove(found)
                kept = (*kept, (key, found[1]))
        missing = [each for key, each in live.items() if key not in dict(kept)]
        if not missing:
            return kept
        return self._place(next(each for each in self._seen.machines if each.id == machine), kept, missing)

    def _place(self, machine: Machine, kept: Plans, missing: Sequence[LiveRevision]) -> Plans | str:
        jobs = [job for job in self._seen.jobs if machine.place in job.machines]
        holding = [*hold_jobs(jobs), *hold_functions(self._functions, [machine])]
        found = list(kept)
        for each in missing:
            demand = each.spec.reserved
            assert demand is not None
            answer = make_room(machine, holding).place(demand)
            if isinstance(answer, Refusal):
                return answer.detail
            plan = msgspec.structs.replace(answer, machine=machine.place)
            holding.append(Holding(demand, plan))
            found.append((each.revision, plan))
        return tuple(found)


def apply_place(function: Function, machine: MachineId, seen: FunctionSeen) -> Function | None:
    """The function with what that machine's agent says of it; None when the row says so already."""
    places = tuple(_note(place, seen) if place.machine == machine else place for place in function.places)
    return _changed(function, msgspec.structs.replace(function, places=places))


def apply_reached(function: Function, seen: AwayFunction) -> Function | None:
    """The same for what the home's gateway says: it sends requests there."""
    return _changed(function, msgspec.structs.replace(function, reached=seen.machines, led=seen.led))


def _changed(before: Function, after: Function) -> Function | None:
    missing = before.detail if before.reason is Reason.NO_MACHINE else ""
    after = after if after == before else sum_up(after, missing)
    return None if after == before else msgspec.structs.replace(after, generation=before.generation + 1)


def _note(place: Place, seen: FunctionSeen) -> Place:
    return msgspec.structs.replace(
        place,
        state=seen.state,
        revision=seen.revision,
        routes=seen.routes,
        reach=seen.reach,
        replicas=seen.replicas,
        waking=seen.waking,
        queued=seen.queued,
        reason=seen.reason,
        detail=seen.detail,
    )


async def carry_out(store: Store, actions: Actions) -> Report:
    """Raises Conflict when a row moved on since it was read; nothing is stored then."""
    if not actions.functions:
        return Report()

    def commit(tx: Tx) -> Report:
        for function in actions.functions:
            tx.put_function(function)
        for event in actions.events:
            tx.add_event(event)
        _note_left(tx, actions.left)
        return Report(actions.functions)

    return await store.write(commit)


class PlacesLoop:
    """`certify` sees to it that the home's gateway has a certificate for the machines there are; it may block."""

    name = PLACES

    def __init__(
        self,
        store: Store,
        clock: Clock,
        watch: Watch,
        is_lost: Callable[[MachineId], bool],
        certify: Callable[[int], None],
    ) -> None:
        self._store, self._clock, self._watch = store, clock, watch
        self._is_lost, self._certify = is_lost, certify
        self._any = False

    @property
    def tick_s(self) -> float:
        return TICK_S if self._any else IDLE_S

    async def activate(self) -> Sequence[str]:
        seen = await load(self._store, self._is_lost)
        self._any = bool(seen.functions)
        if any(machine.gateway for machine in seen.machines):
            await asyncio.to_thread(self._certify, self._clock.now_us())
        report = await carry_out(self._store, decide(seen, self._clock.now_us()))
        for function in report.functions:
            self._watch.notify(f"function/{function.name}")
        return (JOBS, ASSIGNMENT) if report.functions else ()
