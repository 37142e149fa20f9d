"""On which machines of its pool should a function be, and what do its places together say of it? Pure.

A function is on one machine, or with `spread` on all that take work. Rules, in this order:
  1. a place whose machine is gone is gone
  2. a place is leaving while its machine takes no new work or is not heard, and when there are more than there should be; what
     was leaving stays again when that is over
  3. what is missing gets new places: on the machine with the fewest places first, then by id; with cores and devices of its own
     for each revision that may be reached, or not at all
  4. a place that is leaving is left once the home's gateway does just what it should, and that is to send nothing there

So the one who takes over is there, ready and reached before the one before it goes, however long that takes; where nobody can
take over, it stays as long as its machine does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec

from steelyard.model.function import Function, FunctionState, Lead, Place, Routes
from steelyard.model.ids import MachineId
from steelyard.model.job import Plan
from steelyard.model.reason import Reason

#: plans by revision for what its revisions have to themselves on that machine, where they have some of it already; or a sentence
#: that says why there is no room
Plans = tuple[tuple[int, Plan], ...]
Reserve = Callable[[MachineId, Plans], Plans | str]


class Fleet(msgspec.Struct, frozen=True):
    """The machines of one pool."""

    #: all that there are
    known: frozenset[MachineId]
    #: those that take new work and are heard, with how many places of functions are on each
    open: Mapping[MachineId, int]


def decide_places(function: Function, fleet: Fleet, reserve: Reserve) -> tuple[tuple[Place, ...], str]:
    """The places it should have, by machine, and why it has none that stays, as a sentence ("" where it has one)."""
    places = [place for place in function.places if place.machine in fleet.known]
    wanted = len(fleet.open) if function.spec.spread else 1
    staying = {place.machine: place for place in [place for place in _preferred(places) if place.machine in fleet.open][:wanted]}
    leaving = [_leave(place, reserve) for place in places if place.machine not in staying]
    here, refusals = {place.machine for place in places}, dict[MachineId, str]()
    for machine in [*staying, *sorted(fleet.open.keys() - here, key=lambda machine: (fleet.open[machine], machine))]:
        place = staying.get(machine)
        if place is None and len(staying) >= wanted:
            break
        plans = reserve(machine, place.plans if place is not None else ())
        if isinstance(plans, str):
            refusals[machine] = plans
        elif place is not None:
            staying[machine] = msgspec.structs.replace(place, plans=plans, leaving=False)
        else:
            staying[machine] = Place(machine, plans)
    after = msgspec.structs.replace(function, places=(*staying.values(), *leaving))
    settled = set(function.reached) == set(after.targets)
    kept = [*staying.values(), *(place for place in leaving if place.machine in after.targets or not settled)]
    missing = "" if staying.keys() - refusals.keys() else _explain(function.spec.pool, fleet, refusals)
    return tuple(sorted(kept, key=lambda place: place.machine)), missing


def _leave(place: Place, reserve: Reserve) -> Place:
    """Until it is left, it is to serve what is new as well."""
    plans = reserve(place.machine, place.plans) if place.plans else ()
    return msgspec.structs.replace(place, leaving=True, plans=place.plans if isinstance(plans, str) else plans)


def _preferred(places: Collection[Place]) -> list[Place]:
    """Who is ready comes first, so that nobody gives way to a place that serves nobody yet."""
    return sorted(places, key=lambda place: (place.leaving, not place.ready, place.machine))


def _explain(pool: str, fleet: Fleet, refusals: Mapping[MachineId, str]) -> str:
    if refusals:
        said = "; ".join(f"{machine}: {why}" for machine, why in refusals.items())
        return f"No machine of the pool {pool} has what it asks for now: {said}"
    if fleet.known:
        return f"No machine of the pool {pool} takes work now; `steelyard pool status {pool}` tells of them"
    return f"The pool {pool} has no machine yet; `steelyard pool status {pool}` tells what it waits for"


def decide_leads(function: Function) -> tuple[Lead, ...]:
    """Where the home's gateway should lead its requests, by revision: each target gets the same part of them, and has it divided
    as it says itself. None where a target has a revision that can't be reached so: then it divides each request itself."""
    places = [place for place in function.places if place.machine in function.targets]
    if any({each.revision for each in place.reach} != place.routes.revisions for place in places):
        return ()
    reach = {each.revision: each for place in places for each in place.reach}
    tags = {tag: revision for place in places for tag, revision in sorted(place.routes.tags)}
    parts = dict.fromkeys(reach, 0)
    for share in [share for place in places for share in place.routes.shares]:
        parts[share.revision] += share.percent
    percents = _divide_hundred(parts)
    return tuple(
        Lead(
            reach[revision],
            tuple(sorted(place.machine for place in places if revision in place.routes.revisions)),
            percents[revision],
            tuple(sorted(tag for tag, tagged in tags.items() if tagged == revision)),
        )
        for revision in sorted(reach)
        if percents[revision] or revision in tags.values()
    )


def _divide_hundred(parts: Mapping[int, int]) -> dict[int, int]:
    """Whole numbers that sum to 100, by the largest remainders; who has a part gets one."""
    total = sum(parts.values())
    percents = {key: max(1, part * 100 // total) if part else 0 for key, part in parts.items()}
    given = [key for key in parts if percents[key]]
    for key in sorted(given, key=lambda key: (-(parts[key] * 100 % total), key))[: max(0, 100 - sum(percents.values()))]:
        percents[key] += 1
    if given:
        percents[max(given, key=lambda key: (percents[key], -key))] += 100 - sum(percents.values())
    return percents


def sum_up(function: Function, missing: str = "") -> Function:
    """The function as its places say, those first that the home's gateway reaches: a request that comes now goes there.
    `missing`: why it has no place that stays."""
    reached = [place for place in function.places if place.machine in function.reached and place.ready]
    staying = [place for place in function.places if not place.leaving] or list(function.places)
    routes = min((place.routes for place in reached), key=lambda routes: max(routes.revisions), default=Routes())
    if reached and function.led.shares:
        routes = function.led
    state, reason, detail = FunctionState.DEPLOYING, None, ""
    failed = next(
        (place for place in staying if place.revision == function.revision and place.state is FunctionState.FAILED), None
    )
    if failed is not None:
        state, reason, detail = FunctionState.FAILED, failed.reason, failed.detail
    else:
        if function.revision in routes.revisions:
            told = {place.state for place in reached}
            order = (FunctionState.RUNNING, FunctionState.WAKING)
            state = next((each for each in order if each in told), FunctionState.SLEEPING)
        said = next((place for place in reached if place.reason is not None), None)
        reason, detail = (None, "") if said is None else (said.reason, said.detail)
        if missing:
            reason, detail = Reason.NO_MACHINE, missing
    return msgspec.structs.replace(
        function,
        state=state,
        reason=reason,
        detail=detail,
        routes=routes,
        routed_revision=max((share.revision for share in routes.shares), default=None),
        replicas=sum(place.replicas for place in function.places),
        waking=sum(place.waking for place in function.places),
        queued=sum(place.queued for place in function.places),
        lends=False,
    )
