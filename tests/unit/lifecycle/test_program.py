"""When a program that died is started again, on a virtual clock."""

from __future__ import annotations

from steelyard.clock import VirtualClock
from steelyard.lifecycle.program import (
    RAN_WELL_NS,
    WAIT_FIRST_NS,
    WAIT_MAX_NS,
    ProgramRuns,
    decide_wait_ns,
    note_death,
    note_start,
)


def crash(runs: ProgramRuns, clock: VirtualClock, after_s: float = 0.0) -> ProgramRuns:
    runs = note_start(runs, clock.mono_ns())
    clock.advance(after_s)
    return note_death(runs, clock.mono_ns())


def test_a_program_never_started_is_started_now() -> None:
    assert decide_wait_ns(ProgramRuns(), 5) == 0


def test_the_first_death_is_answered_at_once() -> None:
    clock = VirtualClock()
    assert decide_wait_ns(crash(ProgramRuns(), clock), clock.mono_ns()) == 0


def test_deaths_in_a_row_double_the_wait_up_to_the_cap() -> None:
    clock = VirtualClock()
    runs = ProgramRuns()
    waits: list[int] = []
    for _ in range(100):
        runs = crash(runs, clock)
        waits.append(decide_wait_ns(runs, clock.mono_ns()))
    assert waits[:4] == [0, WAIT_FIRST_NS, 2 * WAIT_FIRST_NS, 4 * WAIT_FIRST_NS]
    assert waits == sorted(waits)
    assert waits[-1] == WAIT_MAX_NS


def test_the_wait_is_counted_from_the_death() -> None:
    clock = VirtualClock()
    runs = crash(crash(ProgramRuns(), clock), clock)
    clock.advance(0.1)
    assert decide_wait_ns(runs, clock.mono_ns()) == WAIT_FIRST_NS - 100_000_000
    clock.advance(3600)
    assert decide_wait_ns(runs, clock.mono_ns()) == 0


def test_a_run_that_went_well_is_forgiven_everything() -> None:
    clock = VirtualClock()
    runs = ProgramRuns()
    for _ in range(10):
        runs = crash(runs, clock)
    assert decide_wait_ns(crash(runs, clock, RAN_WELL_NS / 1e9), clock.mono_ns()) == 0
    assert decide_wait_ns(crash(runs, clock, RAN_WELL_NS / 1e9 - 0.1), clock.mono_ns()) > 0
