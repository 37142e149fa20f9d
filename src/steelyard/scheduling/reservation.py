"""When, and where, will a job fit that does not fit now? From when everything that runs will have been ended at the latest.

Work whose end nobody knows counts as never ending. Where the job fits only once some of that has ended too, its place is known
but not the time (`at` None): the place is the best on the machine without any job. Functions end by nobody's clock and stay; a
job that fits only without them gets no reservation, because the room kept for it might never be used.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from steelyard.model.job import Job, JobState, Plan, Resources
from steelyard.placement.refusal import Refusal
from steelyard.placement.room import Room
from steelyard.scheduling.seat import find_seat, fits_quickly, take_seat
from steelyard.scheduling.snapshot import Holding


class Tenant(msgspec.Struct, frozen=True):
    """What holds room when a reservation is looked for."""

    demand: Resources
    plan: Plan
    #: wall time at which it will have been ended; None: nobody knows
    end: int | None = None
    suspended: bool = False
    #: a job, which ends some day; a function does not
    job: bool = True


class Reserved:
    """The reserved place, and the room as it will be then: with the job, without what will have ended."""

    def __init__(self, job: Job, at: int | None, plan: Plan, room: Room, over_suspended: bool = False) -> None:
        self.job, self.at, self.plan, self.room = job, at, plan, room
        #: it waits for suspended jobs to go on and end, so that they may go on before it
        self.over_suspended = over_suspended
        take_seat(job, plan, room)


def make_tenant(holding: Holding, now: int) -> Tenant:
    return Tenant(holding.demand, holding.plan, _estimate_end(holding, now), holding.suspended, holding.job is not None)


def end_if_started(job: Job, now: int) -> int | None:
    """When it will have been ended if it starts, or goes on, now."""
    if job.spec.max_duration_s is None:
        return None
    ran_s = 0.0
    if job.state is JobState.SUSPENDED and job.started_at is not None and job.suspended_at is not None:
        ran_s = (job.suspended_at - job.started_at) / 1e6 - job.suspended_s
    return now + round(max(0.0, job.spec.max_duration_s - ran_s) * 1e6)


def find_reservation(job: Job, room: Room, tenants: Sequence[Tenant]) -> Reserved | None:
    """`room` as it is now, `tenants` all that hold it, but for `job` itself. None: without its functions the machine might do."""
    timed = sorted((tenant for tenant in tenants if tenant.end is not None), key=lambda tenant: tenant.end or 0)
    last = [at for at in range(len(timed)) if at + 1 == len(timed) or timed[at + 1].end != timed[at].end]
    found = _find_first(job, room, timed, last)
    if found is not None:
        return found
    free = room.copy()
    for suspended in (False, True):
        for tenant in tenants:
            if tenant.job and tenant.suspended is suspended:
                free.release(tenant.demand, tenant.plan, tenant.suspended)
        if fits_quickly(job, free) and isinstance(plan := find_seat(job, free), Plan):
            return Reserved(job, None, plan, free, over_suspended=suspended)
    return None


def move_reservation(job: Job, kept: Reserved, at: int | None, room: Room, tenants: Sequence[Tenant]) -> Reserved:
    """The same place at a later time, with all that will have ended by then; None: at one that nobody knows."""
    if at is not None and at != kept.at:
        after = room.copy()
        for tenant in tenants:
            if tenant.end is not None and tenant.end <= at:
                after.release(tenant.demand, tenant.plan, tenant.suspended)
        if isinstance(plan := find_seat(job, after), Plan):
            return Reserved(job, at, plan, after)
    kept.at = at
    return kept


def _find_first(job: Job, room: Room, timed: Sequence[Tenant], last: Sequence[int]) -> Reserved | None:
    """`last`: per end the place of the last tenant that ends then. The more have ended the more is free: bisection, after a quick
    look at all of them."""
    low, high = _skip_hopeless(job, room, timed, last), len(last) - 1
    best: Reserved | None = None
    middle = low
    while low <= high:
        after = room.copy()
        for tenant in timed[: last[middle] + 1]:
            after.release(tenant.demand, tenant.plan, tenant.suspended)
        answer = find_seat(job, after)
        if isinstance(answer, Refusal):
            low = middle + 1
        else:
            best = Reserved(job, timed[last[middle]].end, answer, after)
            high = middle - 1
        middle = (low + high) // 2
    return best


def _skip_hopeless(job: Job, room: Room, timed: Sequence[Tenant], last: Sequence[int]) -> int:
    """The first of `last` after which it may fit."""
    after, done = room.copy(), 0
    for place, at in enumerate(last):
        for tenant in timed[done : at + 1]:
            after.release(tenant.demand, tenant.plan, tenant.suspended)
        done = at + 1
        if fits_quickly(job, after):
            return place
    return len(last)


def _estimate_end(holding: Holding, now: int) -> int | None:
    job = holding.job
    if job is None or holding.suspended:
        return None
    if job.started_at is None:
        return end_if_started(job, now)
    return None if holding.ends_by is None else max(now, holding.ends_by)
