"""How does a gang stand on each of its machines? One `Part` for each, as that machine's agent told last.

A gang on several machines starts in two steps: on each all is prepared, and only when all have told so does any of its programs
begin (`lifecycle/parts.py` decides it).
"""

from __future__ import annotations

import msgspec

from steelyard.model.batch import RankEnd
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason
from steelyard.model.usage import Usage


class Part(msgspec.Struct, frozen=True):
    """Fields as of `wire.agent.AttemptState`."""

    #: starting, prepared, running, suspended, ended, not-started
    phase: str = "starting"
    reason: Reason | None = None
    detail: str = ""
    started_at: int | None = None
    ended_at: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    peak_memory_bytes: int | None = None
    proof: Proof | None = None
    usage: Usage | None = None
    wakeup_breaches: int = 0
    wakeup_worst_us: int = 0
    ranks: tuple[RankEnd, ...] = ()

    @property
    def over(self) -> bool:
        """Nothing of it runs, or ever will."""
        return self.phase in ("ended", "not-started")


class Parts(msgspec.Struct, frozen=True):
    #: in the order of ranks
    each: tuple[Part, ...]
    #: the first of the ports, on the first machine, at which its ranks meet; 0: not known yet
    port: int = 0
    #: all were prepared, so that its programs begin
    go: bool = False
    #: place of the part that ended badly first, or in which a rank did, before anybody wanted an end
    broke: int | None = None

    def says_more_than(self, before: Parts) -> bool:
        """Is there something to tell its machines: that it begins, or has to end?"""
        return (self.go, self.broke) != (before.go, before.broke)
