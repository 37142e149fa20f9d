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
from steelyard.host.topology.rocm import read_rocm_json, read_rocm_topo
from steelyard.model.topology import Topology


def table(title: str, cell: str, zero: str = "0") -> str:
    rows = "".join(f"GPU{i}   " + "   ".join(zero if i == j else cell for j in range(3)) + "\n" for i in range(3))
    return f"======= {title} =======\n       GPU0   GPU1   GPU2\n{rows}\n"


TOPO = (
    "===== ROCm System Management Interface =====\n"
    + table("Weight between two GPUs", "40")
    + table("Hops between two GPUs", "2")
    + table("Link Type between two GPUs", "PCIE")
    + "===== Numa Nodes =====\nGPU[0]\t\t: (Topology) Numa Node: 0\nGPU[0]\t\t: (Topology) Numa Affinity: 0\n"
    + "GPU 1          : (Topology) Numa Node: 0\nGPU[2]\t\t: (Topology) Numa Node: 1\n===== End of ROCm SMI Log =====\n"
)
JSON = """{"card0": {"PCI Bus": "0000:1E:00.0", "Card series": "Instinct MI100", "VRAM Total Memory (B)": "34342961152",
"Serial Number": "692024000810", "(Topology) Numa Node": "0", "pcie clock level": "0 (2.5GT/s x16)", "0": "2.5GT/s x16 *",
"1": "16.0GT/s x16"}, "card1": {"PCI Bus": "0000:22:00.0", "GFX Version": "gfx908", "(Topology) Numa Node": "-1"},
"system": {"(Topology) Link type between DRM devices 0 and 1": "XGMI", "(Topology) Hops between DRM devices 0 and 1": "1"}}"""


def test_pcie_links_are_as_near_as_their_numa_nodes() -> None:
    topology = read_rocm_topo(TOPO, "t.txt")
    assert [gpu.numa_node for gpu in topology.gpus] == [0, 0, 1]
    assert [pair.class_name for pair in topology.pairs] == ["NODE", "SYS", "SYS"]


def test_xgmi_with_one_hop_is_a_link_and_with_more_is_none() -> None:
    linked = TOPO.replace("PCIE", "XGMI")
    near = linked.replace(table("Hops between two GPUs", "2"), table("Hops between two GPUs", "1"))
    assert {pair.class_name for pair in read_rocm_topo(near, "t").pairs} == {"XGMI"}
    assert [pair.class_name for pair in read_rocm_topo(linked, "t").pairs] == ["NODE", "SYS", "SYS"]


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (TOPO[: TOPO.index("======= Link Type")], "no table"),
        (TOPO[: TOPO.index("===== Numa")], "ends before"),
        (TOPO.replace("GPU[2]\t\t: (Topology) Numa Node: 1\n", ""), "no NUMA node of GPU2"),
        (TOPO.replace("GPU2   PCIE   PCIE   0\n", ""), "the row of GPU2 is missing"),
        (TOPO.replace("GPU2   PCIE   PCIE   0\n", "GPU2   PCIE   PC"), "does not fit"),
        (TOPO.replace("GPU2   PCIE", "GPU2   XGMI"), "contradicts itself"),
        (TOPO.replace("PCIE", "PIGEON"), "link type 'PIGEON'"),
    ],
)
def test_tables_that_are_cut_or_contradict_themselves_are_refused(broken: str, sentence: str) -> None:
    with pytest.raises(Refused, match=re.escape(sentence)):
        read_rocm_topo(broken, "t.txt")


def test_a_json_dump_tells_cards_and_their_links() -> None:
    topology = read_rocm_json(JSON, "d.json")
    one, two = topology.gpus
    assert (one.id, one.name, one.memory_bytes, one.pcie_gbps) == ("0000:1e:00.0", "Instinct MI100", 34342961152, 252.062)
    assert (two.architecture, two.numa_node) == ("gfx908", None)
    assert [pair.class_name for pair in topology.pairs] == ["XGMI"]
    assert "692024000810" not in str(topology)


@pytest.mark.parametrize(
    "broken", [JSON[:200], "{}", "[]", '{"card0": 3}', "[" * 5000, JSON.replace("22:00", "1e:00"), "\udcff", " " * 5_000_000]
)
def test_json_without_cards_or_cut_off_is_refused(broken: str) -> None:
    with pytest.raises(Refused):
        read_rocm_json(broken, "d.json")


@pytest.mark.parametrize(
    ("name", "gpus", "classes"),
    [
        ("showtopo-4gpu-archer2.txt", 4, {"XGMI": 6}),
        ("showtopo-4gpu-pcie.txt", 4, {"NODE": 6}),
        ("showtopo-8xMI308X.txt", 8, {"XGMI": 28}),
        ("json-mi100_rocm571.json", 6, {"NODE": 15}),
        ("json-rx6700xt_rocm612.json", 1, {}),
        ("json-vega-20-WKS-GL-XE.json", 1, {}),
    ],
)
def test_recorded_screens_are_read(name: str, gpus: int, classes: dict[str, int]) -> None:
    read = read_rocm_topo if name.endswith("txt") else read_rocm_json
    topology = read(recorded(f"rocm-smi/{name}").read_text(), name)
    assert len(topology.gpus) == gpus and Counter(pair.class_name for pair in topology.pairs) == classes


@given(st.data())
@settings(max_examples=150)
def test_a_mutated_table_is_a_topology_or_refused(data: st.DataObject) -> None:
    answer = read_or_refuse(read_rocm_topo, data.draw(mutated(TOPO)))
    if isinstance(answer, Topology):
        assert merge([answer, answer]) == answer
    else:
        assert answer.endswith(".") and "\n" not in answer


@given(st.data())
@settings(max_examples=150)
def test_a_mutated_dump_is_a_topology_or_refused(data: st.DataObject) -> None:
    answer = read_or_refuse(read_rocm_json, data.draw(mutated(JSON)))
    if isinstance(answer, Topology):
        assert merge([answer, answer]) == answer
    else:
        assert answer.endswith(".") and "\n" not in answer
