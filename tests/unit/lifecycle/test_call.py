"""What follows from what came of asking? One table; and no state is left that is terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from steelyard.lifecycle.call import (
    KEPT_US,
    RETRY_MAX_S,
    RETURNS_MAX,
    TRANSITIONS,
    CallChange,
    Came,
    Outcome,
    cancel_call,
    drop_call,
    expire_call,
    is_refusal,
    make_call,
    make_empty_call,
    orphan_call,
    settle_call,
    start_call,
)
from steelyard.model.call import Call, CallState
from steelyard.model.function import Function, FunctionSpec
from steelyard.model.ids import DEFAULT_PROJECT, CallId, FunctionName
from steelyard.model.job import Owner
from steelyard.model.reason import Reason

FUNCTION = Function(FunctionName("embed"), DEFAULT_PROJECT, Owner("ann", 7), 1, 1, FunctionSpec(retries=2), 0)
QUEUED = make_call(CallId("c-1"), FUNCTION, 0, "", "text/plain", 3)
NOW = 1_000_000


def begun(**fields: object) -> Call:
    change = start_call(QUEUED, 5)
    assert change is not None
    return replace(change.call, **fields)


def settled(outcome: Outcome, call: Call | None = None) -> Call:
    change = settle_call(call or begun(), outcome, NOW, 1.0)
    assert change is not None and change.call.generation == (call or begun()).generation + 1
    return change.call


def test_a_call_is_its_functions_owners_and_keeps_the_retries_it_was_made_with() -> None:
    assert (QUEUED.owner, QUEUED.retries, QUEUED.state, QUEUED.input_bytes) == (Owner("ann", 7), 2, CallState.QUEUED, 3)
    by_clock = make_empty_call(CallId("c-2"), FUNCTION, "nightly", 0)
    assert (by_clock.schedule, by_clock.input_bytes, by_clock.content_type) == ("nightly", 0, "application/json")


def test_starting_counts_the_attempt_and_says_so() -> None:
    change = start_call(replace(QUEUED, not_before=7), 5)
    assert change is not None and change.event == "QUEUED -> RUNNING (attempt 1)"
    assert (change.call.attempt, change.call.started_at, change.call.not_before) == (1, 5, None)


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        (Outcome(Came.ANSWERED, 200), CallState.SUCCEEDED, None),
        (Outcome(Came.ANSWERED, 204), CallState.SUCCEEDED, None),
        (Outcome(Came.ANSWERED, 200, raised=True), CallState.QUEUED, Reason.RAISED),
        (Outcome(Came.ANSWERED, 200, raised=True, code="timeout"), CallState.QUEUED, Reason.CALL_TIMEOUT),
        (Outcome(Came.ANSWERED, 500), CallState.QUEUED, Reason.RAISED),
        (Outcome(Came.ANSWERED, 502), CallState.QUEUED, Reason.REPLICA_LOST),
        (Outcome(Came.ANSWERED, 422, detail="x: no int"), CallState.FAILED, Reason.CALL_REFUSED),
        (Outcome(Came.ANSWERED, 404), CallState.FAILED, Reason.CALL_REFUSED),
        (Outcome(Came.ANSWERED, 404, code="function-not-found"), CallState.QUEUED, Reason.FUNCTION_BUSY),
        (Outcome(Came.ANSWERED, 401, code="key-required"), CallState.QUEUED, Reason.FUNCTION_BUSY),
        (Outcome(Came.ANSWERED, 429), CallState.QUEUED, Reason.FUNCTION_BUSY),
        (Outcome(Came.ANSWERED, 503), CallState.QUEUED, Reason.START_FAILED),
        (Outcome(Came.UNSENT), CallState.QUEUED, Reason.GATEWAY_LOST),
        (Outcome(Came.CUT), CallState.QUEUED, Reason.GATEWAY_LOST),
        (Outcome(Came.UNKEPT), CallState.QUEUED, Reason.DISK_FULL),
        (Outcome(Came.LOST_INPUT), CallState.FAILED, Reason.CALL_REFUSED),
    ],
)
def test_what_came_decides_what_follows(outcome: Outcome, state: CallState, reason: Reason | None) -> None:
    after = settled(outcome)
    assert (after.state, after.reason) == (state, reason)
    assert (after.ended_at is None) is (state is CallState.QUEUED)


def test_only_what_the_function_did_uses_its_retries_and_waits_longer_each_time() -> None:
    raised = Outcome(Came.ANSWERED, 200, "x/y", 9, True, "raised", "ValueError: no")
    first = settled(raised)
    assert (first.retried, first.not_before) == (1, NOW + 1_000_000)
    second = settled(raised, begun(retried=1))
    assert (second.retried, second.not_before) == (2, NOW + 2_000_000)
    last = settled(raised, begun(retried=2))
    assert (last.state, last.detail, last.result_bytes) == (CallState.FAILED, "ValueError: no", 9), "its answer is kept"
    assert settled(Outcome(Came.ANSWERED, 502, result_bytes=9), begun(retried=2)).result_bytes is None, "nobody answered"
    for ours in (Outcome(Came.CUT), Outcome(Came.ANSWERED, 503), Outcome(Came.ANSWERED, 429), Outcome(Came.UNSENT)):
        assert (settled(ours).retried, settled(ours).not_before) == (0, None)


def test_what_comes_back_for_our_reasons_does_so_a_bounded_number_of_times_but_never_ends_for_a_busy_function() -> None:
    worn = begun(returned=RETURNS_MAX)
    assert settled(Outcome(Came.CUT), worn).state is CallState.FAILED
    assert settled(Outcome(Came.ANSWERED, 503, detail="no module"), worn).detail.endswith("no module")
    for patient in (Outcome(Came.ANSWERED, 429), Outcome(Came.UNSENT)):
        assert settled(patient, worn).state is CallState.QUEUED


def test_cancelling_dropping_and_expiring_end_what_waits_and_leave_what_has_ended() -> None:
    cancelled = cancel_call(QUEUED, 9)
    assert cancelled is not None and cancelled.event == "QUEUED -> CANCELLED"
    while_running = cancel_call(begun(), 9)
    assert while_running is not None and "is done" in while_running.call.detail
    assert cancel_call(cancelled.call, 9) is None
    dropped = drop_call(QUEUED, 9)
    assert dropped is not None and dropped.call.reason is Reason.FUNCTION_GONE
    assert expire_call(QUEUED, KEPT_US - 1) is None and expire_call(begun(), 2 * KEPT_US) is None
    expired = expire_call(replace(QUEUED, detail="busy"), KEPT_US)
    assert expired is not None and (expired.call.state, expired.call.detail) == (
        CallState.EXPIRED,
        "it waited for seven days: busy",
    )
    orphan = orphan_call(begun())
    assert orphan is not None and (orphan.call.state, orphan.call.retried) == (CallState.QUEUED, 0)


_outcomes = st.builds(
    Outcome,
    st.sampled_from(Came),
    st.sampled_from([200, 204, 301, 400, 401, 404, 413, 422, 429, 500, 502, 503, 504]),
    raised=st.booleans(),
    code=st.sampled_from(["", "key-required", "function-not-found", "timeout", "queue-full"]),
    detail=st.text(max_size=3000),
)


@given(st.lists(_outcomes, max_size=80), st.integers(0, 5))
def test_every_change_is_in_the_table_and_attempts_that_fail_are_bounded(outcomes: list[Outcome], retries: int) -> None:
    call, ours = replace(QUEUED, retries=retries), 0
    for outcome in outcomes:
        started = start_call(call, NOW)
        if started is None:
            assert call.state.terminal
            break
        change = settle_call(started.call, outcome, NOW, 0.5)
        assert isinstance(change, CallChange)
        assert change.call.state in TRANSITIONS[started.call.state]
        assert change.call.not_before is None or change.call.not_before - NOW <= RETRY_MAX_S * 1e6
        assert len(change.event) < 2200
        ours += not is_refusal(outcome)
        call = change.call
    assert call.retried <= retries and call.returned <= RETURNS_MAX
    assert ours <= retries + 1
