"""Would this job go into that room, and what does it hold once it is there? One answer for new jobs, gangs and suspended jobs.

A suspended job has its place already and can only go on there; until then it holds its memory and nothing of the cores.
"""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.model.job import Job, JobState, Plan
from steelyard.model.reason import Reason
from steelyard.placement.gang import place_spec
from steelyard.placement.machine_facts import make_asked
from steelyard.placement.refusal import Refusal, make_refusal
from steelyard.placement.room import Room


def find_seat(job: Job, room: Room, beside: Sequence[Room] = ()) -> Plan | Refusal:
    """A plan that goes into `room` and all of `beside`, or why there is none."""
    if job.state is not JobState.SUSPENDED or job.plan is None:
        return place_spec(room, job.spec, beside)
    demand = job.spec.demand
    for other in (room, *beside):
        without = other.copy()
        without.release(demand, job.plan, suspended=True)
        if without.check(demand, job.plan):
            blocks = [(Reason.SUSPENDED, "it was suspended for jobs that go first, and they still hold what it needs")]
            return make_refusal(blocks, False, other.largest(make_asked(demand)))
    return job.plan


def fits_quickly(job: Job, room: Room) -> bool:
    """False: it certainly does not go there."""
    if job.state is JobState.SUSPENDED:
        return True
    gang = job.spec.gang
    return room.fits_quickly(job.spec.resources, 1 if gang is None else gang.tasks_per_node)


def take_seat(job: Job, plan: Plan, room: Room) -> None:
    if job.state is JobState.SUSPENDED:
        room.release(job.spec.demand, plan, suspended=True)
    room.take(job.spec.demand, plan)
