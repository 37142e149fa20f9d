"""What a job made of what it had, in one sentence and in one line of blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.lifecycle.usage_text import render_efficiency, render_sparkline
from steelyard.model.job import Resources
from steelyard.model.usage import Usage, UsageSample

GB = 10**9


def test_what_was_used_stands_beside_what_was_asked() -> None:
    usage = Usage(cpu_s=120.0, memory_peak_bytes=3_100_000_000, read_bytes=2 * GB, written_bytes=GB)
    told = render_efficiency(Resources(8, 16 * GB), usage, run_s=100)
    assert told == "used 1.2 of 8 cores, 3.1 of 16 GB at most, read 2 GB, wrote 1 GB"


@pytest.mark.parametrize(
    ("demand", "usage", "told"),
    [
        (Resources(1), Usage(), ""),
        (Resources(1), Usage(cpu_s=95.0), "used 0.9 of 1 core"),
        (Resources(1.5, exclusive=True), Usage(cpu_s=4.0), "used 0.04 of 2 cores"),
        (Resources(0.5), Usage(memory_peak_bytes=700_000), "used 700 kB of memory at most"),
        (Resources(1, 4 * GB), Usage(memory_peak_bytes=30 * 10**6), "used 0.03 of 4 GB at most"),
        (Resources(1), Usage(read_bytes=999_990_000, written_bytes=0), "read 1 GB"),
        (Resources(1, scratch_bytes=20 * GB), Usage(scratch_peak_bytes=5 * GB), "filled 5 of 20 GB of scratch"),
    ],
)
def test_what_nobody_could_read_is_left_out(demand: Resources, usage: Usage, told: str) -> None:
    assert render_efficiency(demand, usage, run_s=100.0) == told


def test_gpus_are_told_by_the_time_they_worked() -> None:
    samples = (UsageSample(10.0, 1.0, 0, gpu_percent=100.0), UsageSample(40.0, 1.0, 0, gpu_percent=20.0))
    assert render_efficiency(Resources(1), Usage(samples=samples), 40.0) == "used its GPUs 40 % of the time"


def test_a_job_that_never_ran_used_no_cores() -> None:
    assert render_efficiency(Resources(1), Usage(cpu_s=0.0), 0.0) == ""


def test_a_line_of_blocks() -> None:
    assert render_sparkline([0, 1, 2, 3, 4, 5, 6, 7, 8], 9) == "▁▁▂▃▄▅▆▇█"
    assert render_sparkline([1, 1, 3, 3], 2) == "▃█"
    assert render_sparkline([50, None, 100], 3, top=200) == "▂ ▄"
    assert render_sparkline([0, 0], 5) == "▁▁" and render_sparkline([], 5) == "" and render_sparkline([1], 0) == ""


@given(st.lists(st.none() | st.floats(-1, 1e12), max_size=200), st.integers(0, 150))
def test_a_line_is_never_longer_than_asked_and_shows_the_highest(values: list[float | None], width: int) -> None:
    line = render_sparkline(values, width)
    assert len(line) == min(width, len(values)) and set(line) <= set(" ▁▂▃▄▅▆▇█")
    if width >= len(values) and any(value is not None and value > 0 for value in values):
        assert "█" in line
