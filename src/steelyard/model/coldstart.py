"""What did one wake cost, and where did the time go?

Phases are contiguous: each begins where the one before ended, so that they sum to the wall time (arrival at the gateway to
first byte). Platform phases are ours to shrink, user phases are the user's own code.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from steelyard.model.ids import FunctionName, ProjectName
from steelyard.model.reason import Reason

PLATFORM_PHASES = ("held", "take_back", "plan", "fork", "join", "serve")
USER_PHASES = ("import", "enter", "first_byte")


class Road(StrEnum):
    """How the replica came to be."""

    TEMPLATE = "template"
    #: forked from where its packages are imported; it imported the user's module itself
    ENVIRONMENT = "environment"
    PLAIN = "plain"


class ColdStart(msgspec.Struct, frozen=True):
    """One row of the ledger. `phases` in ms, in order: held (arrival at the gateway to seen by the agent), take_back (only of a
    function that lends its place: until that was its own again), plan, fork (message to child alive; for the plain road fork +
    exec), join (cgroup, cpus), import (0 on the template road, the user's own files alone on the environment road), enter,
    serve (ready to accept), first_byte (request accepted to response started)."""

    id: str
    function: FunctionName
    project: ProjectName
    revision: int
    at: int
    road: Road
    reason: Reason
    wall_ms: float
    phases: dict[str, float]
    #: the user's own `with sy.phase(name)` blocks, and of a model's server what its log told of its start (`enter.weights`, ...):
    #: parts of import, enter or first_byte, not added to the sum
    user_phases: dict[str, float] = {}

    @property
    def platform_ms(self) -> float:
        return sum(self.phases.get(name, 0.0) for name in PLATFORM_PHASES)

    @property
    def user_ms(self) -> float:
        return sum(self.phases.get(name, 0.0) for name in USER_PHASES)
