"""Which attempts go into the queue of the attached cluster, and what has become of those that did?

Jobs with `direct` wait here for nothing but what is ours: dependencies, holds, times and limits of arrays. Then they are handed
over (STARTING), and the cluster decides when they run. One look a second, at most, tells of all of them (`queue_looks.py`).

An attempt is handed over again only when it is certain that the cluster never got it: after a submission whose answer was lost,
and after a restart of the server, a look has to have come `SETTLE_NS` later that doesn't show it, and no step has left a record.
The steps themselves let only one job run an attempt (`engine/slurm/step.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.control import DIRECT, JOBS
from steelyard.control.changes import commit_change
from steelyard.control.direct_end import make_end
from steelyard.control.live import LiveJobs, read_standings, refresh
from steelyard.control.queue_looks import QueueLooks
from steelyard.control.watch import Watch
from steelyard.engine import Engine
from steelyard.errors import Refused, SteelyardError
from steelyard.lifecycle.attempt import apply_attempt
from steelyard.lifecycle.job import Change, explain_wait, refuse_job, start_job, wait_elsewhere
from steelyard.model.batch import Dependency
from steelyard.model.ids import AttemptId, JobId
from steelyard.model.job import Job, JobState
from steelyard.model.reason import Reason
from steelyard.model.slurm import PENDING, RUNNING, QueueEntry, RankRecord
from steelyard.scheduling.eligible import split_eligible
from steelyard.scheduling.snapshot import Standing
from steelyard.store import Store
from steelyard.wire.agent import AttemptState

#: with nothing handed over it looks this often
IDLE_S = 30.0
#: between two looks, at least
LOOK_S = 1.0
#: a lost submission has reached the cluster by then, or never will
SETTLE_NS = 15 * 1_000_000_000
NOT_ATTACHED = "No cluster is attached any more (`steelyard cluster attach`)."
#: submissions at a time
SUBMITS = 4
_log = logging.getLogger("steelyard.direct")


class Handed(msgspec.Struct):
    """What this server did about an attempt. Forgotten with the server: then looks have to tell."""

    #: monotonic, of the newest submission
    at_ns: int
    #: the cluster's name for it; None: the answer was lost
    number: str | None = None
    #: monotonic, of the newest look that showed it
    seen_ns: int | None = None
    #: signals that were passed on: (signal, when)
    signalled: tuple[int, int] | None = None
    #: monotonic, since when it is told to leave
    cancelled_ns: int | None = None


class Seen(msgspec.Struct, frozen=True):
    handed_over: tuple[Job, ...]
    #: what the cluster knows; None: it was not asked now, or did not answer
    queue: Mapping[str, QueueEntry] | None
    #: of attempts that may have ended: what their steps wrote, and what the cluster saw of the exit code
    records: Mapping[str, Sequence[RankRecord]]
    codes: Mapping[str, tuple[int | None, int | None]]
    looked_ns: int
    #: why there is no `queue`, once it has been so for a while
    silent: str = ""


class Actions(msgspec.Struct, frozen=True):
    changes: tuple[tuple[Job, Change], ...] = ()
    submits: tuple[Job, ...] = ()
    signals: tuple[tuple[Job, str, int], ...] = ()
    cancels: tuple[tuple[Job, str], ...] = ()


def decide(seen: Seen, handed: Mapping[AttemptId, Handed], began_ns: int, now: int) -> Actions:
    """What becomes of what was handed over. `began_ns`: since when this server looks, monotonic. `now`: wall time, in us."""
    changes: list[tuple[Job, Change]] = []
    submits: list[Job] = []
    signals: list[tuple[Job, str, int]] = []
    cancels: list[tuple[Job, str]] = []
    for job in seen.handed_over:
        entry = None if seen.queue is None else seen.queue.get(job.attempt_id)
        known = handed.get(job.attempt_id)
        if entry is not None and entry.state in PENDING | RUNNING:
            change = _apply_living(job, entry, now)
            if job.stop_signal is not None:
                wanted = choose_stop(job, entry, known, seen.looked_ns)
                if wanted == 0:
                    cancels.append((job, entry.job))
                elif wanted is not None:
                    signals.append((job, entry.job, wanted))
        elif entry is not None or seen.records.get(job.attempt_id):
            change = apply_attempt(job, _make_end(job, entry, seen, now), now)
        elif seen.queue is None:
            change = _apply_silence(job, seen.silent, now) if seen.silent else None
        else:
            change = None
            match judge_absent(job, known, began_ns, seen.looked_ns):
                case "submit" if job.stop_signal is None:
                    submits.append(job)
                case "submit" | "left":
                    change = apply_attempt(job, AttemptState(job.attempt_id, "not-started"), now)
                case "forgotten":
                    text = "Slurm no longer knows the job, and no exit record was found: whether it ran to its end is not known"
                    lost = AttemptState(job.attempt_id, "ended", Reason.EXIT_UNKNOWN, text)
                    change = apply_attempt(job, lost, now)
                case _:
                    pass
        if change is not None:
            changes.append((job, change))
    return Actions(tuple(changes), tuple(submits), tuple(signals), tuple(cancels))


def judge_absent(job: Job, known: Handed | None, began_ns: int, looked_ns: int) -> str:
    """A look does not show the attempt: "submit" it (again), "forgotten" by the cluster, "left" because we told it to, or "wait"
    until that is certain."""
    if known is not None and known.cancelled_ns is not None and looked_ns > known.cancelled_ns and job.started_at is None:
        # had it begun, Slurm would show it as cancelled; an element of an array that had not is gone without a trace
        return "left"
    if known is not None and known.number is not None:
        # it was there, or the cluster said it would be
        last_ns = known.at_ns if known.seen_ns is None else known.seen_ns
        return "forgotten" if looked_ns - last_ns >= SETTLE_NS else "wait"
    since_ns = began_ns if known is None else known.at_ns
    if looked_ns - since_ns < SETTLE_NS:
        return "wait"
    # it ran once, so the cluster had it
    return "submit" if job.started_at is None else "forgotten"


def choose_stop(job: Job, entry: QueueEntry, known: Handed | None, now_ns: int) -> int | None:
    """The signal to pass on now; 0: it is to be ended by force, or leaves the queue; None: nothing (more)."""
    if entry.state in PENDING or known is None:
        return 0
    if known.signalled is None or known.signalled[0] != job.stop_signal:
        return job.stop_signal
    return 0 if now_ns - known.signalled[1] >= job.stop_grace_s * 1e9 else None


def _make_end(job: Job, entry: QueueEntry | None, seen: Seen, now: int) -> AttemptState:
    records = seen.records.get(job.attempt_id, ())
    return make_end(job, entry, records, seen.codes.get(job.attempt_id, (None, None)), now)


def _apply_living(job: Job, entry: QueueEntry, now: int) -> Change | None:
    if entry.state in PENDING:
        if job.state is JobState.STARTING:
            return wait_elsewhere(job, f"job {entry.job} in Slurm's queue: {entry.reason or 'it has just been submitted'}")
        return apply_attempt(job, AttemptState(job.attempt_id, "starting"), now)
    return apply_attempt(job, AttemptState(job.attempt_id, "running", started_at=entry.started_at), now)


def _apply_silence(job: Job, silent: str, now: int) -> Change | None:
    text = f"{silent} What runs on the cluster goes on."
    return apply_attempt(job, AttemptState(job.attempt_id, "unknown", Reason.SLURM_SILENT, text), now)


def decide_queued(
    queued: Sequence[Job], handed_over: Sequence[Job], standings: Mapping[Dependency, Standing], attached: bool, now: int
) -> tuple[tuple[Job, Change], ...]:
    """Who leaves our queue for that of the cluster, and why others don't."""
    eligible = split_eligible(queued, standings, now)
    jobs = {job.id: job for job in queued}
    begun: dict[JobId, int] = {}
    for job in handed_over:
        if job.array is not None:
            begun[job.array.id] = begun.get(job.array.id, 0) + 1
    changes: list[tuple[Job, Change]] = []
    for job in eligible.jobs:
        array = job.array
        if not attached:
            change = explain_wait(job, Reason.SLURM_SILENT, NOT_ATTACHED)
        elif array is not None and array.at_once is not None and begun.get(array.id, 0) >= array.at_once:
            text = f"at most {array.at_once} of its array may run at a time"
            change = explain_wait(job, Reason.ARRAY_LIMIT, text)
        else:
            change = start_job(job, None, "handed to Slurm")
            if array is not None:
                begun[array.id] = begun.get(array.id, 0) + 1
        if change is not None:
            changes.append((job, change))
    changes += [(jobs[why.job], refuse_job(jobs[why.job], why.reason, why.detail, now)) for why in eligible.never]
    waits = [(jobs[why.job], explain_wait(jobs[why.job], why.reason, why.detail)) for why in eligible.waits]
    return (*changes, *((job, change) for job, change in waits if change is not None))


async def _read_records(engine: Engine, jobs: Sequence[Job]) -> Mapping[str, Sequence[RankRecord]]:
    """Nothing where the files can't be read now: Slurm's word has to do, and nobody else waits for it."""
    try:
        return await engine.read_records(jobs)
    except SteelyardError as err:
        _log.warning("exit records of %d jobs: %s", len(jobs), err.public)
        return {}


class DirectLoop:
    """`find_engine` answers with the attached cluster, None where none is attached."""

    name = DIRECT

    def __init__(
        self,
        store: Store,
        clock: Clock,
        watch: Watch,
        live: LiveJobs,
        find_engine: Callable[[], Engine | None],
        looks: QueueLooks,
    ) -> None:
        self._store, self._clock, self._watch, self._live = store, clock, watch, live
        self._find_engine, self._looks = find_engine, looks
        self._began_ns = clock.mono_ns()
        self._handed: dict[AttemptId, Handed] = {}
        #: when the newest look began that was judged here
        self._looked_ns = -1
        #: what waited or ran without anything being due, by that look: with the same row and the same entry nothing is due again
        self._settled: dict[JobId, tuple[Job, AttemptId, QueueEntry]] = {}

    @property
    def tick_s(self) -> float:
        if not self._live.direct:
            return IDLE_S
        if all(job.state is JobState.QUEUED for job in self._live.direct):
            return LOOK_S
        return max(LOOK_S / 10, (self._looks.due_ns(LOOK_S) - self._clock.mono_ns()) / 1e9)

    async def activate(self) -> Sequence[str]:
        await refresh(self._live, self._store)
        if not self._live.direct:
            self._handed.clear()
            self._settled.clear()
            return ()
        engine = self._find_engine()
        jobs = self._live.direct
        queued = sorted((job for job in jobs if job.state is JobState.QUEUED), key=lambda job: job.submitted_at)
        handed = tuple(job for job in jobs if job.state is not JobState.QUEUED)
        # first what somebody waits for
        moved = await self._hand_over(engine, queued, handed)
        seen = await self._load(engine, handed)
        now = self._clock.now_us()
        actions = decide(seen, self._handed, self._began_ns, now)
        moved += await self._commit(actions.changes, now)
        if engine is not None:
            await self._carry_out(engine, actions)
        if len(self._handed) > len(self._live.direct):
            living = {job.attempt_id for job in self._live.direct} | {job.attempt_id for job in moved}
            self._handed = {attempt: known for attempt, known in self._handed.items() if attempt in living}
        self._settle(seen, actions)
        ended = any(job.state.terminal or job.state is JobState.QUEUED for job in moved)
        return [JOBS, DIRECT] if ended else []

    async def _hand_over(self, engine: Engine | None, queued: Sequence[Job], handed: Sequence[Job]) -> list[Job]:
        asked = {after for job in queued for after in job.spec.after}
        standings = await self._store.read(lambda tx: read_standings(tx, asked)) if asked else {}
        now = self._clock.now_us()
        moved = await self._commit(decide_queued(queued, handed, standings, engine is not None, now), now)
        if engine is not None:
            # what left our queue in this commit can't have been submitted before
            await self._submit_all(engine, [job for job in moved if job.state is JobState.STARTING])
        return moved

    async def _load(self, engine: Engine | None, handed: tuple[Job, ...]) -> Seen:
        queue = await self._look(engine) if handed and engine is not None else None
        silent = NOT_ATTACHED if engine is None else self._looks.silent
        if queue is not None:
            handed = tuple(job for job in handed if not self._is_settled(job, queue))
        elif not silent:
            handed = ()
        records: Mapping[str, Sequence[RankRecord]] = {}
        codes: dict[str, tuple[int | None, int | None]] = {}
        over = [job for job in handed if queue is not None and self._is_over(job, queue.get(job.attempt_id))]
        if engine is not None and queue is not None and over:
            records = await _read_records(engine, over)
            for job in over:
                entry = queue.get(job.attempt_id)
                if entry is not None and not records.get(job.attempt_id):
                    codes[job.attempt_id] = await engine.read_exit_code(job, entry.job)
        return Seen(handed, queue, records, codes, self._looked_ns, silent)

    def _is_settled(self, job: Job, queue: Mapping[str, QueueEntry]) -> bool:
        before = self._settled.get(job.id)
        return before is not None and before[0] is job and before[2] is queue.get(before[1])

    def _settle(self, seen: Seen, actions: Actions) -> None:
        if seen.queue is None:
            return
        if len(self._settled) > len(self._live.direct):
            self._settled.clear()
        changed = {job.id for job, _ in actions.changes}
        for job in seen.handed_over:
            entry = seen.queue.get(job.attempt_id)
            if entry is not None and entry.state in PENDING | RUNNING and job.stop_signal is None and job.id not in changed:
                self._settled[job.id] = job, job.attempt_id, entry

    def _is_over(self, job: Job, entry: QueueEntry | None) -> bool:
        """May it have ended, by what the newest look shows of it?"""
        if entry is not None:
            return entry.state not in PENDING | RUNNING
        return judge_absent(job, self._handed.get(job.attempt_id), self._began_ns, self._looked_ns) != "wait"

    async def _look(self, engine: Engine) -> Mapping[str, QueueEntry] | None:
        """What was handed over is judged when there is news of it, and not in between."""
        look = await self._looks.take(engine, self._looked_ns, LOOK_S)
        if look is None:
            return None
        self._looked_ns = look.at_ns
        for attempt, known in self._handed.items():
            entry = None if look.queue is None else look.queue.get(attempt)
            if entry is not None:
                known.number, known.seen_ns = entry.job, look.at_ns
        return look.queue

    async def _commit(self, changes: Sequence[tuple[Job, Change]], now: int) -> list[Job]:
        if not changes:
            return []
        stored = await self._store.write(
            lambda tx: [change.job for job, change in changes if commit_change(tx, job, change, now)]
        )
        for job in stored:
            self._watch.notify(f"job/{job.id}")
        return stored

    async def _carry_out(self, engine: Engine, actions: Actions) -> None:
        await self._submit_all(engine, actions.submits)
        for job, number, signum in actions.signals:
            await engine.signal(job, number, signum)
            known = self._handed.setdefault(job.attempt_id, Handed(self._clock.mono_ns(), number))
            known.signalled = (signum, self._clock.mono_ns())
        if actions.cancels:
            await engine.cancel(actions.cancels)
            for job, number in actions.cancels:
                known = self._handed.setdefault(job.attempt_id, Handed(self._clock.mono_ns(), number))
                known.cancelled_ns = known.cancelled_ns or self._clock.mono_ns()

    async def _submit_all(self, engine: Engine, jobs: Sequence[Job]) -> None:
        gate = asyncio.Semaphore(SUBMITS)

        async def submit(some: Sequence[Job]) -> None:
            async with gate:
                await self._submit(engine, some)

        await asyncio.gather(*map(submit, engine.make_batches(jobs)))

    async def _submit(self, engine: Engine, jobs: Sequence[Job]) -> None:
        known = [self._handed.setdefault(job.attempt_id, Handed(0)) for job in jobs]
        for each in known:
            each.at_ns, each.number = self._clock.mono_ns(), None
        first = jobs[0].attempt_id
        try:
            for each, number in zip(known, await engine.submit(jobs), strict=True):
                each.number = number
        except Refused as err:
            if err.code != "slurm-refused":
                _log.warning("%s could not be handed over: %s", first, err.public)
                return
            now = self._clock.now_us()
            refused = (AttemptState(job.attempt_id, "not-started", Reason.START_FAILED, err.public) for job in jobs)
            changes = ((job, apply_attempt(job, state, now)) for job, state in zip(jobs, refused, strict=True))
            await self._commit([(job, change) for job, change in changes if change is not None], now)
        except SteelyardError as err:
            _log.warning("whether %s was taken is not known: %s", first, err.public)
        for each in known:
            each.at_ns = self._clock.mono_ns()
