"""What keeps desired and observed together? One file per loop, each with `load` (store to facts), `decide` (pure) and `carry_out`
(decision to store or agent), and a small class that joins the three for `driver.py`.

Loops are level-triggered: an activation takes no input and reads everything anew. They never retry inside and never sleep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from steelyard.model.ids import MachineId
from steelyard.wire.agent import Assignment, Report

#: names of the loops, for pokes
JOBS = "jobs"
ASSIGNMENT = "assignment"
REPORTS = "reports"
SCHEDULES = "schedules"
CALLS = "calls"
LEASES = "leases"
ROLLOUTS = "rollouts"
IMAGES = "images"
DIRECT = "direct"
PLACES = "places"
POOLS = "pools"


class Loop(Protocol):
    """What the driver runs."""

    @property
    def name(self) -> str: ...
    @property
    def tick_s(self) -> float:
        """Activated at least this often, poked or not."""
        ...

    async def activate(self) -> Sequence[str]:
        """Read, decide, carry out, once. Returns the names of loops that should look again now."""
        ...


class AgentLink(Protocol):
    """The agents as the loops see them (`api/agents.py` holds the connections). Machines are named by `Machine.place`."""

    def newest_reports(self) -> dict[MachineId, Report]:
        """Of each machine the newest report that was not acknowledged yet. Reports are complete, so older ones are not needed."""
        ...

    def acknowledge(self, machine: MachineId, report: Report) -> None:
        """The report is committed."""
        ...

    def offer(self, machine: MachineId, assignment: Assignment) -> None:
        """Send it now, and to every agent of the machine that connects later until a newer one is offered. Never blocks."""
        ...

    def holds(self, machine: MachineId, assignment: Assignment) -> bool:
        """Is that what an agent of it that connects would be sent? No longer, once a machine that restarted said hello."""
        ...

    def drop(self, machine: MachineId) -> None:
        """The machine is gone for good, and whoever still speaks for it is not heard any more."""
        ...
