"""Does a process learn which devices are its own, and no others?"""

from __future__ import annotations

import msgspec

from machines import make_hgx
from steelyard.agent.device_proof import explain_share
from steelyard.lifecycle.environment import make_environment, read_gpus
from steelyard.model.job import Plan
from steelyard.model.timing import Timing
from steelyard.model.topology import Topology

HGX = make_hgx()
NAMED = msgspec.structs.replace(
    HGX, gpus=tuple(msgspec.structs.replace(gpu, uuid=f"GPU-{index}") for index, gpu in enumerate(HGX.gpus))
)


def test_gpus_are_named_by_uuid_in_the_order_of_the_plan() -> None:
    plan = Plan(gpus=(NAMED.gpus[3].id, NAMED.gpus[0].id))
    env = make_environment(plan, NAMED, {})
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-3,GPU-0"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["STEELYARD_GPUS"] == f"{NAMED.gpus[3].id},{NAMED.gpus[0].id}"


def test_a_gpu_without_a_known_uuid_goes_by_the_drivers_index() -> None:
    assert make_environment(Plan(gpus=(HGX.gpus[5].id,)), HGX, {})["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_mig_instance_is_what_cuda_sees() -> None:
    plan = Plan(gpus=(NAMED.gpus[0].id,), mig_instances=("MIG-a",))
    assert make_environment(plan, NAMED, {})["CUDA_VISIBLE_DEVICES"] == "MIG-a"


def test_work_without_gpus_sees_none_where_there_are_some() -> None:
    env = make_environment(Plan(), NAMED, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert (env["CUDA_VISIBLE_DEVICES"], env["NVIDIA_VISIBLE_DEVICES"]) == ("", "void")


def test_a_machine_without_gpus_says_nothing_of_them() -> None:
    env = make_environment(Plan(), Topology(), {"CUDA_VISIBLE_DEVICES": "0"})
    assert env["CUDA_VISIBLE_DEVICES"] == "0" and "NVIDIA_VISIBLE_DEVICES" not in env


def test_amd_cards_are_named_for_rocm() -> None:
    cards = tuple(msgspec.structs.replace(gpu, vendor="AMD") for gpu in HGX.gpus)
    machine = msgspec.structs.replace(HGX, gpus=cards)
    env = make_environment(Plan(gpus=(cards[2].id,)), machine, {})
    assert env["ROCR_VISIBLE_DEVICES"] == "2" and "CUDA_VISIBLE_DEVICES" not in env


def test_nccl_and_ucx_take_the_chosen_cards() -> None:
    env = make_environment(Plan(nics=(HGX.nics[1].id, HGX.nics[6].id)), HGX, {})
    assert env["NCCL_IB_HCA"] == "=mlx5_1:1,mlx5_6:1"
    assert env["UCX_NET_DEVICES"] == "mlx5_1:1,mlx5_6:1"


def test_openmp_gets_a_place_per_own_core_and_the_user_may_say_otherwise() -> None:
    plan = Plan(cpus=(4, 5), memory_nodes=(0,), timing=Timing.DEDICATED)
    env = make_environment(plan, HGX, {"OMP_NUM_THREADS": "1"})
    assert (env["OMP_PLACES"], env["OMP_PROC_BIND"], env["OMP_NUM_THREADS"]) == ("{4},{5}", "close", "1")
    assert (env["STEELYARD_CPUS"], env["STEELYARD_MEMORY_NODES"], env["STEELYARD_TIMING"]) == ("4,5", "0", "dedicated")


def test_in_the_common_cores_openmp_is_left_alone() -> None:
    assert not [name for name in make_environment(Plan(), HGX, {}) if name.startswith("OMP")]


def test_mps_is_told_the_share_and_a_whole_gpu_or_an_instance_needs_none() -> None:
    half = Plan(gpus=(NAMED.gpus[0].id,), gpu_fraction=0.5)
    env = make_environment(half, NAMED, {}, mps=True)
    assert env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=40779M"
    assert not [name for name in make_environment(half, NAMED, {}) if "MPS" in name]
    assert not [name for name in make_environment(Plan(gpus=half.gpus), NAMED, {}, mps=True) if "MPS" in name]


def test_what_a_process_was_told_is_read_back_as_ids() -> None:
    ids = (NAMED.gpus[3].id, NAMED.gpus[0].id)
    assert read_gpus(make_environment(Plan(gpus=ids), NAMED, {}), NAMED) == sorted(ids)
    assert read_gpus(make_environment(Plan(), NAMED, {}), NAMED) == []
    assert read_gpus({}, NAMED) is None
    assert read_gpus({"CUDA_VISIBLE_DEVICES": "GPU-of-somebody"}, NAMED) == ["GPU-of-somebody"]


def test_a_share_that_nothing_holds_is_said_to_be_not_enforced() -> None:
    half = Plan(gpus=("0000:11:00.0",), gpu_fraction=0.5)
    assert "NOT ENFORCED" in explain_share(half, mps=False)[0][0]
    assert explain_share(half, mps=True)[0] == () and "NOT VERIFIED" in explain_share(half, mps=True)[1][0]
    assert explain_share(Plan(gpus=half.gpus), mps=False) == ((), ())
    assert explain_share(Plan(gpus=half.gpus, gpu_fraction=0.5, mig_instances=("MIG-a",)), mps=False) == ((), ())
