"""Percentiles, histograms and their picture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steelyard.lifecycle.jitter import add_late, count_late, make_bars, make_jitter, parse_cyclictest, percentile, render_bars

CYCLICTEST = """# /dev/cpu_dma_latency set to 0us
# Histogram
000000 000000
000012 000990
000250 000009
# Total: 000000999
# Min Latencies: 00012
# Avg Latencies: 00014
# Max Latencies: 250123
# Histogram Overflows: 00001
# Histogram Overflow at cycle number:
# Thread 0: 00123
"""


def test_the_output_of_cyclictest_is_read_with_what_lies_beyond_its_histogram() -> None:
    assert parse_cyclictest(CYCLICTEST) == {12: 990, 250: 9, 250123: 1}


@given(st.text())
def test_any_other_text_gives_no_samples_and_no_crash(text: str) -> None:
    assert all(count > 0 for count in parse_cyclictest(text).values())


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200), st.sampled_from([0.5, 0.99, 0.999]))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values: list[int], share: float) -> None:
    late = count_late([value * 1000 for value in values])
    found = percentile(late, share)
    assert found in values
    needed = share * len(values) - 1e-9
    assert sum(value <= found for value in values) >= needed > sum(value < found for value in values) - 1e-6


def test_no_samples_have_no_percentile() -> None:
    assert percentile({}, 0.99) is None
    empty = make_jitter("realtime", True, "own loop", {})
    assert (empty.samples, empty.p999_us, empty.max_us) == (0, None, None)


def test_lateness_is_rounded_up_and_rounds_add_up() -> None:
    assert count_late([1, 1000, 1001, -5]) == {1: 2, 2: 1, 0: 1}
    assert add_late({1: 2}, {1: 1, 9: 4}) == {1: 3, 9: 4}


def test_bars_go_from_the_first_to_the_last_step_and_one_in_a_million_shows() -> None:
    assert make_bars({3: 1_000_000, 40: 1}) == [(5, 1_000_000), (10, 0), (20, 0), (50, 1)]
    assert render_bars({3: 1_000_000, 40: 1}).splitlines()[-1].split() == ["<=", "50", "us", "#", "1"]
    assert render_bars({}) == ""
