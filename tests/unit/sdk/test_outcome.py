"""Which failures are asked for again, which are counted, and what the user is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

import steelyard as sy
from steelyard.sdk import frames, outcome, payload
from steelyard.sdk.frames import Frame
from steelyard.sdk.outcome import Attempts, Failure


@pytest.mark.parametrize(
    ("status", "code", "kind", "again", "retriable"),
    [
        (429, "queue-full", sy.Overloaded, True, False),
        (503, "function-unreachable", sy.Overloaded, True, False),
        (503, "not-begun", sy.Overloaded, True, False),
        (502, "replica-lost", sy.ReplicaLost, False, True),
        (503, "import-failed", sy.StartFailed, False, False),
        (404, "function-not-found", sy.NotDeployed, False, False),
        (404, "no-method", sy.NotDeployed, False, False),
        (401, "key-required", sy.NotAllowed, False, False),
        (413, "", sy.PayloadError, False, False),
        (500, "", sy.Error, False, False),
    ],
)
def test_answers_that_are_none_of_the_functions(status: int, code: str, kind: type, again: bool, retriable: bool) -> None:
    failure = outcome.read_problem(status, {"code": code, "detail": "because"}, "f")
    assert type(failure.error) is kind
    assert (failure.again, failure.retriable, failure.key) == (again, retriable, status == 401)
    assert "f" in str(failure.error)


def test_what_was_not_executed_is_asked_for_again_for_a_while_and_counts_nothing() -> None:
    attempts = Attempts(0, 0.0)
    refused = Failure(sy.Overloaded("full"), again=True)
    waits = [attempts.wait(refused, 1.0, 1.0) for _ in range(12)]
    assert all(wait is not None for wait in waits)
    assert waits == sorted(waits, key=lambda wait: wait or 0)
    assert waits[-1] == outcome.WAIT_MAX_S
    assert attempts.wait(refused, outcome.PATIENCE_S + 1, 1.0) is None


def test_what_may_have_been_executed_counts_against_the_retries() -> None:
    attempts = Attempts(2, 0.0)
    lost = outcome.lost("f")
    assert [attempts.wait(lost, 0.0, 0.0) is None for _ in range(3)] == [False, False, True]
    assert Attempts(5, 0.0).wait(Failure(ValueError()), 0.0, 0.0) is None


def test_one_that_was_stuck_beyond_its_timeout_timed_out() -> None:
    assert isinstance(outcome.lost("f", 11.0, 1.0).error, sy.CallTimeout)
    assert isinstance(outcome.lost("f", 0.5, 1.0).error, sy.ReplicaLost)


@pytest.mark.parametrize(
    ("code", "kind", "again", "retriable"),
    [
        (frames.NOT_BEGUN, sy.Overloaded, True, False),
        (frames.TIMEOUT, sy.CallTimeout, False, True),
        (frames.PAYLOAD, sy.PayloadError, False, False),
        (frames.RAISED, KeyError, False, True),
    ],
)
def test_error_frames_become_exceptions(code: str, kind: type, again: bool, retriable: bool) -> None:
    frame = Frame(frames.ERROR, 0, payload.dumps_error(KeyError("k"), code))
    failure = outcome.read_error(frame, "f", "")
    assert type(failure.error) is kind
    assert (failure.again, failure.retriable) == (again, retriable)


def end(at: int, reason: str, **more: Any) -> dict[str, Any]:
    return json.loads(json.dumps({"replica": "r", "ended_at": at, "reason": reason, "detail": f"at {at}.", **more}))


def test_how_the_replica_ended_is_told_when_it_is_known() -> None:
    error = outcome.lost("f").error
    ends = [end(50, "oom-killed"), end(110, "oom-killed", memory_peak_bytes=200_000_000), end(120, "exited-nonzero")]
    told = outcome.tell_end(error, "f", ends, 100)
    assert isinstance(told, sy.OutOfMemory) and "at 110. It had 200 MB at most." in str(told)
    told = outcome.tell_end(error, "f", ends[2:], 100)
    assert type(told) is sy.ReplicaLost and "at 120." in str(told)
    assert outcome.tell_end(error, "f", ends[:1], 100) is None
    assert outcome.tell_end(ValueError(), "f", ends, 100) is None
