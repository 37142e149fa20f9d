"""Which queued jobs get a plan now, and who gives way? The only place that turns QUEUED into STARTING.

`scheduling/` decides; `carry_out` is the one applier: inside the transaction it reads what changed since, and drops every plan
that no longer fits or whose job moved on; the next activation decides anew. Why each job waits is kept here and shown with it;
only the first of the queue have it written into their history, since a moving queue would rewrite ten thousand rows otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.control import ASSIGNMENT, DIRECT, JOBS
from steelyard.control.changes import commit_change
from steelyard.control.live import LiveJobs, read_standings
from steelyard.control.watch import Watch
from steelyard.errors import Conflict
from steelyard.lifecycle.job import Change, explain_wait, preempt_job, refuse_job, resume_job, start_job
from steelyard.lifecycle.node import plan_blocked
from steelyard.lifecycle.pilot import explain_coming, known_end
from steelyard.model.batch import Dependency
from steelyard.model.function import Function
from steelyard.model.ids import FunctionName, JobId, ProjectName
from steelyard.model.job import NO_SHARE, Job, JobState, Plan, Resources
from steelyard.model.machine import Machine
from steelyard.placement.room import Room
from steelyard.scheduling.decide import decide as decide_queue
from steelyard.scheduling.fair_share import fair_share_ranks
from steelyard.scheduling.preemption import choose_victims
from steelyard.scheduling.seat import fill_room, see_room
from steelyard.scheduling.snapshot import Decision, Holding, Snapshot, Why
from steelyard.store import Store, Tx

#: jobs at the head of the queue whose reason to wait is written into their history
EXPLAINED_MAX = 50

#: with nothing to do it looks this often: deciding on ten thousand that wait costs some tens of milliseconds
IDLE_S = 30.0

_OLDER = Resources(cpus=NO_SHARE)

_log = logging.getLogger("steelyard.jobs")


class Seen(msgspec.Struct, frozen=True):
    snapshot: Snapshot
    #: of jobs, up to which the snapshot knows all
    change: int


class Actions(msgspec.Struct, frozen=True):
    """Pairs of the job as it was seen and its change."""

    seen: Seen
    decision: Decision = Decision()
    starts: tuple[tuple[Job, Change], ...] = ()
    others: tuple[tuple[Job, Change], ...] = ()
    now: int = 0


class Report(msgspec.Struct, frozen=True):
    started: tuple[Job, ...] = ()
    #: ended without ever running
    refused: tuple[Job, ...] = ()
    #: suspended, resumed, or asked to end, for others
    moved: tuple[Job, ...] = ()
    #: plans and explanations dropped because the job had moved on, so that a look at once may find more to do
    skipped: int = 0
    #: plans dropped because they did not fit any more; whoever took the room pokes this loop when it is free again
    dropped: int = 0


async def load(store: Store, live: LiveJobs) -> Seen:
    """One reading where that is enough: what is new waits for no other job, and all else that waits was looked at before."""
    known = live.change

    def read(tx: Tx) -> tuple[tuple[int, list[Job]], Snapshot | None]:
        changed = tx.jobs_changed(known)
        return changed, _read_facts(tx, ()) if any(job.state is JobState.QUEUED for job in changed[1]) else None

    changed, facts = await store.read(read)
    live.apply(*changed)
    if not live.waiting and not any(job.suspended_at is not None for job in live.holding):
        return Seen(Snapshot(()), live.change)
    if facts is None or live.change != changed[0] or live.take_open():
        return await load_all(store, live)
    return _see(live, facts, live.change)


async def load_all(store: Store, live: LiveJobs) -> Seen:
    """Of a copy that was brought up to date: which dependencies have to be looked at is known only then."""
    asked, known = live.take_open(), live.change
    facts, changed = await store.read(lambda tx: (_read_facts(tx, asked), tx.jobs_changed(live.change)))
    live.apply(*changed)
    return _see(live, facts, known)


def _read_facts(tx: Tx, asked: Collection[Dependency]) -> Snapshot:
    """All that a decision reads, but for jobs."""
    machines = tuple(tx.machines())
    fixed = hold_functions(tx.functions(), machines)
    standings = read_standings(tx, asked)
    pools = tx.pools()
    pilots = tx.pilots() if pools else []
    coming = {pool.name: text for pool in pools if (text := explain_coming(pool, pilots))}
    asked_s = {pool.name: pool.spec.max_duration_s for pool in pools}
    ends = {each.id: end for each in pilots if (end := known_end(each, asked_s.get(each.pool))) is not None}
    return Snapshot(machines, (), fixed, tuple(tx.accounts()), tuple(tx.quotas()), standings, coming, ends)


def _see(live: LiveJobs, facts: Snapshot, known: int) -> Seen:
    holding = (*hold_jobs(live.holding), *facts.holding)
    standings = live.settle(facts.standings, known)
    return Seen(msgspec.structs.replace(facts, queued=live.queued, holding=holding, standings=standings), live.change)


def decide(seen: Seen, now: int) -> Actions:
    snapshot = seen.snapshot
    if not snapshot.queued and not snapshot.holding:
        return Actions(seen, now=now)
    decision = decide_now(snapshot, now)
    queued = {job.id: job for job in snapshot.queued}
    running = {held.job.id: held.job for held in snapshot.holding if held.job is not None}
    starts = tuple((queued[job], start_job(queued[job], plan)) for job, plan in decision.starts)
    others = [(queued[why.job], refuse_job(queued[why.job], why.reason, why.detail, now)) for why in decision.never]
    others += [(running[job], resume_job(running[job], now)) for job in decision.resumes]
    for victim, by in decision.preempts:
        change = preempt_job(running[victim], by, now)
        if change is not None:
            others.append((running[victim], change))
    first = set(decision.order[:EXPLAINED_MAX])
    for why in decision.waits:
        if why.job in first and why.job in queued and (change := explain_wait(queued[why.job], why.reason, why.detail)):
            others.append((queued[why.job], change))
    return Actions(seen, decision, starts, tuple(others), now)


def decide_now(snapshot: Snapshot, now: int) -> Decision:
    """The decision as this loop takes it: also what `why` and forecasts ask of changed snapshots."""
    names = {job.account for job in snapshot.queued}
    ranks = fair_share_ranks(snapshot.accounts, snapshot.holding, now, names)
    return decide_queue(snapshot, now, ranks, choose_victims)


async def carry_out(store: Store, actions: Actions) -> Report:
    if not actions.starts and not actions.others:
        return Report()
    return await store.write(lambda tx: _commit(tx, actions))


class JobsLoop:
    name = JOBS

    def __init__(self, store: Store, clock: Clock, watch: Watch, live: LiveJobs) -> None:
        self._store = store
        self._clock = clock
        self._watch = watch
        self._live = live
        self._look_at: int | None = None
        self._waits: Mapping[JobId, Why] = {}

    @property
    def tick_s(self) -> float:
        """Sooner where a backoff, or a time before which a job may not begin, is over sooner."""
        if self._look_at is None:
            return IDLE_S
        return min(IDLE_S, max(0.0, (self._look_at - self._clock.now_us()) / 1e6))

    @property
    def queued(self) -> int:
        """Jobs that waited when it last looked; the door bounds the queue by it."""
        return self._live.waiting + sum(job.state is JobState.QUEUED for job in self._live.direct)

    def why(self, job: JobId) -> Why | None:
        """Why a queued job waited when it was last looked at."""
        return self._waits.get(job)

    async def activate(self) -> Sequence[str]:
        now = self._clock.now_us()
        actions = decide(await load(self._store, self._live), now)
        self._waits = {why.job: why for why in actions.decision.waits}
        self._look_at = actions.decision.look_at
        report = await carry_out(self._store, actions)
        for job in (*report.started, *report.refused, *report.moved):
            self._watch.notify(f"job/{job.id}")
        pokes = [ASSIGNMENT] if report.started or report.moved else []
        if report.skipped or report.refused or any(job.state is JobState.SUSPENDED for job in report.moved):
            # what is suspended has given up its cores already, and no report will say so
            pokes.append(JOBS)
        if self._live.direct:
            pokes.append(DIRECT)
        return pokes


def hold_jobs(jobs: Sequence[Job]) -> tuple[Holding, ...]:
    return tuple(Holding(job.spec.demand, job.plan, job) for job in jobs if job.plan is not None)


def hold_functions(
    functions: Sequence[Function], machines: Sequence[Machine], but: tuple[ProjectName, FunctionName] | None = None
) -> tuple[Holding, ...]:
    """What dedicated functions hold, and revisions that are leaving. `but`: a function that is about to be placed anew."""
    newest = [
        Holding(reserved, plan, lent_s=spec.wake_bound_s if row.lends else None)
        for row in functions
        if (row.project, row.name) != but
        for spec, plan in row.held
        if (reserved := spec.reserved) is not None
    ]
    older = [
        Holding(_OLDER, msgspec.structs.replace(held.plan, machine=machine.place))
        for machine in machines
        for held in machine.held
        if but is None or held.function != but[1]
    ]
    return (*newest, *older)


def forget_borrowed(jobs: Sequence[Holding]) -> tuple[Holding, ...]:
    """As a function finds its own place, which it may have lent: what preemptible jobs have of cores and devices is no obstacle,
    since a new revision has them give way before it starts."""
    return tuple(
        Holding(
            Resources(cpus=NO_SHARE, memory_bytes=held.demand.memory_bytes),
            Plan(memory_nodes=held.plan.memory_nodes, machine=held.plan.machine),
        )
        if held.demand.preemptible
        else held
        for each in jobs
        for held in each.parts
    )


def make_room(machine: Machine, holding: Sequence[Holding]) -> Room:
    """The machine with what of `holding` is on it."""
    return fill_room(Room(machine), [part for held in holding for part in held.parts if part.plan.machine == machine.place])


def _commit(tx: Tx, actions: Actions) -> Report:
    started: list[Job] = []
    refused: list[Job] = []
    moved: list[Job] = []
    skipped = dropped = 0
    # who gives way, first: the plans of those who start may count on it
    for before, change in actions.others:
        if not _put(tx, before, change, actions.now):
            skipped += 1
        elif change.job.state.terminal:
            refused.append(change.job)
        elif change.job.state is not before.state:
            moved.append(change.job)
    machines = {machine.place: machine for machine in tx.machines()} if actions.starts else {}
    newer = {job.id: job for job in tx.jobs_changed(actions.seen.change)[1]} if actions.starts else {}
    holding = _hold_now(tx, actions.seen, [*machines.values()], newer) if actions.starts else ()
    named = {part.machine for _, change in actions.starts if change.job.plan is not None for part in change.job.plan.parts}
    rooms = {place: make_room(machines[place], holding) for place in named if place in machines}
    for before, change in actions.starts:
        demand, plan = before.spec.demand, change.job.plan
        parts = () if plan is None else plan.parts
        if change.error or not parts or before.id in newer or any(part.machine not in machines for part in parts):
            skipped += 1
            continue
        # a function that lent this place and has woken since holds it against the job
        findings = [text for part in parts for text in see_room(before.spec, rooms[part.machine]).check(demand, part)]
        if findings or any(_is_out(machines[part.machine], part) for part in parts):
            # Decided on what has changed since; whoever changed it pokes this loop. Looking again at once could go on for ever.
            _log.warning("the plan of job %s is dropped: %s", before.id, "; ".join(findings) or "something of it is out of use")
            dropped += 1
        elif _put(tx, before, change, actions.now):
            for part in parts:
                rooms[part.machine].take(demand, part)
            started.append(change.job)
        else:
            skipped += 1
    return Report(tuple(started), tuple(refused), tuple(moved), skipped, dropped)


def _is_out(machine: Machine, part: Plan) -> bool:
    return bool(machine.draining) or plan_blocked(machine.blocked, machine.blocked_pairs, part)


def _hold_now(tx: Tx, seen: Seen, machines: Sequence[Machine], newer: Mapping[JobId, Job]) -> tuple[Holding, ...]:
    """What holds resources as of this transaction, this decision's own changes included."""
    jobs = [held.job for held in seen.snapshot.holding if held.job is not None and held.job.id not in newer]
    jobs += [job for job in newer.values() if not job.state.terminal]
    return (*hold_jobs(jobs), *hold_functions(tx.functions(), machines))


def _put(tx: Tx, before: Job, change: Change, now: int) -> bool:
    """False when the job moved on since it was seen."""
    try:
        commit_change(tx, before, change, now)
    except Conflict:
        return False
    return not change.error
