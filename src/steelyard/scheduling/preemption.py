"""Who has to give way so that this job fits? The victims of preemption, chosen for the least GPU time lost.

1. A victim is a preemptible job that runs, whose minimum runtime is over, and whose priority is lower. Where the job that needs
   room is not preemptible itself, an equal priority will do.
2. It must be room of the right shape: the job is placed on the machine without the victims, and a set of victims counts only
   where that gives it a plan. Where GPUs joined by NVLink (or xGMI) throughout could be had if all gave way, a plan over PCIe
   does not count: nobody's work is thrown away for the worse half of a machine.
3. What is lost is GPUs x the time that a victim has run; what is frozen loses nothing. Of sets with the same loss the one that
   loses the least core time, then the smallest (`victim_search.py`).
4. What is to be frozen (mode suspend) gives its cores and keeps its memory and devices, so it is a victim only where that is
   enough.
Never reads the clock, never touches a job.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from steelyard.model.batch import PreemptMode
from steelyard.model.ids import JobId
from steelyard.model.job import Job, JobState, Plan, Resources
from steelyard.model.topology import PathClass, Topology
from steelyard.placement.budget import Budget
from steelyard.placement.machine_facts import make_asked, to_micro
from steelyard.placement.pair_value import OUT_OF_USE
from steelyard.placement.room import Room
from steelyard.scheduling.amounts import count_cores, count_gpus
from steelyard.scheduling.fair_share import run_time_us
from steelyard.scheduling.seat import find_seat, see_room
from steelyard.scheduling.snapshot import Holding
from steelyard.scheduling.victim_search import Candidate, find_victims

_MICRO = 1_000_000


def choose_victims(
    room: Room, holding: Sequence[Holding], job: Job, now: int, budget: Budget | None = None
) -> tuple[JobId, ...] | None:
    """`room`: the machine as it is once everything that ends already is gone. `holding`: what may be looked at of what is in it.
    The ids of those that have to give way, in the order of `holding`; None: no victims make enough room."""
    may_go = [held for held in holding if may_give_way(held, job, now)]
    if not may_go:
        return None
    freed = free_room(room, may_go)
    best = find_seat(job, freed)
    if not isinstance(best, Plan):
        return None
    view = room.facts.view
    linked = _are_linked(view, best.gpus)

    def fits(gone: Sequence[int]) -> bool:
        plan = find_seat(job, free_room(room, [may_go[at] for at in gone]))
        return isinstance(plan, Plan) and (not linked or _are_linked(view, plan.gpus))

    found = find_victims(_make_candidates(room, may_go, now), fits, _find_lacks(room, job), budget)
    if found is None:
        return None
    return tuple(held.job.id for held in (may_go[at] for at in found.chosen) if held.job is not None)


def may_give_way(held: Holding, job: Job, now: int) -> bool:
    """May it be preempted for `job` now?"""
    at = gives_way_at(held, job)
    return at is not None and at <= now


def gives_way_at(held: Holding, job: Job) -> int | None:
    """Wall time, microseconds, from which on it may be preempted for `job`; None: never."""
    victim = held.job
    if victim is None or victim.state is not JobState.RUNNING or victim.started_at is None or victim.id == job.id:
        return None
    if not victim.spec.resources.preemptible or victim.stop_signal is not None:
        return None
    if victim.priority > job.priority or (victim.priority == job.priority and job.spec.resources.preemptible):
        return None
    return victim.started_at + round(victim.spec.preemption.min_runtime_s * 1e6)


def is_frozen_by_preemption(job: Job) -> bool:
    """Does it keep its memory and devices while it gives way?"""
    return job.spec.preemption.mode is PreemptMode.SUSPEND


def price_of(victims: Sequence[Holding], now: int) -> tuple[int, int, int]:
    """What is lost when these give way: GPU time, core time, how many."""
    losing = [
        (held, run_time_us(job, now)) for held in victims if (job := held.job) is not None and not is_frozen_by_preemption(job)
    ]
    gpus, cores = (sum(round(count(_whole(held)) * _MICRO) * us for held, us in losing) for count in (count_gpus, count_cores))
    return gpus, cores, len(victims)


def _whole(held: Holding) -> Resources:
    """What is lost with it on all its machines."""
    return held.demand if held.job is None else held.job.spec.total


def free_room(room: Room, victims: Iterable[Holding]) -> Room:
    """A copy of it once they have given way."""
    freed = room.copy()
    for held in victims:
        freed.release(held.demand, held.plan)
        if held.job is not None and is_frozen_by_preemption(held.job):
            freed.take(held.demand, held.plan, suspended=True)
    return freed


def _are_linked(view: Topology, gpus: Sequence[str]) -> bool:
    """Several GPUs, each joined to each by links of their own."""
    chosen = set(gpus)
    linked = sum(
        1
        for pair in view.pairs
        if pair.path in (PathClass.NV, PathClass.XGMI) and pair.gbps != OUT_OF_USE and pair.a in chosen and pair.b in chosen
    )
    return len(chosen) > 1 and linked == len(chosen) * (len(chosen) - 1) // 2


def _find_lacks(room: Room, job: Job) -> tuple[int, ...]:
    """Of GPUs of the kind asked, cards, millionths of cores and bytes: how much at least must become free."""
    demand = job.spec.demand
    asked = make_asked(demand)
    free = see_room(job.spec, room).largest(asked)
    cores = asked.cores * _MICRO if demand.whole_cores else to_micro(demand.cpus)
    return (
        0 if asked.gpus is None else asked.gpus.count - free.gpus,
        asked.nics - free.nics,
        cores - round(free.cpus * _MICRO),
        (demand.memory_bytes or 0) - free.memory_bytes,
    )


def _make_candidates(room: Room, may_go: Sequence[Holding], now: int) -> list[Candidate]:
    jobs = [held.job for held in may_go if held.job is not None]
    youngest_first = sorted(range(len(jobs)), key=lambda at: (jobs[at].submitted_at, jobs[at].id), reverse=True)
    age = {at: place for place, at in enumerate(youngest_first)}
    made: list[Candidate] = []
    for at, (held, job) in enumerate(zip(may_go, jobs, strict=True)):
        frozen, run_us = is_frozen_by_preemption(job), run_time_us(job, now)
        gpus, cores = (round(count(_whole(held)) * _MICRO) for count in (count_gpus, count_cores))
        plan = held.plan
        own = {room.facts.core_of.get(cpu) for cpu in plan.cpus}
        made.append(
            Candidate(
                gpu_time=0 if frozen else gpus * run_us,
                core_time=0 if frozen else cores * run_us,
                age=age[at],
                gives=(
                    0 if frozen else max(len(plan.gpus), len(plan.mig_instances)),
                    0 if frozen else len(plan.nics),
                    len(own) * _MICRO if own else to_micro(held.demand.cpus),
                    0 if frozen else held.demand.memory_bytes or 0,
                ),
                kind=_find_kind(room, held, frozen),
            )
        )
    return made


def _find_kind(room: Room, held: Holding, frozen: bool) -> Hashable:
    """Cores of one node and memory are alike, whoever has them; devices are not."""
    plan = held.plan
    if not frozen and (plan.gpus or plan.nics):
        return None
    cores = room.machine.cores
    own = sorted(cores[place].numa_node for place in {room.facts.core_of[cpu] for cpu in plan.cpus if cpu in room.facts.core_of})
    share = 0 if plan.cpus else to_micro(held.demand.cpus)
    return frozen, share, tuple(own), 0 if frozen else held.demand.memory_bytes or 0, () if frozen else plan.memory_nodes
