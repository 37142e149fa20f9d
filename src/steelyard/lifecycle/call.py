"""May this call change like that, and what follows from what came of asking its function?

Every function takes a call and returns a `CallChange`, or None when there is nothing to say. All changes of state go through
`TRANSITIONS` (R7). A call is carried out at least once: where it is not known whether the function ran, it is asked again when
that is our doing, and as often as its retries allow when it is the function's. Never reads the clock, a random number or a file.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from steelyard.model.call import Call, CallState
from steelyard.model.function import Function
from steelyard.model.ids import CallId
from steelyard.model.reason import Reason

#: state -> the states that may follow it. Terminal states are followed by nothing.
TRANSITIONS: dict[CallState, frozenset[CallState]] = {
    CallState.QUEUED: frozenset({CallState.RUNNING, CallState.CANCELLED, CallState.EXPIRED, CallState.FAILED}),
    # RUNNING -> QUEUED: to be asked again
    CallState.RUNNING: frozenset({CallState.QUEUED, CallState.SUCCEEDED, CallState.FAILED, CallState.CANCELLED}),
    CallState.SUCCEEDED: frozenset(),
    CallState.FAILED: frozenset(),
    CallState.CANCELLED: frozenset(),
    CallState.EXPIRED: frozenset(),
}

#: a call waits at most that long, and its row and result are kept that long after its end
KEPT_US = 7 * 24 * 3600 * 1_000_000
#: times that a call comes back for reasons of ours before it is given up
RETURNS_MAX = 20
#: pause before a retry: doubled each time, with jitter
RETRY_FIRST_S, RETRY_MAX_S = 1.0, 30.0
DETAIL_MAX = 2000


class Came(StrEnum):
    """What came of asking."""

    #: an answer of the function, complete and on disk
    ANSWERED = "answered"
    #: no connection to the gateway: nothing was executed
    UNSENT = "unsent"
    #: the connection to the gateway ended before the answer did
    CUT = "cut"
    #: the answer could not be kept
    UNKEPT = "unkept"
    #: the input is not on disk any more
    LOST_INPUT = "lost-input"


class Outcome(msgspec.Struct, frozen=True):
    came: Came
    #: HTTP
    status: int = 0
    content_type: str = ""
    result_bytes: int = 0
    #: the answer is an exception of the function
    raised: bool = False
    #: of a problem document, or what the system said
    code: str = ""
    detail: str = ""


class CallChange(msgspec.Struct, frozen=True):
    call: Call
    #: one line of history
    event: str


def make_call(id_: CallId, function: Function, now: int, method: str, content_type: str, input_bytes: int) -> Call:
    """A new one, that waits. Its input is on disk already."""
    return Call(
        id=id_,
        project=function.project,
        owner=function.owner,
        generation=1,
        function=function.name,
        state=CallState.QUEUED,
        submitted_at=now,
        method=method,
        content_type=content_type,
        input_bytes=input_bytes,
        retries=function.spec.retries,
    )


def make_empty_call(id_: CallId, function: Function, schedule: str, now: int) -> Call:
    """By the clock, without arguments: it has no input file."""
    return msgspec.structs.replace(make_call(id_, function, now, "", "application/json", 0), schedule=schedule)


def start_call(call: Call, now: int) -> CallChange | None:
    attempt = call.attempt + 1
    return _move(call, CallState.RUNNING, f"attempt {attempt}", attempt=attempt, started_at=now, not_before=None)


def cancel_call(call: Call, now: int) -> CallChange | None:
    """None: it has ended already."""
    detail = "" if call.state is CallState.QUEUED else "it was cancelled while it ran; what it had done by then is done"
    return _end(call, CallState.CANCELLED, now, Reason.CANCELLED_BY_USER, detail)


def expire_call(call: Call, now: int) -> CallChange | None:
    """Only what waits, and has waited for as long as calls are kept."""
    if call.state is not CallState.QUEUED or now - call.submitted_at < KEPT_US:
        return None
    return _end(call, CallState.EXPIRED, now, Reason.EXPIRED, _join("it waited for seven days", call.detail))


def drop_call(call: Call, now: int) -> CallChange | None:
    """Its function was deleted while it waited."""
    return _end(
        call, CallState.FAILED, now, Reason.FUNCTION_GONE, f"the function {call.function} was deleted before it was asked"
    )


def orphan_call(call: Call) -> CallChange | None:
    """RUNNING, but nobody asks: the server that did is gone."""
    return _queue(call, Reason.SERVER_RESTARTED, "the server was restarted while it ran; it is asked again", None)


def settle_call(call: Call, outcome: Outcome, now: int, jitter: float) -> CallChange | None:
    """`jitter`: 0 to 1."""
    match outcome.came:
        case Came.UNSENT:
            return _queue(call, Reason.GATEWAY_LOST, "the gateway does not answer; nothing was executed", None)
        case Came.CUT:
            return _return(call, Reason.GATEWAY_LOST, "the gateway went away before the answer came", now)
        case Came.UNKEPT:
            return _return(call, Reason.DISK_FULL, _join("the answer could not be kept", outcome.detail), now)
        case Came.LOST_INPUT:
            return _end(
                call, CallState.FAILED, now, Reason.CALL_REFUSED, "its input is gone from the server's disk; call it again"
            )
        case Came.ANSWERED:
            return _settle_answer(call, outcome, now, jitter)


def _settle_answer(call: Call, outcome: Outcome, now: int, jitter: float) -> CallChange | None:
    status, said = outcome.status, _join(f"answered {outcome.status}", outcome.detail)
    result = {"result_bytes": outcome.result_bytes, "result_type": outcome.content_type}
    if 200 <= status < 300 and not outcome.raised:
        return _end(call, CallState.SUCCEEDED, now, None, "", **result)
    if status == 429:
        return _queue(call, Reason.FUNCTION_BUSY, said, None)
    if status == 503:
        return _return(call, Reason.START_FAILED, said, now)
    if _is_unrouted(outcome):
        return _queue(call, Reason.FUNCTION_BUSY, "the gateway does not know it yet", None)
    if outcome.raised or status >= 500:
        lost = status == 502 and not outcome.raised
        reason = Reason.REPLICA_LOST if lost else Reason.CALL_TIMEOUT if outcome.code == "timeout" else Reason.RAISED
        said = said if not outcome.raised else outcome.detail or "it raised an exception"
        if call.retried < call.retries:
            pause_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2**call.retried) * (0.5 + jitter / 2)
            return _queue(call, reason, said, now + round(pause_s * 1e6), retried=call.retried + 1)
        return _end(call, CallState.FAILED, now, reason, said, **({} if lost else result))
    return _end(call, CallState.FAILED, now, Reason.CALL_REFUSED, said, **result)


def is_refusal(outcome: Outcome) -> bool:
    """Nobody answered it; asking the function again at once would end the same way."""
    return outcome.came is not Came.ANSWERED or outcome.status in (429, 503) or _is_unrouted(outcome)


def _is_unrouted(outcome: Outcome) -> bool:
    """The gateway's own words: it has not heard yet of the function, or of the key that calls it."""
    return outcome.code in ("function-not-found", "key-required")


def _return(call: Call, reason: Reason, detail: str, now: int) -> CallChange | None:
    if call.returned >= RETURNS_MAX:
        return _end(call, CallState.FAILED, now, reason, f"given up after {call.returned + 1} tries: {detail}")
    return _queue(call, reason, detail, None, returned=call.returned + 1)


def _queue(call: Call, reason: Reason, detail: str, not_before: int | None, **fields: object) -> CallChange | None:
    detail = detail[:DETAIL_MAX]
    return _move(call, CallState.QUEUED, detail, reason=reason, detail=detail, not_before=not_before, **fields)


def _end(call: Call, state: CallState, now: int, reason: Reason | None, detail: str, **fields: object) -> CallChange | None:
    detail = detail[:DETAIL_MAX]
    return _move(call, state, detail, ended_at=now, reason=reason, detail=detail, not_before=None, **fields)


def _move(call: Call, state: CallState, why: str, **fields: object) -> CallChange | None:
    if state not in TRANSITIONS[call.state]:
        return None
    after = msgspec.structs.replace(call, generation=call.generation + 1, state=state, **fields)
    return CallChange(after, f"{call.state} -> {state}" + (f" ({why})" if why else ""))


def _join(first: str, more: str) -> str:
    return f"{first}: {more}" if more else first
