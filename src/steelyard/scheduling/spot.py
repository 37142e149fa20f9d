"""One machine as a decision over the queue sees it: as it is, as it will soon be, and for whom a place on it is kept.

Of several machines that a job fits on, the best is taken: 1. the one whose GPUs for it are joined best, 2. of those the one with
the fewest GPUs, if it asks for none, 3. the fullest, so that others stay whole (or idle, and can be given back), 4. the first in
the order of the snapshot. A gang on several machines gets the best few, each for itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

from steelyard.model.ids import JobId, MachineId
from steelyard.model.job import Job, JobState, Plan, join_parts
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.placement.machine_facts import make_asked
from steelyard.placement.pair_value import find_pairs, path_rank
from steelyard.placement.refusal import Refusal
from steelyard.placement.room import Room
from steelyard.scheduling.preemption import free_room
from steelyard.scheduling.reservation import Reserved, Tenant, end_if_started, make_tenant
from steelyard.scheduling.seat import fill_room, find_seat, take_seat
from steelyard.scheduling.snapshot import Holding


class Spot:
    def __init__(self, machine: Machine, holding: Sequence[Holding], ends_at: int | None = None) -> None:
        """`holding`: what holds room on it; `ends_at`: when it is taken back."""
        self.machine, self.ends_at = machine, ends_at
        self.place: MachineId = machine.place
        #: what is not about to end
        self.staying = [held for held in holding if not is_stopping(held)]
        #: with functions alone: what does not go in there waits for something that no end of a job brings
        self.without_jobs = fill_room(Room(machine), [held for held in holding if held.job is None])
        #: as the machine is
        self.room = fill_room(self.without_jobs.copy(), [held for held in holding if held.job is not None])
        #: as it will be once everything that is about to end is gone and has made room for those who wait for that
        self.soon = self.room
        stopping = [held for held in holding if is_stopping(held)]
        if stopping:
            self.soon = self.room.copy()
            for held in stopping:
                self.soon.release(held.demand, held.plan)
        self.preempting = any(held.job is not None and held.job.stop_reason is Reason.PREEMPTED for held in stopping)
        #: what this decision has given a place, now or soon
        self.seated: dict[JobId, Tenant] = {}
        self.reserved: Reserved | None = None

    @property
    def beside(self) -> tuple[Room, ...]:
        """What else has to have room for what starts now."""
        return () if self.soon is self.room else (self.soon,)

    def has_time(self, job: Job, now: int) -> bool:
        """Would it be over, if it started now, before the machine is taken back? Without a limit nobody asks."""
        end = None if self.ends_at is None else end_if_started(job, now)
        return end is None or self.ends_at is None or end <= self.ends_at

    def start(self, job: Job, plan: Plan, now: int) -> None:
        for room in (self.room, *self.beside):
            take_seat(job, plan, room)
        self.seated[job.id] = Tenant(job.spec.demand, plan, end_if_started(job, now))

    def let_go(self, gone: Collection[JobId]) -> None:
        """These give way."""
        leaving = [held for held in self.staying if held.job is not None and held.job.id in gone]
        if leaving:
            self.soon = free_room(self.soon, leaving)
            self.staying = [held for held in self.staying if held not in leaving]

    def keep(self, job: Job, plan: Plan, now: int) -> None:
        """It starts once what is about to end is gone."""
        take_seat(job, plan, self.soon)
        self.seated[job.id] = Tenant(job.spec.demand, plan, end_if_started(job, now))

    def tenants(self, job: Job, now: int) -> list[Tenant]:
        """All that hold room soon, but for the job itself."""
        staying = [
            make_tenant(held, now)
            for held in self.staying
            if held.job is None or (held.job.id not in self.seated and held.job.id != job.id)
        ]
        return [*staying, *self.seated.values()]


#: a machine, the room in which a place on it is looked for, and the other rooms that must have it too
Option: TypeAlias = tuple[Spot, Room, Sequence[Room]]
#: where a job goes: on one machine, or on as many as it has nodes, each with its part of the plan
Seat: TypeAlias = tuple[tuple[Spot, ...], Plan]


def find_best_seat(job: Job, options: Iterable[Option]) -> Seat | list[tuple[Spot, Refusal]]:
    """The best place of all, or what those machines said that refused."""
    found: list[tuple[Spot, Plan]] = []
    refused: list[tuple[Spot, Refusal]] = []
    for spot, room, beside in options:
        answer = find_seat(job, room, beside)
        if isinstance(answer, Plan):
            found.append((spot, answer))
        else:
            refused.append((spot, answer))
    nodes = job.spec.nodes
    if len(found) < nodes:
        return refused
    # of equals the first
    return join_seats(found if len(found) == nodes else sorted(found, key=lambda each: _value(job, *each))[:nodes])


def choose_allocation(job: Job, spots: Sequence[Spot]) -> Sequence[Spot]:
    """The machines of the allocation that can take most of the gang's parts now, then the one that can take most once what is
    about to end is gone, then the first; () where none has enough machines."""
    allocations: dict[str, list[Spot]] = {}
    for spot in spots:
        if spot.machine.allocation:
            allocations.setdefault(spot.machine.allocation, []).append(spot)

    def value(some: Sequence[Spot]) -> tuple[int, int]:
        able = [spot for spot in some if isinstance(find_seat(job, spot.soon), Plan)]
        now = [spot for spot in able if spot.room is spot.soon or isinstance(find_seat(job, spot.room), Plan)]
        return min(job.spec.nodes, len(now)), min(job.spec.nodes, len(able))

    return max((some for some in allocations.values() if len(some) >= job.spec.nodes), key=value, default=())


def join_seats(seats: Sequence[tuple[Spot, Plan]]) -> Seat:
    """Ranks follow the order that the batch system has for machines that it gave together."""
    seats = sorted(seats, key=lambda seat: (seat[0].machine.allocation, seat[0].machine.allocation_place))
    return tuple(spot for spot, _ in seats), join_parts([plan for _, plan in seats])


def _value(job: Job, spot: Spot, plan: Plan) -> tuple[int, int, int, float, int]:
    """The lower the better."""
    asked = make_asked(job.spec.demand)
    free = spot.room.largest(asked)
    gpus = spot.room.facts.view.gpus
    return (-_worst_link(spot, plan), 0 if asked.gpus else len(gpus), free.gpus, free.cpus, free.memory_bytes)


def _worst_link(spot: Spot, plan: Plan) -> int:
    gpus = sorted(set(plan.gpus))
    if len(gpus) < 2:
        return 0
    pairs = find_pairs(spot.room.facts.view)
    return min(path_rank(pairs.get((a, b))) for at, a in enumerate(gpus) for b in gpus[at + 1 :])


def is_stopping(held: Holding) -> bool:
    return held.job is not None and held.job.state is JobState.STOPPING
