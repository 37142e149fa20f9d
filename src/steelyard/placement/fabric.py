"""On which machines does a gang go, or why on none? Pure: free counts and a demand in, a GangPlan or a GangRefusal out.

A machine is possible when it has what one member asks for: that many whole free GPUs, or one GPU with that share free; for
whole machines nobody may be on it. With aligned rails all machines must have the same rails: the largest set of rails for which
a gang fits (of equal sets the one with lower numbers).

Among all sets of possible machines this one is chosen, compared place by place (levels from the outermost to the innermost):
 a. all in one group of the required level;
 b. the fewest groups of the preferred level, where one is given;
 c. the fewest groups per level: the lowest common level first, then the fewest groups at each level below it;
 d. the fewest groups broken that nobody is on, then machines that nobody is on, then (for a share) GPUs that nobody is on;
 e. the tightest fit: the fewest possible machines in the touched groups, per level, then the least free thousandths on the
    machines: what stays free elsewhere is then in the largest pieces;
 f. the most even split: the smallest sum of squares of members per group, per level;
 g. the lowest places: the smallest sum of places in the fabric's order, which is by name inside groups.
Exact, not a heuristic: see `fabric_split.py`. Ranks follow the fabric's order, in which every group is one run: neighbours in
rank are neighbours in the tree, and inside one leaf group they meet on the leaf of each rail. On a machine the tightest GPU for
a share, else the lowest whole ones, are booked; the machine's own placement may take others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from steelyard.model import words
from steelyard.model.gang import GangDemand, GangMember, GangPlan, GangRefusal
from steelyard.model.reason import Reason
from steelyard.placement.fabric_split import Chosen, Pool, choose
from steelyard.placement.fabric_state import WHOLE, FabricState, Ints

_Mask = npt.NDArray[np.bool_]


def plan_gang(state: FabricState, demand: GangDemand) -> GangPlan | GangRefusal:
    """The best place for the gang now. Changes nothing in `state`."""
    possible = _possible(state, demand)
    required = _level(state, demand.required_level)
    if demand.required_level is not None and required is None:
        return _refuse(state, demand, possible)
    rails = 0
    if demand.rails_aligned:
        found = next((mask for mask in _rail_sets(state, possible) if _holds(state, possible & _has(state, mask), demand)), None)
        if found is None:
            return _refuse(state, demand, possible)
        rails, possible = found, possible & _has(state, found)
    if not _holds(state, possible, demand):
        return _refuse(state, demand, possible)
    pool = _make_pool(state, demand, possible)
    chosen, rivals = _choose(state, demand, pool, required)
    common = int(np.bitwise_and.reduce(state.rails[chosen.rows]))
    return GangPlan(
        members=tuple(_member(state, demand, int(row)) for row in chosen.rows),
        span={name: len(np.unique(state.group[at][chosen.rows])) for at, name in enumerate(state.levels)},
        common_level=state.levels[_common(state, chosen)],
        rails=tuple(rail for rail in range(63) if common >> rail & 1),
        exclusive=demand.exclusive,
        explanation=_explain(state, demand, pool, chosen, rivals, rails),
    )


def _possible(state: FabricState, demand: GangDemand) -> _Mask:
    if demand.share_milli:
        mask = (state.milli.max(axis=1) >= demand.share_milli) & (state.closed == 0)
    else:
        mask = state.whole >= demand.whole_gpus
    return mask & (state.members == 0) if demand.exclusive else mask


def _capable(state: FabricState, demand: GangDemand) -> _Mask:
    """If nothing ran."""
    return state.capacity >= max(demand.whole_gpus, 1 if demand.share_milli else 0)


def _rail_sets(state: FabricState, possible: _Mask) -> list[int]:
    masks = [int(mask) for mask in np.unique(state.rails[possible]) if mask]
    return sorted(masks, key=lambda mask: (-mask.bit_count(), mask))


def _has(state: FabricState, rails: int) -> _Mask:
    return (state.rails & rails) == rails


def _level(state: FabricState, name: str | None) -> int | None:
    return state.levels.index(name) if name is not None and name in state.levels else None


def _holds(state: FabricState, possible: _Mask, demand: GangDemand) -> bool:
    return _largest(state, possible, _level(state, demand.required_level)) >= demand.nodes


def _largest(state: FabricState, possible: _Mask, level: int | None) -> int:
    """The most possible machines in one group of the level; of the whole fabric without one."""
    return int(possible.sum()) if level is None else int(_count(state, possible, level).max(initial=0))


def _count(state: FabricState, possible: _Mask, level: int) -> Ints:
    if not state.size:
        return np.zeros(0, dtype=np.int64)
    return np.add.reduceat(possible.astype(np.int64), state.start[level][:-1])


def _make_pool(state: FabricState, demand: GangDemand, possible: _Mask) -> Pool:
    rows = np.flatnonzero(possible)
    untouched = (state.members[rows] == 0).astype(np.int64)
    breaks_gpu = np.zeros(len(rows), dtype=np.int64)
    if demand.share_milli:
        shared = np.where(state.milli[rows] == WHOLE, 0, state.milli[rows])
        breaks_gpu = (shared.max(axis=1) < demand.share_milli).astype(np.int64)
    milli = state.milli[rows].sum(axis=1, dtype=np.int64)
    order = np.lexsort((rows, milli, breaks_gpu, untouched, state.group[0][rows]))
    rows = rows[order]
    count = tuple(_count(state, possible, level) for level in range(len(state.levels)))
    return Pool(
        rows=rows,
        start=np.concatenate(([0], np.cumsum(count[0]))),
        untouched=untouched[order],
        breaks_gpu=breaks_gpu[order],
        milli=milli[order],
        possible=count,
        whole=tuple((free == np.diff(start)).astype(np.int64) for free, start in zip(state.untouched, state.start, strict=True)),
    )


def _choose(state: FabricState, demand: GangDemand, pool: Pool, required: int | None) -> tuple[Chosen, int]:
    """The best machines, and how many groups they were looked for in."""
    top = len(state.levels) - 1 if required is None else required
    level = next(at for at in range(top + 1) if (pool.possible[at] >= demand.nodes).any())
    preferred = _level(state, demand.preferred_level)
    if preferred is not None and preferred < level:
        # No preferred group holds the gang: fewer of them may be worth a wider spread, so all are looked at together.
        level = top
    else:
        preferred = None
    scopes = np.flatnonzero(pool.possible[level] >= demand.nodes)
    if level == 0:
        best = _tightest(state, pool, scopes, demand.nodes)
        return choose(state, pool, demand.nodes, 0, np.asarray([best]), None)[0], len(scopes)
    if preferred is None:
        scopes = _fewest_children(state, pool, level, scopes, demand.nodes)
    tried = choose(state, pool, demand.nodes, level, scopes, preferred)
    values = [_value(state, pool, each, preferred) for each in tried] if len(tried) > 1 else [()]
    best = min(range(len(values)), key=lambda at: values[at])
    return tried[best], len(scopes)


def _tightest(state: FabricState, pool: Pool, scopes: Ints, nodes: int) -> int:
    """Of innermost groups that all hold the gang, the one with the best objective; all at once."""

    def ahead(values: Ints) -> Ints:
        sums = np.concatenate(([0], np.cumsum(values)))
        start = pool.start[scopes]
        return sums[start + nodes] - sums[start]

    first = state.start[0][scopes]
    outer = [group[first] for group in reversed(state.group)]
    levels = list(reversed(range(len(state.levels))))
    keys = [pool.whole[level][group] for level, group in zip(levels, outer, strict=True)]
    keys += [ahead(pool.untouched), ahead(pool.breaks_gpu)]
    keys += [pool.possible[level][group] for level, group in zip(levels, outer, strict=True)]
    keys += [ahead(pool.milli), ahead(pool.rows)]
    return int(scopes[np.lexsort(keys[::-1])[0]])


def _fewest_children(state: FabricState, pool: Pool, level: int, scopes: Ints, nodes: int) -> Ints:
    """Only groups that need the fewest of the next level's groups can be best."""
    start = np.searchsorted(state.start[level - 1], state.start[level])
    need: list[int] = []
    for scope in scopes:
        children = np.sort(pool.possible[level - 1][start[scope] : start[scope + 1]])[::-1]
        need.append(int(np.searchsorted(np.cumsum(children), nodes)))
    least = min(need)
    return scopes[np.asarray(need) == least]


def _value(state: FabricState, pool: Pool, chosen: Chosen, preferred: int | None) -> tuple[int, ...]:
    """The objective (b to g) of one choice."""
    touched = [np.unique(group[chosen.rows], return_counts=True) for group in reversed(state.group)]
    whole, count = list(reversed(pool.whole)), list(reversed(pool.possible))
    span = [len(groups) for groups, _ in touched]
    return (
        0 if preferred is None else span[len(span) - 1 - preferred],
        *span,
        *(int(each[groups].sum()) for each, (groups, _) in zip(whole, touched, strict=True)),
        int(pool.untouched[chosen.places].sum()),
        int(pool.breaks_gpu[chosen.places].sum()),
        *(int(each[groups].sum()) for each, (groups, _) in zip(count, touched, strict=True)),
        int(pool.milli[chosen.places].sum()),
        *(int((members * members).sum()) for _, members in touched),
        int(chosen.rows.sum()),
    )


def _common(state: FabricState, chosen: Chosen) -> int:
    """The innermost level at which one group holds all."""
    return next(at for at, group in enumerate(state.group) if group[chosen.rows[0]] == group[chosen.rows[-1]])


def _member(state: FabricState, demand: GangDemand, row: int) -> GangMember:
    free = state.milli[row]
    if demand.share_milli:
        fits = np.flatnonzero(free >= demand.share_milli)
        tightest = int(fits[np.argmin(free[fits])])
        return GangMember(state.names[row], (tightest,), demand.share_milli)
    number = int(state.capacity[row]) if demand.exclusive else demand.whole_gpus
    return GangMember(state.names[row], tuple(int(gpu) for gpu in np.flatnonzero(free == WHOLE)[:number]))


def _explain(state: FabricState, demand: GangDemand, pool: Pool, chosen: Chosen, rivals: int, rails: int) -> tuple[str, ...]:
    common = _common(state, chosen)
    name, group = state.levels[common], int(state.group[common][chosen.rows[0]])
    where = "the whole fabric" if name == "fabric" else f"{name} {state.labels[common][group]}"
    says = [f"{len(pool.rows)} of {_machines(state.size)} could take {_ask(demand)}"]
    if demand.rails_aligned:
        says.append(f"they all have the same {words.count(rails.bit_count(), 'rail')}")
    if common:
        below = state.levels[common - 1]
        most = int(pool.possible[common - 1].max())
        touched = len(np.unique(state.group[common - 1][chosen.rows]))
        why = f"one {below} holds {most} at most" if most < demand.nodes else f"{demand.preferred_level} was preferred"
        says.append(f"{why}, so the {demand.nodes} take {words.count(touched, below)} in {where}")
    else:
        left = int(pool.possible[0][group]) - demand.nodes
        says.append(f"{where} holds all {demand.nodes} and could hold {left} more")
    if rivals > 1:
        says.append(f"{rivals} such groups could hold the gang; this one leaves the largest pieces free elsewhere")
    empty = int(pool.untouched[chosen.places].sum())
    if empty < demand.nodes:
        says.append(f"{demand.nodes - empty} of the machines are in use already, {empty} were empty")
    if demand.preferred_level is not None and demand.preferred_level not in state.levels:
        says.append(f"the preferred level {demand.preferred_level} is not known here (known: {', '.join(state.levels)})")
    return tuple(says)


def _refuse(state: FabricState, demand: GangDemand, possible: _Mask) -> GangRefusal:
    """Every reason that stands in the way, now or for ever."""
    capable = _capable(state, demand)
    required = _level(state, demand.required_level)
    found: list[tuple[Reason, str]] = []
    never = False
    if demand.required_level is not None and required is None:
        never = True
        text = f"this fabric has no level {demand.required_level}; it has {', '.join(state.levels)}"
        found.append((Reason.NO_SUCH_LEVEL, text))
    if not capable.any():
        never = True
        most = int(state.capacity.max(initial=0))
        found.append((Reason.GPUS_BEYOND_MACHINE, f"{_ask(demand)} asked on each machine, the largest has {most}"))
    elif int(capable.sum()) < demand.nodes:
        never = True
        text = f"{_machines(demand.nodes)} asked, only {int(capable.sum())} have {_ask(demand)} at all"
        found.append((Reason.GANG_BEYOND_FABRIC, text))
    elif int(possible.sum()) < demand.nodes:
        text = f"{_machines(demand.nodes)} with {_ask(demand)} asked, {int(possible.sum())} have that free now"
        found.append((Reason.NO_GPUS_LEFT, text))
    if demand.rails_aligned and not _any_aligned(state, possible, demand):
        never = never or not _any_aligned(state, capable, demand)
        if _holds(state, possible, demand):
            text = f"no {_machines(demand.nodes)} have a port on each of the same rails"
            found.append((Reason.NO_ALIGNED_RAILS, text))
    if required is not None and _largest(state, possible, required) < demand.nodes:
        largest = _largest(state, possible, required)
        never = never or _largest(state, capable, required) < demand.nodes
        text = f"{_machines(demand.nodes)} asked in one {demand.required_level}, the best has {largest} free now"
        found.append((Reason.NO_DOMAIN_HOLDS_GANG, text))
    return GangRefusal(
        reasons=tuple(reason for reason, _ in found),
        never=never,
        detail="; ".join(text for _, text in found),
        largest_nodes=0 if Reason.NO_SUCH_LEVEL in dict(found) else _largest_aligned(state, possible, demand),
    )


def _any_aligned(state: FabricState, mask: _Mask, demand: GangDemand) -> bool:
    return any(_holds(state, mask & _has(state, rails), demand) for rails in _rail_sets(state, mask))


def _largest_aligned(state: FabricState, possible: _Mask, demand: GangDemand) -> int:
    required = _level(state, demand.required_level)
    if not demand.rails_aligned:
        return _largest(state, possible, required)
    return max((_largest(state, possible & _has(state, rails), required) for rails in _rail_sets(state, possible)), default=0)


def _ask(demand: GangDemand) -> str:
    whole = " on a machine of its own" if demand.exclusive else ""
    if demand.share_milli:
        return f"{demand.share_milli / 1000:g} of a GPU{whole}"
    return f"{words.count(demand.whole_gpus, 'free GPU')}{whole}"


def _machines(number: int) -> str:
    return words.count(number, "machine")
