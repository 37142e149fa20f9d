"""How many pilots should a pool have, and which of them may go? Pure: what waits, what there is and the time in, numbers out.

What waits is packed, first fit, into empty nodes of the pool; pilots that are on their way, and those that stand empty, count as
such nodes already. Pilots that are about to end count for nothing here but the pool's bound. Where several machines are one
allocation, they are asked for and given back together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from steelyard.model.job import Resources
from steelyard.model.machine import Machine
from steelyard.model.pool import NodeShape, Pilot, PilotState, PoolSpec


class Demand(msgspec.Struct, frozen=True):
    """Of one job that waits for a pool: so many machines of it, and what it needs on each."""

    nodes: int
    each: Resources
    #: it may run for so long; None: nobody knows
    max_duration_s: float | None = None
    #: machines of one allocation
    together: bool = False


class Room(msgspec.Struct):
    """What is free of a node; None: nobody knows how much that is."""

    cpus: float | None
    memory_bytes: int | None
    gpus: int | None
    #: until it is taken back; None: longer than anything
    left_s: float | None = None

    def take(self, each: Resources, max_duration_s: float | None = None) -> bool:
        """Does it fit? It is taken then."""
        if self.left_s is not None and (max_duration_s or 0.0) > self.left_s:
            return False
        gpus = 0 if each.gpus is None else each.gpus.count if each.gpus.fraction is None else 1
        memory_bytes = each.memory_bytes or 0
        if self.cpus is not None and each.cpus > self.cpus + 1e-9:
            return False
        if self.memory_bytes is not None and memory_bytes > self.memory_bytes:
            return False
        if self.gpus is not None and gpus > self.gpus:
            return False
        self.cpus = None if self.cpus is None else self.cpus - each.cpus
        self.memory_bytes = None if self.memory_bytes is None else self.memory_bytes - memory_bytes
        self.gpus = None if self.gpus is None else self.gpus - gpus
        return True


def make_room(node: NodeShape, example: Machine | None) -> Room:
    """An empty node of a pool, by a machine of it where one is known: what was asked for is in CPUs, which may be threads."""
    if example is not None:
        gpus = len(example.topology.gpus) if example.topology is not None else 0
        return Room(float(len(example.cores)), example.memory_bytes, gpus)
    return Room(None if node.cpus is None else float(node.cpus), node.memory_bytes, node.gpus)


class Needed(NamedTuple):
    #: of the empty nodes that there are
    there: int
    more: int


def count_needed(
    demands: Iterable[Demand], node: NodeShape, example: Machine | None, most: int, empty: Iterable[float | None] = ()
) -> Needed:
    """Empty nodes that all of this fits into: of those that there are (`empty`: how long each stays), and no more than `most`
    others. What fits into no node at all needs none."""
    unused = [msgspec.structs.replace(make_room(node, example), left_s=left_s) for left_s in empty]
    rooms: list[Room] = []
    there = 0
    for demand in demands:
        if not make_room(node, example).take(demand.each):
            continue
        left = demand.nodes
        for room in rooms:
            if left and room.take(demand.each, demand.max_duration_s):
                left -= 1
        for room in [*unused]:
            if left and room.take(demand.each, demand.max_duration_s):
                unused.remove(room)
                rooms.append(room)
                left, there = left - 1, there + 1
        for _ in range(left):
            rooms.append(make_room(node, example))
            rooms[-1].take(demand.each)
        if len(rooms) - there >= most:
            return Needed(there, most)
    return Needed(there, len(rooms) - there)


class Wanted(msgspec.Struct, frozen=True):
    #: pilots to ask for
    more: int = 0
    #: that may go now
    spare: tuple[Pilot, ...] = ()
    #: nodes that what waits needs
    needed: int = 0


class Standing(msgspec.Struct, frozen=True):
    """A pilot, and what else counts of it."""

    pilot: Pilot
    #: something runs there, or may
    busy: bool = False
    #: so long nothing was on it and nothing waited for it
    idle_s: float = 0.0
    #: it is near its time limit
    ends_soon: bool = False
    #: until that; None: it has none, or it is not known yet
    left_s: float | None = None


def decide_pilots(spec: PoolSpec, standings: Sequence[Standing], demands: Sequence[Demand], example: Machine | None) -> Wanted:
    """For a pool that may ask for pilots now. All of `standings` live."""
    staying = [each for each in standings if each.pilot.state is not PilotState.DRAINING and not each.ends_soon]
    empty = [each for each in staying if not each.busy]
    able = [each for each in demands if not _is_beyond(each, standings)]
    there, fresh = count_needed(able, spec.node, example, spec.nodes_max, [each.left_s for each in empty])
    together = spec.nodes_per_allocation
    allocations: dict[str, list[Standing]] = {}
    for each in staying:
        allocations.setdefault(each.pilot.queue_id, []).append(each)
    # halves of allocations are of no use to what needs one
    whole = [each.left_s for some in allocations.values() if not any(one.busy for one in some) for each in some]
    at_once = count_needed((each for each in able if each.together), spec.node, example, spec.nodes_max, whole)
    needed, lacking = there + fresh, max(spec.nodes_min - len(staying), fresh, at_once.more)
    more = max(0, min(math.ceil(lacking / together), (spec.nodes_max - len(standings)) // together)) * together
    if more:
        return Wanted(more, (), needed)
    most = max(0, min(len(staying) - spec.nodes_min, len(empty) - needed))
    # those that only wait go first, then those that were idle longest
    rested = sorted(
        (some for some in allocations.values() if all(not each.busy and each.idle_s >= spec.idle_s for each in some)),
        key=lambda some: (
            not all(each.pilot.state.coming for each in some), -min(each.idle_s for each in some), some[0].pilot.queue_id
        ),
    )  # fmt: skip
    return Wanted(0, tuple(each.pilot for some in rested[: most // together] for each in some), needed)


def _is_beyond(demand: Demand, standings: Iterable[Standing]) -> bool:
    """It may run for longer than any machine stayed when it began to take work: another one would do no better."""
    whole = [
        each.pilot.ends_at - each.pilot.ready_at
        for each in standings
        if each.pilot.ends_at is not None and each.pilot.ready_at is not None
    ]
    return bool(whole) and (demand.max_duration_s or 0.0) * 1e6 > max(whole)
