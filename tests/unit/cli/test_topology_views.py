"""Do the tree, the matrix, the picture and the JSON show what the document says, for every machine?"""

from __future__ import annotations

import json
from xml.etree import ElementTree

import msgspec
import pytest

from machines import cube_matrix, make_hgx
from recorded import recorded
from steelyard.cli.topology_json import make_json
from steelyard.cli.topology_layout import find_meshes
from steelyard.cli.topology_svg import render_svg
from steelyard.cli.topology_text import render_matrix, render_topology
from steelyard.errors import Refused
from steelyard.host.topology.read import read_topology
from steelyard.model.topology import Gpu, MigInstance, Topology

FOLDERS = ("hwloc-xml", "nccl-topo", "nvidia-smi", "rocm-smi")


def test_the_tree_holds_devices_under_their_switch_and_says_who_uses_them() -> None:
    machine = make_hgx(gpus=2, cores_per_node=2)
    text = render_topology(machine, {"0000:11:00.0": "job 7 train"})
    assert text.splitlines() == [
        "2 packages · 2 NUMA nodes · 4 cores · 4 threads · 2 GPUs · 2 NICs · 1 NVMe disk · 1 TiB memory",
        "├─ NUMA node 0 · package 0 · 2 cores · CPUs 0-1 · 512 GiB memory",
        "│  ├─ PCIe switch 0000:10:00.0",
        "│  │  ├─ GPU0  0000:11:00.0  NVIDIA H100 80GB HBM3, 80 GiB  ← job 7 train",
        "│  │  └─ NIC0  0000:12:00.0  mlx5_0, 400 Gb/s, RDMA",
        "│  └─ NVMe0  0000:f1:00.0  nvme0n1, 3841 GB",
        "└─ NUMA node 1 · package 1 · 2 cores · CPUs 2-3 · 512 GiB memory",
        "   └─ PCIe switch 0000:20:00.0",
        "      ├─ GPU1  0000:21:00.0  NVIDIA H100 80GB HBM3, 80 GiB",
        "      └─ NIC1  0000:22:00.0  mlx5_1, 400 Gb/s, RDMA",
        "",
        "NV18 (3,600 Gb/s): GPU0-GPU1",
    ]


def test_the_matrix_is_square_and_symmetric() -> None:
    rows = [line.split() for line in render_matrix(cube_matrix()).split("\n\n")[0].splitlines()]
    cells = [row[1:] for row in rows[1:]]
    assert rows[0] == [row[0] for row in rows[1:]]
    assert all(cells[a][b] == cells[b][a] for a in range(8) for b in range(8))
    assert [cells[0][b] for b in range(8)] == ["X", "NV1", "NV1", "NV2", "NV2", "SYS", "SYS", "SYS"]


def test_equal_links_are_one_bar_and_unequal_ones_are_not() -> None:
    (mesh,), singles = find_meshes(make_hgx())
    assert (len(mesh.gpus), mesh.class_name, singles) == (8, "NV18", ())
    assert find_meshes(cube_matrix())[0] == ()


def test_the_picture_is_xml_without_scripts_and_escapes_what_users_name() -> None:
    text = render_svg(make_hgx(), {"0000:11:00.0": 'job <script> & "co"'}, "<title>")
    root = ElementTree.fromstring(text)
    assert {element.tag.split("}")[1] for element in root.iter()} == {"svg", "title", "rect", "text", "g", "line"}
    assert "<script" not in text


def test_uuids_are_shown_only_when_asked_for() -> None:
    gpu = Gpu("0000:01:00.0", uuid="GPU-secret", mig=True, mig_instances=(MigInstance("MIG-secret", "1g.10gb"),))
    machine = Topology(gpus=(gpu,))
    assert "secret" not in json.dumps(make_json(machine, {}), default=msgspec.to_builtins)
    assert "MIG-secret" in json.dumps(make_json(machine, {}, identifiers=True), default=msgspec.to_builtins)


def test_counts_that_nobody_knows_are_null_and_not_zero() -> None:
    shown = make_json(cube_matrix(), {})
    assert (shown["packages"], shown["cores"], shown["threads"], shown["numa_nodes"]) == (None, None, 16, 2)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_recorded_machine_can_be_shown(folder: str) -> None:
    shown = 0
    for path in sorted(recorded(folder).iterdir()):
        try:
            machine = read_topology([path])
        except Refused:
            continue
        render_topology(machine, {})
        render_matrix(machine)
        ElementTree.fromstring(render_svg(machine, {}, path.name))
        json.loads(msgspec.json.encode(make_json(machine, {})))
        shown += 1
    assert shown


def test_an_empty_document_is_shown_as_what_it_is() -> None:
    assert "nothing is known" in render_topology(Topology(), {})
    assert "No GPU" in render_matrix(Topology())
    ElementTree.fromstring(render_svg(Topology(), {}, "nothing"))
