"""When will the queued jobs start, as far as anybody can tell? The real decision, run forward over a snapshot.

Time jumps from one event to the next: something ends by its `max_duration`, or the decision asks to be looked at again. What
starts on the way runs as long as its own `max_duration`; work without one never ends, and where that is what a job waits for,
its start is unknown. Everything is taken to need all of its time and to succeed, so most jobs start earlier than told. Fair
share stays as it is now, and nobody submits anything: later jobs of a higher priority start before those that wait.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from steelyard.model.batch import Dependency, DependencyKind, PreemptMode
from steelyard.model.ids import JobId
from steelyard.model.job import Job, JobState, Plan
from steelyard.model.reason import Reason
from steelyard.scheduling.snapshot import Decision, Holding, Snapshot, Standing

#: the decision with everything it needs but the snapshot and the time: ranks by fair share, and who chooses victims
Decide: TypeAlias = Callable[[Snapshot, int], Decision]

#: the first so many jobs of the queue
JOBS_MAX = 100
#: decisions that one forecast makes: each takes a millisecond or so with the jobs above
_DECISIONS_MAX = 400


def forecast_starts(snapshot: Snapshot, now: int, decide: Decide, limit: int = JOBS_MAX) -> dict[JobId, int | None]:
    """Wall time at which each of the first `limit` jobs is expected to start, in the order of the queue; those that may not start
    yet (a dependency, a later begin) come after those that may. None: nobody knows."""
    first = decide(snapshot, now)
    ordered = set(first.order)
    waiting = [job.id for job in snapshot.queued if job.id not in ordered]
    wanted = (*first.order, *waiting)[:limit]
    future = _Future(snapshot, now, set(wanted))
    future.apply(first)
    for _ in range(_DECISIONS_MAX):
        if all(job in future.starts for job in wanted) or not future.move_on():
            break
        future.apply(decide(future.snapshot(), future.now))
    return {job: future.starts.get(job) for job in wanted}


class _Future:
    def __init__(self, snapshot: Snapshot, now: int, wanted: set[JobId]) -> None:
        self.now = now
        self.starts: dict[JobId, int] = {}
        self._base = snapshot
        #: those behind can't delay the ones in front
        self._queued = [job for job in snapshot.queued if job.id in wanted]
        self._holding = {self._name(at, held): held for at, held in enumerate(snapshot.holding)}
        self._standings = dict(snapshot.standings)
        #: elements of arrays that are not over
        self._elements = Counter(job.array.id for job in self._all_jobs() if job.array is not None)
        self._ends = {name: end for name, held in self._holding.items() if (end := find_end(held, now)) is not None}
        self._look_at: int | None = None

    def snapshot(self) -> Snapshot:
        return msgspec.structs.replace(
            self._base, queued=tuple(self._queued), holding=tuple(self._holding.values()), standings=self._standings
        )

    def apply(self, decision: Decision) -> None:
        gone = {why.job for why in decision.never} | {job for job, _ in decision.starts}
        jobs = {job.id: job for job in self._queued}
        self._queued = [job for job in self._queued if job.id not in gone]
        for job, plan in decision.starts:
            if job in jobs:
                self._start(jobs[job], plan)
        for job in decision.resumes:
            self._resume(job)
        for victim, _ in decision.preempts:
            self._preempt(victim)
        self._look_at = decision.look_at

    def move_on(self) -> bool:
        """To the next event; False where nothing will happen any more."""
        times = [*self._ends.values(), *(() if self._look_at is None else (self._look_at,))]
        if not times:
            return False
        self.now = max(self.now, min(times))
        for name in [name for name, end in self._ends.items() if end <= self.now]:
            self._end(name)
        return True

    def _start(self, job: Job, plan: Plan) -> None:
        self.starts.setdefault(job.id, self.now)
        job = msgspec.structs.replace(
            job, state=JobState.RUNNING, attempt=job.attempt + 1, plan=plan, started_at=self.now, suspended_s=0.0
        )
        self._hold(Holding(job.spec.demand, plan, job))
        if self._standings.get(Dependency(job.id, DependencyKind.STARTED)) is Standing.WAITS:
            self._settle(job.id, DependencyKind.STARTED)
            self._ends[_AT_ONCE] = self.now

    def _resume(self, job_id: JobId) -> None:
        held = self._holding[job_id]
        job = held.job
        if job is None:
            return
        self.starts.setdefault(job_id, self.now)
        frozen_s = (self.now - (job.suspended_at if job.suspended_at is not None else self.now)) / 1e6
        job = msgspec.structs.replace(job, state=JobState.RUNNING, suspended_at=None, suspended_s=job.suspended_s + frozen_s)
        self._hold(msgspec.structs.replace(held, job=job))

    def _preempt(self, victim: JobId) -> None:
        held = self._holding[victim]
        job = held.job
        if job is None:
            return
        if job.spec.preemption.mode is PreemptMode.SUSPEND:
            self._ends.pop(victim, None)
            frozen = msgspec.structs.replace(job, state=JobState.SUSPENDED, suspended_at=self.now)
            self._holding[victim] = msgspec.structs.replace(held, job=frozen)
            self._ends[_AT_ONCE] = self.now
            return
        stopping = msgspec.structs.replace(job, state=JobState.STOPPING, stop_reason=Reason.PREEMPTED, stop_signal=1)
        self._holding[victim] = msgspec.structs.replace(held, job=stopping)
        self._ends[victim] = self.now + round(job.spec.preemption.grace_s * 1e6)

    def _hold(self, held: Holding) -> None:
        if held.job is None:
            return
        self._holding[held.job.id] = held
        end = find_end(held, self.now)
        if end is not None:
            self._ends[held.job.id] = end

    def _end(self, name: JobId) -> None:
        del self._ends[name]
        held = self._holding.pop(name, None)
        if held is None or held.job is None:
            return
        job = held.job
        if job.stop_reason is Reason.PREEMPTED and job.spec.preemption.mode is PreemptMode.REQUEUE:
            again = msgspec.structs.replace(
                job, state=JobState.QUEUED, plan=None, started_at=None, stop_reason=None, stop_signal=None
            )
            insort(self._queued, again, key=lambda each: (each.submitted_at, each.id))
            return
        how = DependencyKind.OK if job.stop_signal is None else DependencyKind.NOT_OK
        self._settle(job.id, how)
        if job.array is not None:
            self._elements[job.array.id] -= 1
            if not self._elements[job.array.id]:
                self._settle(job.array.id, how)

    def _settle(self, job: JobId, how: DependencyKind) -> None:
        """What waits for it goes on, or can't any more: it has started, has ended well, or has not."""
        for kind in DependencyKind:
            dependency = Dependency(job, kind)
            if self._standings.get(dependency) is not Standing.WAITS:
                continue
            if kind is how or (kind is DependencyKind.ANY and how is not DependencyKind.STARTED):
                self._standings[dependency] = Standing.MET
            elif {kind, how} == {DependencyKind.OK, DependencyKind.NOT_OK}:
                self._standings[dependency] = Standing.NEVER

    def _all_jobs(self) -> list[Job]:
        return [*self._base.queued, *(held.job for held in self._base.holding if held.job is not None)]

    @staticmethod
    def _name(at: int, held: Holding) -> JobId:
        return JobId(f"/{at}") if held.job is None else held.job.id


#: in `_ends`: nothing ends, but the next decision is made at the same time: somebody was frozen, or a dependency is met
_AT_ONCE = JobId("/now")


def find_end(held: Holding, now: int) -> int | None:
    """When it will be gone at the latest; None: nobody knows."""
    job = held.job
    if job is None or held.suspended:
        return None
    if job.state is JobState.STOPPING:
        return now + round(job.stop_grace_s * 1e6)
    if job.started_at is None and job.spec.max_duration_s is not None:
        return now + round(job.spec.max_duration_s * 1e6)
    return None if held.ends_by is None else max(now, held.ends_by)
