"""A job's history, read back from the lines that are written of it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.lifecycle.history import read_event
from steelyard.lifecycle.job import TRANSITIONS, hold_job, make_job, move, reprioritise_job
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner

JOB = make_job(JobId("j-000001"), JobSpec("x", ("true",), "/"), Owner("root", 0), DEFAULT_PROJECT, 0)


def in_state(state: JobState) -> Job:
    return msgspec.structs.replace(JOB, state=state)


@given(st.sampled_from([(a, b) for a, after in TRANSITIONS.items() for b in after]), st.text(max_size=30))
def test_every_move_is_read_back_as_the_state_and_the_reason_that_it_was_made_with(
    states: tuple[JobState, JobState], why: str
) -> None:
    before, after = states
    assert read_event(move(in_state(before), after, why).event) == (after, why)


@pytest.mark.parametrize("text", ["submitted", "submitted by schedule nightly"])
def test_what_is_submitted_waits(text: str) -> None:
    assert read_event(text) == (JobState.QUEUED, text)


def test_what_changes_no_state_says_so() -> None:
    held, moved = hold_job(JOB, True), reprioritise_job(JOB, 60)
    assert held is not None
    assert moved is not None
    assert read_event(held.event) == (None, "held")
    assert read_event(moved.event) == (None, "priority 50 -> 60")
    assert read_event(move(in_state(JobState.RUNNING), JobState.RUNNING, "3 wake-ups were late").event) == (
        None,
        "3 wake-ups were late",
    )


def test_an_illegal_move_is_no_change_of_state() -> None:
    text = move(in_state(JobState.FAILED), JobState.RUNNING, "late").event
    assert read_event(text) == (None, text)
