"""Why does this job wait, and what would start it? Every reason, its place in the queue, when it will start, and proven changes.

Proven: the change is made in the snapshot and the real decision starts the job, or has others give way to it. Changes are looked
for with the jobs before this one only (those behind it take nothing from it), and those that are told are proven once more with
the whole queue. Never reads the clock, never changes a job.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from steelyard.model.batch import Dependency
from steelyard.model.ids import JobId
from steelyard.model.job import Job, JobState, Plan
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.scheduling.change import Change, ChangeKind, apply_change
from steelyard.scheduling.eligible import ArrayCount, split_eligible
from steelyard.scheduling.forecast import Decide, forecast_starts
from steelyard.scheduling.quota import QuotaBook
from steelyard.scheduling.seat import find_seat
from steelyard.scheduling.snapshot import Decision, Snapshot, Standing, format_time
from steelyard.scheduling.spot import Spot
from steelyard.scheduling.what_if import WhatIf, gets_room, prove

CHANGES_MAX = 8
#: with more jobs than that before it nobody estimates its start
_AHEAD_MAX = 500


class Block(msgspec.Struct, frozen=True):
    """One thing that is in the way."""

    reason: Reason
    #: a sentence for people
    detail: str
    #: the machine's name, where the reason is one of that machine
    node: str | None = None


class Explanation(msgspec.Struct, frozen=True):
    job: JobId
    #: it starts, or others give way to it, with the next decision
    starts_now: bool
    blocking: tuple[Block, ...] = ()
    #: 1 is first; None: it may not start yet, whatever is free
    position: int | None = None
    #: wall time, microseconds; None: nobody knows
    estimated_start: int | None = None
    #: the smallest first
    changes: tuple[Change, ...] = ()


def explain(snapshot: Snapshot, job: Job, now: int, decide: Decide) -> Explanation:
    """`job`: one that is queued or suspended in `snapshot`. Takes up to some hundred decisions: not for a loop over a queue."""
    decision = decide(snapshot, now)
    position = decision.order.index(job.id) + 1 if job.id in decision.order else None
    opened = _open(job, snapshot.standings, now)
    order = decision.order if position is not None else decide(apply_change(snapshot, opened), now).order
    ahead = _cut(snapshot, order, job)
    what_if = WhatIf(ahead, opened, now, decide)
    if gets_room(decision, job.id) is not None:
        return Explanation(job.id, True, position=position, estimated_start=_estimate(ahead, job, now, decide))
    changes: list[Change] = []
    if what_if.preempts is not None:
        changes = [opened]
    elif snapshot.usable(job.spec.pool):
        changes = sorted(what_if.find_all(), key=lambda change: (change.size, change.kind))[:CHANGES_MAX]
    proven = [prove(change, snapshot, now, decide) for change in changes]
    return Explanation(
        job.id,
        False,
        _find_blocks(ahead, job, now, decision),
        position,
        _estimate(ahead, job, now, decide),
        tuple(change for change in proven if change is not None),
    )


def _open(job: Job, standings: Mapping[Dependency, Standing], now: int) -> Change:
    """What has to happen so that the job is looked at at all, as one change; its text is empty where nothing has."""
    said: list[tuple[ChangeKind, str]] = []
    changed, met, at = job, list[Dependency](), None
    if job.state is not JobState.SUSPENDED:
        if job.held:
            changed = msgspec.structs.replace(changed, held=False)
            said.append((ChangeKind.RELEASE, f"release it (`steelyard release {job.id}`)"))
        for each in job.spec.after:
            standing = standings.get(each, Standing.WAITS)
            if standing is not Standing.MET:
                met.append(each)
                text = f"wait for {each.job}" if standing is Standing.WAITS else f"submit it again without --after {each.job}"
                said.append((ChangeKind.DEPENDENCY, text))
        if job.not_before is not None and job.not_before > now:
            changed, at = msgspec.structs.replace(changed, not_before=None), job.not_before
            said.append((ChangeKind.BEGIN, "wait until {at}"))
    kind = said[0][0] if said else ChangeKind.BEGIN
    return Change(kind, ", and ".join(text for _, text in said), changed, 0.1 * len(said), met=tuple(met), at=at)


def _cut(snapshot: Snapshot, order: tuple[JobId, ...], job: Job) -> Snapshot:
    """Without the jobs behind it."""
    place = order.index(job.id) if job.id in order else len(order)
    ahead = {*order[:place], job.id}
    return msgspec.structs.replace(snapshot, queued=tuple(each for each in snapshot.queued if each.id in ahead))


def _estimate(ahead: Snapshot, job: Job, now: int, decide: Decide) -> int | None:
    if len(ahead.queued) > _AHEAD_MAX:
        return None
    return forecast_starts(ahead, now, decide, limit=_AHEAD_MAX + 1).get(job.id)


def _find_blocks(snapshot: Snapshot, job: Job, now: int, decision: Decision) -> tuple[Block, ...]:
    """Every reason, those that concern the job alone first."""
    blocks: list[Block] = []
    if job.state is not JobState.SUSPENDED:
        blocks += _find_gates(job, snapshot.standings, now)
        limits = (
            ArrayCount(snapshot.holding).find_block(job),
            QuotaBook(snapshot.quotas, snapshot.holding).find_block(job),
        )
        blocks += [Block(why.reason, why.detail) for why in limits if why is not None]
    for machine in snapshot.usable(job.spec.pool):
        if job.state is not JobState.SUSPENDED or (job.plan is not None and job.plan.on(machine.place) is not None):
            blocks += _find_blocks_on(machine, snapshot, job, now)
    for why in (*decision.waits, *decision.never):
        if why.job == job.id and why.reason not in [block.reason for block in blocks]:
            blocks.append(Block(why.reason, why.detail))
    return tuple(blocks)


def _find_blocks_on(machine: Machine, snapshot: Snapshot, job: Job, now: int) -> list[Block]:
    held = [part for each in snapshot.holding for part in each.parts if part.plan.machine == machine.place]
    spot = Spot(machine, held, snapshot.ends.get(machine.place))
    blocks: list[Block] = []
    if job.state is not JobState.SUSPENDED and not spot.has_time(job, now) and spot.ends_at is not None:
        text = f"it is taken back at {format_time(spot.ends_at)}, before the job's --max-duration would be over"
        blocks.append(Block(Reason.NO_TIME_LEFT, text, machine.hostname))
    answer = find_seat(job, spot.room)
    if isinstance(answer, Plan):
        return blocks
    # one sentence per reason, and only the last may have a semicolon of its own
    sentences = answer.detail.split("; ", len(answer.reasons) - 1)
    return [*blocks, *(Block(why, text, machine.hostname) for why, text in zip(answer.reasons, sentences, strict=False))]


def _find_gates(job: Job, standings: Mapping[Dependency, Standing], now: int) -> list[Block]:
    """One at a time is what the decision names: so each is asked for alone."""
    asked = [msgspec.structs.replace(job, held=False, spec=msgspec.structs.replace(job.spec, after=()))]
    asked += [
        msgspec.structs.replace(job, held=False, not_before=None, spec=msgspec.structs.replace(job.spec, after=(each,)))
        for each in job.spec.after
    ]
    if job.held:
        asked.insert(0, msgspec.structs.replace(job, not_before=None, spec=msgspec.structs.replace(job.spec, after=())))
    found = [split_eligible([each], standings, now) for each in asked]
    return [Block(why.reason, why.detail) for each in found for why in (*each.waits, *each.never)]
