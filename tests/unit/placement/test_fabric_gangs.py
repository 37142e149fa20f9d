"""Does a gang get the best machines there are? Compared with every set of machines, on small fabrics of all shapes."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.model.fabric import Fabric, FabricHost, FabricLink, FabricPort, FabricSwitch, HostGroup
from steelyard.model.gang import GangDemand, GangPlan, GangRefusal
from steelyard.model.reason import Reason
from steelyard.placement.fabric import plan_gang
from steelyard.placement.fabric_state import FabricState, make_state


def make_tree(leaves: dict[str, list[str]], spines: dict[str, list[str]], domains: dict[str, list[str]] | None = None) -> Fabric:
    hosts = {host: leaf for leaf, under in leaves.items() for host in under}
    switches = [FabricSwitch(leaf, 1) for leaf in leaves] + [FabricSwitch(spine, 2) for spine in spines]
    links = [FabricLink(spine, leaf) for spine, under in spines.items() for leaf in under]
    if spines:
        switches.append(FabricSwitch("core", 3))
        links += [FabricLink("core", spine) for spine in spines]
    return Fabric(
        hosts=tuple(FabricHost(host, (FabricPort(leaf=leaf),)) for host, leaf in hosts.items()),
        switches=tuple(switches),
        links=tuple(links),
        domains=tuple(HostGroup(name, tuple(members)) for name, members in (domains or {}).items()),
    )


@st.composite
def small_states(draw: st.DrawFn) -> FabricState:
    count = draw(st.integers(2, 10))
    names = [f"n{place}" for place in draw(st.permutations(range(count)))]
    leaf = [draw(st.integers(0, 3)) for _ in names]
    leaves: dict[str, list[str]] = {}
    for name, at in zip(names, leaf, strict=True):
        leaves.setdefault(f"leaf{at}", []).append(name)
    spines: dict[str, list[str]] = {}
    for each in leaves:
        spines.setdefault(f"spine{draw(st.integers(0, 1))}", []).append(each)
    domains: dict[str, list[str]] = {}
    how = draw(st.sampled_from(["none", "inside leaf", "whole spines", "anyhow"]))
    if how != "none":
        above = {each: spine for spine, under in spines.items() for each in under}
        for name, at in zip(names, leaf, strict=True):
            part = draw(st.integers(0, 2))
            group = {"inside leaf": f"{at}.{part}", "whole spines": above[f"leaf{at}"], "anyhow": str(part)}[how]
            domains.setdefault(group, []).append(name)
    fabric = make_tree(leaves, spines if draw(st.booleans()) else {}, domains)
    state = make_state(fabric, {name: draw(st.sampled_from([0, 1, 2, 2, 4])) for name in names})
    state.rails[:] = [draw(st.sampled_from([0, 1, 3, 3])) for _ in names]
    for name in names:
        if not draw(st.sampled_from([True, False, False])):
            continue
        for gpu in range(int(state.capacity[state.row[name]])):
            milli = draw(st.sampled_from([0, 0, 0, 1000, 500, 250]))
            if milli:
                state.take(name, (gpu,), milli)
    return state


@st.composite
def demands(draw: st.DrawFn) -> GangDemand:
    levels = st.sampled_from([None, None, None, None, "domain", "leaf", "spine", "core", "fabric"])
    return GangDemand(
        nodes=draw(st.integers(1, 5)),
        gpus_per_node=draw(st.sampled_from([0, 1, 1, 2, 0.5])),
        exclusive=draw(st.sampled_from([False, False, False, True])),
        required_level=draw(levels),
        preferred_level=draw(levels),
        rails_aligned=draw(st.sampled_from([False, False, False, True])),
    )


def fits(state: FabricState, demand: GangDemand, row: int) -> bool:
    free = [int(milli) for milli in state.milli[row][: state.capacity[row]]]
    if demand.exclusive and state.members[row]:
        return False
    if demand.share_milli:
        return any(milli >= demand.share_milli for milli in free)
    return sum(milli == 1000 for milli in free) >= demand.whole_gpus


def objective(state: FabricState, demand: GangDemand, rows: tuple[int, ...], pool: list[int]) -> tuple[int, ...] | None:
    """b to g of the rules in `placement/fabric.py`, written again from their text. None where the required level is broken."""
    preferred, spans, broken, tight, squares = 0, [], [], [], []
    for name, group in reversed(list(zip(state.levels, state.group, strict=True))):
        touched = Counter(int(group[row]) for row in rows)
        if name == demand.required_level and len(touched) > 1:
            return None
        members = {at: [row for row in range(state.size) if group[row] == at] for at in touched}
        spans.append(len(touched))
        broken.append(sum(all(state.members[row] == 0 for row in members[at]) for at in touched))
        tight.append(sum(sum(row in pool for row in members[at]) for at in touched))
        squares.append(sum(number**2 for number in touched.values()))
        if name == demand.preferred_level:
            preferred = len(touched)
    empty = sum(int(state.members[row]) == 0 for row in rows)
    split = 0
    if demand.share_milli:
        split = sum(not any(demand.share_milli <= milli < 1000 for milli in state.milli[row]) for row in rows)
    free = sum(int(state.milli[row].sum()) for row in rows)
    return (preferred, *spans, *broken, empty, split, *tight, free, *squares, sum(rows))


def brute_force(state: FabricState, demand: GangDemand) -> tuple[int, ...] | None:
    pool = [row for row in range(state.size) if fits(state, demand, row)]
    masks = [0]
    if demand.rails_aligned:
        found = {int(state.rails[row]) for row in pool} - {0}
        masks = sorted(found, key=lambda mask: (-mask.bit_count(), mask))
    for mask in masks:
        having = [row for row in pool if int(state.rails[row]) & mask == mask]
        values = [objective(state, demand, rows, having) for rows in itertools.combinations(having, demand.nodes)]
        possible = [value for value in values if value is not None]
        if possible:
            return (mask, *min(possible))
    return None


def check_against_brute_force(state: FabricState, demand: GangDemand) -> None:
    plan = plan_gang(state, demand)
    if demand.required_level is not None and demand.required_level not in state.levels:
        assert isinstance(plan, GangRefusal) and plan.never and Reason.NO_SUCH_LEVEL in plan.reasons
        return
    best = brute_force(state, demand)
    if isinstance(plan, GangRefusal):
        assert best is None and plan.reasons and plan.detail
        assert plan.largest_nodes < demand.nodes
        return
    rows = tuple(state.row[member.node] for member in plan.members)
    assert len(set(rows)) == demand.nodes and all(fits(state, demand, row) for row in rows)
    pool = [row for row in range(state.size) if fits(state, demand, row)]
    mask = best[0] if best else 0
    having = [row for row in pool if int(state.rails[row]) & mask == mask]
    assert best is not None and (mask, *(objective(state, demand, rows, having) or ())) == best
    assert not mask or all(int(state.rails[row]) & mask == mask for row in rows)
    assert list(rows) == sorted(rows)
    before = (state.milli.copy(), state.whole.copy())
    mark = state.mark()
    state.take_plan(plan)
    state.undo(mark)
    assert (state.milli == before[0]).all() and (state.whole == before[1]).all()
    assert plan_gang(state, demand) == plan


@settings(max_examples=500)
@given(small_states(), demands())
def test_no_set_of_machines_is_better_than_the_chosen_one(state: FabricState, demand: GangDemand) -> None:
    check_against_brute_force(state, demand)


def a_gang(nodes: int, gpus: float = 4, **more: object) -> GangDemand:
    return GangDemand(nodes=nodes, gpus_per_node=gpus, **more)  # type: ignore[arg-type]


def two_by_two() -> Fabric:
    """Two spines, each with two leaves of four hosts; NVLink domains of two hosts."""
    leaves = {f"leaf{leaf}": [f"h{leaf}{host}" for host in range(4)] for leaf in range(4)}
    domains = {f"nvl{leaf}{half}": [f"h{leaf}{2 * half}", f"h{leaf}{2 * half + 1}"] for leaf in range(4) for half in range(2)}
    return make_tree(leaves, {"spine0": ["leaf0", "leaf1"], "spine1": ["leaf2", "leaf3"]}, domains)


def planned(state: FabricState, demand: GangDemand) -> GangPlan:
    plan = plan_gang(state, demand)
    assert isinstance(plan, GangPlan), plan
    return plan


def names(plan: GangPlan) -> list[str]:
    return [member.node for member in plan.members]


def test_a_gang_takes_the_lowest_level_that_holds_it() -> None:
    state = make_state(two_by_two(), 4)
    assert [planned(state, a_gang(nodes)).common_level for nodes in (1, 2, 3, 4, 8, 9)] == [
        "domain",
        "domain",
        "leaf",
        "leaf",
        "spine",
        "core",
    ]


def test_a_gang_fills_the_smallest_hole_that_holds_it_and_leaves_the_large_one() -> None:
    state = make_state(two_by_two(), 4)
    state.take("h30", (0, 1, 2, 3))
    assert names(planned(state, a_gang(3))) == ["h31", "h32", "h33"]


def test_a_small_member_goes_beside_another_rather_than_on_an_empty_machine() -> None:
    state = make_state(two_by_two(), 4)
    state.take("h21", (0, 1))
    plan = planned(state, a_gang(1, 1))
    assert names(plan) == ["h21"] and plan.members[0].gpus == (2,)


def test_a_share_goes_onto_the_gpu_that_is_shared_already() -> None:
    state = make_state(two_by_two(), 4)
    state.take("h21", (3,), 500)
    plan = planned(state, a_gang(1, 0.5))
    assert names(plan) == ["h21"] and plan.members[0].gpus == (3,) and plan.members[0].milli == 500
    state.take_plan(plan)
    assert planned(state, a_gang(1, 0.5)).members[0].gpus == (0,)


def test_a_split_gang_is_split_evenly() -> None:
    fabric = make_tree({"leaf0": [f"a{host}" for host in range(6)], "leaf1": [f"b{host}" for host in range(6)]}, {})
    plan = planned(make_state(fabric, 4), a_gang(8))
    assert Counter(name[0] for name in names(plan)) == {"a": 4, "b": 4}


def test_ranks_follow_the_tree() -> None:
    plan = planned(make_state(two_by_two(), 4), a_gang(8))
    assert names(plan) == ["h00", "h01", "h02", "h03", "h10", "h11", "h12", "h13"]


def test_a_preferred_level_counts_more_than_a_low_common_level() -> None:
    leaves = {"a": ["a0", "a1"], "b": ["b0", "b1"], "c": ["c0"], "d": ["d0", "d1", "d2"]}
    state = make_state(make_tree(leaves, {"spine0": ["a", "b", "c"], "spine1": ["d"]}), 4)
    low = planned(state, a_gang(5))
    assert low.common_level == "spine" and low.span["leaf"] == 3
    few = planned(state, a_gang(5, preferred_level="leaf"))
    assert few.common_level == "core" and few.span["leaf"] == 2 and names(few) == ["a0", "a1", "d0", "d1", "d2"]
    assert planned(state, a_gang(5, preferred_level="leaf", required_level="spine")) == low


def test_whole_machines_stay_alone_until_given_back() -> None:
    state = make_state(two_by_two(), 4)
    plan = planned(state, a_gang(16, 1, exclusive=True))
    assert all(member.gpus == (0, 1, 2, 3) for member in plan.members)
    state.take_plan(plan)
    refusal = plan_gang(state, a_gang(1, 0))
    assert isinstance(refusal, GangRefusal) and not refusal.never
    state.give_plan(plan)
    assert planned(state, a_gang(16, 1, exclusive=True)) == plan


def test_a_closed_machine_takes_nothing_new() -> None:
    state = make_state(two_by_two(), 4)
    state.close("h00")
    assert "h00" not in names(planned(state, a_gang(15)))
    assert isinstance(plan_gang(state, a_gang(16)), GangRefusal)
    state.open("h00")
    assert planned(state, a_gang(16))


def test_a_refusal_names_every_reason_and_the_largest_gang() -> None:
    state = make_state(two_by_two(), 4)
    state.take("h00", (0,))
    refusal = plan_gang(state, a_gang(16, required_level="spine"))
    assert isinstance(refusal, GangRefusal)
    assert refusal.reasons == (Reason.NO_GPUS_LEFT, Reason.NO_DOMAIN_HOLDS_GANG) and refusal.largest_nodes == 8 and refusal.never
    assert "16 machines" in refusal.detail


@pytest.mark.parametrize(
    ("demand", "reason", "never"),
    [
        (a_gang(1, 5), Reason.GPUS_BEYOND_MACHINE, True),
        (a_gang(17), Reason.GANG_BEYOND_FABRIC, True),
        (a_gang(5, required_level="leaf"), Reason.NO_DOMAIN_HOLDS_GANG, True),
        (a_gang(1, required_level="rack"), Reason.NO_SUCH_LEVEL, True),
        (a_gang(1, rails_aligned=True), Reason.NO_ALIGNED_RAILS, True),
    ],
)
def test_what_can_never_be_is_said_so(demand: GangDemand, reason: Reason, never: bool) -> None:
    refusal = plan_gang(make_state(two_by_two(), 4), demand)
    assert isinstance(refusal, GangRefusal) and refusal.reasons == (reason,) and refusal.never is never


def test_an_empty_fabric_refuses() -> None:
    refusal = plan_gang(make_state(Fabric(), 4), a_gang(1))
    assert isinstance(refusal, GangRefusal) and refusal.never


def test_aligned_gangs_leave_out_machines_with_a_missing_rail() -> None:
    state = make_state(two_by_two(), 4)
    state.rails[:] = 0b1111
    state.rails[state.row["h00"]] = 0b0111
    plan = planned(state, a_gang(4, rails_aligned=True))
    assert "h00" not in names(plan) and plan.rails == (0, 1, 2, 3)
    plan = planned(state, a_gang(16, rails_aligned=True))
    assert plan.rails == (0, 1, 2)


@pytest.mark.parametrize("nodes", [0, -1])
def test_a_gang_of_no_machines_is_a_mistake(nodes: int) -> None:
    with pytest.raises(ValueError, match="at least one machine"):
        GangDemand(nodes=nodes)


@pytest.mark.parametrize("gpus", [1.5, -1, 2.25, float("nan"), float("inf")])
def test_gpus_are_whole_or_one_share(gpus: float) -> None:
    with pytest.raises(ValueError, match="whole number"):
        GangDemand(gpus_per_node=gpus)
