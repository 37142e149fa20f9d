"""Which jobs start now, and why do the others wait? Strict order with EASY backfill.

1. Jobs that may start at all (`eligible.py`) are looked at in their order (`order.py`), within the quotas of their projects and
   the limits of their arrays. What fits starts, on the best of several machines (`spot.py`); suspended jobs go on where they
   were.
2. What is about to end makes room for whoever is first to fit without it: work that is STOPPING, and victims of preemption. It
   waits with that place in hand, and nobody else gets it.
3. The first job that fits neither way keeps a reservation: the earliest place by the `max_duration` of what runs
   (`reservation.py`), or a place without a time. A job that waits for what nobody ends (a sick device, a function) keeps none.
   A gang on several machines keeps a place on as many, from when the last of them will be free.
4. Jobs behind the reservation start when they fit now and can't delay it: they end before it by their own `max_duration`, or
   fit beside the reserved place together with all that will still run then, or go onto another machine. With a reservation
   without a time any `max_duration` will do. They preempt nobody.
5. A job with a `max_duration` goes to no machine that is taken back before it would be over.
So no job starts before one of higher order that fits as well, and a reservation never moves later because of what started
after it was made. Jobs of a pool and those of the home's own machine compete for nothing but quotas: each pool has a reservation
of its own (`lane.py`). Step 4 ends after `BACKFILL_REFUSALS` exact placements that came to nothing, in the order of the queue
(questions that numbers answer are free, equal questions are asked once): the rest waits for a later decision.
Never reads the clock, never touches a job.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby

from steelyard.model.ids import MachineId
from steelyard.model.job import Job
from steelyard.scheduling.eligible import split_eligible
from steelyard.scheduling.lane import Lane, Turn, Victims, spare_all
from steelyard.scheduling.order import order_jobs
from steelyard.scheduling.snapshot import Decision, Holding, Snapshot
from steelyard.scheduling.spot import Spot


def decide(snapshot: Snapshot, now: int, ranks: Mapping[str, float], victims: Victims = spare_all) -> Decision:
    """`now`: wall time, microseconds. `ranks`: account -> its place by fair share, lower ones first."""
    eligible = split_eligible(snapshot.queued, snapshot.standings, now)
    suspended = [held.job for held in snapshot.holding if held.job is not None and held.suspended]
    jobs = order_jobs(eligible.jobs, suspended, ranks)
    turn = Turn(snapshot, now, victims)
    lanes = _go_through(jobs, snapshot, turn)
    return Decision(
        starts=tuple(turn.starts),
        resumes=tuple(turn.resumes),
        preempts=tuple(turn.preempts),
        waits=(*turn.waits, *eligible.waits),
        never=(*turn.never, *eligible.never),
        reservations={pool: lane.reservation for pool, lane in lanes.items() if lane.reservation is not None},
        order=tuple([job.id for job in jobs]),
        look_at=min((at for at in (eligible.look_at, turn.look_at) if at is not None), default=None),
    )


def _go_through(jobs: Sequence[Job], snapshot: Snapshot, turn: Turn) -> dict[str, Lane]:
    pools = {job.spec.pool for job in jobs}
    lanes = _make_lanes(pools, snapshot, turn)
    if len(pools) == 1:
        lanes[pools.pop()].go_through(jobs)
        return lanes
    for pool, group in groupby(jobs, key=lambda job: job.spec.pool):
        lanes[pool].go_through(list(group))
    return lanes


def _make_lanes(pools: set[str], snapshot: Snapshot, turn: Turn) -> dict[str, Lane]:
    on: defaultdict[MachineId, list[Holding]] = defaultdict(list)
    for held in snapshot.holding:
        for part in held.parts:
            on[part.plan.machine].append(part)
    lanes: dict[str, Lane] = {}
    for pool in pools:
        spots = [Spot(machine, on[machine.place], snapshot.ends.get(machine.place)) for machine in snapshot.usable(pool)]
        lanes[pool] = Lane(pool, spots, turn, snapshot.say_without(pool))
    return lanes
