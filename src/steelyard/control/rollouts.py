"""How do the revisions of functions go, and does a new one have to go back? Remembers what the agent counts, watches what has
just taken traffic, and moves the traffic back where too many requests fail.

Counts change with every request, so they are kept in memory (`Looks`) and stored only with what else happens and every `STORE_S`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.control import ASSIGNMENT, JOBS, ROLLOUTS
from steelyard.control.places import place_now
from steelyard.control.traffic import roll_back
from steelyard.control.watch import Watch
from steelyard.errors import NoRoom, Refused, Unreachable
from steelyard.model.function import Counted, Function, Revision, RevisionState, Rollout
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, FunctionName, MachineId
from steelyard.model.reason import Reason
from steelyard.scaling.rollout import FAILED_STARTS_MAX, Counts, Verdict, decide_rollback
from steelyard.store import Event, Store, Tx
from steelyard.wire.agent import FunctionSeen, RevisionSeen

#: how long counts that say nothing else may stay unstored
STORE_S = 10.0
IDLE_S = 3600.0
#: so often all functions are looked at, whatever happened to their rows meanwhile
FULL_NS = 60 * 1_000_000_000

#: what agents say of revisions, by function
AllLooks = Mapping[FunctionName, tuple[RevisionSeen, ...]]
#: what the agent of which machine says of a revision
Look = tuple[MachineId, RevisionSeen]


class Looks:
    """What the newest reports say of revisions, by function."""

    def __init__(self) -> None:
        self.revisions: AllLooks = {}
        self._places: dict[MachineId, AllLooks] = {}

    def take(self, place: MachineId, functions: Iterable[FunctionSeen]) -> bool:
        """A machine's new report; true when more changed than the number of good requests."""
        self._places[place] = {each.name: each.revisions for each in functions}
        before, self.revisions = self.revisions, self._merge()
        found = self.revisions
        return before.keys() != found.keys() or any(
            _without_requests(found[name]) != _without_requests(before[name]) for name in changed_looks(before, found)
        )

    def forget(self, place: MachineId) -> None:
        """The machine is gone."""
        if self._places.pop(place, None) is not None:
            self.revisions = self._merge()

    def keep(self, places: Collection[MachineId]) -> None:
        """All others are gone."""
        for place in self._places.keys() - places:
            self.forget(place)

    def _merge(self) -> AllLooks:
        found: dict[FunctionName, tuple[RevisionSeen, ...]] = {}
        for looks in self._places.values():
            for name, rows in looks.items():
                found[name] = (*found[name], *rows) if name in found else rows
        return found

    def find(self, function: FunctionName) -> tuple[Look, ...]:
        """The oldest first: of a revision that went and came back, what is said of the one that is here now comes last."""
        found = [(place, row) for place, looks in self._places.items() for row in looks.get(function, ())]
        return tuple(sorted(found, key=lambda look: look[1].since))


def changed_looks(before: AllLooks, after: AllLooks) -> list[FunctionName]:
    """Those that are told otherwise; what was told in the same words is the same object."""
    return [name for name, rows in after.items() if (known := before.get(name)) is not rows and known != rows]


def _without_requests(rows: tuple[RevisionSeen, ...]) -> tuple[RevisionSeen, ...]:
    return tuple(msgspec.structs.replace(row, requests=0) for row in rows)


class Seen(msgspec.Struct, frozen=True):
    functions: tuple[tuple[Function, tuple[Revision, ...], tuple[Look, ...]], ...]
    #: those that there are, by place
    machines: frozenset[MachineId]


class Actions(msgspec.Struct, frozen=True):
    now: int
    revisions: tuple[Revision, ...] = ()
    #: those whose watch begins or ends
    functions: tuple[Function, ...] = ()
    #: those that go back, and why
    back: tuple[tuple[Function, Reason, str], ...] = ()


class Report(msgspec.Struct, frozen=True):
    #: functions that went back
    back: tuple[FunctionName, ...] = ()


async def load(store: Store, looks: Looks, names: Collection[FunctionName]) -> Seen:
    """Of the functions with these names."""

    found = {name: looks.find(name) for name in names}

    def read(tx: Tx) -> Seen:
        rows = [row for name in names if (row := tx.function(DEFAULT_PROJECT, name)) is not None]
        functions = tuple((row, tuple(tx.revisions(row.project, row.name)), found[row.name]) for row in rows)
        return Seen(functions, frozenset((OWN_MACHINE, *(machine.place for machine in tx.machines()))))

    return await store.read(read)


def decide(seen: Seen, now: int) -> Actions:
    revisions: list[Revision] = []
    functions: list[Function] = []
    back: list[tuple[Function, Reason, str]] = []
    for row, stored, looks in seen.functions:
        rows = {each.revision: each for each in stored}
        failed: dict[tuple[int, MachineId], int] = {}
        for place, look in looks:
            if look.revision in rows and place in seen.machines:
                rows[look.revision] = _forget(apply_look(rows[look.revision], place, look), seen.machines)
                failed[look.revision, place] = look.failed_starts
        failed_starts = {revision: 0 for revision, _ in failed}
        for (revision, _), starts in failed.items():
            failed_starts[revision] += starts
        changed = [each for each, before in zip(rows.values(), stored, strict=True) if each != before]
        revisions += [msgspec.structs.replace(each, generation=each.generation + 1) for each in changed]
        after, verdict, why = _judge(row, rows, failed_starts, now)
        if verdict is Verdict.BACK:
            starts = failed_starts.get(after.rollout.revision, 0) if after.rollout is not None else 0
            reason = Reason.CRASH_LOOP if starts >= FAILED_STARTS_MAX else Reason.TOO_MANY_ERRORS
            back.append((after, reason, why))
        elif after != row:
            functions.append(msgspec.structs.replace(after, generation=row.generation + 1))
    return Actions(now, tuple(revisions), tuple(functions), tuple(back))


def apply_look(row: Revision, machine: MachineId, look: RevisionSeen) -> Revision:
    """The row with what was counted there since the last time, and how the revision did. What was gone back from stays so."""
    known = next((each for each in row.counted if each.machine == machine), Counted(machine))
    if look.since and look.since >= known.since:
        before = known if known.since == look.since else Counted(machine)
        others = [each for each in row.counted if each.machine != machine]
        counted = (*others, Counted(machine, look.since, look.requests, look.errors))
        row = msgspec.structs.replace(
            row,
            requests=row.requests + look.requests - before.requests,
            errors=row.errors + look.errors - before.errors,
            counted=tuple(sorted(counted, key=lambda each: each.machine)),
        )
    if look.state is RevisionState.READY and row.state in (RevisionState.DEPLOYING, RevisionState.FAILED):
        return msgspec.structs.replace(row, state=RevisionState.READY, reason=None, detail="")
    if look.state is RevisionState.FAILED and row.state is RevisionState.DEPLOYING:
        return msgspec.structs.replace(row, state=RevisionState.FAILED, reason=look.reason, detail=look.detail)
    return row


def _forget(row: Revision, machines: frozenset[MachineId]) -> Revision:
    """What was counted on machines that are gone stays in the sum; nothing more will be added."""
    counted = tuple(each for each in row.counted if each.machine in machines)
    return row if counted == row.counted else msgspec.structs.replace(row, counted=counted)


def _judge(row: Function, rows: dict[int, Revision], failed_starts: dict[int, int], now: int) -> tuple[Function, Verdict, str]:
    """The function with its watch begun or ended, and whether it has to go back."""
    rollout = row.rollout
    new = None if rollout is None else rows.get(rollout.revision)
    if rollout is None or new is None:
        return row, Verdict.WATCH, ""
    others = [rows[share.revision] for share in rollout.before if share.revision in rows]
    old = Counts(sum(each.requests for each in others), sum(each.errors for each in others))
    if rollout.since is None:
        if rollout.revision not in {share.revision for share in row.routes.shares}:
            return row, Verdict.WATCH, ""
        begun = (now, old.requests, old.errors, new.requests, new.errors)
        rollout = Rollout(rollout.revision, rollout.before, rollout.errors_max, *begun)
        row = msgspec.structs.replace(row, rollout=rollout)
    counts = Counts(new.requests, new.errors, failed_starts.get(rollout.revision, 0))
    verdict, why = decide_rollback(now, rollout, counts, old)
    if verdict is Verdict.PROVED:
        row = msgspec.structs.replace(row, rollout=None)
    return row, verdict, why


async def carry_out(store: Store, actions: Actions) -> Report:
    """Raises Conflict when a row moved on since it was read; nothing is stored then."""
    if not (actions.revisions or actions.functions or actions.back):
        return Report()

    def commit(tx: Tx) -> Report:
        for revision in actions.revisions:
            tx.put_revision(revision)
        for row in actions.functions:
            tx.put_function(row)
        return Report(tuple(row.name for row, reason, why in actions.back if _go_back(tx, row, reason, why, actions.now)))

    return await store.write(commit)


def _go_back(tx: Tx, row: Function, reason: Reason, why: str, now: int) -> bool:
    assert row.rollout is not None
    try:
        after = roll_back(tx, row, row.rollout.before, reason, why, now, row.owner.user)
        # who is not heard just now is for the loop of places to see
        tx.put_function(place_now(tx, row, after, lambda machine: False))
    except (NoRoom, Refused, Unreachable) as err:
        # tried once: what fails for want of room would fail again each second, and every deploy is a new try
        text = f"revision {row.rollout.revision} should go back ({why}), but can't: {err.public}"
        tx.put_function(msgspec.structs.replace(row, generation=row.generation + 1, rollout=None))
        tx.add_event(Event(now, row.project, row.owner.user, "function", row.name, text))
        return False
    return True


class RolloutsLoop:
    name = ROLLOUTS

    def __init__(self, store: Store, clock: Clock, watch: Watch, looks: Looks) -> None:
        self._store = store
        self._clock = clock
        self._watch = watch
        self._looks = looks
        #: what was looked at last; nothing before the first time, and when everything is due again
        self._done: AllLooks = {}
        self._full_ns = clock.mono_ns()
        #: those whose new revision is watched: time alone may prove it
        self._watching: set[FunctionName] = set()

    @property
    def tick_s(self) -> float:
        return STORE_S if self._watching or self._looks.revisions else IDLE_S

    async def activate(self) -> Sequence[str]:
        looks, now_ns = self._looks.revisions, self._clock.mono_ns()
        names = {*changed_looks(self._done, looks), *(self._watching & looks.keys())}
        if names and now_ns - self._full_ns >= FULL_NS:
            self._full_ns, names = now_ns, {*looks}
        if not names:
            return ()
        seen = await load(self._store, self._looks, names)
        self._looks.keep(seen.machines)
        report = await carry_out(self._store, decide(seen, self._clock.now_us()))
        self._done = looks
        self._watching = {row.name for row, _, _ in seen.functions if row.rollout is not None}
        for name in report.back:
            self._watch.notify(f"function/{name}")
        return (JOBS, ASSIGNMENT) if report.back else ()
