"""Which schedules are due? The only place that submits jobs by the clock.

A job, the schedule's `done_until` and the line of history are one transaction: killed at any moment, each time is submitted once
or not yet. The loop sleeps until the next time that any schedule names; without one it does not wake.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import tzinfo

import msgspec

from steelyard.clock import Clock
from steelyard.control import JOBS, SCHEDULES
from steelyard.control.changes import make_event
from steelyard.control.zones import find_zone
from steelyard.lifecycle.job import make_job
from steelyard.lifecycle.schedule import Firing, decide_firing, make_scheduled_job, next_firing, render_firing
from steelyard.model.ids import JobId
from steelyard.model.job import Job
from steelyard.model.site import Schedule
from steelyard.store import Event, Store, Tx

_log = logging.getLogger("steelyard.schedules")

#: nothing is due for so long
IDLE_S = 86_400.0
#: the wall clock may be set while we sleep by the other one
SLEEP_MAX_S = 60.0


class Seen(msgspec.Struct, frozen=True):
    schedules: tuple[Schedule, ...]
    #: by the names that they use; one that this machine does not know is missing
    zones: dict[str, tzinfo]


class Due(msgspec.Struct, frozen=True):
    schedule: Schedule
    zone: tzinfo
    firing: Firing


class Actions(msgspec.Struct, frozen=True):
    due: tuple[Due, ...]
    now: int
    #: when to look again; None: nothing will be due
    next_at: int | None


class Report(msgspec.Struct, frozen=True):
    submitted: tuple[Job, ...] = ()
    #: somebody changed the schedule since it was read: look again
    skipped: int = 0


async def load(store: Store) -> Seen:
    schedules = await store.read(lambda tx: tx.schedules())
    zones = {name: zone for name in {row.timezone for row in schedules} if (zone := find_zone(name)) is not None}
    return Seen(tuple(schedules), zones)


def decide(seen: Seen, now: int) -> Actions:
    due: list[Due] = []
    times: list[int] = []
    for schedule in seen.schedules:
        zone = seen.zones.get(schedule.timezone)
        if zone is None:
            continue
        firing = decide_firing(schedule, zone, now)
        if firing is not None:
            due.append(Due(schedule, zone, firing))
        following = next_firing(schedule, zone, now)
        if following is not None:
            times.append(following)
    return Actions(tuple(due), now, min(times, default=None))


async def carry_out(store: Store, actions: Actions) -> Report:
    if not actions.due:
        return Report()
    return await store.write(lambda tx: _commit(tx, actions))


class SchedulesLoop:
    name = SCHEDULES

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._next_at: int | None = None
        self._told: frozenset[str] = frozenset()

    @property
    def tick_s(self) -> float:
        if self._next_at is None:
            return IDLE_S
        # a millisecond late rather than early: early would be another look
        return min(SLEEP_MAX_S, max(0.0, (self._next_at - self._clock.now_us()) / 1e6) + 0.001)

    async def activate(self) -> Sequence[str]:
        seen = await load(self._store)
        self._tell_unknown(seen)
        actions = decide(seen, self._clock.now_us())
        self._next_at = actions.next_at
        report = await carry_out(self._store, actions)
        return [*([JOBS] if report.submitted else []), *([SCHEDULES] if report.skipped else [])]

    def _tell_unknown(self, seen: Seen) -> None:
        unknown = frozenset(row.timezone for row in seen.schedules) - frozenset(seen.zones)
        for name in sorted(unknown - self._told):
            _log.error("this machine does not know the time zone %s any more: its schedules wait (Debian package tzdata)", name)
        self._told = unknown


def _commit(tx: Tx, actions: Actions) -> Report:
    submitted: list[Job] = []
    skipped = 0
    for due in actions.due:
        stored = tx.schedule(due.schedule.project, due.schedule.name)
        if stored is None or stored.generation != due.schedule.generation:
            skipped += 1
            continue
        # what it asks for was checked when the schedule was put
        id_ = JobId(f"j-{tx.bump('job'):06d}")
        job = make_job(id_, stored.spec, stored.owner, stored.project, actions.now)
        tx.put_job(job)
        tx.add_event(make_event(job, f"submitted by schedule {stored.name}", actions.now))
        tx.put_schedule(make_scheduled_job(stored, job, due.firing.at))
        text = render_firing(due.firing, job, due.zone)
        tx.add_event(Event(actions.now, stored.project, stored.owner.user, "schedule", stored.name, text))
        submitted.append(job)
    return Report(tuple(submitted), skipped)
