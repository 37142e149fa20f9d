"""GPUs and cards in the plans of one machine: nobody gets what another holds, and a plan is checked again before it starts."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from machines import GIB, machine_of, make_topology, rail_8
from steelyard.model.gpu_demand import GpuDemand, parse_gpu_demand
from steelyard.model.job import Plan, Resources
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing
from steelyard.model.topology import MigInstance, PathClass, Topology
from steelyard.placement.machine import Refusal, check_plan, place

RAIL = rail_8()
MACHINE = machine_of(RAIL)


def seen(machine: Machine, topology: Topology) -> Machine:
    return msgspec.structs.replace(machine, topology=topology)


def put(demand: Resources, running: list[tuple[Resources, Plan]]) -> Plan:
    plan = place(MACHINE, running, demand)
    assert isinstance(plan, Plan), plan
    assert check_plan(MACHINE, running, demand, plan) == ()
    running.append((demand, plan))
    return plan


def test_a_dedicated_job_gets_gpus_cards_cores_and_memory_of_one_node() -> None:
    running: list[tuple[Resources, Plan]] = []
    demand = Resources(8, 16 * GIB, timing=Timing.DEDICATED, gpus=GpuDemand("H100", 4), nics=4)
    first, second = put(demand, running), put(demand, running)
    assert first.gpus == tuple(f"0000:{0x10 + at:02x}:00.0" for at in range(4)) and first.memory_nodes == (0,)
    assert first.timing is Timing.DEDICATED and len(first.cpus) == 16
    assert second.memory_nodes == (1,) and not set(first.gpus) & set(second.gpus) and not set(first.nics) & set(second.nics)
    third = place(MACHINE, running, demand)
    assert isinstance(third, Refusal) and not third.never and third.reasons == (Reason.NO_GPUS_LEFT,)
    assert third.largest.gpus == 0 and third.largest.nics == 8 and third.largest.exclusive_cores == 47


def test_a_best_effort_job_with_a_gpu_shares_the_common_cores() -> None:
    plan = put(Resources(2.5, GIB, gpus=GpuDemand()), [])
    assert plan.cpus == () and plan.memory_nodes == () and plan.share == 2.5 and plan.gpus == ("0000:10:00.0",)


def test_shares_of_a_gpu_add_up_over_jobs() -> None:
    running: list[tuple[Resources, Plan]] = []
    half = Resources(0.5, gpus=parse_gpu_demand("H100:0.5"))
    assert [put(half, running).gpus[0][5:7] for _ in range(4)] == ["10", "10", "11", "11"]
    assert put(Resources(1, gpus=GpuDemand(count=6)), running).gpus[0] == "0000:12:00.0"
    full = place(MACHINE, running, half)
    assert isinstance(full, Refusal) and full.reasons == (Reason.NO_FRACTION_LEFT,)


def test_without_a_topology_there_is_no_gpu_to_give() -> None:
    blind = msgspec.structs.replace(MACHINE, topology=None)
    answer = place(blind, (), Resources(gpus=GpuDemand()))
    assert isinstance(answer, Refusal) and answer.never and answer.reasons == (Reason.GPUS_BEYOND_MACHINE,)
    nics = place(blind, (), Resources(nics=1))
    assert isinstance(nics, Refusal) and nics.never and nics.reasons == (Reason.NICS_BEYOND_MACHINE,)


def test_beyond_the_machine_names_everything_at_once() -> None:
    answer = place(MACHINE, (), Resources(100, 1 << 50, gpus=GpuDemand(count=9), nics=17))
    assert isinstance(answer, Refusal) and answer.never and len(answer.reasons) == 4
    assert (answer.largest.gpus, answer.largest.nics) == (8, 16)


def test_dedicated_memory_stays_on_the_nodes_of_its_cores() -> None:
    answer = place(MACHINE, (), Resources(1, 100 * GIB, timing=Timing.DEDICATED))
    assert isinstance(answer, Refusal) and answer.never and answer.reasons == (Reason.NO_MEMORY_LEFT,)
    plan = place(MACHINE, (), Resources(2, 100 * GIB, timing=Timing.REALTIME))
    assert isinstance(plan, Plan) and plan.memory_nodes == (0, 1) and plan.timing is Timing.REALTIME
    running: list[tuple[Resources, Plan]] = []
    forty = Resources(1, 40 * GIB, timing=Timing.DEDICATED)
    assert sorted(put(forty, running).memory_nodes + put(forty, running).memory_nodes) == [0, 1]
    third = place(MACHINE, running, forty)
    assert isinstance(third, Refusal) and not third.never
    copied = check_plan(MACHINE, running, forty, msgspec.structs.replace(running[0][1], cpus=(5,)))
    assert any("NUMA nodes" in finding for finding in copied)


def test_a_gpu_or_card_that_vanished_is_found_before_the_start() -> None:
    demand = Resources(1, gpus=GpuDemand(count=2), nics=1)
    plan = put(demand, [])
    less = msgspec.structs.replace(RAIL, gpus=RAIL.gpus[1:], nics=RAIL.nics[1:])
    findings = check_plan(seen(MACHINE, less), (), demand, plan)
    assert len(findings) == 2 and all("no longer" in finding for finding in findings)
    taken = check_plan(MACHINE, [(demand, plan)], demand, plan)
    assert len(taken) == 3 and all("not free" in finding for finding in taken)


def test_mig_turned_on_or_off_after_planning_is_found() -> None:
    made = make_topology([0], lambda a, b: (PathClass.SYS, 0, None))
    instance = MigInstance("MIG-1", "1g.10gb", GIB, 1, 0)
    mig = msgspec.structs.replace(made, gpus=(msgspec.structs.replace(made.gpus[0], mig=True, mig_instances=(instance,)),))
    whole, part = Resources(gpus=GpuDemand()), Resources(gpus=parse_gpu_demand("1g.10gb"))
    machine = machine_of(made)
    whole_plan, part_plan = place(seen(machine, made), (), whole), place(seen(machine, mig), (), part)
    assert isinstance(whole_plan, Plan) and isinstance(part_plan, Plan) and part_plan.mig_instances == ("MIG-1",)
    assert "MIG on" in check_plan(seen(machine, mig), (), whole, whole_plan)[0]
    assert "no longer" in check_plan(seen(machine, made), (), part, part_plan)[0]
    assert "not free" in check_plan(seen(machine, mig), [(part, part_plan)], part, part_plan)[0]
    assert check_plan(seen(machine, mig), (), part, part_plan) == ()


asked = st.builds(
    Resources,
    cpus=st.integers(1, 20).map(float),
    memory_bytes=st.none() | st.integers(1, 60).map(lambda size: size * GIB),
    timing=st.sampled_from(Timing),
    gpus=st.none() | st.sampled_from(["1", "2", "H100:4", "0.5", "0.25:2", "80GB:3", "A100"]).map(parse_gpu_demand),
    nics=st.integers(0, 4),
)


@settings(max_examples=60)
@given(wanted=st.lists(st.tuples(asked, st.booleans()), max_size=12))
def test_nothing_is_ever_given_twice(wanted: list[tuple[Resources, bool]]) -> None:
    running: list[tuple[Resources, Plan]] = []
    for demand, ends_one in wanted:
        answer = place(MACHINE, running, demand)
        if isinstance(answer, Refusal):
            assert answer.reasons and answer.never == isinstance(place(MACHINE, (), demand), Refusal)
        else:
            assert check_plan(MACHINE, running, demand, answer) == ()
            assert len(answer.gpus) == (demand.gpus.count if demand.gpus else 0) and len(answer.nics) == demand.nics
            assert bool(answer.cpus) == demand.whole_cores
            running.append((demand, answer))
        shares: dict[str, float] = {}
        for _, plan in running:
            for gpu in plan.gpus:
                shares[gpu] = shares.get(gpu, 0.0) + plan.gpu_fraction
        assert all(share <= 1 for share in shares.values())
        for held in ([nic for _, plan in running for nic in plan.nics], [cpu for _, plan in running for cpu in plan.cpus]):
            assert len(held) == len(set(held))
        for node in (0, 1):
            only = sum(a.memory_bytes or 0 for a, p in running if p.memory_nodes == (node,))
            assert only <= 64 * GIB
        if ends_one and running:
            running.pop(0)


def test_what_is_out_of_use_is_not_chosen_and_named_when_it_is_missed() -> None:
    sick = msgspec.structs.replace(MACHINE, blocked=(RAIL.gpus[0].id, RAIL.nics[0].id))
    plan = place(sick, (), Resources(1, gpus=GpuDemand(count=7), nics=1))
    assert isinstance(plan, Plan)
    assert RAIL.gpus[0].id not in plan.gpus and RAIL.nics[0].id not in plan.nics
    answer = place(sick, (), Resources(1, gpus=GpuDemand(count=8)))
    assert isinstance(answer, Refusal) and not answer.never
    assert RAIL.gpus[0].id in answer.detail and "steelyard check" in answer.detail


def test_two_gpus_whose_link_is_lost_are_given_singly_but_not_together() -> None:
    pair = (RAIL.gpus[0].id, RAIL.gpus[1].id)
    sick = msgspec.structs.replace(MACHINE, blocked_pairs=(pair,))
    every = [place(sick, (), Resources(1, gpus=GpuDemand(count=count))) for count in range(1, 8)]
    assert all(isinstance(plan, Plan) and not set(pair) <= set(plan.gpus) for plan in every)
    assert isinstance(place(sick, (), Resources(1, gpus=GpuDemand(count=8))), Refusal)
    running = [(Resources(1, gpus=GpuDemand(count=7)), every[6])]
    assert isinstance(running[0][1], Plan)
    last = place(sick, [(running[0][0], running[0][1])], Resources(1, gpus=GpuDemand()))
    assert isinstance(last, Plan) and last.gpus[0] in pair


def test_cores_beside_memory_that_is_out_of_use_are_not_given() -> None:
    sick = msgspec.structs.replace(MACHINE, blocked=("numa:0",))
    plan = place(sick, (), Resources(4, timing=Timing.DEDICATED))
    assert isinstance(plan, Plan) and plan.memory_nodes == (1,)


def test_one_gpu_that_lost_all_its_links_leaves_the_others_together() -> None:
    lost = tuple((RAIL.gpus[0].id, gpu.id) for gpu in RAIL.gpus[1:])
    sick = msgspec.structs.replace(MACHINE, blocked_pairs=lost)
    plan = place(sick, (), Resources(1, gpus=GpuDemand(count=7)))
    assert isinstance(plan, Plan) and plan.gpus == tuple(gpu.id for gpu in RAIL.gpus[1:])
    whole = place(sick, (), Resources(1, gpus=GpuDemand(count=8)))
    assert isinstance(whole, Refusal) and not whole.never and "links" in whole.detail


def test_a_lost_link_forbids_only_the_sets_that_hold_it() -> None:
    sick = msgspec.structs.replace(MACHINE, blocked_pairs=((RAIL.gpus[0].id, RAIL.gpus[1].id),))
    running = [(Resources(1, gpus=GpuDemand()), Plan(gpus=(gpu.id,))) for gpu in (RAIL.gpus[0], *RAIL.gpus[3:])]
    plan = place(sick, running, Resources(1, gpus=GpuDemand(count=2)))
    assert isinstance(plan, Plan) and plan.gpus == (RAIL.gpus[1].id, RAIL.gpus[2].id)


def test_memory_that_no_node_tells_is_bound_to_none_and_the_plan_holds() -> None:
    blind = msgspec.structs.replace(
        MACHINE, numa_nodes=tuple(msgspec.structs.replace(node, memory_bytes=0) for node in MACHINE.numa_nodes)
    )
    demand = Resources(2, 8 * GIB, timing=Timing.DEDICATED)
    plan = place(blind, (), demand)
    assert isinstance(plan, Plan) and check_plan(blind, (), demand, plan) == ()
