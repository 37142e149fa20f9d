"""What became of an input, and may it be asked for again? Pure: answers and failures in, exceptions and decisions out.

An input is asked for again without counting it when it was certainly not executed: the queue was full, the replica was being
replaced, nobody listened. Everything else that failed counts against the function's `retries`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from steelyard.sdk import frames, payload
from steelyard.sdk.errors import (
    CallTimeout,
    Error,
    NotAllowed,
    NotDeployed,
    NotReachable,
    OutOfMemory,
    Overloaded,
    PayloadError,
    ReplicaLost,
    StartFailed,
)
from steelyard.sdk.frames import Frame

#: how long inputs that are not executed are asked for again
PATIENCE_S = 60.0
WAIT_MIN_S, WAIT_MAX_S = 0.02, 2.0

#: codes of answers of the gateway, the agent and the replica after which nothing was executed and later it may be
_LATER = frozenset({"queue-full", "function-unreachable", "gateway-unavailable", "not-begun"})


_UNKNOWN = (
    "Whether it took effect is not known. `steelyard logs` shows what it last said; retries= says how often such inputs are run "
    "again."
)


class Failure(NamedTuple):
    error: Exception
    #: certainly not executed, and asking again makes sense
    again: bool = False
    #: may be retried where the function allows it
    retriable: bool = False
    #: the key did not fit: it may have been changed
    key: bool = False


class Attempts:
    """Of one input. `retries`: how often it may be executed again."""

    __slots__ = ("_asked", "_since", "retries")

    def __init__(self, retries: int, now_s: float) -> None:
        self.retries = retries
        self._since = now_s
        self._asked = 0

    def wait(self, failure: Failure, now_s: float, luck: float) -> float | None:
        """Seconds until it is asked for again; None: the failure is its outcome. `luck` is a random number from 0 to 1, so that
        callers do not come back all at once."""
        if failure.again:
            if now_s - self._since > PATIENCE_S:
                return None
        elif failure.retriable and self.retries > 0:
            self.retries -= 1
        else:
            return None
        wait_s = min(WAIT_MAX_S, WAIT_MIN_S * 2 ** min(self._asked, 10))
        self._asked += 1
        return wait_s * (0.5 + luck / 2)


def read_problem(
    status: int, problem: dict[str, Any], function: str, ran_s: float = 0.0, timeout_s: float | None = None
) -> Failure:
    """An answer that is none of the function's."""
    code, detail = str(problem.get("code", "")), str(problem.get("detail", ""))
    if code == "replica-lost":
        return lost(function, ran_s, timeout_s)
    if code in _LATER:
        return Failure(Overloaded(f"{function}: {detail}"), again=True)
    if status in (401, 403):
        return Failure(NotAllowed(f"{function}: {detail or 'the key does not fit'}"), key=True)
    if status == 404:
        return Failure(NotDeployed(f"{function}: {detail}"))
    if status == 503:
        return Failure(StartFailed(f"{function} could not be started: {detail or code}"))
    if status == 413:
        return Failure(PayloadError(f"{function}: its input is larger than the gateway takes."))
    return Failure(Error(f"{function} answered {status}{f' ({code})' if code else ''}: {detail or 'nothing that is an answer'}"))


def lost(function: str, ran_s: float = 0.0, timeout_s: float | None = None) -> Failure:
    """The replica went away with the input. One that is stuck for good is ended some time after the input's timeout."""
    if timeout_s is not None and ran_s >= timeout_s:
        return Failure(
            CallTimeout(f"{function} ran longer than its timeout of {timeout_s:g} s; its replica was replaced."), retriable=True
        )
    return Failure(
        ReplicaLost(f"The replica of {function} ended while it ran this input. {_UNKNOWN}"),
        retriable=True,
    )


def tell_end(error: Exception, function: str, ends: list[dict[str, Any]], since_us: int) -> Exception | None:
    """The same error with what is known of how the replica ended, newest first; None when nothing is known yet."""
    late = [end for end in ends if end["ended_at"] >= since_us]
    if not isinstance(error, ReplicaLost) or not late:
        return None
    out_of_memory = [end for end in late if end["reason"] == "oom-killed"]
    end = (out_of_memory or late)[-1]
    if out_of_memory:
        peak = f" It had {end['memory_peak_bytes'] / 1e6:.0f} MB at most." if end.get("memory_peak_bytes") else ""
        return OutOfMemory(
            f"The replica of {function} ran out of memory while it ran this input. {end['detail']}{peak} {_UNKNOWN}"
        )
    return ReplicaLost(f"The replica of {function} ended while it ran this input. {end['detail']} {_UNKNOWN}")


def unreachable(error: NotReachable) -> Failure:
    """Nobody answered: the gateway may be coming back."""
    return Failure(error, again=True)


def read_error(frame: Frame, function: str, main_is: str) -> Failure:
    """An ERROR frame."""
    told = json.loads(bytes(frame.segments[0]))
    pickled = frame.segments[1] if len(frame.segments) > 1 else b""
    code = told.get("code")
    if code == frames.NOT_BEGUN:
        return Failure(Overloaded(f"{function}: its replica is being replaced"), again=True)
    if code == frames.TIMEOUT:
        return Failure(CallTimeout(told.get("text", "")), retriable=True)
    if code == frames.PAYLOAD:
        return Failure(PayloadError(told.get("text", "")))
    return Failure(payload.loads_error(told, pickled, main_is), retriable=True)
