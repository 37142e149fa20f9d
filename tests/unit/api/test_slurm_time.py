"""Every spelling of time that Slurm takes is understood, and every other is refused."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.api.slurm_time import TIME_MAX_S, find_zone, format_slurm_time, parse_begin, parse_slurm_time
from steelyard.errors import Refused

#: a Tuesday, 22:13:20 UTC
NOW = 1_700_000_000_000_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("0", 0),
        ("10:30", 630),
        ("1:00:00", 3600),
        ("01:30:15", 5415),
        ("90:00:00", 90 * 3600),
        ("2-0", 2 * 86400),
        ("7-12", 7 * 86400 + 12 * 3600),
        ("1-12:30", 86400 + 12 * 3600 + 1800),
        ("1-02:03:04", 86400 + 7384),
        (" 5 ", 300),
        ("UNLIMITED", None),
        ("infinite", None),
        ("-1", None),
    ],
)
def test_slurms_spellings_are_understood(text: str, seconds: int | None) -> None:
    assert parse_slurm_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["7 days", "7days", "7d", "7d0h", "P7D", "1w", "7-", "-7", "1:2:3:4", "1-2:3:4:5", "", ":", "1:", "1h", "1.5", "1,5",
     "٣", "1 0", "a",
     "10000-0", "999999999"],
)  # fmt: skip
def test_other_spellings_are_refused_with_those_that_are_known(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_slurm_time(text)
    assert refused.value.code == "bad-time"
    assert "days-hours:minutes:seconds" in refused.value.public or "more than a year" in refused.value.public


@given(st.integers(0, TIME_MAX_S))
def test_what_is_written_is_read_back(seconds: int) -> None:
    assert parse_slurm_time(format_slurm_time(seconds)) == seconds


@given(st.integers(0, 300), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_all_forms_say_the_same(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_slurm_time(f"{days}-{hours}:{minutes}:{seconds}") == total
    assert parse_slurm_time(f"{days * 24 + hours}:{minutes:02}:{seconds:02}") == total
    assert parse_slurm_time(f"{(days * 24 + hours) * 60 + minutes}:{seconds}") == total


@given(st.text(alphabet="0123456789-: daysh", max_size=12) | st.text(max_size=8))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    try:
        seconds = parse_slurm_time(text)
    except Refused:
        return
    assert seconds is None or 0 <= seconds <= TIME_MAX_S


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("now", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("now+60", datetime(2023, 11, 14, 22, 14, 20, tzinfo=UTC)),
        ("now+1hour", datetime(2023, 11, 14, 23, 13, 20, tzinfo=UTC)),
        ("now + 2days", datetime(2023, 11, 16, 22, 13, 20, tzinfo=UTC)),
        ("23:00", datetime(2023, 11, 14, 23, 0, tzinfo=UTC)),
        ("16:00", datetime(2023, 11, 15, 16, 0, tzinfo=UTC)),
        ("4:30pm", datetime(2023, 11, 15, 16, 30, tzinfo=UTC)),
        ("12am", None),
        ("12:00am", datetime(2023, 11, 15, 0, 0, tzinfo=UTC)),
        ("midnight", datetime(2023, 11, 15, 0, 0, tzinfo=UTC)),
        ("noon", datetime(2023, 11, 15, 12, 0, tzinfo=UTC)),
        ("tomorrow", datetime(2023, 11, 15, 22, 13, 20, tzinfo=UTC)),
        ("2024-01-31", datetime(2024, 1, 31, tzinfo=UTC)),
        ("2024-01-31T12:34:56", datetime(2024, 1, 31, 12, 34, 56, tzinfo=UTC)),
        ("2024-01-31 12:34", datetime(2024, 1, 31, 12, 34, tzinfo=UTC)),
        ("01/31/24-16:00", datetime(2024, 1, 31, 16, 0, tzinfo=UTC)),
        ("013124", datetime(2024, 1, 31, tzinfo=UTC)),
        ("2024-02-30", None),
        ("25:00", None),
        ("13:00pm", None),
        ("next week", None),
        ("now+1fortnight", None),
        ("now+999999999weeks", None),
        ("", None),
    ],
)
def test_begin_is_a_moment(text: str, when: datetime | None) -> None:
    if when is None:
        with pytest.raises(Refused, match=r"begin|year"):
            parse_begin(text, NOW, UTC)
    else:
        assert parse_begin(text, NOW, UTC) == int(when.timestamp()) * 1_000_000


def test_begin_is_in_the_callers_zone() -> None:
    east = timezone(timedelta(hours=9))
    assert parse_begin("16:00", NOW, east) == int(datetime(2023, 11, 15, 7, 0, tzinfo=UTC).timestamp()) * 1_000_000


@given(st.text(alphabet="0123456789-:/+T nowapmhurdyek", max_size=20))
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        assert parse_begin(text, NOW, UTC) > 0


@pytest.mark.parametrize("name", [None, "", "No/Such", "../etc/passwd", "/etc", "a\0b"])
def test_an_unknown_zone_is_none(name: str | None) -> None:
    assert find_zone(name) is None
