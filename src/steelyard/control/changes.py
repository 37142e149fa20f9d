"""How does a job's change get into the store? Row and event in one transaction (R1); errors are events alone (R7)."""

from __future__ import annotations

import logging

from steelyard.lifecycle.job import Change
from steelyard.model.job import Job
from steelyard.store import Event, Tx

_log = logging.getLogger("steelyard.control")


def make_event(job: Job, text: str, now: int) -> Event:
    return Event(at=now, project=job.project, owner=job.owner.user, kind="job", subject=job.id, text=text)


def commit_change(tx: Tx, before: Job, change: Change, now: int) -> bool:
    """Store a change of `before`. False when it was only history (a late report, an illegal transition), which is written once
    however often the agent repeats it. Raises Conflict when the stored row moved on since `before` was read."""
    if change.job is before:
        if any(event.text == change.event for event in tx.events(kind="job", subject=before.id)):
            return False
        if change.error:
            _log.error("job %s: %s", before.id, change.event)
        tx.add_event(make_event(before, change.event, now))
        return False
    tx.put_job(change.job)
    tx.add_event(make_event(change.job, change.event, now))
    return True
