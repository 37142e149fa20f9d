from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorded import recorded
from steelyard.errors import Refused
from steelyard.host.topology.merge import merge
from steelyard.host.topology.nccl import read_nccl_xml
from steelyard.host.topology.nvidia_matrix import read_nvidia_matrix
from steelyard.host.topology.nvidia_smi import read_nvidia_smi_text
from steelyard.model.machine import Core, NumaNode
from steelyard.model.topology import (
    Bridge,
    BridgeKind,
    Gpu,
    MigInstance,
    Nic,
    Pair,
    PathClass,
    Port,
    Switch,
    SwitchKind,
    Topology,
)

A, B, CARD = "0000:0a:00.0", "0000:0b:00.0", "0000:0c:00.0"
TREE = Topology(
    sources=("tree",),
    packages=1,
    numa_nodes=(NumaNode(0, (0, 1, 2, 3), 64 << 30),),
    cores=(Core((0, 2)), Core((1, 3))),
    memory_bytes=64 << 30,
    gpus=(Gpu(A, pci=A, numa_node=0, parent="host0"), Gpu(B, pci=B, numa_node=0, parent="host0")),
    nics=(Nic(CARD, name="mlx5_0", pci=CARD, ports=(Port("mlx5_0"),), parent="host0"),),
    bridges=(Bridge("host0", BridgeKind.HOST, numa_node=0),),
    pairs=(Pair(A, B, PathClass.PHB), Pair(A, CARD, PathClass.PHB), Pair(B, CARD, PathClass.PHB)),
)
DRIVER = Topology(
    sources=("driver",),
    smt_known=False,
    gpus=(Gpu(B, name="H100", pci=B, index=1, memory_bytes=80 << 30), Gpu(A, name="H100", pci=A, index=0, memory_bytes=80 << 30)),
)
MATRIX = Topology(
    sources=("matrix",),
    smt_known=False,
    gpus=(Gpu("GPU0", index=0), Gpu("GPU1", index=1)),
    nics=(Nic("NIC0", name="mlx5_0", rdma=True), Nic("NIC1", name="mlx5_9")),
    pairs=(
        Pair("GPU0", "GPU1", PathClass.NV, links=18),
        Pair("GPU0", "NIC0", PathClass.PIX),
        Pair("GPU0", "NIC1", PathClass.SYS),
        Pair("GPU1", "NIC0", PathClass.PHB),
        Pair("GPU1", "NIC1", PathClass.SYS),
        Pair("NIC0", "NIC1", PathClass.SYS),
    ),
)


def test_later_sources_fill_what_is_missing() -> None:
    merged = merge([TREE, DRIVER])
    assert [(gpu.id, gpu.name, gpu.index, gpu.numa_node, gpu.parent) for gpu in merged.gpus] == [
        (A, "H100", 0, 0, "host0"),
        (B, "H100", 1, 0, "host0"),
    ]
    assert merged.sources == ("tree", "driver") and merged.notes == () and merged.packages == 1


def test_the_tree_of_a_later_source_is_taken_over_whole() -> None:
    merged = merge([DRIVER, TREE])
    assert merged.bridges == TREE.bridges and [gpu.parent for gpu in merged.gpus] == ["host0", "host0"]
    assert merged.cores == TREE.cores and merged.smt_known
    assert [(pair.a, pair.b) for pair in merged.pairs] == [(B, A), (B, CARD), (A, CARD)]  # in the order of the merged devices


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [2, 0, 1], [1, 2, 0]])
def test_a_bare_matrix_joins_by_number_and_its_nics_by_name(order: list[int]) -> None:
    merged = merge([[TREE, DRIVER, MATRIX][place] for place in order])
    assert {gpu.id for gpu in merged.gpus} == {A, B} and {nic.id for nic in merged.nics} == {CARD, "NIC1"}
    best = {frozenset((pair.a, pair.b)): pair for pair in merged.pairs}
    assert best[frozenset((A, B))].class_name == "NV18"  # over the tree's PHB, and no contradiction
    assert not any("NV18" in note for note in merged.notes)
    contradiction = next(note for note in merged.notes if "PIX" in note)
    assert "tree says PHB" in contradiction and "matrix says PIX" in contradiction and "the first is used" in contradiction
    assert best[frozenset((A, CARD))].path is (PathClass.PHB if order.index(0) < order.index(2) else PathClass.PIX)


def test_a_matrix_is_not_joined_by_guess() -> None:
    with pytest.raises(Refused, match="add the nvidia-smi -q -x"):
        merge([TREE, MATRIX])
    few = msgspec.structs.replace(MATRIX, gpus=MATRIX.gpus[:1], pairs=())
    with pytest.raises(Refused, match="has 1 GPUs and driver has 2"):
        merge([DRIVER, few])


def test_a_nic_that_may_be_another_one_is_left_out() -> None:
    nameless = msgspec.structs.replace(TREE, nics=(Nic(CARD, pci=CARD),))
    merged = merge([nameless, DRIVER, MATRIX])
    assert [nic.id for nic in merged.nics] == [CARD] and any("mlx5_9" in note for note in merged.notes)


def test_every_disagreement_is_a_sentence_and_the_first_source_wins() -> None:
    other = msgspec.structs.replace(
        DRIVER, sources=("other",), gpus=(Gpu(A, name="A100", pci=A, memory_bytes=40 << 30, links=4),)
    )
    merged = merge([DRIVER, other])
    assert merged.gpus[1].memory_bytes == 80 << 30 and merged.gpus[1].links == 4
    assert f"GPU {A}: driver says memory_bytes 80 GiB, other says 40 GiB; the first is used." in merged.notes
    assert f"GPU {A}: driver says name H100, other says A100; the first is used." in merged.notes
    assert any("does not list the GPUs 0000:0b:00.0" in note for note in merged.notes)
    assert merge([other, DRIVER]).gpus[0].memory_bytes == 40 << 30


def test_small_differences_in_counting_are_none() -> None:
    other = msgspec.structs.replace(
        DRIVER, gpus=(Gpu(A, name="NVIDIA H100 80GB", pci=A, memory_bytes=81559 << 20), DRIVER.gpus[0])
    )
    assert merge([DRIVER, other]).notes == ()


def test_different_machines_are_refused() -> None:
    elsewhere = msgspec.structs.replace(DRIVER, gpus=(Gpu("0000:77:00.0", pci="0000:77:00.0"),))
    with pytest.raises(Refused, match="describe different machines"):
        merge([TREE, elsewhere])
    twin = [msgspec.structs.replace(DRIVER, gpus=(Gpu(A, pci=A, uuid=f"GPU-{place}"),)) for place in range(2)]
    with pytest.raises(Refused, match="describe different machines"):
        merge(twin)
    with pytest.raises(Refused, match="nothing to merge"):
        merge([])


def test_uuids_are_never_in_a_sentence() -> None:
    one = msgspec.structs.replace(DRIVER, gpus=(Gpu(A, pci=A, uuid="GPU-x1"), Gpu(B, pci=B, uuid="GPU-y")))
    two = msgspec.structs.replace(DRIVER, sources=("two",), gpus=(Gpu(A, pci=A, uuid="GPU-x2"), Gpu(B, pci=B, uuid="GPU-y")))
    notes = merge([one, two]).notes
    assert len(notes) == 1 and "different uuids" in notes[0] and "GPU-x" not in notes[0]


def test_instances_and_ports_fill_each_others_gaps() -> None:
    one = Topology(
        sources=("x",), gpus=(Gpu(A, pci=A, mig_instances=(MigInstance(None, "1g.10gb", gpu_instance=3, compute_instance=0),)),)
    )
    two = Topology(sources=("y",), gpus=(Gpu(A, pci=A, mig_instances=(MigInstance("MIG-1", None, 5, 3, 0),)),))
    assert merge([one, two]).gpus[0].mig_instances == (MigInstance("MIG-1", "1g.10gb", 5, 3, 0),)
    ports = [Topology(nics=(Nic(CARD, pci=CARD, ports=(port,)),)) for port in (Port("eth0"), Port("mlx5_0", gbps=400.0, up=True))]
    assert merge(ports).nics[0].ports == (Port("eth0", gbps=400.0, up=True),)


def test_a_known_bandwidth_beats_an_unknown_one_of_the_same_path() -> None:
    told = msgspec.structs.replace(TREE, sources=("told",), pairs=(Pair(B, A, PathClass.PHB, gbps=99.0),))
    assert merge([TREE, told]).pairs[0] == Pair(A, B, PathClass.PHB, gbps=99.0)
    other = msgspec.structs.replace(TREE, sources=("told",), pairs=(Pair(A, B, PathClass.PIX, gbps=99.0),))
    assert merge([TREE, other]).pairs[0] == Pair(A, B, PathClass.PHB)


def test_an_nvswitch_without_address_is_one_of_those_that_have_one() -> None:
    hidden = msgspec.structs.replace(DRIVER, switches=(Switch("some NVSwitch", SwitchKind.NVSWITCH),))
    seen = msgspec.structs.replace(TREE, switches=(Switch("0000:c4:00.0", SwitchKind.NVSWITCH), Switch("x", SwitchKind.PCIE)))
    assert [switch.id for switch in merge([hidden, seen]).switches] == ["0000:c4:00.0", "x"]


@given(st.permutations([0, 1, 2]), st.booleans())
@settings(max_examples=20)
def test_merging_a_source_with_itself_changes_nothing(order: list[int], twice: bool) -> None:
    whole = merge([[TREE, DRIVER, MATRIX][place] for place in order])
    assert merge([whole, whole, *([whole] if twice else [])]) == whole
    assert merge([whole]) == whole


def test_recorded_sources_of_one_kind_of_machine_join() -> None:
    nccl = read_nccl_xml(recorded("nccl-topo/oci-H100-topology.xml").read_text(), "nccl")
    assert merge([nccl, nccl]) == nccl
    matrix = read_nvidia_matrix(recorded("nvidia-smi/topo-m-h800-kvm-11nic.txt").read_text(), "matrix")
    smi = read_nvidia_smi_text(recorded("nvidia-smi/q-nvidia-smi-query.535.161.08.out.0.valid.txt").read_text(), "smi")
    merged = merge([smi, matrix])
    assert len(merged.gpus) == 8 and len(merged.nics) == 11 and len(merged.pairs) == 19 * 18 // 2
    assert {gpu.numa_node for gpu in merged.gpus} == {0, 1} and all(gpu.memory_bytes for gpu in merged.gpus)
    with pytest.raises(Refused, match="different machines"):
        merge([smi, nccl])
