"""Would this job go into that room, and what does it hold once it is there? One answer for new jobs, gangs and suspended jobs.

A suspended job has its place already and can only go on there; until then it holds its memory and nothing of the cores.
A preemptible job may also have what sleeping functions lend: cores as they are, since it gets less of them once the function
wakes, and devices only where it can be ended before the function must have them back (its grace, no minimum runtime, no suspend).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from steelyard.model.batch import PreemptMode
from steelyard.model.job import Job, JobSpec, JobState, Plan
from steelyard.model.reason import Reason
from steelyard.placement.gang import place_spec
from steelyard.placement.machine_facts import make_asked
from steelyard.placement.refusal import Refusal, make_refusal
from steelyard.placement.room import Room
from steelyard.scheduling.snapshot import Holding


def find_seat(job: Job, room: Room, beside: Sequence[Room] = ()) -> Plan | Refusal:
    """A plan that goes into `room` and all of `beside`, or why there is none; of a gang on several machines, for one of them."""
    seen, beside = see_room(job.spec, room), [see_room(job.spec, other) for other in beside]
    if job.state is not JobState.SUSPENDED or job.plan is None:
        answer = place_spec(seen, job.spec, beside)
        return answer if beside or isinstance(answer, Plan) else _tell_of_lent(job.spec, room, seen, answer)
    demand, plan = job.spec.demand, job.plan.on(room.facts.place) or job.plan
    for other in (seen, *beside):
        without = other.copy()
        without.release(demand, plan, suspended=True)
        if without.check(demand, plan):
            blocks = [(Reason.SUSPENDED, "it was suspended for jobs that go first, and they still hold what it needs")]
            return make_refusal(blocks, False, other.largest(make_asked(demand)))
    return plan


def fits_quickly(job: Job, room: Room) -> bool:
    """False: it certainly does not go there."""
    if job.state is JobState.SUSPENDED:
        return True
    gang = job.spec.gang
    return see_room(job.spec, room).fits_quickly(job.spec.resources, 1 if gang is None else gang.tasks_per_node)


def take_seat(job: Job, plan: Plan, room: Room) -> None:
    """`plan`: on the room's machine."""
    if job.state is JobState.SUSPENDED:
        room.release(job.spec.demand, plan, suspended=True)
    room.take(job.spec.demand, plan)


def see_room(spec: JobSpec, room: Room) -> Room:
    """The room as such a job finds it."""
    return room.seen_by(gone_s(spec)) if spec.resources.preemptible else room


def gone_s(spec: JobSpec) -> float | None:
    """How long after it was told to give way its devices are free at the latest; None: nobody knows, or not at any time."""
    asked = spec.preemption
    at_any_time = spec.resources.preemptible and asked.min_runtime_s == 0 and asked.mode is not PreemptMode.SUSPEND
    return asked.grace_s if at_any_time else None


def fill_room(room: Room, holding: Iterable[Holding]) -> Room:
    for held in holding:
        room.take(held.demand, held.plan, held.suspended)
        if held.lent_s is not None:
            room.lend(held.demand, held.plan, held.lent_s)
    return room


def _tell_of_lent(spec: JobSpec, room: Room, seen: Room, answer: Refusal) -> Refusal:
    """Would it go onto what a sleeping function lends, if only it could be ended sooner?"""
    asks = spec.resources.gpus is not None or spec.resources.nics
    if answer.never or not spec.resources.preemptible or not asks:
        return answer
    for within_s in room.lent_devices_s:
        sooner = room.seen_by(within_s)
        if sooner is not seen and isinstance(place_spec(sooner, spec), Plan):
            told = f"--preempt-grace {within_s:g}s, no --min-runtime and not --preempt suspend"
            detail = f"{answer.detail}; with {told} it would go onto what a sleeping function lends"
            return msgspec.structs.replace(answer, detail=detail)
    return answer
