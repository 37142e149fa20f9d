"""What becomes of work whose machine is gone for good? Inside the transaction of whoever knows that nothing of it runs any more.

A machine that is only silent is not gone: its work may go on, and another attempt beside it would be one too many.
"""

from __future__ import annotations

from steelyard.control.changes import commit_change
from steelyard.control.charging import charge_ended
from steelyard.control.live import HOLDING
from steelyard.lifecycle.attempt import lose_job
from steelyard.lifecycle.job import Change
from steelyard.lifecycle.parts import lose_part
from steelyard.model.ids import DEFAULT_PROJECT, MachineId
from steelyard.model.job import Job
from steelyard.store import Event, Tx


def lose_machine(tx: Tx, machine: MachineId, why: str, now: int) -> list[Job]:
    """The machine of a pool with that id has ended, and all that ran on it: its jobs end as lost, or are queued again by their
    rules; of gangs on several machines the rest is ended first. Its agent is not heard any more once the loop of assignments has
    looked. `why`: a sentence's beginning, for people."""
    changes: list[tuple[Job, Change]] = []
    for job in tx.jobs(HOLDING):
        if job.plan is None or machine not in job.machines:
            continue
        if job.parts is None:
            changes.append((job, lose_job(job, f"{why} while it ran on {machine}; submit it again", now)))
        elif (change := lose_part(job, machine, f"{why} while it ran there", now)) is not None:
            changes.append((job, change))
    stored = [(job, change) for job, change in changes if commit_change(tx, job, change, now)]
    charge_ended(tx, stored, now, {})
    if tx.delete_machine(machine):
        tx.add_event(Event(now, DEFAULT_PROJECT, "", "machine", machine, f"gone: {why}"))
    return [change.job for _, change in stored]
