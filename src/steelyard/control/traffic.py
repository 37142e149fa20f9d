"""What does a function become when a revision is deployed, when traffic is moved, and when it goes back? Inside the caller's
transaction: rows in, rows out, `Refused` or `NoRoom` with nothing changed.

Every revision that a share or a tag leads to is live: it has cores and devices of its own where it asks for some, its template
and its replicas. What nothing leads to any more is only remembered, `KEEP` revisions of each function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from steelyard.control.jobs import forget_borrowed, hold_functions, hold_jobs, make_room
from steelyard.control.live import HOLDING
from steelyard.errors import NoRoom, Refused, Unreachable
from steelyard.lifecycle.node import plan_blocked
from steelyard.model.function import (
    Function,
    FunctionState,
    LiveRevision,
    Revision,
    RevisionState,
    Rollout,
    Share,
)
from steelyard.model.health import NODE
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.placement.refusal import Refusal
from steelyard.scaling.rollout import split
from steelyard.scheduling.snapshot import Holding
from steelyard.store import Event, Tx

#: revisions of a function that are remembered
KEEP = 100


def deploy_revision(tx: Tx, row: Function, new: Revision, percent: int, tag: str) -> Function:
    """`row` with one more revision, which gets `percent` of the traffic once it is ready; who has it now keeps the rest."""
    shares = split(row.routes.shares, new.revision, percent) if percent else row.routes.shares
    if not shares:
        shares = (Share(new.revision, 100),)
    tags = {each: revision for each, revision in _tags(row).items() if each != tag}
    if tag:
        tags[tag] = new.revision
    _remember_live(tx, row)
    after = _arrange(tx, row, shares, tags, new)
    after = _watch(after, row.routes.shares, new.revision, new.errors_max)
    tx.put_revision(msgspec.structs.replace(new, plan=after.live[new.revision].plan))
    tx.forget_revisions(row.project, row.name, KEEP)
    return after


def move_traffic(tx: Tx, row: Function, shares: Sequence[Share], tags: Mapping[str, int] | None) -> Function:
    """`tags`: all that there should be; None: as they are."""
    if sum(share.percent for share in shares) != 100:
        raise Refused("The shares must sum to 100 percent. Nothing was changed.", code="bad-traffic")
    _remember_live(tx, row)
    _trust(tx, row, shares)
    after = _arrange(tx, row, shares, _tags(row) if tags is None else tags)
    before = {share.revision: share.percent for share in row.routes.shares}
    gaining = max((share.revision for share in shares if share.percent > before.get(share.revision, 0)), default=None)
    if gaining is None or gaining < max(before, default=0):
        return msgspec.structs.replace(after, rollout=None)
    if row.rollout is not None and row.rollout.revision == gaining:
        return msgspec.structs.replace(after, rollout=row.rollout)  # further on, still watched from where it began
    stored = tx.revision(row.project, row.name, gaining)
    return _watch(after, row.routes.shares, gaining, None if stored is None else stored.errors_max)


def roll_back(
    tx: Tx, row: Function, shares: Sequence[Share], reason: Reason | None, detail: str, now: int, user: str
) -> Function:
    """All traffic goes to `shares`. What it leaves that is newer than they are does not count as good any more."""
    _remember_live(tx, row)
    _trust(tx, row, shares)
    after = _arrange(tx, row, shares, _tags(row))
    newest = max(share.revision for share in shares)
    left = {share.revision for share in row.routes.shares} | {key for key, live in row.live.items() if live.percent}
    for revision in sorted(left - {share.revision for share in shares}):
        stored = tx.revision(row.project, row.name, revision)
        if revision > newest and stored is not None:
            change = {"state": RevisionState.ROLLED_BACK, "reason": reason, "detail": detail}
            tx.put_revision(msgspec.structs.replace(stored, generation=stored.generation + 1, **change))
            text = f"went back from revision {revision} to {newest}: {detail}"
            tx.add_event(Event(now, row.project, user, "function", row.name, text))
    return msgspec.structs.replace(after, rollout=None)


def previous_good(tx: Tx, row: Function) -> int:
    """The newest revision before those that get traffic now that was ready and was not gone back from."""
    now = max((share.revision for share in row.routes.shares), default=row.revision)
    found = [
        each.revision for each in tx.revisions(row.project, row.name) if each.revision < now and each.state is RevisionState.READY
    ]
    if not found:
        text = f"{row.name} has no revision before {now} that was ready. `steelyard revisions {row.name}` lists them."
        raise Refused(text + " Nothing was changed.", code="no-earlier-revision")
    return max(found)


def _tags(row: Function) -> dict[str, int]:
    return {tag: each.revision for each in row.live.values() for tag in each.tags}


def _watch(after: Function, before: Sequence[Share], revision: int, errors_max: float | None) -> Function:
    """From the moment `revision` takes traffic it is watched, if there is somebody to go back to."""
    others = tuple(share for share in before if share.revision != revision)
    if errors_max is None or not others or not after.live[revision].percent:
        return msgspec.structs.replace(after, rollout=None)
    return msgspec.structs.replace(after, rollout=Rollout(revision, split(others, 0, 0), errors_max))


def _remember_live(tx: Tx, row: Function) -> None:
    """A function that was deployed before revisions were remembered has no rows of them."""
    if row.generation == 0:
        return
    for each in row.live.values():
        if tx.revision(row.project, row.name, each.revision) is None:
            ready = each.revision == row.routed_revision
            state = RevisionState.READY if ready else RevisionState.DEPLOYING
            identity = (row.name, row.project, row.owner, 1, each.revision, each.spec, row.deployed_at, row.owner.user)
            tx.put_revision(Revision(*identity, state=state, plan=each.plan))


def _trust(tx: Tx, row: Function, shares: Sequence[Share]) -> None:
    """Who asks for a revision that was gone back from takes it for good."""
    for share in shares:
        stored = tx.revision(row.project, row.name, share.revision)
        if stored is not None and stored.state is RevisionState.ROLLED_BACK:
            change = {"state": RevisionState.READY, "reason": None, "detail": ""}
            tx.put_revision(msgspec.structs.replace(stored, generation=stored.generation + 1, **change))


def _arrange(tx: Tx, row: Function, shares: Sequence[Share], tags: Mapping[str, int], new: Revision | None = None) -> Function:
    """`row` with just the revisions live that something leads to, each with its place. The newest is the function's own."""
    percents = {share.revision: share.percent for share in shares if share.percent}
    wanted = sorted({*percents, *tags.values(), *((new.revision,) if new is not None else ())})
    known = row.live if row.generation else {}
    live = {key: each for key, each in known.items() if key in wanted}
    leaving = [each for key, each in known.items() if key not in wanted]
    for revision in wanted:
        if revision not in live:
            found = new if new is not None and revision == new.revision else tx.revision(row.project, row.name, revision)
            if found is None:
                text = f"{row.name} has no revision {revision}. `steelyard revisions {row.name}` lists them. Nothing was changed."
                raise Refused(text, code="no-such-revision")
            wish = LiveRevision(revision, found.spec, plan=found.plan)
            live[revision] = msgspec.structs.replace(wish, plan=_reserve(tx, row, wish, [*live.values()], leaving))
    for revision, each in live.items():
        mine = tuple(sorted(tag for tag, tagged in tags.items() if tagged == revision))
        live[revision] = msgspec.structs.replace(each, percent=percents.get(revision, 0), tags=mine)
    newest = live[max(live)]
    changed = newest.revision != row.revision or not row.generation
    state = FunctionState.DEPLOYING if changed else row.state
    return msgspec.structs.replace(
        row,
        generation=row.generation + 1,
        revision=newest.revision,
        spec=newest.spec,
        plan=newest.plan,
        percent=newest.percent,
        tags=newest.tags,
        beside=tuple(live[key] for key in sorted(live) if key != newest.revision),
        state=state,
        reason=None if changed else row.reason,
        detail="" if changed else row.detail,
        lends=False,
    )


def _reserve(
    tx: Tx, row: Function, wish: LiveRevision, staying: Sequence[LiveRevision], leaving: Sequence[LiveRevision]
) -> Plan | None:
    """Cores and devices of its own, now or not at all: a promise that only holds later is none. A place that a revision leaves to
    it is taken over, and so is the one that it had itself, where nobody else is on it."""
    demand, machine, name = wish.spec.reserved, tx.machine(), row.name
    if demand is None or wish.spec.pool:
        return None  # what it has on machines of a pool, it is given with its place there
    if machine is None:
        raise Unreachable("No agent has told yet what this machine has. Try again.", code="agent-unreachable")
    if NODE in machine.blocked:
        raise NoRoom(f"{name} can't be deployed now: the machine is out of use; `steelyard check` says why.", code="node-drained")
    mine = [Holding(asked, each.plan) for each in staying if each.plan is not None and (asked := each.spec.reserved) is not None]
    others = (*hold_functions(tx.functions(), [machine], but=(row.project, name)), *mine)
    jobs = hold_jobs(tx.jobs(HOLDING))
    for each in (*leaving, wish):
        if each.plan is not None and each.spec.reserved == demand:
            out = plan_blocked(machine.blocked, machine.blocked_pairs, each.plan)
            if not out and not make_room(machine, (*forget_borrowed(jobs), *others)).check(demand, each.plan):
                return each.plan
    answer = make_room(machine, (*jobs, *others)).place(demand)
    if isinstance(answer, Refusal):
        code = answer.reasons[0].value
        older = [plan.function for plan in machine.held]
        wait = f" {', '.join(older)} still answers its last requests on some of it." if older else ""
        beside = f" Revision {', '.join(str(each.revision) for each in staying)} keeps its own beside it." if mine else ""
        raise NoRoom(f"{name} can't have what it asks for now: {answer.detail}.{wait}{beside} Nothing was changed.", code=code)
    return answer
