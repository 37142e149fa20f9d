"""Gangs on one machine: chosen together, split without remainder, all or none."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machines import GIB, cube_mesh, machine_of, nvswitch_16, rail_8
from recorded import recorded
from steelyard.host.topology.read import read_topology
from steelyard.model.batch import Gang, Launcher
from steelyard.model.gpu_demand import GpuDemand, parse_gpu_demand
from steelyard.model.job import Plan, Resources, multiply
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing
from steelyard.model.topology import MigInstance
from steelyard.placement.gang import place_gang
from steelyard.placement.refusal import Refusal
from steelyard.placement.room import Room

RAIL = machine_of(rail_8())


def put(machine: Machine, each: Resources, ranks: int, room: Room | None = None) -> Plan:
    room = room or Room(machine)
    plan = place_gang(room, each, Gang(1, ranks))
    assert isinstance(plan, Plan), plan
    assert_whole(room, each, ranks, plan)
    room.take(multiply(each, ranks), plan)
    return plan


def assert_whole(room: Room, each: Resources, ranks: int, plan: Plan) -> None:
    """The parts make the whole, each part is what a rank asked for, and the whole can be carried out."""
    demand = multiply(each, ranks)
    assert room.check(demand, plan) == ()
    assert len(plan.tasks) == ranks
    for field in ("cpus", "nics", "gpus", "mig_instances"):
        parts = [name for task in plan.tasks for name in getattr(task, field)]
        if field == "gpus" and plan.mig_instances:
            assert set(parts) == set(plan.gpus), "ranks may have parts of one GPU"
        else:
            assert sorted(parts) == sorted(getattr(plan, field)), field
    assert sum(task.memory_bytes or 0 for task in plan.tasks) == (plan.memory_bytes or 0) == (demand.memory_bytes or 0)
    assert sum(task.share for task in plan.tasks) == pytest.approx(plan.share)
    gpus = each.gpus.count if each.gpus is not None else 0
    for task in plan.tasks:
        assert len(task.mig_instances or task.gpus) == gpus and len(task.nics) == each.nics
        assert task.memory_bytes == each.memory_bytes and not task.tasks and task.timing is each.timing
        assert set(task.memory_nodes) <= set(plan.memory_nodes) and bool(task.memory_nodes) == bool(plan.memory_nodes)
    assert len({len(task.cpus) for task in plan.tasks}) == 1


def node_of(machine: Machine, device: str) -> int | None:
    assert machine.topology is not None
    return next(each.numa_node for each in (*machine.topology.gpus, *machine.topology.nics) if each.id == device)


def test_eight_ranks_get_a_gpu_each_with_its_card_and_cores_beside_it() -> None:
    plan = put(RAIL, Resources(4, 8 * GIB, timing=Timing.DEDICATED, gpus=GpuDemand(count=1), nics=1), 8)
    cores = {cpu: core for core in RAIL.cores for cpu in core.cpus}
    for rank, task in enumerate(plan.tasks):
        assert task.gpus == (f"0000:{0x10 + rank:02x}:00.0",)
        assert len(task.cpus) == 8 and {cores[cpu].numa_node for cpu in task.cpus} == {node_of(RAIL, task.gpus[0])}
        assert task.memory_nodes == (node_of(RAIL, task.gpus[0]),)
        assert int(task.nics[0][5:7], 16) - 0x80 in (2 * rank, 2 * rank + 1), "a card behind the GPU's own switch"


def test_ranks_with_two_gpus_each_get_pairs_with_the_most_links() -> None:
    mesh = machine_of(cube_mesh())
    plan = put(mesh, Resources(1, gpus=GpuDemand(count=2)), 4)
    assert mesh.topology is not None
    links = {frozenset((pair.a, pair.b)): pair.links for pair in mesh.topology.pairs}
    assert [links[frozenset(task.gpus)] for task in plan.tasks] == [2, 2, 2, 2]


def test_ranks_with_half_of_the_gpus_each_stay_on_their_numa_node() -> None:
    big = machine_of(nvswitch_16())
    plan = put(big, Resources(8, gpus=GpuDemand(count=8), exclusive=True), 2)
    assert [{node_of(big, gpu) for gpu in task.gpus} for task in plan.tasks] == [{0}, {1}]


def test_ranks_without_devices_stay_on_one_numa_node_each() -> None:
    plan = put(RAIL, Resources(20, exclusive=True), 3)
    cores = {cpu: core.numa_node for core in RAIL.cores for cpu in core.cpus}
    spans = [len({cores[cpu] for cpu in task.cpus}) for task in plan.tasks]
    assert sorted(spans) == [1, 1, 2]


def test_neighbours_in_rank_share_a_numa_node() -> None:
    plan = put(RAIL, Resources(8, exclusive=True), 6)
    cores = {cpu: core.numa_node for core in RAIL.cores for cpu in core.cpus}
    assert [{cores[cpu] for cpu in task.cpus} for task in plan.tasks] == [{0}, {0}, {1}, {1}, {1}, {1}]


def test_each_rank_has_whole_cores_of_its_own() -> None:
    plan = put(RAIL, Resources(1.5, exclusive=True), 3)
    assert plan.share == 6 and [len(task.cpus) for task in plan.tasks] == [4, 4, 4]


@pytest.mark.parametrize("launcher", [Launcher.TORCHRUN, Launcher.MPI])
def test_one_process_that_starts_the_ranks_gets_the_whole(launcher: Launcher) -> None:
    each = Resources(2, GIB, gpus=GpuDemand(count=2))
    plan = place_gang(Room(RAIL), each, Gang(1, 4, launcher))
    assert isinstance(plan, Plan) and plan.tasks == () and len(plan.gpus) == 8 and plan.memory_bytes == 4 * GIB


def test_more_nodes_than_machines_can_never_be_had() -> None:
    answer = place_gang(Room(RAIL), Resources(1), Gang(2, 4))
    assert isinstance(answer, Refusal) and answer.never and answer.reasons == (Reason.GANG_BEYOND_FABRIC,)
    assert answer.detail == "this Steelyard has 1 machine, 2 nodes asked"


def test_a_gang_gets_all_or_nothing() -> None:
    room = Room(RAIL)
    put(RAIL, Resources(1, gpus=GpuDemand(count=1)), 3, room)
    six = place_gang(room, Resources(1, gpus=GpuDemand(count=1)), Gang(1, 6))
    assert isinstance(six, Refusal) and not six.never and six.reasons == (Reason.NO_GPUS_LEFT,) and six.largest.gpus == 5
    nine = place_gang(room, Resources(1, gpus=GpuDemand(count=1)), Gang(1, 9))
    assert isinstance(nine, Refusal) and nine.never


def test_ranks_with_shares_fill_gpus_one_after_the_other() -> None:
    room = Room(RAIL)
    plan = put(RAIL, Resources(0.5, gpus=parse_gpu_demand("0.4")), 3, room)
    first, second = "0000:10:00.0", "0000:11:00.0"
    assert plan.gpus == (first, first, second) and plan.gpu_fraction == 0.4
    assert put(RAIL, Resources(0.5, gpus=parse_gpu_demand("0.6")), 1, room).gpus == (second,)
    left = place_gang(room, Resources(0.5, gpus=parse_gpu_demand("0.4")), Gang(1, 13))
    assert isinstance(left, Refusal) and not left.never and left.detail.startswith("12 of 13 ranks fit now")
    never = place_gang(room, Resources(0.5, gpus=parse_gpu_demand("0.4")), Gang(1, 17))
    assert isinstance(never, Refusal) and never.never


def test_the_check_counts_a_gpu_that_ranks_share_once_for_each() -> None:
    room, half = Room(RAIL), Resources(0.5, gpus=parse_gpu_demand("0.5"))
    put(RAIL, half, 1, room)
    gpu = "0000:10:00.0"
    assert room.check(multiply(half, 2), Plan(gpus=(gpu, gpu), gpu_fraction=0.5)) == (f"GPU {gpu} is not free",)
    assert room.check(half, Plan(gpus=(gpu,), gpu_fraction=0.5)) == ()


def test_mig_instances_are_dealt_to_ranks() -> None:
    topology = rail_8()
    parts = tuple(MigInstance(f"MIG-{at}", "1g.10gb", 10 * GIB, at, 0) for at in range(7))
    gpu = msgspec.structs.replace(topology.gpus[0], mig=True, mig_instances=parts)
    machine = machine_of(msgspec.structs.replace(topology, gpus=(gpu, *topology.gpus[1:])))
    plan = put(machine, Resources(1, gpus=parse_gpu_demand("H100:1g.10gb:2")), 3)
    assert [task.mig_instances for task in plan.tasks] == [("MIG-0", "MIG-1"), ("MIG-2", "MIG-3"), ("MIG-4", "MIG-5")]


gangs = st.tuples(
    st.builds(
        Resources,
        cpus=st.sampled_from([0.25, 1, 1.5, 3]),
        memory_bytes=st.none() | st.sampled_from([GIB, 12 * GIB]),
        exclusive=st.booleans(),
        gpus=st.none() | st.sampled_from(["1", "2", "3", "0.4", "0.5:2"]).map(parse_gpu_demand),
        nics=st.integers(0, 2),
    )
    | st.builds(
        Resources,
        cpus=st.sampled_from([1, 2]),
        memory_bytes=st.none() | st.sampled_from([GIB, 12 * GIB]),
        timing=st.sampled_from([Timing.DEDICATED, Timing.REALTIME]),
        gpus=st.none() | st.just(GpuDemand(count=1)),
    ),
    st.integers(1, 6),
)
MACHINES = [RAIL, machine_of(cube_mesh()), machine_of(nvswitch_16())]


@settings(max_examples=80)
@given(machine=st.sampled_from(MACHINES), wanted=st.lists(gangs, min_size=1, max_size=5))
def test_the_parts_of_any_gang_make_the_whole(machine: Machine, wanted: list[tuple[Resources, int]]) -> None:
    room = Room(machine)
    for each, ranks in wanted:
        answer = place_gang(room, each, Gang(1, ranks))
        if isinstance(answer, Plan):
            assert_whole(room, each, ranks, answer)
            room.take(multiply(each, ranks), answer)


@pytest.mark.parametrize(
    "name",
    [
        "hwloc-xml/hwloc-nvidiaDGX2.xml",
        "hwloc-xml/hwloc-AMD-2xEpyc-7763.xml",
        "hwloc-xml/fluxcore-sierra.xml",
        "nccl-topo/aws-p4d-24xl-topo.xml",
        "nccl-topo/azure-ndv2-topo.xml",
        "nccl-topo/oci-H100-topology.xml",
        "nccl-topo/rccl-topo_8p1h_1.xml",
    ],
)
def test_gangs_on_recorded_machines_are_split_without_remainder(name: str) -> None:
    machine = machine_of(read_topology([recorded(name)]))
    assert machine.topology is not None
    gpus = sum(1 for gpu in machine.topology.gpus if not gpu.mig)
    if len(machine.cores) > 8:
        put(machine, Resources(2, exclusive=True), 3)
        put(machine, Resources(1, timing=Timing.REALTIME), 2)
    shares = 0.1 if len(machine.cores) else None
    for count in (1, 2, 4):
        if gpus >= count and shares is not None:
            put(machine, Resources(shares, gpus=GpuDemand(count=count)), gpus // count)
