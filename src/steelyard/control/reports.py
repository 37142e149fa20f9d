"""What do the agents' observations change? Applies each machine's newest report; the acknowledgement goes out after the commit.

A report speaks of its machine's work alone, and one that changes nothing costs one read and no fsync. When a machine restarted
(`greet` saw another boot id), what had been handed out to it is in doubt until the first report of the new boot: attempts that it
doesn't name ended with the old boot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.control import ASSIGNMENT, IMAGES, JOBS, PLACES, REPORTS, ROLLOUTS, AgentLink
from steelyard.control.changes import commit_change
from steelyard.control.charging import charge_ended
from steelyard.control.images import NodeImages
from steelyard.control.live import LiveJobs
from steelyard.control.places import apply_place, apply_reached
from steelyard.control.rollouts import Looks
from steelyard.control.watch import Watch
from steelyard.errors import Conflict
from steelyard.lifecycle.attempt import apply_attempt, lose_job
from steelyard.lifecycle.job import Change, doubt_job, in_doubt
from steelyard.lifecycle.parts import apply_part, lose_part, only_waits
from steelyard.model.function import Function
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, AttemptId, FunctionName, JobId, MachineId
from steelyard.model.job import Job, JobState
from steelyard.model.machine import Machine
from steelyard.model.pool import Pilot, PilotState
from steelyard.store import Event, Store, Tx
from steelyard.wire import agent as wire

#: newest lines of machines' history that a repeated one is looked for in: several times what one report may repeat
STORED_LOOK = 400
#: rows of so many functions are read one by one; of more all are
FUNCTIONS_APART = 50
#: so often a report counts as a whole
FULL_NS = 10 * 1_000_000_000


class Seen(msgspec.Struct, frozen=True):
    report: wire.Report
    machine: Machine | None
    #: the jobs of the machine that the report names, and those in doubt since a restart of it
    jobs: tuple[Job, ...]
    functions: tuple[Function, ...]
    #: all that the agent of a pool's machine has, also those that the report says nothing new of
    present: frozenset[FunctionName] = frozenset()


class Actions(msgspec.Struct, frozen=True):
    report: wire.Report
    jobs: tuple[tuple[Job, Change], ...] = ()
    functions: tuple[Function, ...] = ()
    #: lines of history about functions and the machine
    events: tuple[Event, ...] = ()
    #: the machine, where what is out of use on it has changed
    machine: Machine | None = None
    now: int = 0
    #: parts of gangs that are prepared, and wait for others; not stored
    waits: tuple[wire.AttemptState, ...] = ()
    #: as `Seen` has it
    present: frozenset[FunctionName] = frozenset()


class Report(msgspec.Struct, frozen=True):
    jobs: tuple[Job, ...] = ()
    functions: tuple[Function, ...] = ()
    #: something of the machine was put into or out of use
    machine: bool = False


async def greet(store: Store, machine: Machine, now: int) -> bool:
    """An agent said hello: store its machine. True when the machine restarted since it was last seen; then every attempt that had
    been handed out is in doubt. Conflict for the agent of a pilot that has ended."""

    def commit(tx: Tx) -> bool:
        known, pilot = tx.machine(machine.place), _find_pilot(tx, machine)
        draining = "" if pilot is None else _find_draining(pilot)
        if pilot is not None:
            given = msgspec.structs.replace(machine, allocation=pilot.allocation, allocation_place=pilot.place)
        else:
            given = machine
        if known is not None and known.id == machine.id:
            # the hello says what the machine is; what of it is out of use stands in the reports, or is decided here
            kept = {name: getattr(known, name) for name in ("blocked", "blocked_pairs", "held")}
            seen = msgspec.structs.replace(given, **kept, draining=draining or known.draining)
        else:
            seen = msgspec.structs.replace(given, draining=draining)
        if known == seen:
            return False
        restarted = known is not None and (known.id, known.boot_id) != (machine.id, machine.boot_id)
        tx.put_machine(seen)
        text = "restarted" if restarted else "seen"
        tx.add_event(Event(now, DEFAULT_PROJECT, "", "machine", machine.id, f"{text}, boot {machine.boot_id}"))
        if restarted:
            for job in tx.jobs({JobState.STARTING, JobState.RUNNING, JobState.SUSPENDED, JobState.STOPPING}):
                if job.plan is None or machine.place not in job.machines:
                    continue
                if job.parts is not None:  # the rest of it can't go on without that part
                    change = lose_part(job, machine.place, "its machine restarted while it ran", now)
                else:
                    change = doubt_job(job, "the machine restarted; waiting for its agent to say what became of it")
                if change is not None:
                    commit_change(tx, job, change, now)
        return restarted

    return await store.write(commit)


def _find_pilot(tx: Tx, machine: Machine) -> Pilot | None:
    """None for the home's own machine."""
    if not machine.pool:
        return None
    pilot = tx.pilot(machine.id)
    if pilot is None or not pilot.living:
        raise Conflict(f"{machine.id} has ended, and its agent is not heard any more.", code="machine-gone")
    return pilot


def _find_draining(pilot: Pilot) -> str:
    """Why nothing new may come to it; a pilot may have begun to drain before its agent was heard."""
    return pilot.detail if pilot.state is PilotState.DRAINING else ""


async def load(
    store: Store, live: LiveJobs, place: MachineId, report: wire.Report, present: frozenset[FunctionName] = frozenset()
) -> Seen:
    """Of the functions those that the report speaks of. `place`: of the machine that it comes from."""
    named = [JobId(attempt.attempt.rpartition(".")[0]) for attempt in report.attempts]

    def read(tx: Tx) -> tuple[tuple[int, list[Job]], Machine | None, tuple[Function, ...]]:
        told = dict.fromkeys(seen.name for seen in (*report.functions, *report.away))
        if len(told) > FUNCTIONS_APART:
            functions = tuple(tx.functions())
        else:
            found = (tx.function(DEFAULT_PROJECT, name) for name in told)
            functions = tuple(function for function in found if function is not None)
        return tx.jobs_changed(live.change), tx.machine(place), functions

    changed, machine, functions = await store.read(read)
    live.apply(*changed)
    jobs = {job.id: job for job in live.holding if in_doubt(job) and job.machine == place}
    jobs |= {id_: job for id_ in named if (job := live.job(id_)) is not None}
    ended = [id_ for id_ in named if id_ not in jobs]
    if ended:
        found = await store.read(lambda tx: [tx.job(id_) for id_ in ended])
        jobs |= {job.id: job for job in found if job is not None}
    return Seen(report, machine, tuple(jobs.values()), functions, present)


def decide(seen: Seen, now: int, told: Mapping[AttemptId, Mapping[MachineId, wire.AttemptState]] = {}) -> Actions:
    """`told`: of attempts, the parts that other machines called prepared, and that were not stored for that."""
    report = seen.report
    if seen.machine is None or (report.machine, report.boot_id) != (seen.machine.id, seen.machine.boot_id):
        # not from the machine and boot that said hello last: nothing in it is about what runs now
        return Actions(report, now=now)
    attempts = {JobId(attempt.attempt.rpartition(".")[0]): attempt for attempt in report.attempts}
    jobs: list[tuple[Job, Change]] = []
    waits: list[wire.AttemptState] = []
    for job in seen.jobs:
        attempt = attempts.get(job.id)
        if attempt is not None and attempt.attempt == job.attempt_id and seen.machine.place not in job.machines:
            continue  # nobody knows of another machine's work
        if attempt is not None and attempt.attempt == job.attempt_id and job.parts is not None:
            others = {place: each for place, each in told.get(attempt.attempt, {}).items() if place != seen.machine.place}
            change = apply_part(job, seen.machine.place, attempt, now, others)
            if change is not None and attempt.phase == "prepared" and only_waits(change):
                waits.append(attempt)
                continue
        elif attempt is not None:
            change = apply_attempt(job, attempt, now)
        else:
            change = lose_job(job, "the machine restarted while it ran; submit it again", now)
        if change is not None:
            jobs.append((job, change))
    functions: list[Function] = []
    events: list[Event] = []
    stored = {function.name: function for function in seen.functions}
    for observed in (*report.functions, *report.away):
        before = stored.get(observed.name)
        after = None if before is None else _apply(before, seen.machine, observed)
        if before is None or after is None:
            continue
        functions.append(after)
        if (after.state, after.routed_revision) != (before.state, before.routed_revision):
            text = f"{before.state.value} -> {after.state.value}, revision {after.revision}, routed {after.routed_revision}"
            events.append(Event(now, after.project, after.owner.user, "function", after.name, text))
    machine = msgspec.structs.replace(
        seen.machine,
        blocked=report.blocked,
        blocked_pairs=report.blocked_pairs,
        held=report.held,
        finishing=_find_finishing(seen.machine, report, seen.present),
    )
    for each in report.health_events:
        events.append(Event(each.at, DEFAULT_PROJECT, "", "machine", machine.id, each.text))
    changed = None if machine == seen.machine else machine
    return Actions(report, tuple(jobs), tuple(functions), tuple(events), changed, now, tuple(waits), seen.present)


def _find_finishing(machine: Machine, report: wire.Report, present: frozenset[FunctionName]) -> tuple[FunctionName, ...]:
    """One that has left it finishes there until its agent has heard of that, and has nothing of it any more."""
    if not machine.pool:
        return ()
    return tuple(sorted({*report.finishing, *(name for name in machine.finishing if name in present)}))


def _apply(before: Function, machine: Machine, seen: wire.FunctionSeen | wire.AwayFunction) -> Function | None:
    if isinstance(seen, wire.AwayFunction):
        return apply_reached(before, seen) if before.spec.pool and not machine.pool else None
    if before.spec.pool:
        return apply_place(before, machine.place, seen)
    return None if machine.pool else apply_function(before, seen)


def apply_function(before: Function, seen: wire.FunctionSeen) -> Function | None:
    """The function as the agent sees it; None when the row says so already. What an agent says of an older revision tells what
    gets traffic, but nothing about the newest one's state."""
    after = msgspec.structs.replace(
        before,
        routed_revision=seen.routed_revision,
        replicas=seen.replicas,
        waking=seen.waking,
        queued=seen.queued,
        routes=seen.routes,
    )
    if seen.revision == before.revision:
        after = msgspec.structs.replace(after, state=seen.state, reason=seen.reason, detail=seen.detail, lends=seen.lends)
    if after == before:
        return None
    return msgspec.structs.replace(after, generation=before.generation + 1)


async def carry_out(store: Store, actions: Actions) -> Report:
    """Raises Conflict when a row moved on since it was read; nothing is stored then."""
    if not (actions.jobs or actions.functions or actions.events or actions.machine or actions.report.coldstarts):
        return Report()

    def commit(tx: Tx) -> Report:
        stored = [(job, change) for job, change in actions.jobs if commit_change(tx, job, change, actions.now)]
        attempts = {JobId(attempt.attempt.rpartition(".")[0]): attempt for attempt in actions.report.attempts}
        charge_ended(tx, stored, actions.now, attempts)
        for function in actions.functions:
            tx.put_function(function)
        told = set(tx.events("machine", None, STORED_LOOK)) if actions.report.health_events else set[Event]()
        for event in actions.events:
            if event not in told:  # an agent repeats what has not been acknowledged yet
                tx.add_event(event)
        if actions.machine is not None and (stored_machine := tx.machine(actions.machine.place)) is not None:
            finishing = _find_finishing(stored_machine, actions.report, actions.present)
            tx.put_machine(msgspec.structs.replace(actions.machine, draining=stored_machine.draining, finishing=finishing))
        tx.add_coldstarts(actions.report.coldstarts)
        return Report(tuple(change.job for _, change in stored), actions.functions, actions.machine is not None)

    return await store.write(commit)


class News:
    """What of a report says something else than the one before: a thousand functions are told of each time, and few of them have
    changed. Every FULL_NS all of it counts, whatever happened to the rows meanwhile."""

    def __init__(self) -> None:
        self._known: dict[FunctionName, wire.FunctionSeen] = {}
        self._away: tuple[wire.AwayFunction, ...] = ()
        self._full_ns: int | None = None

    def pick(self, report: wire.Report, now_ns: int) -> wire.Report:
        """The report with those functions alone."""
        if self._full_ns is None or now_ns - self._full_ns >= FULL_NS:
            self._full_ns, self._known, self._away = now_ns, {}, ()
        news = tuple(each for each in report.functions if self._says_new(each))
        away = () if report.away == self._away else report.away
        return msgspec.structs.replace(report, functions=news, away=away)

    def _says_new(self, seen: wire.FunctionSeen) -> bool:
        known = self._known.get(seen.name)
        return known is not seen and known != seen  # what was told in the same words is the same object

    def applied(self, report: wire.Report) -> None:
        self._known = {each.name: each for each in report.functions}
        self._away = report.away


class ReportsLoop:
    name = REPORTS
    tick_s = 30.0

    def __init__(
        self, store: Store, agents: AgentLink, clock: Clock, watch: Watch, live: LiveJobs, looks: Looks, images: NodeImages
    ) -> None:
        self._images = images
        self._store = store
        self._live = live
        self._looks = looks
        self._agents = agents
        self._clock = clock
        self._watch = watch
        self._news: dict[MachineId, News] = {}
        self._told: dict[AttemptId, dict[MachineId, wire.AttemptState]] = {}

    async def activate(self) -> Sequence[str]:
        pokes: list[str] = []
        for place, report in self._agents.newest_reports().items():
            pokes += await self._apply(place, report)
        return tuple(dict.fromkeys(pokes))

    def _note_told(self, place: MachineId, actions: Actions) -> None:
        """What of parts was told and not stored. Whatever is stored of an attempt has the others' words in it."""
        for attempt in actions.report.attempts:
            if attempt.attempt in self._told:
                self._told[attempt.attempt].pop(place, None)
        for job, _ in actions.jobs:
            self._told.pop(job.attempt_id, None)
        for attempt in actions.waits:
            self._told.setdefault(attempt.attempt, {})[place] = attempt
        for id_ in list(self._told):
            job = self._live.job(JobId(id_.rpartition(".")[0]))
            if job is None or job.attempt_id != id_:
                del self._told[id_]

    async def _apply(self, place: MachineId, report: wire.Report) -> list[str]:
        news = self._news.setdefault(place, News())
        present = frozenset(each.name for each in report.functions) if place != OWN_MACHINE else frozenset[FunctionName]()
        seen = await load(self._store, self._live, place, news.pick(report, self._clock.mono_ns()), present)
        actions = decide(seen, self._clock.now_us(), self._told)
        done = await carry_out(self._store, actions)
        news.applied(report)
        self._note_told(place, actions)
        if seen.machine is None:
            del self._news[place]
            self._looks.forget(place)
        self._agents.acknowledge(place, report)
        for job in done.jobs:
            self._watch.notify(f"job/{job.id}")
        for function in done.functions:
            self._watch.notify(f"function/{function.name}")
        pokes: list[str] = [ROLLOUTS] if self._looks.take(place, report.functions) else []
        if any(function.spec.pool for function in done.functions):
            pokes += [PLACES, ASSIGNMENT]
        built = any(job.state.terminal and job.spec.builds for job in done.jobs)
        parts = [(before.parts, change.job.parts) for before, change in actions.jobs]
        if any(old is not None and new is not None and new.says_more_than(old) for old, new in parts):
            pokes.append(ASSIGNMENT)  # looked at each time, it would rest when the last part makes all of it start
        if place == OWN_MACHINE and (self._images.take(report.images) or built):
            pokes.append(IMAGES)
        lent = any(function.lends for function in done.functions)
        if done.machine or lent or any(job.state.terminal or job.state is JobState.QUEUED for job in done.jobs):
            pokes += [JOBS, ASSIGNMENT]
        # a report that came while this one was committed has poked this loop already
        return pokes
