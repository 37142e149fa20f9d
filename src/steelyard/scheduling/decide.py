"""Which jobs start now, and why do the others wait? Strict order with EASY backfill.

1. Jobs that may start at all (`eligible.py`) are looked at in their order (`order.py`), within the quotas of their projects and
   the limits of their arrays. What fits starts; suspended jobs go on where they were.
2. What is about to end makes room for whoever is first to fit without it: work that is STOPPING, and victims of preemption. It
   waits with that place in hand, and nobody else gets it.
3. The first job that fits neither way keeps a reservation: the earliest place by the `max_duration` of what runs
   (`reservation.py`), or a place without a time. A job that waits for what nobody ends (a sick device, a function) keeps none.
4. Jobs behind the reservation start when they fit now and can't delay it: they end before it by their own `max_duration`, or
   fit beside the reserved place together with all that will still run then. With a reservation without a time any
   `max_duration` will do. They preempt nobody.
So no job starts before one of higher order that fits as well, and a reservation never moves later because of what started
after it was made. Step 4 ends after `BACKFILL_REFUSALS` exact placements that came to nothing, in the order of the queue
(questions that numbers answer are free, equal questions are asked once): the rest waits for a later decision.
Never reads the clock, never touches a job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from steelyard.model.batch import Gang
from steelyard.model.health import NODE
from steelyard.model.ids import JobId
from steelyard.model.job import Job, JobState, Plan, Resources
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.placement.refusal import Refusal
from steelyard.placement.room import Room
from steelyard.scheduling.eligible import ArrayCount, Eligible, split_eligible
from steelyard.scheduling.order import order_jobs
from steelyard.scheduling.preemption import gives_way_at, is_frozen_by_preemption
from steelyard.scheduling.quota import QuotaBook
from steelyard.scheduling.reservation import Reserved, Tenant, end_if_started, find_reservation, make_tenant
from steelyard.scheduling.seat import fill_room, find_seat, fits_quickly, gone_s, take_seat
from steelyard.scheduling.snapshot import Decision, Holding, Reservation, Snapshot, Why

#: (the room without what is about to end, what may be ended, the job, now) -> whom to end so that the job fits; None: nobody
Victims: TypeAlias = Callable[[Room, Sequence[Holding], Job, int], Sequence[JobId] | None]

#: about 20 ms of one core
BACKFILL_REFUSALS = 100

_BEHIND = (Reason.BEHIND_EARLIER_JOB, "jobs that are before it in the queue start first")
_RESERVED = (
    Reason.RESERVED,
    "what is free is kept for the first job that waits; a shorter --max-duration may let this one start before it",
)
_PREEMPTING = (Reason.PREEMPTING, "jobs that give way to it are ending")
_ENDING = "what it needs is about to be free: work that holds it is ending"


def spare_all(room: Room, holding: Sequence[Holding], job: Job, now: int) -> Sequence[JobId] | None:
    """Nobody is ever preempted."""
    del room, holding, job, now


def decide(snapshot: Snapshot, now: int, ranks: Mapping[str, float], victims: Victims = spare_all) -> Decision:
    """`now`: wall time, microseconds. `ranks`: account -> its place by fair share, lower ones first."""
    eligible = split_eligible(snapshot.queued, snapshot.standings, now)
    suspended = [held.job for held in snapshot.holding if held.job is not None and held.suspended]
    jobs = order_jobs(eligible.jobs, suspended, ranks)
    machine = snapshot.machine
    if machine is None:
        return _wait_all(jobs, eligible, Reason.NO_MACHINE, "no agent has reported a machine yet")
    if NODE in machine.blocked:
        detail = "the machine is out of use; `steelyard check` says why, `steelyard check --readmit node` puts it back"
        return _wait_all(jobs, eligible, Reason.NODE_DRAINED, detail)
    turn = _Turn(snapshot, machine, now, victims)
    turn.go_through(jobs)
    return Decision(
        starts=tuple(turn.starts),
        resumes=tuple(turn.resumes),
        preempts=tuple(turn.preempts),
        waits=(*turn.waits, *eligible.waits),
        never=(*turn.never, *eligible.never),
        reservation=turn.reservation,
        order=tuple([job.id for job in jobs]),
        look_at=min((at for at in (eligible.look_at, turn.look_at) if at is not None), default=None),
    )


def _wait_all(jobs: Sequence[Job], eligible: Eligible, reason: Reason, detail: str) -> Decision:
    return Decision(
        waits=(*(Why(job.id, reason, detail) for job in jobs), *eligible.waits),
        never=eligible.never,
        order=tuple(job.id for job in jobs),
        look_at=eligible.look_at,
    )


class _Turn:
    """One pass over the queue."""

    def __init__(self, snapshot: Snapshot, machine: Machine, now: int, victims: Victims) -> None:
        self.starts: list[tuple[JobId, Plan]] = []
        self.resumes: list[JobId] = []
        self.preempts: list[tuple[JobId, JobId]] = []
        self.waits: list[Why] = []
        self.never: list[Why] = []
        self.reservation: Reservation | None = None
        #: when the minimum runtime of somebody who may have to give way is over
        self.look_at: int | None = None
        self._now, self._choose_victims = now, victims
        self._arrays, self._quotas = ArrayCount(snapshot.holding), QuotaBook(snapshot.quotas, snapshot.holding)
        self._limited = bool(snapshot.quotas)
        #: what holds room and is not about to end
        self._staying = [held for held in snapshot.holding if not _is_stopping(held)]
        #: with functions alone: what does not go in there waits for something that no end of a job brings
        self._without_jobs = fill_room(Room(machine), [held for held in snapshot.holding if held.job is None])
        #: as the machine is
        self._room = fill_room(self._without_jobs.copy(), [held for held in snapshot.holding if held.job is not None])
        #: as it will be once everything that is about to end is gone and has made room for those who wait for that
        self._soon = self._room
        stopping = [held for held in snapshot.holding if _is_stopping(held)]
        if stopping:
            self._soon = self._room.copy()
            for held in stopping:
                self._soon.release(held.demand, held.plan)
        self._preempting = any(held.job is not None and held.job.stop_reason is Reason.PREEMPTED for held in stopping)
        #: what this decision has given a place, now or soon
        self._seated: dict[JobId, Tenant] = {}
        self._reserved: Reserved | None = None
        #: what a shape was answered while nothing but `take` has happened
        self._refused: dict[tuple[Resources, Gang | None, float | None], Refusal] = {}

    def go_through(self, jobs: Sequence[Job]) -> None:
        for place, job in enumerate(jobs):
            if (why := self._find_limit(job)) is not None:
                self.waits.append(why)
            elif not self._seat(job):
                self._backfill(jobs[place + 1 :])
                return

    def _seat(self, job: Job) -> bool:
        """False: it keeps a reservation, and whoever comes behind it must not delay it."""
        answer = self._find_seat(job)
        if isinstance(answer, Plan):
            self._start(job, answer)
            return True
        if answer.never:
            self.never.append(Why(job.id, answer.reasons[0], answer.detail))
            return True
        if fits_quickly(job, self._without_jobs):
            if self._wait_for_room(job, answer):
                return True
            self._look_again_for(job)
            reserved = find_reservation(job, self._soon, self._tenants(job))
        else:
            reserved = None
        if reserved is None:
            self.waits.append(Why(job.id, answer.reasons[0], answer.detail))
            return True
        self._book(job)
        self._reserved = reserved
        self._wait_with(job, reserved.at, reserved.plan, answer.reasons[0], answer.detail)
        return False

    def _find_seat(self, job: Job) -> Plan | Refusal:
        if job.state is JobState.SUSPENDED:
            return find_seat(job, self._room, self._beside())
        shape = (job.spec.resources, job.spec.gang, gone_s(job.spec))
        known = self._refused.get(shape)
        if known is not None:
            return known
        answer = find_seat(job, self._room, self._beside())
        if isinstance(answer, Refusal):
            self._refused[shape] = answer
        return answer

    def _beside(self) -> tuple[Room, ...]:
        return () if self._soon is self._room else (self._soon,)

    def _start(self, job: Job, plan: Plan) -> None:
        for room in (self._room, *self._beside()):
            take_seat(job, plan, room)
        if job.state is JobState.SUSPENDED:
            self.resumes.append(job.id)
        else:
            self.starts.append((job.id, plan))
        self._book(job)
        self._seated[job.id] = Tenant(job.spec.demand, plan, end_if_started(job, self._now))

    def _book(self, job: Job) -> None:
        self._quotas.take(job)
        if job.state is not JobState.SUSPENDED:
            self._arrays.take(job)

    def _wait_for_room(self, job: Job, answer: Refusal) -> bool:
        """Whether it fits once what is about to end is gone. Where it does not, others may have to end for it."""
        plan = find_seat(job, self._soon) if self._soon is not self._room else answer
        reason, detail = _PREEMPTING if self._preempting else (answer.reasons[0], _ENDING)
        if isinstance(plan, Refusal):
            plan = self._preempt(job)
            reason, detail = _PREEMPTING
        if plan is None:
            return False
        take_seat(job, plan, self._soon)
        self._book(job)
        self._seated[job.id] = Tenant(job.spec.demand, plan, end_if_started(job, self._now))
        self._wait_with(job, self._now, plan, reason, detail)
        return True

    def _preempt(self, job: Job) -> Plan | None:
        """Its place once its victims are gone; None where there are none, or their going is not enough."""
        if job.state is JobState.SUSPENDED:
            return None
        may_end = [held for held in self._staying if held.job is not None]
        chosen = set(self._choose_victims(self._soon, may_end, job, self._now) or ())
        leaving = [held for held in may_end if held.job is not None and held.job.id in chosen]
        if not leaving:
            return None
        freed = self._soon.copy()
        for held in leaving:
            freed.release(held.demand, held.plan, held.suspended)
            if _will_be_suspended(held):
                freed.take(held.demand, held.plan, suspended=True)
        plan = find_seat(job, freed)
        if isinstance(plan, Refusal):
            return None
        self._soon = freed
        self._staying = [held for held in self._staying if held.job is None or held.job.id not in chosen]
        self._refused.clear()
        self.preempts += [(held.job.id, job.id) for held in leaving if held.job is not None]
        return plan

    def _look_again_for(self, job: Job) -> None:
        if job.state is JobState.SUSPENDED:
            return
        safe_until = [at for held in self._staying if (at := gives_way_at(held, job)) is not None and at > self._now]
        self.look_at = min([*safe_until, *(() if self.look_at is None else (self.look_at,))], default=None)

    def _wait_with(self, job: Job, at: int | None, plan: Plan, reason: Reason, detail: str) -> None:
        self.waits.append(Why(job.id, reason, detail))
        if self.reservation is None:
            self.reservation = Reservation(job.id, at, plan)

    def _tenants(self, job: Job) -> list[Tenant]:
        """All that hold room soon, but for the job itself."""
        staying = [
            make_tenant(held, self._now)
            for held in self._staying
            if held.job is None or (held.job.id not in self._seated and held.job.id != job.id)
        ]
        return [*staying, *self._seated.values()]

    def _find_limit(self, job: Job) -> Why | None:
        if job.array is not None and job.state is not JobState.SUSPENDED and (why := self._arrays.find_block(job)) is not None:
            return why
        return self._quotas.find_block(job) if self._limited else None

    def _backfill(self, jobs: Sequence[Job]) -> None:
        room, waits, refusals_left = self._room, self.waits, BACKFILL_REFUSALS
        refused: dict[tuple[Resources, Gang | None, float | None, bool], tuple[Reason, str]] = {}
        for job in jobs:
            spec = job.spec
            bound = self._limited or (job.array is not None and job.array.at_once is not None)
            if bound and (why := self._find_limit(job)) is not None:
                waits.append(why)
                continue
            if not fits_quickly(job, room):
                waits.append(Why(job.id, *_BEHIND))
                continue
            ends_before = self._ends_before(job)
            shape = (spec.resources, spec.gang, gone_s(spec), ends_before)
            said = refused.get(shape) if job.state is not JobState.SUSPENDED else None
            if said is None:
                beside = self._beside() if ends_before or self._reserved is None else (*self._beside(), self._reserved.room)
                if not all(fits_quickly(job, other) for other in beside):
                    said = _RESERVED
                elif not refusals_left:
                    said = _BEHIND
                else:
                    answer = find_seat(job, room, beside)
                    if isinstance(answer, Plan):
                        self._start(job, answer)
                        if not ends_before and self._reserved is not None:
                            take_seat(job, answer, self._reserved.room)
                        continue
                    refusals_left -= 1
                    said = _RESERVED if answer.reasons[0] is Reason.RESERVED else _BEHIND
                    if job.state is not JobState.SUSPENDED:
                        # a suspended job is refused for its own place alone
                        refused[shape] = said
            waits.append(Why(job.id, *said))

    def _ends_before(self, job: Job) -> bool:
        """Will it be gone when the reserved job starts?"""
        reserved = self._reserved
        if reserved is None or (reserved.over_suspended and job.state is JobState.SUSPENDED):
            return True
        end = end_if_started(job, self._now)
        return end is not None and (reserved.at is None or end <= reserved.at)


def _is_stopping(held: Holding) -> bool:
    return held.job is not None and held.job.state is JobState.STOPPING


def _will_be_suspended(held: Holding) -> bool:
    job = held.job
    return job is not None and not held.suspended and is_frozen_by_preemption(job)
