"""Who pays for what ended? Attempts that were reported as over are charged to their accounts, in the transaction that ends them.

So usage is charged exactly once, however often a report comes. One row per account and report is written, not one per job.
How long an attempt ran is told by the agent: of a short one, its end may be the first that is heard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from steelyard.lifecycle.job import Change
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobState
from steelyard.model.site import Account
from steelyard.scheduling.fair_share import accrued, charge, run_time_us
from steelyard.store import Tx
from steelyard.wire.agent import AttemptState


def charge_ended(tx: Tx, changes: Iterable[tuple[Job, Change]], now: int, attempts: Mapping[JobId, AttemptState]) -> None:
    """`changes`: those that were stored in this transaction. `attempts`: what was reported, by job."""
    used: dict[str, float] = {}
    owners: dict[str, Job] = {}
    for before, change in changes:
        after = change.job
        if before.plan is None or not (after.state.terminal or after.state is JobState.QUEUED):
            continue
        told = attempts.get(before.id)
        if told is not None and told.attempt != before.attempt_id:
            told = None
        started_at = before.started_at if told is None or told.started_at is None else told.started_at
        if started_at is None:
            continue
        ended_at = now if told is None or told.ended_at is None else told.ended_at
        ended = msgspec.structs.replace(before, started_at=started_at, ended_at=ended_at)
        usage = accrued(before.spec.total, run_time_us(ended, now))
        used[before.account] = used.get(before.account, 0.0) + usage
        owners.setdefault(before.account, before)
    for name, usage in used.items():
        stored = tx.account(name)
        account = stored or Account(name, DEFAULT_PROJECT, owners[name].owner, 0)
        charged = charge(account, usage, now)
        tx.put_account(msgspec.structs.replace(charged, generation=account.generation + 1))
