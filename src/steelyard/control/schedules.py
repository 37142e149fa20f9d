"""Which schedules are due? The only place that submits jobs and calls functions by the clock.

The job or call, the schedule's `done_until` and the line of history are one transaction: killed at any moment, each time is
submitted once or not yet. The loop sleeps until the next time that any schedule names; without one it does not wake.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import tzinfo

import msgspec

from steelyard.clock import Clock
from steelyard.control import CALLS, JOBS, SCHEDULES
from steelyard.control.calls import make_call_event
from steelyard.control.changes import make_event
from steelyard.control.zones import find_zone
from steelyard.lifecycle.call import make_empty_call
from steelyard.lifecycle.job import make_job
from steelyard.lifecycle.schedule import (
    Firing,
    decide_firing,
    make_scheduled_call,
    make_scheduled_job,
    next_firing,
    render_firing,
)
from steelyard.model.call import Call
from steelyard.model.ids import CallId, JobId
from steelyard.model.job import Job, JobSpec
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
    called: tuple[Call, ...] = ()
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


async def carry_out(store: Store, actions: Actions, make_id: Callable[[], CallId]) -> Report:
    if not actions.due:
        return Report()
    return await store.write(lambda tx: _commit(tx, actions, make_id))


class SchedulesLoop:
    name = SCHEDULES

    def __init__(self, store: Store, clock: Clock, make_id: Callable[[], CallId]) -> None:
        """`make_id` gives calls their ids, no two the same."""
        self._store = store
        self._clock = clock
        self._make_id = make_id
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
        report = await carry_out(self._store, actions, self._make_id)
        wanted = ((JOBS, report.submitted), (CALLS, report.called), (SCHEDULES, report.skipped))
        return [name for name, found in wanted if found]

    def _tell_unknown(self, seen: Seen) -> None:
        unknown = frozenset(row.timezone for row in seen.schedules) - frozenset(seen.zones)
        for name in sorted(unknown - self._told):
            _log.error("this machine does not know the time zone %s any more: its schedules wait (Debian package tzdata)", name)
        self._told = unknown


def _commit(tx: Tx, actions: Actions, make_id: Callable[[], CallId]) -> Report:
    submitted: list[Job] = []
    called: list[Call] = []
    skipped = 0
    for due in actions.due:
        stored = tx.schedule(due.schedule.project, due.schedule.name)
        if stored is None or stored.generation != due.schedule.generation:
            skipped += 1
            continue
        if stored.spec is not None:
            job = _submit(tx, stored, stored.spec, due, actions.now)
            what = f"submitted {job.id}"
            submitted.append(job)
        else:
            call, what = _call(tx, stored, due, actions.now, make_id)
            called += [] if call is None else [call]
        text = render_firing(due.firing, what, due.zone)
        tx.add_event(Event(actions.now, stored.project, stored.owner.user, "schedule", stored.name, text))
    return Report(tuple(submitted), tuple(called), skipped)


def _submit(tx: Tx, schedule: Schedule, spec: JobSpec, due: Due, now: int) -> Job:
    # what it asks for was checked when the schedule was put
    job = make_job(JobId(f"j-{tx.bump('job'):06d}"), spec, schedule.owner, schedule.project, now)
    tx.put_job(job)
    tx.add_event(make_event(job, f"submitted by schedule {schedule.name}", now))
    tx.put_schedule(make_scheduled_job(schedule, job, due.firing.at))
    return job


def _call(tx: Tx, schedule: Schedule, due: Due, now: int, make_id: Callable[[], CallId]) -> tuple[Call | None, str]:
    """The call, if there is to be one, and what history says."""
    last = None if schedule.last_call is None else tx.call(schedule.last_call)
    function = None if schedule.function is None else tx.function(schedule.project, schedule.function)
    call = None
    if function is None:
        what = f"there is no function {schedule.function}: nothing was called"
    elif last is not None and not last.state.terminal:
        what = f"{last.id} has not ended: nothing was called"
    else:
        call = make_empty_call(make_id(), function, schedule.name, now)
        tx.put_call(call)
        tx.add_event(make_call_event(call, f"submitted by schedule {schedule.name}", now))
        what = f"called {function.name} as {call.id}"
    tx.put_schedule(make_scheduled_call(schedule, None if call is None else call.id, due.firing.at))
    return call, what
