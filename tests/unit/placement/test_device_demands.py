"""Shares, MIG instances, cores, memory and refusals: what `plan_devices` gives and what it says when it can't."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from machines import GIB, make_topology, rail_8
from steelyard.model.gpu_demand import GpuDemand, parse_gpu_demand
from steelyard.model.machine import Core, NumaNode
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing
from steelyard.model.topology import MigInstance, PathClass, Topology
from steelyard.placement.devices import DeviceDemand, DevicePlan, Used, make_demand
from steelyard.placement.gpus import GpuUse
from steelyard.placement.near_cores import BoundMemory, choose_cores, make_supply
from steelyard.placement.shortage import DeviceRefusal, plan_devices

NOTHING = Used()


def mig_machine() -> Topology:
    """GPU 0 whole; GPU 1 with three small instances, GPU 2 with two and a large one (without uuids)."""
    made = make_topology([0, 0, 1], lambda a, b: (PathClass.SYS, 0, None))
    small = [
        [MigInstance(f"MIG-{gpu}{at}", "1g.10gb", 10 * GIB, at, 0) for at in range(count)] for gpu, count in ((1, 3), (2, 2))
    ]
    large = MigInstance(None, "3g.40gb", 40 * GIB, 9, 0)
    gpus = (
        made.gpus[0],
        msgspec.structs.replace(made.gpus[1], mig=True, mig_instances=tuple(small[0])),
        msgspec.structs.replace(made.gpus[2], mig=True, mig_instances=(*small[1], large)),
    )
    return msgspec.structs.replace(made, gpus=gpus)


def plan(topology: Topology, text: str, used: Used = NOTHING) -> DevicePlan:
    answer = plan_devices(topology, used, DeviceDemand(parse_gpu_demand(text)))
    assert isinstance(answer, DevicePlan), answer
    return answer


def refusal(topology: Topology, demand: DeviceDemand, used: Used = NOTHING) -> DeviceRefusal:
    answer = plan_devices(topology, used, demand)
    assert isinstance(answer, DeviceRefusal), answer
    assert answer.reasons and answer.detail
    return answer


def test_instances_come_from_the_gpu_with_the_fewest_that_are_enough() -> None:
    topology = mig_machine()
    one = plan(topology, "1g.10gb")
    assert (one.gpus, one.mig_instances) == (("0000:12:00.0",), ("MIG-20",))
    assert plan(topology, "1g.10gb:3").mig_instances == ("MIG-10", "MIG-11", "MIG-12")
    # two are free on GPU 1 and one on GPU 2: together on GPU 1
    used = Used(gpus=GpuUse(instances=frozenset({"MIG-10", "MIG-20"})))
    assert plan(topology, "1g.10gb:2", used).mig_instances == ("MIG-11", "MIG-12")
    spread = plan(topology, "1g.10gb:4")
    assert spread.mig_instances == ("MIG-10", "MIG-11", "MIG-12", "MIG-20") and len(spread.gpus) == 2


def test_an_instance_without_uuid_is_named_by_its_gpu_and_numbers() -> None:
    assert plan(mig_machine(), "3g.40gb").mig_instances == ("0000:12:00.0/mig9.0",)


def test_missing_instances_are_refused_now_or_for_ever() -> None:
    topology = mig_machine()
    never = refusal(topology, DeviceDemand(parse_gpu_demand("2g.20gb")))
    assert never.never and never.reasons == (Reason.NO_MIG_INSTANCE,) and never.largest_possible["gpus"] == 0
    later = refusal(
        topology, DeviceDemand(parse_gpu_demand("3g.40gb")), Used(gpus=GpuUse(instances=frozenset({"0000:12:00.0/mig9.0"})))
    )
    assert not later.never and later.reasons == (Reason.NO_MIG_INSTANCE,)


def test_whole_gpus_are_never_those_with_mig_on_or_a_share_in_use() -> None:
    topology = mig_machine()
    assert plan(topology, "1").gpus == ("0000:10:00.0",)
    never = refusal(topology, DeviceDemand(GpuDemand(count=2)))
    assert never.never and never.reasons == (Reason.GPUS_BEYOND_MACHINE,) and never.largest_possible["gpus"] == 1
    assert "MIG" in never.detail
    later = refusal(topology, DeviceDemand(GpuDemand(count=1)), Used(gpus=GpuUse({"0000:10:00.0": 0.1})))
    assert not later.never and later.reasons == (Reason.NO_GPUS_LEFT,)


def test_shares_fill_the_fullest_gpu_that_still_has_room() -> None:
    topology = rail_8()
    ids = [gpu.id for gpu in topology.gpus]
    used = Used(gpus=GpuUse({ids[1]: 0.3, ids[5]: 0.6, ids[6]: 0.9}))
    assert plan(topology, "0.4", used).gpus == (ids[5],) and plan(topology, "0.4", used).gpu_fraction == 0.4
    assert plan(topology, "0.5", used).gpus == (ids[1],)
    assert plan(topology, "0.8", used).gpus == (ids[0],)
    assert plan(topology, "0.4:3", used).gpus == (ids[0], ids[1], ids[5])


def test_ten_tenths_are_a_whole_gpu() -> None:
    topology = make_topology([0], lambda a, b: (PathClass.SYS, 0, None))
    taken = 0.0
    for _ in range(10):
        plan(topology, "0.1", Used(gpus=GpuUse({topology.gpus[0].id: taken})))
        taken += 0.1
    full = refusal(topology, DeviceDemand(parse_gpu_demand("0.1")), Used(gpus=GpuUse({topology.gpus[0].id: taken})))
    assert full.reasons == (Reason.NO_FRACTION_LEFT,) and not full.never


def test_a_refusal_names_every_reason_and_what_is_possible() -> None:
    topology = rail_8()
    never = refusal(topology, make_demand(GpuDemand("H100", 9), 17, 64, 1 << 50, Timing.DEDICATED))
    assert never.never and never.reasons == (
        Reason.GPUS_BEYOND_MACHINE,
        Reason.NICS_BEYOND_MACHINE,
        Reason.CORES_BEYOND_MACHINE,
        Reason.MEMORY_BEYOND_MACHINE,
    )
    assert never.largest_possible == {"gpus": 8, "nics": 16, "cores": 63, "memory_bytes": 128 * GIB}
    used = Used(GpuUse({topology.gpus[0].id: 1.0}), frozenset({topology.nics[0].id}), frozenset({0}), 100 * GIB)
    later = refusal(topology, make_demand(GpuDemand("H100", 8), 16, 63, 100 * GIB, Timing.REALTIME), used)
    assert not later.never
    assert later.reasons == (Reason.NO_GPUS_LEFT, Reason.NO_NICS_LEFT, Reason.NO_CORES_LEFT, Reason.NO_MEMORY_LEFT)
    assert later.largest_possible == {"gpus": 7, "nics": 15, "cores": 62, "memory_bytes": 28 * GIB}


def test_an_unknown_model_is_refused_with_those_that_are_there() -> None:
    never = refusal(rail_8(), DeviceDemand(GpuDemand("A100")))
    assert never.never and never.reasons == (Reason.NO_SUCH_GPU,) and "NVIDIA H100 80GB HBM3" in never.detail
    bare = make_topology([None], lambda a, b: (PathClass.SYS, 0, None), name="")
    assert "nothing tells" in refusal(bare, DeviceDemand(GpuDemand("A100"))).detail


def test_cores_that_nobody_told_are_refused_with_a_sentence() -> None:
    topology = msgspec.structs.replace(rail_8(), cores=(), numa_nodes=(), memory_bytes=None)
    never = refusal(topology, DeviceDemand(GpuDemand(count=1), cores=2, memory_bytes=GIB))
    assert never.never and "no source tells the cores" in never.detail and "no source tells the memory" in never.detail


def test_each_gpu_gets_its_share_of_the_cores_on_its_own_node() -> None:
    answer = plan_devices(rail_8(), Used(), make_demand(GpuDemand(count=8), 0, 10, None, Timing.DEDICATED))
    assert isinstance(answer, DevicePlan)
    assert answer.cores == (*range(27, 32), *range(59, 64), *range(91, 96), *range(123, 128)) and answer.memory_nodes == (0, 1)


def test_best_effort_is_shown_near_cores() -> None:
    answer = plan_devices(rail_8(), Used(), make_demand(GpuDemand(count=2), 1, 16, GIB, Timing.BEST_EFFORT))
    assert isinstance(answer, DevicePlan) and answer.memory_nodes == (0,) and answer.core_count == 16


def test_local_memory_moves_the_cores_or_is_refused() -> None:
    topology = rail_8()
    # node 0 is half taken by somebody else: 40 GiB of local memory are to be had on node 1 only
    used = Used(memory_bytes=32 * GIB, bound=(BoundMemory(frozenset({0}), 32 * GIB),))
    moved = plan_devices(topology, used, make_demand(None, 0, 4, 40 * GIB, Timing.DEDICATED))
    assert isinstance(moved, DevicePlan) and moved.memory_nodes == (1,)
    spread = plan_devices(topology, used, make_demand(None, 0, 4, 80 * GIB, Timing.DEDICATED))
    assert isinstance(spread, DevicePlan) and spread.memory_nodes == (0, 1) and spread.core_count == 4
    one = refusal(topology, make_demand(None, 0, 1, 80 * GIB, Timing.DEDICATED), used)
    assert one.never and one.reasons == (Reason.NO_MEMORY_LEFT,) and "local" in one.detail
    held = Used(memory_bytes=50 * GIB, bound=(BoundMemory(frozenset({0, 1}), 50 * GIB),))
    later = refusal(topology, make_demand(None, 0, 1, 40 * GIB, Timing.DEDICATED), held)
    assert not later.never


def test_memory_of_a_gpu_is_never_given_to_a_process() -> None:
    topology = msgspec.structs.replace(rail_8(), gpu_memory_nodes=(0,))
    answer = plan_devices(topology, Used(), make_demand(GpuDemand(count=1), 0, 2, GIB, Timing.DEDICATED))
    assert isinstance(answer, DevicePlan) and answer.memory_nodes == (1,)


def test_a_topology_without_wires_says_so() -> None:
    topology = msgspec.structs.replace(rail_8(), pairs=())
    answer = plan(topology, "2")
    assert answer.bottleneck is not None and answer.bottleneck.path is PathClass.SYS and "no source tells" in answer.notes[0]


@settings(max_examples=150)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    near=st.dictionaries(st.integers(0, 3), st.integers(1, 4), min_size=1, max_size=3),
    far=st.lists(st.integers(11, 40), min_size=6, max_size=6),
    memory=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    data=st.data(),
)
def test_near_cores_are_the_nearest_and_hold_the_memory_if_any_can(
    sizes: list[int], near: dict[int, int], far: list[int], memory: list[int], data: st.DataObject
) -> None:
    """Against trying every number of cores per node."""
    cores = [Core((100 * node + at,), 0, node) for node, size in enumerate(sizes) for at in range(size)]
    numbers = iter(far)
    rows = [[10] * 4 for _ in range(4)]
    for a, b in itertools.combinations(range(4), 2):
        rows[a][b] = rows[b][a] = next(numbers)
    nodes = [NumaNode(node, (), memory[node]) for node in range(4)]
    supply = make_supply(cores, nodes, rows)
    count = data.draw(st.integers(0, len(cores)))
    local = data.draw(st.none() | st.integers(1, 6))
    choice = choose_cores(supply, near, count, local)
    assert len(set(choice.cores)) == count == len(choice.cores)
    splits = [split for split in itertools.product(*(range(size + 1) for size in sizes)) if sum(split) == count]

    def measure(split: tuple[int, ...]) -> tuple[int, int]:
        distance = sum(number * min(rows[own][node] for own in near) for node, number in enumerate(split))
        return sum(number for node, number in enumerate(split) if node not in near), distance

    if local is None:
        assert (choice.far, choice.distance) == min(map(measure, splits))
    else:
        able = [split for split in splits if sum(memory[node] for node, number in enumerate(split) if number) >= local]
        assert choice.holds_memory is bool(able)
