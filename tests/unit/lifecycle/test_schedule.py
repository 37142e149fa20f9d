"""When schedules fire: time zones, what was missed, and lines that say nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Refused
from steelyard.lifecycle.schedule import MISSED_MAX, Firing, check_cron, check_every, decide_firing, next_firing, next_times
from steelyard.model.ids import DEFAULT_PROJECT
from steelyard.model.job import JobSpec, Owner
from steelyard.model.site import Schedule

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


def show(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M")


def times(cron: str, after: str, until: str, zone: object = UTC) -> list[str]:
    return [show(us) for us in next_times(cron, zone, at(after), at(until))]  # type: ignore[arg-type]


def make_schedule(cron: str, done_until: int, **fields: object) -> Schedule:
    made = Schedule("s", DEFAULT_PROJECT, Owner("ann", 1), 1, cron, JobSpec("x", ("true",), "/"), done_until=done_until)
    return msgspec.structs.replace(made, **fields)


def test_times_are_after_the_start_and_up_to_the_end() -> None:
    assert times("0 3 * * *", "2026-03-01T03:00", "2026-03-03T03:00") == ["2026-03-02T03:00", "2026-03-03T03:00"]
    assert times("*/20 * * * *", "2026-03-01T00:01", "2026-03-01T01:00") == [
        "2026-03-01T00:20",
        "2026-03-01T00:40",
        "2026-03-01T01:00",
    ]


def test_a_skipped_hour_is_made_up_for_at_once_and_a_double_one_counts_once() -> None:
    # in Berlin 2026-03-29 has no 2:30, and 2026-10-25 has two
    assert times("30 2 * * *", "2026-03-28T12:00", "2026-03-30T12:00", BERLIN) == ["2026-03-29T01:00", "2026-03-30T00:30"]
    assert times("30 2 * * *", "2026-10-24T12:00", "2026-10-26T12:00", BERLIN) == ["2026-10-25T00:30", "2026-10-26T01:30"]
    # between the two 2:30 of that night nothing comes again
    assert times("30 2 * * *", "2026-10-25T00:45", "2026-10-25T12:00", BERLIN) == []
    assert times("30 2 * * *", "2026-10-25T01:15", "2026-10-25T12:00", BERLIN) == []
    # two fixed times of the skipped hour are one
    assert times("15,45 2 * * *", "2026-03-29T00:00", "2026-03-29T12:00", BERLIN) == ["2026-03-29T01:00"]
    # an interval goes on through both
    assert len(times("*/30 * * * *", "2026-10-24T23:59", "2026-10-25T02:00", BERLIN)) == 5


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "* * * * * *", "61 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "a b c d e", "*/0 * * * *",
     "5-1 * * * *", "@fortnightly", "L/2 * * * *", "* * * * MON#6", "*" * 500, "1,,2 * * * *", "\x00 * * * *", "٣ * * * *"],
)  # fmt: skip
def test_what_is_no_cron_line_is_refused_with_an_example(cron: str) -> None:
    wrong = check_cron(cron, UTC, at("2026-01-01"))
    assert wrong is not None
    assert "0 3 * * *" in wrong


@pytest.mark.parametrize("cron", ["0 0 30 2 *", "0 0 31 2 *", "0 0 31 4,6,9,11 *"])
def test_a_day_that_never_comes_is_refused_as_such(cron: str) -> None:
    wrong = check_cron(cron, UTC, at("2026-01-01"))
    assert wrong is not None
    assert "never comes true" in wrong


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 0 30 2 MON", "0 0 * 2 MON#5", "0 0 L * *", "0 3 * * sun,7"])
def test_rare_days_are_fine(cron: str) -> None:
    assert check_cron(cron, UTC, at("2026-01-01")) is None


@given(st.text(alphabet="0123456789*/-,LW# MONJAN", max_size=30))
def test_any_text_is_a_line_or_a_sentence(text: str) -> None:
    wrong = check_cron(text, UTC, at("2026-01-01"))
    if wrong is None:
        assert next(next_times(text, UTC, 0)) > 0


def test_garbage_is_a_refusal_also_where_times_are_asked_for() -> None:
    with pytest.raises(Refused):
        next(next_times("x", UTC, 0))


def test_what_is_due_is_submitted_once_and_the_next_time_is_known() -> None:
    schedule = make_schedule("0 3 * * *", at("2026-01-01T12:00"))
    assert decide_firing(schedule, UTC, at("2026-01-02T02:59")) is None
    assert next_firing(schedule, UTC, at("2026-01-02T02:59")) == at("2026-01-02T03:00")
    assert decide_firing(schedule, UTC, at("2026-01-02T03:00")) == Firing(at("2026-01-02T03:00"))
    done = msgspec.structs.replace(schedule, done_until=at("2026-01-02T03:00"))
    assert decide_firing(done, UTC, at("2026-01-02T03:00")) is None
    # a clock that was put back does not submit again
    assert decide_firing(done, UTC, at("2026-01-01T13:00")) is None
    assert next_firing(done, UTC, at("2026-01-01T13:00")) == at("2026-01-03T03:00")


def test_of_missed_times_only_the_newest_is_submitted_and_the_others_are_told() -> None:
    schedule = make_schedule("0 * * * *", at("2026-01-01T00:30"))
    firing = decide_firing(schedule, UTC, at("2026-01-01T05:10"))
    assert firing == Firing(at("2026-01-01T05:00"), 4, at("2026-01-01T01:00"))


def test_years_of_missed_minutes_cost_little_and_are_counted_up_to_a_bound() -> None:
    firing = decide_firing(make_schedule("* * * * *", at("2016-01-01")), UTC, at("2026-01-01T00:00"))
    assert firing == Firing(at("2026-01-01T00:00"), MISSED_MAX + 1, at("2016-01-01T00:01"))


def test_a_paused_schedule_submits_nothing() -> None:
    schedule = make_schedule("* * * * *", at("2026-01-01"), paused=True)
    assert decide_firing(schedule, UTC, at("2026-02-01")) is None
    assert next_firing(schedule, UTC, at("2026-02-01")) is None


@given(
    cron=st.sampled_from(["*/7 * * * *", "30 2 * * *", "15,45 1-3 * * *", "0 */5 * * *", "0 12 1 * MON", "59 23 31 12 *"]),
    start=st.integers(at("2026-01-01"), at("2027-01-01")),
    steps=st.lists(st.integers(1, 3 * DAY), min_size=1, max_size=20),
    zone=st.sampled_from([UTC, BERLIN, ZoneInfo("Australia/Lord_Howe")]),
)
def test_however_often_it_is_looked_at_each_time_is_submitted_or_told_once(
    cron: str, start: int, steps: list[int], zone: ZoneInfo
) -> None:
    now, submitted, missed = start, [], 0
    schedule = make_schedule(cron, start)
    for step in steps:
        now += step
        firing = decide_firing(schedule, zone, now)
        if firing is not None:
            submitted.append(firing.at)
            missed += firing.missed
            schedule = msgspec.structs.replace(schedule, done_until=firing.at)
    every = list(next_times(cron, zone, start, now))
    assert submitted == sorted(set(submitted))
    assert set(submitted) <= set(every)
    assert len(submitted) + missed == len(every)


def test_nicknames_mean_their_lines() -> None:
    assert check_cron("@daily", UTC, at("2026-01-01")) is None
    assert next(next_times("@weekly", UTC, at("2026-01-01"))) == at("2026-01-04"), "a Sunday"


@pytest.mark.parametrize("every_s", [0.0, 0.99, -5.0, 1e9, float("nan"), float("inf")])
def test_a_period_out_of_range_is_refused(every_s: float) -> None:
    assert check_every(every_s) is not None
    assert check_every(1.0) is None


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(0, 10**6))
def test_a_period_is_due_on_its_grid_and_what_was_missed_is_counted(since: int, every_s: int, later_s: int) -> None:
    made = Schedule("s", DEFAULT_PROJECT, Owner("ann", 1), 1, "", every_s=float(every_s), done_until=since)
    now = since + later_s * 1_000_000
    firing, following = decide_firing(made, UTC, now), next_firing(made, UTC, now)
    times = later_s // every_s
    assert (firing is not None) is (times > 0)
    if firing is not None:
        assert firing.at == since + times * every_s * 1_000_000
        assert firing.missed == min(times - 1, MISSED_MAX + 1)
    assert following is not None and now < following <= now + every_s * 1_000_000
    assert (following - since) % (every_s * 1_000_000) == 0
