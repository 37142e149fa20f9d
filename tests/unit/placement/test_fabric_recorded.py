"""Do gangs on recorded fabrics go where people would put them, and is it explained?"""

from __future__ import annotations

from collections import Counter

import pytest

from recorded import recorded
from steelyard.host.fabric.read import read_fabric
from steelyard.model.gang import GangDemand, GangPlan, GangRefusal
from steelyard.placement.fabric import plan_gang
from steelyard.placement.fabric_state import FabricState, make_state


def state_of(*names: str, gpus: int = 4) -> FabricState:
    fabric = read_fabric([recorded(f"fabric/{name}") for name in names])
    # Machines of the network's own management have no GPUs.
    return make_state(fabric, {host.name: 0 if host.name in ("ubuntu", "B11-P1-CUFM-02") else gpus for host in fabric.hosts})


def spread(state: FabricState, nodes: int, **more: object) -> GangPlan:
    plan = plan_gang(state, GangDemand(nodes=nodes, gpus_per_node=4, **more))  # type: ignore[arg-type]
    assert isinstance(plan, GangPlan) and len(plan.members) == nodes and len(plan.explanation) >= 2
    return plan


@pytest.mark.parametrize(("nodes", "leaves"), [(2, 1), (4, 1), (8, 1), (16, 1), (18, 1), (36, 2)])
def test_gb200_racks_hold_their_gangs(nodes: int, leaves: int) -> None:
    plan = spread(state_of("ibnetdiscover-gb200-nvl72-ndr.out"), nodes)
    assert plan.span["leaf"] == leaves and plan.span["spine"] == 1
    racks = Counter(member.node[:13] for member in plan.members)
    assert len(racks) == leaves and len(set(racks.values())) == 1
    assert all("dgx" in member.node for member in plan.members)


def test_gb200_gangs_fill_the_rack_with_the_fewest_machines_first() -> None:
    state = state_of("ibnetdiscover-gb200-nvl72-ndr.out")
    # 17 machines of rack a08 told their names, 18 of a07, b05: sixteen leave the least over where 16 are known.
    assert {member.node[:3] for member in spread(state, 16).members} == {"b07"}
    assert {member.node[:3] for member in spread(state, 17).members} == {"a08"}


def test_gb200_aligned_gangs_use_machines_with_all_four_rails_only() -> None:
    state = state_of("ibnetdiscover-gb200-nvl72-ndr.out")
    plan = spread(state, 18, rails_aligned=True, required_level="leaf")
    assert plan.rails == (0, 1, 2, 3)
    refusal = plan_gang(state, GangDemand(nodes=19, gpus_per_node=4, rails_aligned=True, required_level="leaf"))
    assert isinstance(refusal, GangRefusal) and refusal.largest_nodes == 18 and refusal.never


@pytest.mark.parametrize(("nodes", "blocks"), [(2, 1), (4, 1), (8, 1), (16, 1), (18, 1), (36, 2), (54, 3), (72, 4)])
def test_azure_gangs_stay_in_one_block_where_they_can(nodes: int, blocks: int) -> None:
    state = state_of("azure-block_topology.txt", "azure-nodes_clusterUUIDs.txt")
    plan = spread(state, nodes)
    assert plan.span["block"] == plan.span["domain"] == blocks
    assert any("18 at most" in says for says in plan.explanation) == (blocks > 1)


def test_azure_a_full_block_leaves_the_next_ones_whole() -> None:
    state = state_of("azure-block_topology.txt")
    state.take_plan(spread(state, 10))
    small = spread(state, 8)
    assert state.group[0][state.row[small.members[0].node]] == 0
    state.take_plan(small)
    assert spread(state, 54).span["block"] == 3
    assert isinstance(plan_gang(state, GangDemand(nodes=55, gpus_per_node=4)), GangRefusal)


@pytest.mark.parametrize(
    ("nodes", "span"),
    [
        (8, {"domain": 1, "leaf": 1, "spine": 1, "core": 1, "fabric": 1}),
        (16, {"domain": 2, "leaf": 2, "spine": 1, "core": 1, "fabric": 1}),
        (18, {"domain": 3, "leaf": 3, "spine": 2, "core": 1, "fabric": 1}),
        (36, {"domain": 5, "leaf": 5, "spine": 3, "core": 1, "fabric": 1}),
    ],
)
def test_topograph_trees_are_climbed_no_higher_than_needed(nodes: int, span: dict[str, int]) -> None:
    assert spread(state_of("topograph-model-large.yaml"), nodes).span == span


def test_slurm_blocks_that_go_together_are_a_level() -> None:
    state = state_of("topograph-expected.slinky-dra-block.conf")
    assert state.levels == ("block", "block-16", "block-32", "fabric")
    assert spread(state, 32).span == {"block": 4, "block-16": 2, "block-32": 1, "fabric": 1}
