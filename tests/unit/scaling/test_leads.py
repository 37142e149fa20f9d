"""Which revision on which machine is a request of a function led to?"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.model.function import Function, FunctionSpec, FunctionState, Lead, Place, Reach, Routes, Share
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, MachineId
from steelyard.model.job import Owner
from steelyard.scaling.places import decide_leads, sum_up

N1, N2, N3 = (MachineId(f"n{number}") for number in (1, 2, 3))


def reach(revision: int) -> Reach:
    return Reach(revision, 8 * revision, 100, 5.0)


def place(machine: MachineId, shares: dict[int, int], *tags: tuple[str, int], led: bool = True, leaving: bool = False) -> Place:
    routes = Routes(tuple(Share(*each) for each in shares.items()), tags)
    known = tuple(map(reach, sorted(routes.revisions))) if led else ()
    return Place(machine, leaving=leaving, state=FunctionState.SLEEPING, revision=max(shares), routes=routes, reach=known)


def function(*places: Place) -> Function:
    spec = FunctionSpec(argv=("x",), pool="p")
    return Function(FunctionName("f"), DEFAULT_PROJECT, Owner("ann", 1), 1, 2, spec, 0, places=places)


@pytest.mark.parametrize(
    ("places", "leads"),
    [
        ((), []),
        ((place(N1, {1: 100}),), [(1, (N1,), 100, ())]),
        ((place(N1, {1: 90, 2: 10}, ("next", 2)),), [(1, (N1,), 90, ()), (2, (N1,), 10, ("next",))]),
        ((place(N1, {1: 100}, ("a", 3), ("b", 3)),), [(1, (N1,), 100, ()), (3, (N1,), 0, ("a", "b"))]),
        # half of the machines are further than the others
        ((place(N2, {1: 100}), place(N1, {2: 100})), [(1, (N2,), 50, ()), (2, (N1,), 50, ())]),
        ((place(N1, {1: 100}), place(N2, {1: 100}), place(N3, {2: 100})), [(1, (N1, N2), 67, ()), (2, (N3,), 33, ())]),
        ((place(N1, {1: 100}), place(N2, {1: 100})), [(1, (N1, N2), 100, ())]),
        # a tag that is moved leads to one of them
        ((place(N1, {1: 100}, ("t", 1)), place(N2, {1: 100}, ("t", 2))), [(1, (N1, N2), 100, ()), (2, (N2,), 0, ("t",))]),
        # who leaves has nothing, unless there is nobody else
        ((place(N1, {1: 100}, leaving=True), place(N2, {1: 100})), [(1, (N2,), 100, ())]),
        ((place(N1, {1: 100}, leaving=True), Place(N2)), [(1, (N1,), 100, ())]),
        # a program behind a relay
        ((place(N1, {1: 100}, led=False),), []),
        ((place(N1, {1: 100}), place(N2, {1: 100}, led=False)), []),
    ],
)
def test_each_target_has_its_part_divided_as_it_says(places: tuple[Place, ...], leads: list[tuple[object, ...]]) -> None:
    found = decide_leads(function(*places))
    assert [(lead.reach.revision, lead.machines, lead.percent, lead.tags) for lead in found] == leads
    assert all(lead.reach == reach(lead.reach.revision) for lead in found)


@given(st.lists(st.dictionaries(st.integers(1, 5), st.integers(1, 100), min_size=1, max_size=4), min_size=1, max_size=120))
def test_percents_sum_to_a_hundred_and_nobody_is_left_out(drawn: list[dict[int, int]]) -> None:
    def to_hundred(shares: dict[int, int]) -> dict[int, int]:
        first, *rest = shares
        part = {key: max(1, shares[key] * 20 // 100) for key in rest}
        return {first: 100 - sum(part.values()), **part}

    places = [place(MachineId(f"m{at:03}"), to_hundred(shares)) for at, shares in enumerate(drawn)]
    found = decide_leads(function(*places))
    assert sum(lead.percent for lead in found) == 100
    assert {lead.reach.revision for lead in found if lead.percent} == {key for shares in drawn for key in shares}
    assert all(1 <= lead.percent <= 100 and lead.machines for lead in found)


def test_what_is_routed_is_what_the_homes_gateway_says() -> None:
    moved = function(place(N1, {2: 100}))
    led = msgspec.structs.replace(moved, reached=(N1,), led=Routes((Share(1, 100),)))
    assert (sum_up(led).routed_revision, sum_up(led).state) == (1, FunctionState.DEPLOYING)
    assert sum_up(msgspec.structs.replace(led, led=Routes((Share(2, 100),)))).state is FunctionState.SLEEPING
    # where it hands requests over, the machine's gateway says it
    assert sum_up(msgspec.structs.replace(led, led=Routes())).routed_revision == 2
    assert sum_up(msgspec.structs.replace(led, reached=())).routed_revision is None
    assert isinstance(decide_leads(led)[0], Lead)
