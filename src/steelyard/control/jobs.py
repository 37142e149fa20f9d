"""Which queued jobs get a plan now? The only place that turns QUEUED into STARTING.

`carry_out` is the one applier: inside the transaction it reads what runs once more and drops every plan that no longer fits or
whose job moved on; the next activation decides anew.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.control import ASSIGNMENT, JOBS
from steelyard.control.changes import commit_change
from steelyard.control.watch import Watch
from steelyard.lifecycle.job import Change, explain_wait, refuse_job, start_job
from steelyard.lifecycle.node import plan_blocked
from steelyard.model.ids import FunctionName, ProjectName
from steelyard.model.job import NO_SHARE, Job, JobState, Plan, Resources
from steelyard.model.machine import Machine
from steelyard.placement.room import Room
from steelyard.scheduling.decide import decide as decide_queue
from steelyard.scheduling.snapshot import Holding, Snapshot
from steelyard.store import Store, Tx

#: states in which an attempt holds, or may hold, its resources
HOLDING = frozenset({JobState.STARTING, JobState.RUNNING, JobState.STOPPING, JobState.UNKNOWN})


_OLDER = Resources(cpus=NO_SHARE)

_log = logging.getLogger("steelyard.jobs")


class Actions(msgspec.Struct, frozen=True):
    """Pairs of the job as it was seen and its change."""

    starts: tuple[tuple[Job, Change], ...] = ()
    others: tuple[tuple[Job, Change], ...] = ()
    now: int = 0


class Report(msgspec.Struct, frozen=True):
    started: tuple[Job, ...] = ()
    #: ended without ever running
    refused: tuple[Job, ...] = ()
    #: plans and explanations dropped because the job had moved on, so that a look at once may find more to do
    skipped: int = 0
    #: plans dropped because they did not fit any more; whoever took the room pokes this loop when it is free again
    dropped: int = 0


async def load(store: Store) -> Snapshot:
    return await store.read(_load)


def decide(seen: Snapshot, now: int) -> Actions:
    if not seen.queued:
        return Actions(now=now)
    decision = decide_queue(seen, now, {})
    jobs = {job.id: job for job in seen.queued}
    starts = tuple((jobs[job], start_job(jobs[job], plan)) for job, plan in decision.starts)
    others = [(jobs[why.job], refuse_job(jobs[why.job], why.reason, why.detail, now)) for why in decision.never]
    for why in decision.waits:
        change = explain_wait(jobs[why.job], why.reason, why.detail)
        if change is not None:
            others.append((jobs[why.job], change))
    return Actions(starts, tuple(others), now)


async def carry_out(store: Store, actions: Actions) -> Report:
    if not actions.starts and not actions.others:
        return Report()
    return await store.write(lambda tx: _commit(tx, actions))


class JobsLoop:
    name = JOBS
    tick_s = 5.0

    def __init__(self, store: Store, clock: Clock, watch: Watch) -> None:
        self._store = store
        self._clock = clock
        self._watch = watch
        #: jobs that waited when it last looked; the door bounds the queue by it
        self.queued = 0

    async def activate(self) -> Sequence[str]:
        seen = await load(self._store)
        report = await carry_out(self._store, decide(seen, self._clock.now_us()))
        self.queued = len(seen.queued) - len(report.started) - len(report.refused)
        for job in (*report.started, *report.refused):
            self._watch.notify(f"job/{job.id}")
        pokes = [ASSIGNMENT] if report.started else []
        if report.skipped or report.refused:
            pokes.append(JOBS)
        return pokes


def _load(tx: Tx) -> Snapshot:
    queued = tx.jobs({JobState.QUEUED})
    if not queued:
        return Snapshot(None)
    machine = tx.machine()
    jobs = (Holding(job.spec.demand, job.plan, job) for job in tx.jobs(HOLDING) if job.plan is not None)
    functions = (Holding(demand, plan) for demand, plan in _functions(tx, machine, None))
    return Snapshot(machine, tuple(queued), (*jobs, *functions))


def holding(
    tx: Tx, machine: Machine | None, but: tuple[ProjectName, FunctionName] | None = None
) -> tuple[tuple[Resources, Plan], ...]:
    """What jobs and dedicated functions hold. `but`: a function that is about to be placed anew."""
    jobs = [(job.spec.demand, job.plan) for job in tx.jobs(HOLDING) if job.plan is not None]
    return (*jobs, *_functions(tx, machine, but))


def _functions(tx: Tx, machine: Machine | None, but: tuple[ProjectName, FunctionName] | None) -> list[tuple[Resources, Plan]]:
    """What dedicated functions and older revisions hold."""
    functions = [
        (reserved, row.plan)
        for row in tx.functions()
        if row.plan is not None and (reserved := row.spec.reserved) is not None and (row.project, row.name) != but
    ]
    older = [(_OLDER, held.plan) for held in (machine.held if machine else ()) if but is None or held.function != but[1]]
    return [*functions, *older]


def _commit(tx: Tx, actions: Actions) -> Report:
    started: list[Job] = []
    refused: list[Job] = []
    skipped = dropped = 0
    machine = tx.machine()
    room = Room(machine, holding(tx, machine)) if actions.starts and machine is not None else None
    for before, change in actions.starts:
        demand, plan = before.spec.demand, change.job.plan
        if change.error or plan is None or machine is None or room is None or _moved_on(tx, before):
            skipped += 1
            continue
        findings = room.check(demand, plan)
        if _may_not(machine, plan) or findings:
            # Decided on what has changed since; whoever changed it pokes this loop. Looking again at once could go on for ever.
            _log.warning("the plan of job %s is dropped: %s", before.id, "; ".join(findings) or "something of it is out of use")
            dropped += 1
            continue
        commit_change(tx, before, change, actions.now)
        room.take(demand, plan)
        started.append(change.job)
    for before, change in actions.others:
        if _moved_on(tx, before):
            skipped += 1
        elif commit_change(tx, before, change, actions.now) and change.job.state.terminal:
            refused.append(change.job)
    return Report(tuple(started), tuple(refused), skipped, dropped)


def _may_not(machine: Machine, plan: Plan) -> bool:
    """Something that the plan uses has been taken out of use since it was made."""
    return plan_blocked(machine.blocked, machine.blocked_pairs, plan)


def _moved_on(tx: Tx, before: Job) -> bool:
    stored = tx.job(before.id)
    return stored is None or stored.generation != before.generation
