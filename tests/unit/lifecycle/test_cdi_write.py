"""A specification of ours brings in what we bring in without one, and nothing of it is refused by those who read it strictly."""

from __future__ import annotations

import re

import msgspec
import pytest

from gpu_root import FACTS, GPUS, MIG, TOPOLOGY, UUIDS
from recorded import recorded
from steelyard.host.topology.read import read_topology
from steelyard.lifecycle.cdi import read_specification
from steelyard.lifecycle.cdi_write import make_specification, render_specification
from steelyard.lifecycle.device_edits import grant_devices
from steelyard.model.cdi import CdiFacts, DeviceEdits, OwnNode, Specification, SpecificationFile
from steelyard.model.job import Plan
from steelyard.model.topology import Topology


def paths(edits: DeviceEdits) -> list[str]:
    return sorted(node.path for node in edits.nodes)


def written(topology: Topology = TOPOLOGY, facts: CdiFacts = FACTS, maker: str = "NVIDIA") -> Specification:
    """Through the file, as others read it."""
    made = make_specification(maker, topology, facts)
    assert isinstance(made, Specification), made
    read = read_specification(msgspec.json.decode(render_specification(made)), "made.json", typed=True)
    assert isinstance(read, Specification), read
    return read


def grant(facts: CdiFacts, **plan: object) -> DeviceEdits:
    edits = grant_devices(msgspec.convert(plan, Plan), TOPOLOGY, facts)
    assert isinstance(edits, DeviceEdits), edits
    return edits


@pytest.mark.parametrize(
    "plan", [{"gpus": GPUS[:1]}, {"gpus": GPUS[:2]}, {"gpus": GPUS[1:2]}, {"gpus": GPUS[2:], "mig_instances": (MIG,)}]
)
def test_what_it_says_is_what_comes_without_one(plan: dict[str, object]) -> None:
    with_it = msgspec.structs.replace(FACTS, files=(SpecificationFile("/etc/cdi/made.json", 0, written()),))
    ours, theirs = grant(FACTS, **plan), grant(with_it, **plan)
    assert paths(theirs) == paths(ours)
    assert set(theirs.libraries.items()) <= set(ours.libraries.items())
    mounted = {(each.source, each.target) for each in theirs.binds} | {
        (source, f"/x/{name}") for name, source in theirs.libraries.items()
    }
    assert {(each.source, each.target) for each in ours.binds} <= mounted
    assert theirs.sources == ("/etc/cdi/made.json",)


def test_devices_are_named_by_number_by_uuid_and_all_of_them() -> None:
    names = [device.name for device in written().devices]
    assert names == ["0", UUIDS[0], "1", UUIDS[1], "2", UUIDS[2], "2:0", MIG, "2:1", MIG + "x", "all"]
    every = written().devices[-1].container_edits.device_nodes or ()
    assert {"/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia2", "/dev/nvidia-caps/nvidia-cap41"} <= {node.path for node in every}
    assert written().container_edits.env == ("NVIDIA_VISIBLE_DEVICES=void",) and written().container_edits.hooks is None


def test_what_a_machine_lacks_for_one_is_said() -> None:
    for maker, facts, words in (
        ("AMD", FACTS, "no GPU of AMD"),
        ("NVIDIA", msgspec.structs.replace(FACTS, own_nodes={}), "no device file of it"),
        ("NVIDIA", msgspec.structs.replace(FACTS, driver=None), "libcuda.so"),
    ):
        said = make_specification(maker, TOPOLOGY, facts)
        assert isinstance(said, str) and words in said


@pytest.mark.parametrize("name", [
    "nccl-topo/oci-H100-topology.xml", "nccl-topo/aws-p4d-24xl-topo.xml", "nvidia-smi/qx-a100-sxm4-v12.xml",
    "nvidia-smi/q-nvidia-smi-query.535.154.05.out.0.valid.4090.txt", "hwloc-xml/hwloc-nvidiaDGX2.xml",
])  # fmt: skip
def test_by_that_of_a_recorded_machine_each_gpu_comes_alone(name: str) -> None:
    topology = read_topology([recorded(name)])
    gpus = [gpu for gpu in topology.gpus if gpu.vendor == "NVIDIA"]
    # numbered as the driver does, which is not how it counts minors
    nodes = {gpu.pci or "": (OwnNode(f"/dev/nvidia{at}", (195, at)),) for at, gpu in enumerate(reversed(gpus))}
    facts = msgspec.structs.replace(FACTS, own_nodes=nodes)
    made = SpecificationFile("/etc/cdi/made.json", 0, written(topology, facts))
    for gpu in gpus:
        edits = grant_devices(Plan(gpus=(gpu.id,)), topology, msgspec.structs.replace(facts, files=(made,)))
        assert isinstance(edits, DeviceEdits), edits
        assert [path for path in paths(edits) if re.fullmatch(r"/dev/nvidia\d+", path)] == [nodes[gpu.pci or ""][0].path]
    every = made.specification.devices[-1].container_edits.device_nodes or ()
    assert len(every) == len(gpus)
