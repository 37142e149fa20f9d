"""What does the API say of why a function has as many replicas as it has?"""

from __future__ import annotations

import msgspec


class ScalingStep(msgspec.Struct, frozen=True):
    """The number of replicas changed."""

    at: str | None
    before: int
    after: int
    text: str


class RevisionScaling(msgspec.Struct, frozen=True):
    """Why one revision has as many replicas as it has."""

    revision: int
    serving: int
    starting: int
    wanted: int
    text: str
    #: the oldest first
    changes: tuple[ScalingStep, ...]
    #: of the function's pool; "": the home's own
    machine: str = ""


class FunctionWhyView(msgspec.Struct, frozen=True):
    name: str
    state: str
    #: of what failed
    reason: str | None
    detail: str
    revisions: tuple[RevisionScaling, ...]
    #: those of its pool that it is on; none: it is on the home's own
    machines: tuple[str, ...] = ()
    #: replicas that are less apart from others than is claimed, a sentence each
    isolation: tuple[str, ...] = ()
