"""How long is Slurm's "1-12:30", and when is its "now+1hour"? Every spelling that `sbatch --time` and `--begin` take.

Times are refused by naming the accepted spellings, so that "7 days" is never taken for 7 minutes.
"""

from __future__ import annotations

import re
import zoneinfo
from datetime import datetime, timedelta, tzinfo

from steelyard.errors import Refused

#: a year; beyond it a typing error is more likely than a wish
TIME_MAX_S = 366 * 86400
SPELLINGS = (
    "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds or UNLIMITED"
)
BEGIN_SPELLINGS = "now, now+2hours, 16:00, 4:00pm, noon, midnight, tomorrow, 2030-01-31, 2030-01-31T16:00 or 01/31/30-16:00"

_NUMBER = r"(\d{1,9})"
_WITH_DAYS = re.compile(rf"{_NUMBER}-{_NUMBER}(?::{_NUMBER})?(?::{_NUMBER})?", re.ASCII)
_PLAIN = re.compile(rf"{_NUMBER}(?::{_NUMBER})?(?::{_NUMBER})?", re.ASCII)
_FROM_NOW = re.compile(r"now(?:\s*\+\s*(\d{1,9})\s*(seconds?|minutes?|hours?|days?|weeks?)?)?", re.ASCII | re.IGNORECASE)
_UNIT_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 7 * 86400}
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*([ap]m)?", re.ASCII | re.IGNORECASE)
_NAMED = {"midnight": (0, 0, 0), "noon": (12, 0, 0), "fika": (15, 0, 0), "teatime": (16, 0, 0)}
_DATES = ("%Y-%m-%d", "%m/%d/%y", "%m/%d/%Y", "%m%d%y", "%m%d%Y", "%m.%d.%y")


def parse_slurm_time(text: str) -> int | None:
    """Seconds; None for no limit. Raises Refused."""
    stripped = text.strip()
    if stripped.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return None
    if match := _WITH_DAYS.fullmatch(stripped):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    elif match := _PLAIN.fullmatch(stripped):
        parts = [int(part) for part in match.groups() if part is not None]
        days, hours = 0, parts.pop(0) if len(parts) == 3 else 0
        minutes, seconds = (*parts, 0)[:2]
    else:
        raise Refused(f"{text[:60]!r} is no time for Slurm. Write {SPELLINGS}.", code="bad-time")
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total > TIME_MAX_S:
        raise Refused(f"{text[:60]!r} is more than a year. Write less, or UNLIMITED.", code="bad-time")
    return total


def format_slurm_time(seconds: int | None) -> str:
    """As `squeue` shows it: 5:00, 1:05:00, 2-00:00:00."""
    if seconds is None:
        return "UNLIMITED"
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def parse_begin(text: str, now_us: int, zone: tzinfo | None) -> int:
    """Microseconds since the epoch, in the caller's zone (None: this machine's). A time of day that is over means tomorrow's."""
    stripped = text.strip()
    if match := _FROM_NOW.fullmatch(stripped):
        number, unit = int(match[1] or 0), (match[2] or "second").lower().removesuffix("s")
        wait_s = number * _UNIT_S[unit]
        if wait_s > TIME_MAX_S:
            raise Refused(f"{text[:60]!r} is more than a year away.", code="bad-begin")
        return now_us + wait_s * 1_000_000
    now = datetime.fromtimestamp(now_us / 1_000_000, zone)
    try:
        return int(_on_a_day(stripped, now).timestamp()) * 1_000_000
    except (ValueError, OverflowError):
        raise Refused(f"{text[:60]!r} is no time to begin. Write for example {BEGIN_SPELLINGS}.", code="bad-begin") from None


def find_zone(name: str | None) -> tzinfo | None:
    """The zone that a caller's TZ names; None where it names none that is known here."""
    try:
        return zoneinfo.ZoneInfo(name) if name else None
    except (KeyError, ValueError, OSError):
        return None


def _on_a_day(text: str, now: datetime) -> datetime:
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    lower = text.lower()
    if lower in ("today", "tomorrow"):
        at = now if lower == "today" else now + timedelta(days=1)
        return at.replace(microsecond=0)
    if (clock := _read_clock(lower)) is not None:
        at = day.replace(hour=clock[0], minute=clock[1], second=clock[2])
        return at if at >= now else at + timedelta(days=1)
    for shape in _DATES:
        for place in range(len(text), 0, -1):
            rest = text[place:].lstrip("Tt- ").strip() if place < len(text) else ""
            if place < len(text) and (text[place] not in "Tt- " or not rest):
                continue
            try:
                date = datetime.strptime(text[:place], shape).replace(tzinfo=now.tzinfo)
            except ValueError:
                continue
            clock = _read_clock(rest.lower()) if rest else (0, 0, 0)
            if clock is not None:
                return date.replace(hour=clock[0], minute=clock[1], second=clock[2])
    raise ValueError(text)


def _read_clock(text: str) -> tuple[int, int, int] | None:
    if text in _NAMED:
        return _NAMED[text]
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    hour, minute, second = int(match[1]), int(match[2]), int(match[3] or 0)
    if match[4]:
        if not 1 <= hour <= 12:
            raise ValueError(text)
        hour = hour % 12 + (12 if match[4] == "pm" else 0)
    return hour, minute, second
