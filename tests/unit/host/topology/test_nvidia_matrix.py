from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mutated import mutated, read_or_refuse
from recorded import recorded
from steelyard.errors import Refused
from steelyard.host.topology.merge import merge
from steelyard.host.topology.nvidia_matrix import read_nvidia_matrix
from steelyard.model.topology import Topology

MATRIX = """\t\x1b[4mGPU0\tGPU1\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tPIX\tSYS\t0-3,8-11\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tPXB\t4-7,12-15\t1\t\tN/A
NIC0\tPIX\tSYS\t X \tSYS\t\t\t\t
NIC1\tSYS\tPXB\tSYS\t X \t\t\t\t

Legend:

  X    = Self

NIC Legend:

  NIC0: mlx5_3
  NIC1: mlx5_10
"""


def test_a_matrix_tells_paths_names_and_affinities() -> None:
    topology = read_nvidia_matrix(MATRIX, "m.txt")
    assert [(gpu.id, gpu.index, gpu.numa_node, gpu.cpus) for gpu in topology.gpus] == [
        ("GPU0", 0, 0, (0, 1, 2, 3, 8, 9, 10, 11)),
        ("GPU1", 1, 1, (4, 5, 6, 7, 12, 13, 14, 15)),
    ]
    assert [(nic.id, nic.name) for nic in topology.nics] == [("NIC0", "mlx5_3"), ("NIC1", "mlx5_10")]
    assert [(pair.a, pair.b, pair.class_name, pair.links, pair.gbps) for pair in topology.pairs] == [
        ("GPU0", "GPU1", "NV18", 18, None),
        ("GPU0", "NIC0", "PIX", 0, None),
        ("GPU0", "NIC1", "SYS", 0, None),
        ("GPU1", "NIC0", "SYS", 0, None),
        ("GPU1", "NIC1", "PXB", 0, None),
        ("NIC0", "NIC1", "SYS", 0, None),
    ]
    assert [node.id for node in topology.numa_nodes] == [0, 1] and len(topology.cores) == 16 and not topology.smt_known


@given(st.permutations(range(1, 5)))
@settings(max_examples=24)
def test_shuffled_rows_give_the_same_machine(order: list[int]) -> None:
    lines = MATRIX.split("\n")
    shuffled = "\n".join([lines[0], *(lines[place] for place in order), *lines[5:]])
    assert read_nvidia_matrix(shuffled, "m.txt") == read_nvidia_matrix(MATRIX, "m.txt")


def test_blanks_between_columns_and_a_blank_in_titles_are_told_apart() -> None:
    text = "        GPU0    GPU1    mlx5_10 CPU Affinity    NUMA Affinity\n"
    text += "GPU0     X      NODE    PIX     0-3     0\nGPU1    NODE     X      PIX     0-3     0\nmlx5_10 PIX     PIX      X\n"
    topology = read_nvidia_matrix(text, "m.txt")
    assert topology.gpus[1].cpus == (0, 1, 2, 3) and topology.nics[0].name == "mlx5_10" and topology.nics[0].rdma


def test_affinities_of_a_container_are_left_out() -> None:
    topology = read_nvidia_matrix(MATRIX.replace("0-3,8-11\t0", "0-3,8-11\t0-1"), "m.txt")
    assert topology.gpus[0].cpus == () and topology.gpus[0].numa_node is None
    assert topology.gpus[1].numa_node == 1 and "container" in topology.notes[0]


def test_one_node_with_two_lists_of_cpus_has_none() -> None:
    topology = read_nvidia_matrix(MATRIX.replace("4-7,12-15\t1", "4-7,12-15\t0"), "m.txt")
    assert topology.cores == () and [gpu.numa_node for gpu in topology.gpus] == [0, 0] and "contradicting" in topology.notes[0]


def test_cpus_without_a_numa_column_belong_to_no_node() -> None:
    text = "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tSYS\t0-1\nGPU1\tSYS\t X \t0-1\n"
    topology = read_nvidia_matrix(text, "m.txt")
    assert topology.numa_nodes == () and topology.gpus[0].numa_node is None and topology.gpus[0].cpus == (0, 1)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("NIC1\tSYS\tPXB\tSYS\t X \t\t\t\t\n", "", "the row of NIC1 is missing"),
        ("\tSYS\t X \t\t\t\t\n\nLegend", "\tSYS\n\nLegend", "the row of NIC1 ends before column NIC1"),
        ("\tNIC1\tCPU", "\tCPU", "the row of GPU0 has more cells"),
        ("GPU0\tGPU1\tNIC0\tNIC1\tCPU Aff", "GPU0\tGPU1\tNIC0\tNI\tCPU Aff", "'NI'"),
        ("NUMA Affinity\tGPU NUMA ID", "NUMA Aff", "'NUMA Aff'"),
        ("GPU1\tNV18", "GPU1\tNV12", "GPU0 to GPU1 is NV18, GPU1 to GPU0 is NV12"),
        ("PIX", "NEAR", "no path class"),
        ("\t X \tNV18", "\tPIX\tNV18", "X in its own column"),
        ("GPU1\tNV18\t X \tSYS\tPXB", "GPU0\tNV18\t X \tSYS\tPXB", "GPU0 has two rows"),
        ("\x1b[4mGPU0\tGPU1", "\x1b[4mGPU1\tGPU1", "header line with GPU0 is missing"),
    ],
)
def test_a_truncated_or_contradicting_matrix_is_refused_and_says_where(old: str, new: str, sentence: str) -> None:
    assert old in MATRIX
    with pytest.raises(Refused, match=re.escape(sentence)):
        read_nvidia_matrix(MATRIX.replace(old, new), "m.txt")


#: file -> GPUs, NICs, CPUs, classes of all pairs
RECORDED = {
    "2gpu-nv12-dl380ag11": (2, 0, 64, {"NV12": 1}),
    "2gpu-phb": (2, 0, 32, {"PHB": 1}),
    "2x-rtx6000pro-node": (2, 0, 48, {"NODE": 1}),
    "8gpu-pcie-pix-node": (8, 2, 36, {"PIX": 13, "NODE": 16, "SYS": 16}),
    "8x4090-all-sys": (8, 2, 224, {"SYS": 42, "PHB": 2, "PIX": 1}),
    "a100-cgroup-restricted-11nic": (8, 11, 30, {"NV12": 28, "PXB": 20, "SYS": 122, "PIX": 1}),
    "dgx-a100-12nic": (8, 12, 128, {"NV12": 28, "PXB": 20, "SYS": 140, "PIX": 2}),
    "h800-4gpu-17nic-container-no-affinity": (4, 17, 0, {"NV8": 6, "SYS": 188, "PIX": 16}),
    "h800-kvm-11nic": (8, 11, 180, {"NV8": 28, "SYS": 98, "PIX": 8, "PHB": 37}),
    "savio-8gpu-pxb": (8, 2, 32, {"PXB": 10, "SYS": 24, "NODE": 8, "PIX": 3}),
    "v100-hybrid-cubemesh-1numa": (8, 4, 0, {"NV2": 8, "NV1": 8, "NODE": 32, "PIX": 8, "PHB": 10}),
    "v100-hybrid-cubemesh-2numa": (8, 2, 48, {"NV1": 8, "NV2": 8, "SYS": 21, "NODE": 4, "PIX": 4}),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_matrices_are_read(name: str) -> None:
    topology = read_nvidia_matrix(recorded(f"nvidia-smi/topo-m-{name}.txt").read_text(), name)
    classes = dict(Counter(pair.class_name for pair in topology.pairs))
    assert (len(topology.gpus), len(topology.nics), len(topology.cores), classes) == RECORDED[name]


def test_the_restricted_matrix_keeps_no_cut_affinity() -> None:
    topology = read_nvidia_matrix(recorded("nvidia-smi/topo-m-a100-cgroup-restricted-11nic.txt").read_text(), "c")
    assert [gpu.numa_node for gpu in topology.gpus] == [None, None, 1, 1, None, None, None, None] and topology.notes


@given(st.data())
@settings(max_examples=150)
def test_a_mutated_matrix_is_a_topology_or_refused(data: st.DataObject) -> None:
    answer = read_or_refuse(read_nvidia_matrix, data.draw(mutated(MATRIX)))
    if isinstance(answer, Topology):
        assert merge([answer, answer]) == answer
    else:
        assert answer.endswith(".") and "\n" not in answer
