from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import DEFAULT_PROJECT, MachineId
from steelyard.model.job import Owner, Resources
from steelyard.model.pool import NodeShape, Pilot, PilotState, PoolSpec
from steelyard.scaling.pools import Demand, Standing, count_needed, decide_pilots

NODE = NodeShape(cpus=4, memory_bytes=100, gpus=2)
ONE = Demand(1, Resources(1.0))


def stand(number: int, state: PilotState = PilotState.READY, of: str = "", **more: object) -> Standing:
    pilot = Pilot(MachineId(f"p-{number}"), "p", DEFAULT_PROJECT, Owner("ann", 1), 1, state, 0, allocation=of)
    return Standing(pilot, **more)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("demands", "needed"),
    [
        ([], 0),
        ([ONE] * 4, 1),
        ([ONE] * 5, 2),
        ([Demand(1, Resources(3.0)), Demand(1, Resources(2.0)), ONE], 2),
        ([Demand(1, Resources(0.5, memory_bytes=60))] * 2, 2),
        ([Demand(1, Resources(0.5, gpus=GpuDemand(count=2)))] * 3, 3),
        # a gang's machines are different ones
        ([Demand(3, Resources(1.0))], 3),
        ([Demand(3, Resources(1.0)), Demand(2, Resources(3.0))], 3),
        # what fits nowhere
        ([Demand(1, Resources(5.0))], 0),
        ([Demand(1, Resources(1.0, gpus=GpuDemand(count=3)))], 0),
    ],
)
def test_what_waits_is_packed_into_empty_nodes(demands: list[Demand], needed: int) -> None:
    assert count_needed(demands, NODE, None, 100) == (0, needed)
    assert count_needed(demands, NODE, None, 100, [None] * 2) == (min(needed, 2), max(needed - 2, 0))


def test_of_a_node_that_nobody_knows_one_holds_everything() -> None:
    assert count_needed([Demand(1, Resources(500.0))] * 10, NodeShape(), None, 100) == (0, 1)


def test_pilots_on_their_way_and_empty_ones_count_for_what_waits() -> None:
    spec = PoolSpec("p", 0, 8, NODE)
    waiting = [ONE] * 9  # three nodes
    assert decide_pilots(spec, [], waiting, None).more == 3
    coming = [stand(1, PilotState.WAITING), stand(2, PilotState.STARTING)]
    assert decide_pilots(spec, coming, waiting, None).more == 1
    assert decide_pilots(spec, [*coming, stand(3)], waiting, None).more == 0
    assert decide_pilots(spec, [*coming, stand(3, busy=True)], waiting, None).more == 1


def test_an_empty_one_that_is_taken_back_too_soon_is_none_for_what_runs_longer() -> None:
    spec = PoolSpec("p", 0, 8, NODE)
    long = Demand(1, Resources(1.0), max_duration_s=600.0)
    assert decide_pilots(spec, [stand(1, left_s=300.0)], [long], None).more == 1
    assert decide_pilots(spec, [stand(1, left_s=300.0)], [ONE], None).more == 0
    assert decide_pilots(spec, [stand(1, left_s=300.0), stand(2, left_s=900.0)], [long], None).more == 0
    assert decide_pilots(spec, [stand(1, left_s=300.0), stand(2, PilotState.WAITING)], [long] * 5, None).more == 1
    short = stand(1, left_s=200.0)
    seen = msgspec.structs.replace(short, pilot=msgspec.structs.replace(short.pilot, ready_at=0, ends_at=300_000_000))
    assert decide_pilots(spec, [seen], [long], None).more == 0, "another one would stay no longer"


def test_one_that_ends_soon_is_replaced_in_advance() -> None:
    spec = PoolSpec("p", 1, 2, NODE)
    assert decide_pilots(spec, [stand(1, busy=True)], [], None).more == 0
    assert decide_pilots(spec, [stand(1, busy=True, ends_soon=True)], [], None).more == 1
    assert decide_pilots(spec, [stand(1, PilotState.DRAINING), stand(2)], [], None).more == 0


def test_what_waits_for_nothing_goes_first_and_then_the_one_idle_longest() -> None:
    spec = PoolSpec("p", 1, 8, NODE, idle_s=10.0)
    standings = [stand(1, idle_s=50.0), stand(2, PilotState.WAITING, idle_s=20.0), stand(3, idle_s=60.0), stand(4, idle_s=5.0)]
    spare = [pilot.id for pilot in decide_pilots(spec, standings, [], None).spare]
    assert spare == ["p-2", "p-3", "p-1"]
    assert [pilot.id for pilot in decide_pilots(spec, standings, [ONE], None).spare] == ["p-2", "p-3", "p-1"]
    assert [pilot.id for pilot in decide_pilots(spec, standings, [Demand(2, Resources(1.0))], None).spare] == ["p-2", "p-3"]


def test_machines_of_an_allocation_come_and_go_together() -> None:
    spec = PoolSpec("p", 0, 6, NODE, idle_s=10.0, nodes_per_allocation=2)
    assert decide_pilots(spec, [], [ONE], None).more == 2
    assert decide_pilots(spec, [], [Demand(3, Resources(1.0))], None).more == 4
    pairs = [(1, 60.0), (1, 60.0), (3, 50.0), (3, 60.0), (5, 60.0), (5, 60.0)]
    rested = [stand(at, idle_s=idle, of=f"p-{first}") for at, (first, idle) in enumerate(pairs, 1)]
    spare = [pilot.id for pilot in decide_pilots(spec, rested, [ONE], None).spare]
    assert spare == ["p-1", "p-2", "p-5", "p-6"], "the one that waits needs half of the third"
    one_works = [replace(each, busy=each.pilot.id == "p-2") for each in rested]
    assert [pilot.id for pilot in decide_pilots(spec, one_works, [], None).spare] == ["p-5", "p-6", "p-3", "p-4"]
    # a node of one has failed: no room for two more below the bound
    assert decide_pilots(spec, rested[1:], [Demand(6, Resources(4.0))], None).more == 0


def test_what_needs_one_allocation_is_not_helped_by_halves_of_two() -> None:
    spec = PoolSpec("p", 0, 6, NODE, nodes_per_allocation=2)
    halves = [stand(at, of=f"p-{1 + (at - 1) // 2 * 2}", busy=at % 2 == 1) for at in (1, 2, 3, 4)]
    assert decide_pilots(spec, halves, [Demand(2, Resources(4.0))], None).more == 0
    assert decide_pilots(spec, halves, [Demand(2, Resources(4.0), together=True)], None).more == 2
    whole = [stand(at, of="p-5") for at in (5, 6)]
    assert decide_pilots(spec, [*halves, *whole], [Demand(2, Resources(4.0), together=True)], None).more == 0


standings = st.lists(
    st.builds(
        lambda state, busy, idle_s, soon: (state, busy and state is PilotState.READY, idle_s, soon),
        st.sampled_from([state for state in PilotState if state is not PilotState.ENDED]),
        st.booleans(),
        st.floats(0, 100),
        st.booleans(),
    ),
    max_size=12,
)


@given(
    standings,
    st.lists(st.tuples(st.integers(1, 4), st.floats(0.1, 6.0)), max_size=12),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_there_are_never_too_many_and_never_too_few_are_left(
    rows: list[tuple[PilotState, bool, float, bool]], asked: list[tuple[int, float]], least: int, more: int
) -> None:
    spec = PoolSpec("p", least, least + more, NODE, idle_s=10.0)
    seen = [stand(at, state, busy=busy, idle_s=idle, ends_soon=soon) for at, (state, busy, idle, soon) in enumerate(rows)]
    demands = [Demand(nodes, Resources(cpus)) for nodes, cpus in asked]
    wanted = decide_pilots(spec, seen, demands, None)
    assert wanted.more == 0 or len(seen) + wanted.more <= spec.nodes_max
    assert not (wanted.more and wanted.spare)
    by_id = {each.pilot.id: each for each in seen}
    for pilot in wanted.spare:
        each = by_id[pilot.id]
        assert not each.busy and each.idle_s >= 10.0 and pilot.state is not PilotState.DRAINING
    staying = [each for each in seen if each.pilot.state is not PilotState.DRAINING and not each.ends_soon]
    if wanted.spare:
        assert len(staying) - len(wanted.spare) >= spec.nodes_min
        assert len([each for each in staying if not each.busy]) - len(wanted.spare) >= wanted.needed
    # what it leaves is enough, or all there may be
    left = len(staying) + wanted.more
    assert left >= min(spec.nodes_min, spec.nodes_max - (len(seen) - len(staying)))
