"""Exactly the devices that were given, whatever drivers and specifications say."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpu_root
from gpu_root import (
    CARD,
    FABRIC,
    FACTS,
    FOLDER,
    GPUS,
    LIBRARY,
    MIG,
    MPS,
    PERSISTENCED,
    PLAIN_CARD,
    TOPOLOGY,
    UUIDS,
    VERSION,
)
from recorded import recorded
from steelyard.host.topology.read import read_topology
from steelyard.lifecycle.cdi import read_specification
from steelyard.lifecycle.device_edits import grant_devices
from steelyard.model.cdi import CdiFacts, DeviceEdits, OwnNode, Problem, Specification, SpecificationFile
from steelyard.model.job import Plan
from steelyard.model.mount import Bind, DeviceNode
from steelyard.model.topology import Gpu, Topology


def with_file(content: dict[str, Any] | None = None, **fields: Any) -> CdiFacts:
    made = read_specification(content or gpu_root.make_specification(), "/etc/cdi/nvidia.json", typed=True)
    assert isinstance(made, Specification), made
    return msgspec.structs.replace(FACTS, files=(SpecificationFile("/etc/cdi/nvidia.json", 0, made),), **fields)


def grant(facts: CdiFacts = FACTS, **plan: Any) -> DeviceEdits:
    edits = grant_devices(Plan(**plan), TOPOLOGY, facts)
    assert isinstance(edits, DeviceEdits), edits
    return edits


def refuse(facts: CdiFacts = FACTS, **plan: Any) -> str:
    said = grant_devices(Plan(**plan), TOPOLOGY, facts)
    assert isinstance(said, str)
    return said


def paths(edits: DeviceEdits) -> list[str]:
    return sorted(node.path for node in edits.nodes)


# -- by the driver


def test_a_gpu_comes_with_its_own_file_and_those_that_all_share() -> None:
    edits = grant(gpus=(GPUS[0],))
    assert paths(edits) == ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia1", "/dev/nvidiactl"]
    assert DeviceNode("/dev/nvidia1", "c", 195, 1) in edits.nodes
    assert edits.libraries == dict.fromkeys((f"libcuda.so.{VERSION}", "libcuda.so", "libcuda.so.1"), LIBRARY)
    assert edits.binds == (
        Bind("/opt/bin/nvidia-smi", "/usr/bin/nvidia-smi", True),
        Bind(PERSISTENCED, PERSISTENCED),
    )
    assert "NOT VERIFIED" in edits.notes[0]


def test_the_fabric_managers_socket_is_for_whoever_has_all_of_the_machine() -> None:
    assert Bind(FABRIC, FABRIC) in grant(gpus=GPUS).binds
    assert Bind(FABRIC, FABRIC) not in grant(gpus=GPUS[:2]).binds


def test_mps_is_for_whoever_has_a_share() -> None:
    assert Bind(MPS, MPS) in grant(gpus=GPUS[:1], gpu_fraction=0.5).binds
    assert Bind(MPS, MPS) not in grant(gpus=GPUS).binds


def test_a_part_comes_with_its_own_capabilities() -> None:
    edits = grant(gpus=(GPUS[2],), mig_instances=(MIG,))
    assert [path for path in paths(edits) if "cap" in path] == ["/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"]
    assert [path for path in paths(grant(gpus=(GPUS[2],))) if "cap" in path] == []


def test_amds_gpus_need_no_library_of_the_machine() -> None:
    topology = Topology(gpus=(Gpu(GPUS[0], vendor="AMD", pci=GPUS[0]),))
    edits = grant_devices(Plan(gpus=(GPUS[0],)), topology, msgspec.structs.replace(FACTS, driver=None))
    assert isinstance(edits, DeviceEdits)
    assert paths(edits) == ["/dev/dri/renderD128", "/dev/kfd", "/dev/nvidia1"]
    assert not edits.libraries and not edits.binds


def test_a_further_partition_of_a_card_does_not_get_the_cards_own_files() -> None:
    topology = Topology(gpus=(Gpu(GPUS[0], vendor="AMD", pci=GPUS[0]), Gpu(f"{GPUS[0]}/1", vendor="AMD", pci=GPUS[0])))
    said = grant_devices(Plan(gpus=(f"{GPUS[0]}/1",)), topology, FACTS)
    assert isinstance(said, str) and "shows no device file" in said


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"driver": None}, "neither a CDI specification"),
        ({"own_nodes": {}}, "shows no device file"),
        ({"problems": (Problem("/etc/cdi/x.yaml", "it is damaged"),)}, "/etc/cdi/x.yaml: it is damaged"),
    ],
)
def test_what_is_missing_is_said(facts: dict[str, Any], words: str) -> None:
    assert words in refuse(msgspec.structs.replace(FACTS, **facts), gpus=GPUS[:1])


def test_a_gpu_that_the_machine_does_not_know_is_refused() -> None:
    assert "0000:99:00.0" in refuse(gpus=("0000:99:00.0",))


# -- by specification


def test_a_specification_counts_before_the_driver() -> None:
    edits = grant(with_file(), gpus=(GPUS[0],))
    assert paths(edits) == ["/dev/nvidia1", "/dev/nvidiactl"]
    assert edits.env["FROM_CDI"] == "yes"
    assert edits.binds == (Bind(LIBRARY, LIBRARY, True), Bind(LIBRARY, f"/{FOLDER}/libcuda.so", True))
    assert set(edits.libraries) == {f"libcuda.so.{VERSION}", "libcuda.so", "libcuda.so.1"}
    assert edits.notes[1].endswith("had without them: create-symlinks, update-ldcache; not done: enable-cuda-compat")


def test_what_is_for_all_devices_of_a_file_comes_once() -> None:
    assert paths(grant(with_file(), gpus=GPUS[:2])) == ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"]


def only(*devices: dict[str, Any]) -> dict[str, Any]:
    return gpu_root.make_specification() | {"devices": list(devices)}


def device(name: str, *nodes: dict[str, Any], **edits: Any) -> dict[str, Any]:
    return {"name": name, "containerEdits": {"deviceNodes": list(nodes), **edits}}


def test_a_device_without_a_uuid_is_found_by_the_file_that_it_alone_has_and_never_by_its_number() -> None:
    facts = with_file(only(
        device("0", {"path": "/dev/nvidia0"}, env=["IT=0"]), device("1", {"path": "/dev/nvidia1"}, env=["IT=1"]),
        device("all", {"path": "/dev/nvidia0"}, {"path": "/dev/nvidia1"}),
    ), numbers={f"/dev/nvidia{at}": DeviceNode(f"/dev/nvidia{at}", "c", 195, at) for at in range(2)} | {
        "/dev/nvidiactl": DeviceNode("/dev/nvidiactl", "c", 195, 255)})  # fmt: skip
    assert grant(facts, gpus=(GPUS[0],)).env["IT"] == "1"
    assert grant(facts, gpus=(GPUS[1],)).env["IT"] == "0"


def test_a_part_is_found_by_its_capabilities() -> None:
    nodes = [{"path": f"/dev/nvidia-caps/nvidia-cap{at}", "major": 237, "minor": at} for at in (30, 31, 40, 41)]
    gpu = {"path": "/dev/nvidia2", "major": 195, "minor": 2}
    facts = with_file(only(device("2:0", gpu, *nodes[2:], env=["IT=0"]), device("2:1", gpu, *nodes[:2], env=["IT=1"])))
    assert grant(facts, gpus=(GPUS[2],), mig_instances=(MIG,)).env["IT"] == "1"


def test_a_gpu_that_a_specification_leaves_out_is_refused_rather_than_generated() -> None:
    said = refuse(with_file(only(device(UUIDS[0], {"path": "/dev/nvidia1", "major": 195, "minor": 1}))), gpus=GPUS[:2])
    assert GPUS[1] in said and "/etc/cdi/nvidia.json" in said


def test_a_specification_of_other_things_of_the_maker_does_not_count() -> None:
    facts = with_file(gpu_root.make_specification() | {"kind": "nvidia.com/gds"})
    assert "/dev/nvidia-uvm" in paths(grant(facts, gpus=(GPUS[0],)))


def test_files_that_are_gone_are_named() -> None:
    assert f"{LIBRARY}, which is not there" in refuse(with_file(missing=frozenset({LIBRARY})), gpus=GPUS[:1])
    gone = with_file(only(device(UUIDS[0], {"path": "/dev/nvidia1"}, {"path": "/dev/nvidia-modeset"})))
    assert "/dev/nvidia-modeset, which is not there" in refuse(gone, gpus=GPUS[:1])


def test_a_device_file_that_its_driver_knows_need_not_have_been_made() -> None:
    facts = with_file(only(device(UUIDS[0], {"path": "/dev/nvidia1"}, {"path": "/dev/nvidia-uvm"})))
    assert {(node.path, node.major, node.minor) for node in grant(facts, gpus=GPUS[:1]).nodes} >= {
        ("/dev/nvidia1", 195, 1), ("/dev/nvidia-uvm", 511, 0),
    }  # fmt: skip


def test_links_that_lead_to_nothing_of_the_specification_are_named() -> None:
    link = {
        "hookName": "createContainer",
        "path": "/x/nvidia-cdi-hook",
        "args": ["x", "create-symlinks", "--link", "../card1::/dev/dri/b"],
    }
    nodes = {"path": "/dev/nvidia1"}
    assert grant(with_file(only(device(UUIDS[0], nodes, hooks=[link]))), gpus=GPUS[:1]).notes[1].endswith(", /dev/dri/b")


def test_a_specification_that_would_bring_in_another_device_is_refused() -> None:
    other = {"path": "/dev/nvidia1", "major": 195, "minor": 0}
    assert "/dev/nvidia0, of a device" in refuse(with_file(only(device(UUIDS[0], other))), gpus=GPUS[:1])


def test_groups_that_no_container_has_and_cache_classes_are_left_out() -> None:
    nodes = {"path": "/dev/nvidia1", "major": 195, "minor": 1}
    facts = with_file(only(device(UUIDS[0], nodes, additionalGids=[44, 70_000], intelRdt={"closID": "x"})))
    edits = grant(facts, gpus=GPUS[:1])
    assert edits.groups == (44,)
    assert any("intelRdt" in note for note in edits.notes)


# -- cards


def test_a_card_brings_its_verbs_and_the_right_to_lock_memory() -> None:
    edits = grant(nics=(CARD,))
    assert (paths(edits), edits.lock_memory) == (["/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0"], True)
    plain = grant(nics=(PLAIN_CARD,))
    assert (plain.nodes, plain.lock_memory) == ((), False)
    assert grant(gpus=GPUS[:1]).lock_memory is False


def test_work_without_devices_gets_nothing() -> None:
    assert grant(with_file()) == DeviceEdits()


# -- always


@given(
    st.lists(st.sampled_from(GPUS), unique=True),
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from([*UUIDS, "0", "1", "all"]), st.lists(st.integers(0, 3), max_size=3)), min_size=1,
             unique_by=lambda each: each[0]),
)  # fmt: skip
def test_no_device_file_of_a_device_that_was_not_given_is_ever_inside(
    gpus: list[str], card: bool, by_file: bool, named: list[tuple[str, list[int]]]
) -> None:
    devices = [device(name, *({"path": f"/dev/x{at}", "major": 195, "minor": at} for at in minors)) for name, minors in named]
    facts = with_file(only(*devices)) if by_file else FACTS
    plan = Plan(gpus=tuple(gpus), nics=(CARD,) if card else ())
    edits = grant_devices(plan, TOPOLOGY, facts)
    if isinstance(edits, str):
        return
    inside = {(node.major, node.minor) for node in edits.nodes}
    for pci, nodes in FACTS.own_nodes.items():
        if pci not in gpus and not (card and pci == CARD):
            assert not inside & {node.number for node in nodes}


@pytest.mark.parametrize("name", [
    "nccl-topo/oci-H100-topology.xml", "nccl-topo/aws-p4d-24xl-topo.xml", "nvidia-smi/qx-a100-sxm4-v12.xml",
    "nvidia-smi/q-nvidia-smi-query.535.154.05.out.0.valid.4090.txt", "hwloc-xml/hwloc-nvidiaDGX2.xml",
])  # fmt: skip
def test_on_recorded_machines_each_gpu_is_found_in_a_specification_and_comes_alone(name: str) -> None:
    topology = read_topology([recorded(name)])
    gpus = [gpu for gpu in topology.gpus if gpu.vendor == "NVIDIA"]
    assert gpus
    # numbered as the driver does, which is not how it counts minors
    nodes = {gpu.id: OwnNode(f"/dev/nvidia{minor}", (195, minor)) for minor, gpu in enumerate(reversed(gpus))}
    devices = [device(str(at), {"path": nodes[gpu.id].path}) for at, gpu in enumerate(gpus)]
    by_file = with_file(only(*devices), own_nodes={gpu.pci or "": (nodes[gpu.id],) for gpu in gpus})
    for facts in (by_file, msgspec.structs.replace(by_file, files=())):
        for gpu in gpus:
            edits = grant_devices(Plan(gpus=(gpu.id,)), topology, facts)
            assert isinstance(edits, DeviceEdits), edits
            assert [node.path for node in edits.nodes if re.fullmatch(r"/dev/nvidia\d+", node.path)] == [nodes[gpu.id].path]
