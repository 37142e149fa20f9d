"""Which queued jobs start now, and why do the others wait? Strict first in, first out.

The queue is taken as given (oldest first). The first job that doesn't fit now holds back all behind it: nobody overtakes, so that
a large job is never starved by small ones. A job that can never fit this machine holds back nobody: it is returned apart.
Never reads the clock, never touches a job.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from steelyard.model.health import NODE
from steelyard.model.ids import JobId
from steelyard.model.job import Job, Plan, Resources
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.placement.machine import Refusal, place


class Why(msgspec.Struct, frozen=True):
    job: JobId
    reason: Reason
    #: a sentence for people; the same for every job that merely waits behind another, so that a moving queue rewrites no rows
    detail: str


class Starts(msgspec.Struct, frozen=True):
    #: in queue order
    starts: tuple[tuple[JobId, Plan], ...] = ()
    waits: tuple[Why, ...] = ()
    #: beyond this machine, even if it were empty
    never: tuple[Why, ...] = ()


def decide_starts(queued: Sequence[Job], running: Sequence[tuple[Resources, Plan]], machine: Machine | None) -> Starts:
    """`running` is everything that holds (or may hold) resources. Without a machine everything waits."""
    if machine is None:
        detail = "no agent has reported a machine yet"
        return Starts(waits=tuple(Why(job.id, Reason.NO_MACHINE, detail) for job in queued))
    if NODE in machine.blocked:
        detail = "the machine is out of use; `steelyard check` says why, `steelyard check --readmit node` puts it back"
        return Starts(waits=tuple(Why(job.id, Reason.NODE_DRAINED, detail) for job in queued))
    held = list(running)
    starts: list[tuple[JobId, Plan]] = []
    waits: list[Why] = []
    never: list[Why] = []
    blocked = False
    for job in queued:
        if blocked:
            waits.append(Why(job.id, Reason.BEHIND_EARLIER_JOB, "jobs that were submitted earlier start first"))
            continue
        demand = job.spec.resources
        answer = place(machine, held, demand)
        if not isinstance(answer, Refusal):
            starts.append((job.id, answer))
            held.append((demand, answer))
        elif answer.never:
            never.append(Why(job.id, answer.reasons[0], answer.detail))
        else:
            waits.append(Why(job.id, answer.reasons[0], answer.detail))
            blocked = True
    return Starts(tuple(starts), tuple(waits), tuple(never))
