"""Who of a pool's jobs starts, who waits, and who gives way? One pass over the queue for the machines of one pool, or for the
home's own; the rules stand in `decide.py`. What all lanes share (quotas, arrays, answers) is a `Turn`. Never reads the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeAlias

from steelyard.model import words
from steelyard.model.batch import Gang
from steelyard.model.ids import JobId
from steelyard.model.job import Job, JobState, Plan, Resources
from steelyard.model.reason import Reason
from steelyard.placement.machine_facts import make_asked
from steelyard.placement.refusal import Refusal, make_refusal
from steelyard.placement.room import Room
from steelyard.scheduling.eligible import ArrayCount
from steelyard.scheduling.preemption import free_room, gives_way_at, price_of
from steelyard.scheduling.quota import QuotaBook
from steelyard.scheduling.reservation import Reserved, end_if_started, find_reservation, move_reservation
from steelyard.scheduling.seat import find_seat, fits_quickly, gone_s, take_seat
from steelyard.scheduling.snapshot import Holding, Reservation, Snapshot, Why, explain_end
from steelyard.scheduling.spot import Seat, Spot, choose_allocation, find_best_seat, join_seats

#: (the room without what is about to end, what may be ended, the job, now) -> whom to end so that the job fits; None: nobody
Victims: TypeAlias = Callable[[Room, Sequence[Holding], Job, int], Sequence[JobId] | None]

#: of one lane: about 20 ms of one core
BACKFILL_REFUSALS = 100

#: machines of which it is looked on which the least is lost: each such look may take tens of milliseconds
_WAYS_MAX = 4

_BEHIND = (Reason.BEHIND_EARLIER_JOB, "jobs that are before it in the queue start first")
_RESERVED = (
    Reason.RESERVED,
    "what is free is kept for the first job that waits; a shorter --max-duration may let this one start before it",
)
_NO_ALLOCATION = (Reason.NO_MACHINE, "MPI's machines have to be of one allocation, and none that has as many takes work now")
_PREEMPTING = (Reason.PREEMPTING, "jobs that give way to it are ending")
_ENDING = "what it needs is about to be free: work that holds it is ending"


def spare_all(room: Room, holding: Sequence[Holding], job: Job, now: int) -> Sequence[JobId] | None:
    """Nobody is ever preempted."""
    del room, holding, job, now


class Turn:
    """What one decision has come to so far, in all lanes."""

    def __init__(self, snapshot: Snapshot, now: int, victims: Victims) -> None:
        self.now, self.choose_victims = now, victims
        self.starts: list[tuple[JobId, Plan]] = []
        self.resumes: list[JobId] = []
        self.preempts: list[tuple[JobId, JobId]] = []
        self.waits: list[Why] = []
        self.never: list[Why] = []
        #: when the minimum runtime of somebody who may have to give way is over
        self.look_at: int | None = None
        self._arrays, self._quotas = ArrayCount(snapshot.holding), QuotaBook(snapshot.quotas, snapshot.holding)
        self.limited = bool(snapshot.quotas)

    def book(self, job: Job) -> None:
        self._quotas.take(job)
        if job.state is not JobState.SUSPENDED:
            self._arrays.take(job)

    def find_limit(self, job: Job) -> Why | None:
        if job.array is not None and job.state is not JobState.SUSPENDED and (why := self._arrays.find_block(job)) is not None:
            return why
        return self._quotas.find_block(job) if self.limited else None

    def look_again(self, at: Sequence[int]) -> None:
        self.look_at = min([*at, *(() if self.look_at is None else (self.look_at,))], default=None)


class Lane:
    def __init__(self, pool: str, spots: Sequence[Spot], turn: Turn, without: tuple[Reason, str]) -> None:
        """`without`: why a job waits where no machine takes work."""
        #: of the first job that waits with a place in hand
        self.reservation: Reservation | None = None
        self._pool, self._spots, self._turn, self._now, self._without = pool, spots, turn, turn.now, without
        #: the machines on which the first job that fits nowhere keeps its place; whoever comes behind it must not delay it
        self._reserved_on: tuple[Spot, ...] = ()
        self._ends = any(spot.ends_at is not None for spot in spots)
        #: what a shape was answered while nothing but `take` has happened, by so many machines that have time for it
        self._refused: dict[tuple[Resources, Gang | None, float | None, int], Refusal] = {}
        self._refused_behind: dict[tuple[Resources, Gang | None, float | None, int, bool], tuple[Reason, str]] = {}
        self._refusals_left = BACKFILL_REFUSALS

    def go_through(self, jobs: Sequence[Job]) -> None:
        """The next jobs of the queue that go to these machines."""
        turn = self._turn
        if not self._spots:
            turn.waits += [Why(job.id, *self._without) for job in jobs]
            return
        for at, job in enumerate(jobs):
            if self._reserved_on:
                self._backfill(jobs[at:])
                return
            if (why := turn.find_limit(job)) is not None:
                turn.waits.append(why)
            elif spots := self._spots_for(job):
                self._seat(job, spots)
            else:
                turn.waits.append(self._say_without(job))

    def _spots_for(self, job: Job) -> Sequence[Spot]:
        if job.state is not JobState.SUSPENDED:
            spots = self._spots
            if job.spec.max_duration_s is not None and self._ends:
                spots = [spot for spot in spots if spot.has_time(job, self._now)]
            return choose_allocation(job, spots) if job.spec.in_one_allocation else spots
        return [spot for spot in self._spots if job.plan is not None and job.plan.on(spot.place) is not None]

    def _say_without(self, job: Job) -> Why:
        """Why none of the machines is one for it."""
        if job.state is JobState.SUSPENDED:
            return Why(job.id, *self._without)
        if job.spec.in_one_allocation:
            return Why(job.id, *_NO_ALLOCATION)
        last = max(self._spots, key=lambda spot: spot.ends_at or 0)
        return Why(job.id, Reason.NO_TIME_LEFT, explain_end(last.machine, self._pool, last.ends_at or 0))

    def _seat(self, job: Job, spots: Sequence[Spot]) -> None:
        """It starts, or waits; where it keeps a reservation, whoever comes behind it must not delay it."""
        answer = self._find_seat(job, spots)
        if not isinstance(answer, Refusal):
            self._start(job, *answer)
            return
        if answer.never:
            self._turn.never.append(Why(job.id, answer.reasons[0], answer.detail))
            return
        able = [spot for spot in spots if fits_quickly(job, spot.without_jobs)]
        if len(able) >= job.spec.nodes:
            if self._wait_for_room(job, answer, able):
                return
            self._look_again_for(job, able)
        self._reserved_on = self._reserve(job, able)
        if not self._reserved_on:
            self._turn.waits.append(Why(job.id, answer.reasons[0], answer.detail))
            return
        self._turn.book(job)
        _, plan = join_seats([(spot, kept.plan) for spot in self._reserved_on if (kept := spot.reserved) is not None])
        self._wait_with(job, _kept(self._reserved_on[0]).at, plan, answer.reasons[0], answer.detail)

    def _find_seat(self, job: Job, spots: Sequence[Spot]) -> Seat | Refusal:
        frozen = job.state is JobState.SUSPENDED
        shape = (job.spec.resources, job.spec.gang, gone_s(job.spec), len(spots))
        known = None if frozen else self._refused.get(shape)
        if known is not None:
            return known
        answer = find_best_seat(job, [(spot, spot.room, spot.beside) for spot in spots])
        if not isinstance(answer, list):
            return answer
        refusal = self._join(job, spots, answer)
        if not frozen:
            self._refused[shape] = refusal
        return refusal

    def _join(self, job: Job, spots: Sequence[Spot], refused: Sequence[tuple[Spot, Refusal]]) -> Refusal:
        """One word for all machines. Nothing is beyond a pool for good: another machine may come."""
        nodes, able = job.spec.nodes, len(spots) - len(refused)
        if not refused:
            detail = f"{nodes} machines asked at once, and {words.count(able, 'machine')} of pool {self._pool} can take work now"
            return make_refusal([(Reason.NO_MACHINE, detail)], False, spots[0].room.largest(make_asked(job.spec.demand)))
        spot, answer = next(((spot, answer) for spot, answer in refused if not answer.never), refused[0])
        if not self._pool:
            return answer
        detail = answer.detail if len(refused) == 1 else f"{answer.detail} (on {spot.machine.hostname})"
        if nodes > 1:
            detail = f"{nodes} machines asked at once, {able} of {len(spots)} can take their part now; {detail}"
        return Refusal(answer.reasons, False, detail, answer.largest)

    def _start(self, job: Job, spots: Sequence[Spot], plan: Plan) -> None:
        for spot, part in zip(spots, plan.parts, strict=True):
            spot.start(job, part, self._now)
        if job.state is JobState.SUSPENDED:
            self._turn.resumes.append(job.id)
        else:
            self._turn.starts.append((job.id, plan))
        self._turn.book(job)

    def _wait_for_room(self, job: Job, answer: Refusal, able: Sequence[Spot]) -> bool:
        """Whether it fits once what is about to end is gone. Where it does not, others may have to end for it."""
        several = job.spec.nodes > 1
        found = find_best_seat(job, [(spot, spot.soon, ()) for spot in able if several or spot.soon is not spot.room])
        if not isinstance(found, list):
            spots, plan = found
            reason, detail = _PREEMPTING if any(spot.preempting for spot in spots) else (answer.reasons[0], _ENDING)
        else:
            preempted = self._preempt(job, able)
            if preempted is None:
                return False
            spots, plan = preempted
            reason, detail = _PREEMPTING
        for spot, part in zip(spots, plan.parts, strict=True):
            spot.keep(job, part, self._now)
        self._turn.book(job)
        self._wait_with(job, self._now, plan, reason, detail)
        return True

    def _preempt(self, job: Job, able: Sequence[Spot]) -> Seat | None:
        """Its place once its victims are gone, where they lose the least; None where there are none, or their going is not
        enough."""
        if job.state is JobState.SUSPENDED:
            return None
        nodes = job.spec.nodes
        found = ((spot, *way) for spot in able if (way := self._find_way(job, spot)) is not None)
        ways = [*islice(found, nodes - 1 + _WAYS_MAX)]
        if len(ways) < nodes:
            return None
        if len(ways) > 1:
            ways.sort(key=lambda way: price_of(way[1], self._now))
        gone: dict[JobId, None] = {}
        seats: list[tuple[Spot, Plan]] = []
        for spot, leaving, plan in ways[:nodes]:
            # who has to go on one machine may go from this one too, and be enough
            way = self._find_way(job, spot, gone) if gone else (leaving, plan)
            if way is None:
                return None
            gone |= dict.fromkeys(held.job.id for held in way[0] if held.job is not None)
            seats.append((spot, way[1]))
        for spot in self._spots:
            spot.let_go(gone)
        self._refused.clear()
        self._turn.preempts += [(victim, job.id) for victim in gone]
        return join_seats(seats)

    def _find_way(self, job: Job, spot: Spot, gone: Iterable[JobId] = ()) -> tuple[list[Holding], Plan] | None:
        """Who leaves the machine beside those who are `gone`, and the job's place on it then; nobody where it fits there."""
        jobs = [held for held in spot.staying if held.job is not None]
        left, soon = set(gone), spot.soon
        if left:
            soon = free_room(soon, [held for held in jobs if held.job is not None and held.job.id in left])
        if job.spec.nodes > 1 and isinstance(plan := find_seat(job, soon), Plan):
            return [], plan
        may_end = [held for held in jobs if held.job is not None and held.job.id not in left]
        chosen = set(self._turn.choose_victims(soon, may_end, job, self._now) or ())
        leaving = [held for held in may_end if held.job is not None and held.job.id in chosen]
        if not leaving:
            return None
        plan = find_seat(job, free_room(soon, leaving))
        return None if isinstance(plan, Refusal) else (leaving, plan)

    def _reserve(self, job: Job, able: Sequence[Spot]) -> tuple[Spot, ...]:
        """The machines on which it keeps a place, from when it has all of them; () where it keeps none."""
        nodes = job.spec.nodes
        found = [(spot, kept) for spot in able if (kept := self._find_reservation(job, spot)) is not None]
        # the earliest; of equals the first
        found.sort(key=lambda each: (each[1].at is None, each[1].at or 0))
        while len(found) >= nodes:
            at = found[nodes - 1][1].at
            late = [spot for spot, _ in found[:nodes] if at is not None and not spot.has_time(job, at)]
            if not late:
                break
            found = [each for each in found if each[0] not in late]
        else:
            return ()
        for spot, kept in found[:nodes]:
            spot.reserved = kept
            if nodes > 1:
                spot.reserved = move_reservation(job, kept, at, spot.soon, spot.tenants(job, self._now))
                spot.reserved.over_suspended = any(each.over_suspended for _, each in found[:nodes])
        return tuple(spot for spot, _ in found[:nodes])

    def _find_reservation(self, job: Job, spot: Spot) -> Reserved | None:
        if job.spec.nodes > 1 and isinstance(plan := find_seat(job, spot.soon), Plan):
            return Reserved(job, self._now, plan, spot.soon.copy())
        found = find_reservation(job, spot.soon, spot.tenants(job, self._now))
        # a place that is free too late is none
        return found if found is None or found.at is None or spot.has_time(job, found.at) else None

    def _look_again_for(self, job: Job, able: Sequence[Spot]) -> None:
        if job.state is JobState.SUSPENDED:
            return
        held = [each for spot in able for each in spot.staying]
        self._turn.look_again([at for each in held if (at := gives_way_at(each, job)) is not None and at > self._now])

    def _wait_with(self, job: Job, at: int | None, plan: Plan, reason: Reason, detail: str) -> None:
        self._turn.waits.append(Why(job.id, reason, detail))
        if self.reservation is None:
            self.reservation = Reservation(job.id, at, plan)

    def _backfill(self, jobs: Sequence[Job]) -> None:
        turn, refused, kept = self._turn, self._refused_behind, self._reserved_on
        waits, reserved = turn.waits, _kept(kept[0])
        # nearly always there is one machine, and most of ten thousand jobs end at the first question
        only = self._spots[0].room if len(self._spots) == 1 else None
        for job in jobs:
            spec = job.spec
            bound = turn.limited or (job.array is not None and job.array.at_once is not None)
            if bound and (why := turn.find_limit(job)) is not None:
                waits.append(why)
                continue
            if only is not None and not fits_quickly(job, only):
                waits.append(Why(job.id, *_BEHIND))
                continue
            there = self._spots_for(job)
            spots = [spot for spot in there if fits_quickly(job, spot.room)]
            if len(spots) < spec.nodes:
                waits.append(Why(job.id, *_BEHIND) if there else self._say_without(job))
                continue
            ends_before = _ends_before(job, reserved, self._now)
            shape = (spec.resources, spec.gang, gone_s(spec), len(there), ends_before)
            said = refused.get(shape) if job.state is not JobState.SUSPENDED else None
            if said is None:
                options = [
                    (spot, spot.room, spot.beside if ends_before or spot not in kept else (*spot.beside, _kept(spot).room))
                    for spot in spots
                ]
                options = [option for option in options if all(fits_quickly(job, other) for other in option[2])]
                if len(options) < spec.nodes:
                    said = _RESERVED
                elif not self._refusals_left:
                    said = _BEHIND
                else:
                    answer = find_best_seat(job, options)
                    if not isinstance(answer, list):
                        self._start(job, *answer)
                        for spot, part in zip(answer[0], answer[1].parts, strict=True):
                            if spot in kept and not ends_before:
                                take_seat(job, part, _kept(spot).room)
                        continue
                    self._refusals_left -= 1
                    behind = all(refusal.reasons[0] is not Reason.RESERVED for _, refusal in answer)
                    said = _BEHIND if behind else _RESERVED
                    if job.state is not JobState.SUSPENDED:
                        # a suspended job is refused for its own place alone
                        refused[shape] = said
            waits.append(Why(job.id, *said))


def _kept(spot: Spot) -> Reserved:
    assert spot.reserved is not None
    return spot.reserved


def _ends_before(job: Job, reserved: Reserved, now: int) -> bool:
    """Will it be gone when the reserved job starts?"""
    if reserved.over_suspended and job.state is JobState.SUSPENDED:
        return True
    end = end_if_started(job, now)
    return end is not None and (reserved.at is None or end <= reserved.at)
