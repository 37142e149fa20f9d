"""Sizes and durations as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.cli.quantities import parse_bytes, parse_seconds, render_bytes
from steelyard.errors import Refused


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4_000_000_000),
        ("512MiB", 512 << 20),
        ("1g", 10**9),
        ("1.5GiB", 3 << 29),
        ("100", 100),
        ("2kB", 2000),
        ("7 MB", 7_000_000),
        ("1Ti", 1 << 40),
    ],
)
def test_sizes_are_read_as_si_and_iec_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4 GBs", "GB", "-1GB", "0", "0.0001", "4iB", "1e3", "4GB!", "9999999TB", "٤GB", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_bytes(text)


@given(st.integers(1, 1 << 50))
def test_a_plain_number_is_bytes(size: int) -> None:
    assert parse_bytes(str(size)) == size


@given(st.integers(1, 1000), st.sampled_from(["k", "M", "G"]))
def test_iec_is_larger_than_si_and_case_does_not_matter(count: int, unit: str) -> None:
    assert parse_bytes(f"{count}{unit}iB") > parse_bytes(f"{count}{unit}B") == parse_bytes(f"{count}{unit.lower()}")


@given(st.text(max_size=12))
def test_a_size_is_read_or_refused_and_nothing_else(text: str) -> None:
    with contextlib.suppress(Refused):
        assert parse_bytes(text) > 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60.0), ("5m", 300.0), ("1h", 3600.0), ("500ms", 0.5), ("90", 90.0), ("1h30m", 5400.0), ("0", 0.0), ("1.5s", 1.5)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "5 m", "5min", "1h 30m", "inf", "99999999999h", "1e5", "m5"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_seconds(text)


@given(st.text(alphabet="0123456789.msh d", max_size=10))
def test_a_duration_is_read_or_refused_and_nothing_else(text: str) -> None:
    with contextlib.suppress(Refused):
        assert parse_seconds(text) >= 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_999, "1.0 MB"),
        (4_000_000_000, "4.0 GB"),
    ],
)
def test_sizes_are_written_short(size: int | None, text: str) -> None:
    assert render_bytes(size) == text
