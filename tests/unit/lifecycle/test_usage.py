"""What is kept of a workload's use of the machine: never more than 120 samples, and nothing lost in between."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.lifecycle.usage import FIRST_INTERVAL_S, SAMPLES_MAX, Look, Track, add_look, is_due

steps_st = st.lists(
    st.tuples(st.floats(0.01, 10.0), st.floats(0.0, 4.0), st.integers(0, 1 << 34), st.integers(0, 1 << 30)),
    min_size=1,
    max_size=700,
)


def live(seconds: int, cpus: float = 1.0) -> Track:
    """A life that is looked at once a second, when it is due."""
    track = Track()
    for second in range(1, seconds + 1):
        if is_due(track, second):
            track = add_look(track, Look(at_s=second, cpu_s=second * cpus, memory_bytes=second))
    return track


@given(steps_st)
def test_averages_times_their_spans_are_the_counters(steps: list[tuple[float, float, int, int]]) -> None:
    track, at_s, cpu_s, read, written = Track(), 0.0, 0.0, 0, 0
    for span_s, cpus, read_more, written_more in steps:
        at_s, cpu_s, read, written = at_s + span_s, cpu_s + cpus * span_s, read + read_more, written + written_more
        track = add_look(track, Look(at_s, cpu_s, 7, read, written))
        assert len(track.samples) <= SAMPLES_MAX
    ends = [0.0, *(sample.at_s for sample in track.samples)]
    spans = [end - begin for begin, end in itertools.pairwise(ends)]
    assert all(span > 0 for span in spans) and ends[-1] == at_s
    for counted, kept in ((cpu_s, "cpus"), (read, "read_bytes_s"), (written, "written_bytes_s")):
        total = sum(getattr(sample, kept) * span for sample, span in zip(track.samples, spans, strict=True))
        assert total == pytest.approx(counted, rel=1e-6, abs=1e-6)
    assert all(sample.memory_bytes == 7 for sample in track.samples)


@pytest.mark.parametrize("seconds", [1, 119, 120, 121, 500, 10_000])
def test_samples_are_evenly_spread_over_any_life(seconds: int) -> None:
    track = live(seconds)
    ends = [0.0, *(sample.at_s for sample in track.samples)]
    spans = {end - begin for begin, end in itertools.pairwise(ends)}
    assert len(track.samples) <= SAMPLES_MAX
    assert len(track.samples) > SAMPLES_MAX // 2 - 2 or track.interval_s == FIRST_INTERVAL_S
    assert max(spans) <= track.interval_s and min(spans) * 2 >= track.interval_s
    assert all(sample.cpus == pytest.approx(1.0) for sample in track.samples)


def test_looks_become_rarer_the_longer_it_runs() -> None:
    assert [live(seconds).interval_s for seconds in (120, 121, 600, 86_400)] == [1.0, 2.0, 8.0, 1024.0]


def test_a_counter_that_went_back_stands_still_until_it_has_caught_up() -> None:
    track = Track()
    for at_s, cpu_s in ((1, 5.0), (2, 3.0), (3, 6.0)):
        track = add_look(track, Look(at_s, cpu_s))
    assert [sample.cpus for sample in track.samples] == [5.0, 0.0, 1.0]


def test_a_look_that_is_not_later_changes_nothing() -> None:
    track = add_look(Track(), Look(2.0, 1.0))
    assert add_look(track, Look(2.0, 9.0)) == track


def test_gpus_that_could_not_be_asked_once_are_averaged_over_the_rest() -> None:
    track = Track()
    for second in range(1, SAMPLES_MAX + 2):
        track = add_look(track, Look(second, gpu_percent={1: 40.0, 2: 60.0, 3: 50.0}.get(second)))
    assert [sample.gpu_percent for sample in track.samples[:3]] == [50.0, 50.0, None]
