"""Are levels nested whatever the sources say, and do the counts stay right whatever is taken and given?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.model.fabric import Fabric, FabricHost, FabricLink, FabricPort, FabricSwitch, HostGroup
from steelyard.placement.fabric_levels import make_levels
from steelyard.placement.fabric_state import FabricState, make_state


def fabric_of(leaves: dict[str, list[str]], domains: dict[str, list[str]] | None = None) -> Fabric:
    hosts: dict[str, list[str]] = {}
    for leaf, under in leaves.items():
        for host in under:
            hosts.setdefault(host, []).append(leaf)
    for under in (domains or {}).values():
        for host in under:
            hosts.setdefault(host, [])
    return Fabric(
        hosts=tuple(FabricHost(name, tuple(FabricPort(leaf=leaf) for leaf in on)) for name, on in hosts.items()),
        switches=(*(FabricSwitch(leaf, 1) for leaf in leaves), FabricSwitch("top", 2)),
        links=tuple(FabricLink("top", leaf) for leaf in leaves),
        domains=tuple(HostGroup(name, tuple(under)) for name, under in (domains or {}).items()),
    )


def level_names(fabric: Fabric) -> list[str]:
    return [level.name for level in make_levels(fabric).levels]


def sizes(fabric: Fabric, name: str) -> list[int]:
    level = next(level for level in make_levels(fabric).levels if level.name == name)
    return sorted(level.group.count(group) for group in range(len(level.labels)))


def test_a_domain_goes_inside_or_around_the_leaves_as_it_really_lies() -> None:
    leaves = {"l1": ["a", "b"], "l2": ["c", "d"]}
    assert level_names(fabric_of(leaves, {"x": ["a"], "y": ["b"]})) == ["domain", "leaf", "spine", "fabric"]
    assert level_names(fabric_of(leaves, {"x": ["a", "b", "c", "d"]})) == ["leaf", "domain", "spine", "fabric"]


def test_leaves_that_cross_domains_give_way_and_it_is_told() -> None:
    fabric = fabric_of({"l1": ["a", "b"], "l2": ["c", "d"]}, {"x": ["a"], "y": ["b", "c"], "z": ["d"]})
    assert level_names(fabric) == ["domain", "spine", "fabric"]
    assert make_levels(fabric).notes == ("level leaf is left out: its groups cross those of other levels",)


def test_hosts_of_a_rack_with_a_leaf_per_rail_are_one_group() -> None:
    assert sizes(fabric_of({"r0": ["a", "b", "c"], "r1": ["a", "b"], "r2": ["a", "c"]}), "leaf") == [3]


def test_a_chain_of_leaves_is_not_one_group() -> None:
    # a and d never meet on a leaf, although b and c link their leaves.
    fabric = fabric_of({"l1": ["a", "b"], "l2": ["b", "c"], "l3": ["c", "d"]})
    assert sizes(fabric, "leaf") == [1, 1, 1, 1] and sizes(fabric, "spine") == [4]


def test_a_host_of_which_nothing_is_known_is_alone() -> None:
    fabric = fabric_of({"l1": ["a", "b"]}, {"x": ["a", "b"], "y": ["lost"]})
    assert sizes(fabric, "leaf") == [1, 2] and sizes(fabric, "fabric") == [3]


@settings(max_examples=200)
@given(st.data())
def test_levels_are_always_nested_runs(data: st.DataObject) -> None:
    names = [f"h{number}" for number in range(data.draw(st.integers(1, 9)))]
    leaves = {f"l{leaf}": data.draw(st.lists(st.sampled_from(names), unique=True)) for leaf in range(3)}
    domains: dict[str, list[str]] = {}
    for name in names:
        at = data.draw(st.integers(0, 3))
        if at:
            domains.setdefault(f"d{at}", []).append(name)
    levels = make_levels(fabric_of(leaves, domains))
    named = {host for group in (*leaves.values(), *domains.values()) for host in group}
    assert levels.levels[-1].name == "fabric" and len(levels.levels[-1].labels) == bool(named)
    assert set(levels.hosts) == named and len(levels.hosts) == len(named)
    for inner, outer in zip(levels.levels, levels.levels[1:], strict=False):
        holder: dict[int, int] = {}
        assert all(holder.setdefault(a, b) == b for a, b in zip(inner.group, outer.group, strict=True))
    for level in levels.levels:
        assert list(level.group) == sorted(level.group)


def recount(state: FabricState) -> None:
    whole = np.where(state.closed > 0, -1, (state.milli == 1000).sum(axis=1))
    assert (state.whole == whole).all()
    for group, holds, untouched in zip(state.group, state.holds, state.untouched, strict=True):
        for number in range(len(untouched)):
            inside = group == number
            assert untouched[number] == ((state.members == 0) & (state.closed == 0) & inside).sum()
            assert [int(count) for count in holds[number]] == [int((whole[inside] >= k).sum()) for k in range(holds.shape[1])]


@settings(max_examples=100)
@given(st.data())
def test_counts_are_what_a_recount_gives_and_undo_brings_all_back(data: st.DataObject) -> None:
    state = make_state(fabric_of({"l1": ["a", "b"], "l2": ["c"]}), {"a": 2, "b": 4, "c": 1})
    held: list[tuple[str, tuple[int, ...], int, bool]] = []
    before = (state.milli.copy(), state.members.copy(), state.closed.copy())
    for _ in range(data.draw(st.integers(0, 12))):
        node = data.draw(st.sampled_from(["a", "b", "c"]))
        what = data.draw(st.sampled_from(["take", "take", "give", "close", "open"]))
        try:
            if what == "take":
                gpus = tuple(data.draw(st.lists(st.integers(0, int(state.capacity[state.row[node]]) - 1), unique=True)))
                ask = (node, gpus, data.draw(st.sampled_from([1000, 500])), data.draw(st.booleans()))
                state.take(ask[0], ask[1], ask[2], exclusive=ask[3])
                held.append(ask)
            elif what == "give" and held:
                ask = held.pop()
                state.give(ask[0], ask[1], ask[2], exclusive=ask[3])
            elif what == "close":
                state.close(node)
            elif what == "open":
                state.open(node)
        except ValueError:
            pass
        recount(state)
    state.undo(0)
    recount(state)
    assert all((now == then).all() for now, then in zip((state.milli, state.members, state.closed), before, strict=True))


@pytest.mark.parametrize("gpus", [(0, 0), (9,), (-1,)])
def test_gpus_that_are_not_there_are_not_taken(gpus: tuple[int, ...]) -> None:
    state = make_state(fabric_of({"l1": ["a", "b"]}), {"a": 2, "b": 1})
    with pytest.raises((ValueError, IndexError)):
        state.take("b", gpus)
    recount(state)


def test_what_was_not_taken_is_not_given_back() -> None:
    state = make_state(fabric_of({"l1": ["a"]}), 2)
    with pytest.raises(ValueError, match="more would be given back"):
        state.give("a", (0,))
