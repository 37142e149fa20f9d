"""What did this wake cost? Turns the timestamps of one wake into a ledger row; pure.

All stamps are CLOCK_MONOTONIC ns of the same machine, except Envoy's arrival stamp, which is wall clock and is converted by the
offset between both clocks at that moment. Each phase ends where the next begins, so their sum is the wall time by construction.
"""

from __future__ import annotations

import msgspec

from steelyard.model.coldstart import ColdStart, Road
from steelyard.model.ids import FunctionName, ProjectName
from steelyard.model.reason import Reason


class WakeStamps(msgspec.Struct, frozen=True):
    """Monotonic ns. `seen`, `sent`: the agent's; the others were written by the replica into its page."""

    seen: int
    sent: int
    alive: int
    joined: int
    imported: int
    entered: int
    accepted: int
    first_byte: int
    #: Envoy's arrival stamp, microseconds of wall clock; 0 when the request carried none
    arrival_us: int
    #: the agent's: its place was its own again; 0 where it lends it to nobody
    taken: int = 0


def make_coldstart(
    replica: str,
    function: FunctionName,
    project: ProjectName,
    revision: int,
    road: Road,
    reason: Reason,
    stamps: WakeStamps,
    user_phases: dict[str, float],
    wall_minus_mono_ns: int,
) -> ColdStart:
    """`wall_minus_mono_ns` is wall clock minus monotonic clock, in ns. A request that arrived after the agent saw the socket
    readable (the one that woke it had gone) counts from the moment the socket was seen."""
    arrival = stamps.arrival_us * 1000 - wall_minus_mono_ns if stamps.arrival_us else stamps.seen
    begin = min(arrival, stamps.seen)
    edges = [
        begin,
        stamps.seen,
        *((stamps.taken,) if stamps.taken else ()),
        stamps.sent,
        stamps.alive,
        stamps.joined,
        stamps.imported,
        stamps.entered,
    ]
    edges += [stamps.accepted, stamps.first_byte]
    names = ["held", "plan", "fork", "join", "import", "enter", "serve", "first_byte"]
    if stamps.taken:
        names.insert(1, "take_back")
    # A stamp that was never written (0) takes the one before it: that phase did not happen on this road.
    for at in range(1, len(edges)):
        edges[at] = max(edges[at], edges[at - 1])
    phases = {name: (edges[at + 1] - edges[at]) / 1e6 for at, name in enumerate(names)}
    return ColdStart(
        id=replica,
        function=function,
        project=project,
        revision=revision,
        at=(begin + wall_minus_mono_ns) // 1000,
        road=road,
        reason=reason,
        wall_ms=(edges[-1] - begin) / 1e6,
        phases=phases,
        user_phases=user_phases,
    )
