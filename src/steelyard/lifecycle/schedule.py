"""When is a schedule due, and what of that was missed? Pure: times and the time zone's rules are arguments.

Times are microseconds since 1970. Fields mean what cron means by them, day of month and day of week included (either, unless one
of them is `*`). In a time zone whose clocks are changed, a job of a fixed hour runs once a day: at the next minute that exists
where its own is skipped, at the first of two equal ones. What was due while nobody submitted is not made up for in full: the
newest is submitted, the others are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo

import msgspec
from cronsim import CronSim, CronSimError

from steelyard.errors import Refused
from steelyard.model.ids import CallId
from steelyard.model.job import Job
from steelyard.model.site import Schedule

CRON_MAX = 200
#: that cron knows for lines which many write
NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
EVERY_MIN_S, EVERY_MAX_S = 1.0, 366 * 86_400.0
#: missed times that are counted; of more it is only said that they are more
MISSED_MAX = 1000
_HOW = (
    'Write five fields, for example "0 3 * * *" (3:00 every day) or "*/15 8-18 * * MON-FRI": minute, hour, day, month, weekday.'
)
#: looked at one after the other until something was due in it, so that a schedule of every minute costs no more than a yearly one
_LOOKS_BACK = (timedelta(hours=1), timedelta(days=1), timedelta(days=31), timedelta(days=366))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Firing(msgspec.Struct, frozen=True):
    """What is due, and what was due before it and is not made up for."""

    at: int
    #: how many, at most `MISSED_MAX` + 1
    missed: int = 0
    #: the oldest of them
    missed_since: int | None = None


def check_every(every_s: float) -> str | None:
    """What is wrong with a period, in a sentence; None: nothing."""
    if EVERY_MIN_S <= every_s <= EVERY_MAX_S:
        return None
    return f"a period of {every_s:g} s is out of range: between {EVERY_MIN_S:g} s and a year"


def check_cron(cron: str, zone: tzinfo, now: int) -> str | None:
    """What is wrong with it, in a sentence; None: nothing. `now`: from when on it must come true at least once."""
    fields = cron.split()
    if (len(fields) != 5 and cron not in NICKNAMES) or len(cron) > CRON_MAX:
        return f"{cron[:CRON_MAX]!r} is no cron line. {_HOW}"
    try:
        first = next(next_times(cron, zone, now), None)
    except Refused as err:
        if not _is_no_day(fields):
            return err.public
        first = None
    if first is None:
        return f"{cron!r} never comes true: no such day comes in the next fifty years."
    return None


def _is_no_day(fields: list[str]) -> bool:
    """Each field is sound, and no month has such a day: 31 February, which the library takes for a slip of the pen."""
    minute, hour, day, month, weekday = fields
    try:
        for line in (f"{minute} {hour} {day} * {weekday}", f"* * * {month} *"):
            CronSim(line, _EPOCH)
    except (CronSimError, ValueError):
        return False
    return True


def next_times(cron: str, zone: tzinfo, after: int, until: int | None = None) -> Iterator[int]:
    """Strictly after `after`, up to and with `until`, in order, each once. Raises Refused where `cron` is none."""
    start = (_EPOCH + timedelta(microseconds=after)).astimezone(zone)
    try:
        # the library knows one name for UTC, and is much faster with it
        sim = CronSim(NICKNAMES.get(cron, cron), start.astimezone(UTC) if _is_utc(zone) else start)
    except (CronSimError, ValueError) as err:
        raise Refused(f"{cron[:CRON_MAX]!r} is no cron line ({err}). {_HOW}", code="bad-cron") from err
    newest = after
    for found in sim:
        at = (found - _EPOCH) // timedelta(microseconds=1)
        if until is not None and at > until:
            return
        # where clocks are put back or forward, a fixed time may come out equal to, or before, the one it follows
        if at > newest:
            newest = at
            yield at


def decide_firing(schedule: Schedule, zone: tzinfo, now: int) -> Firing | None:
    """What it should start now; None: nothing. Whoever carries it out moves `done_until` to `Firing.at`."""
    if schedule.paused or now <= schedule.done_until:
        return None
    if schedule.every_s is not None:
        period = _period(schedule.every_s)
        times = (now - schedule.done_until) // period
        missed_since = schedule.done_until + period if times > 1 else None
        return Firing(schedule.done_until + times * period, min(times - 1, MISSED_MAX + 1), missed_since) if times else None
    newest = _newest_due(schedule, zone, now)
    if newest is None:
        return None
    missed, since = 0, None
    for at in next_times(schedule.cron, zone, schedule.done_until, newest - 1):
        since = at if since is None else since
        missed += 1
        if missed > MISSED_MAX:
            break
    return Firing(newest, missed, since)


def next_firing(schedule: Schedule, zone: tzinfo, now: int) -> int | None:
    """When it is due next; None while it is paused, or when no such day comes."""
    if schedule.paused:
        return None
    if schedule.every_s is not None:
        period = _period(schedule.every_s)
        return schedule.done_until + (max(0, now - schedule.done_until) // period + 1) * period
    return next(next_times(schedule.cron, zone, max(now, schedule.done_until)), None)


def make_scheduled_job(schedule: Schedule, job: Job, at: int) -> Schedule:
    """The schedule after `job` was submitted for the time `at`."""
    return msgspec.structs.replace(schedule, generation=schedule.generation + 1, done_until=at, last_job=job.id)


def make_scheduled_call(schedule: Schedule, call: CallId | None, at: int) -> Schedule:
    """The schedule after `call` was made for the time `at`; None: that time was left out."""
    last = schedule.last_call if call is None else call
    return msgspec.structs.replace(schedule, generation=schedule.generation + 1, done_until=at, last_call=last)


def render_firing(firing: Firing, what: str, zone: tzinfo) -> str:
    """The line of history about it. `what`: such as `submitted j-000001`."""
    text = f"{what} for {_clock(firing.at, zone)}"
    if firing.missed and firing.missed_since is not None:
        many = f"more than {MISSED_MAX}" if firing.missed > MISSED_MAX else str(firing.missed)
        text += f"; left out: {many} missed before it, since {_clock(firing.missed_since, zone)}"
    return text


def _period(every_s: float) -> int:
    return max(1, round(every_s * 1e6))


def _newest_due(schedule: Schedule, zone: tzinfo, now: int) -> int | None:
    for back in _LOOKS_BACK:
        start = max(schedule.done_until, now - back // timedelta(microseconds=1))
        found = None
        for found in next_times(schedule.cron, zone, start, now):  # noqa: B007 (the last one is meant)
            pass
        if found is not None or start == schedule.done_until:
            return found
    return max(next_times(schedule.cron, zone, schedule.done_until, now), default=None)


def _is_utc(zone: tzinfo) -> bool:
    return zone is UTC or getattr(zone, "key", None) == "UTC"


def _clock(us: int, zone: tzinfo) -> str:
    return (_EPOCH + timedelta(microseconds=us)).astimezone(zone).isoformat(timespec="minutes")
