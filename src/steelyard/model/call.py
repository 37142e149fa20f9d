"""What is a durable call of a function, and in which states may it be?"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from steelyard.model.ids import CallId, FunctionName, ProjectName
from steelyard.model.job import Owner
from steelyard.model.reason import Reason


class CallState(StrEnum):
    #: waits for a place, or for another try
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    #: the function raised, or could not be asked; where it answered, the answer is kept
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    #: it waited longer than calls are kept
    EXPIRED = "EXPIRED"

    @property
    def terminal(self) -> bool:
        return self not in (CallState.QUEUED, CallState.RUNNING)


class Call(msgspec.Struct, frozen=True):
    """Its input is a file from before the row exists, its result one from before the row says so; neither is ever looked into."""

    id: CallId
    project: ProjectName
    owner: Owner
    #: goes up with every change of the row (optimistic concurrency)
    generation: int
    function: FunctionName
    state: CallState
    submitted_at: int
    #: of a class; "" calls the function itself
    method: str = ""
    #: of the input, as the caller said
    content_type: str = ""
    input_bytes: int = 0
    #: further attempts after a lost replica or an exception; as the function was deployed when it was called
    retries: int = 0
    #: those of them that were used
    retried: int = 0
    #: how often it was asked; every time may have been executed
    attempt: int = 0
    #: times that it came back for reasons of ours (a start that failed, a gateway that went away)
    returned: int = 0
    #: not asked again before this wall time, microseconds
    not_before: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    reason: Reason | None = None
    #: a sentence for people
    detail: str = ""
    #: of the result; None while there is none
    result_bytes: int | None = None
    result_type: str = ""
    #: the schedule that made it; "" where somebody called
    schedule: str = ""
