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
from steelyard.host.topology.nccl import read_nccl_xml
from steelyard.model.topology import PathClass, SwitchKind, Topology

#: one socket: GPUs a and b and a card with two ports under one switch, GPU c under another switch; another socket with GPU d
MACHINE = """<!-- shipped by a cloud -->
<system version="1">
  <cpu numaid="0" affinity="00000000,0000ffff" arch="x86_64">
    <pci busid="0000:01:00.0" class="0x060400" link_speed="32.0 GT/s PCIe" link_width="16">
      <pci busid="0000:0a:00.0" class="0x030200" vendor="0x10de" link_speed="32.0 GT/s PCIe" link_width="16">
        <gpu dev="0" sm="90" rank="0"><nvlink target="0000:c1:00.0" count="10" tclass="0x068000"/>
          <nvlink target="0000:c2:00.0" count="8" tclass="0x068000"/></gpu>
      </pci>
      <pci busid="0000:0b:00.0" class="0x030200" vendor="0x10de" link_speed="32.0 GT/s PCIe" link_width="16">
        <gpu dev="1" sm="90" rank="1"><nvlink target="fffffff:ff:ff.0" count="16" tclass="0x068000"/></gpu>
      </pci>
      <pci busid="0000:0c:00.0" class="0x080100" vendor="0x15b3" link_speed="16 GT/s" link_width="16">
        <nic><net name="mlx5_0" dev="0" speed="400000" port="1" guid="0x1"/>
             <net name="mlx5_1" dev="1" speed="400000" port="2"/></nic>
      </pci>
      <pci busid="0000:02:00.0" class="0x060400">
        <pci busid="0000:0d:00.0" class="0x030200" link_speed="16 GT/s" link_width="8"/>
      </pci>
    </pci>
    <pci busid="0000:0e:00.0" class="0x020700" link_speed="16.0 GT/s PCIe" link_width="16"/>
  </cpu>
  <cpu numaid="1" affinity="00000000,ffff0000">
    <pci busid="0000:8a:00.0" class="0x030200" link_speed="32.0 GT/s PCIe" link_width="16"/>
  </cpu>
</system>
"""
A, B, C, D, CARD, FAR = "0000:0a:00.0", "0000:0b:00.0", "0000:0d:00.0", "0000:8a:00.0", "0000:0c:00.0", "0000:0e:00.0"


def paths(topology: Topology) -> dict[tuple[str, str], str]:
    return {(pair.a, pair.b): pair.class_name for pair in topology.pairs}


def test_each_element_is_a_whole_switch_and_each_cpu_a_host_bridge() -> None:
    read = paths(read_nccl_xml(MACHINE, "m.xml"))
    assert len(read) == 6 * 5 // 2
    assert read[A, CARD] == "PIX"
    assert read[A, C] == "PXB" and read[C, CARD] == "PXB"
    assert read[A, FAR] == "PHB"
    assert read[A, D] == "SYS"


def test_links_to_switches_are_bonded_and_the_poorer_gpu_counts() -> None:
    topology = read_nccl_xml(MACHINE, "m.xml")
    pair = next(pair for pair in topology.pairs if (pair.a, pair.b) == (A, B))
    assert (pair.class_name, pair.gbps) == ("NV16", 16 * 200.0)
    assert [gpu.links for gpu in topology.gpus] == [18, 16, None, None]
    assert Counter(switch.kind for switch in topology.switches) == {SwitchKind.NVSWITCH: 3, SwitchKind.PCIE: 1}


def test_direct_links_at_an_unknown_architecture_have_no_bandwidth() -> None:
    direct = re.sub(r"<nvlink[^>]*>", "", MACHINE).replace(
        '<gpu dev="0" sm="90" rank="0">', f'<gpu dev="0" sm="777"><nvlink target="{B}" count="2" tclass="0x030200"/>'
    )
    topology = read_nccl_xml(direct, "m.xml")
    pair = next(pair for pair in topology.pairs if (pair.a, pair.b) == (A, B))
    assert (pair.path, pair.links, pair.gbps) == (PathClass.NV, 2, None)
    assert "smaller number" in topology.notes[0]  # only one end tells the links


def test_a_card_of_any_class_with_a_net_is_one_nic_with_its_ports() -> None:
    nic = read_nccl_xml(MACHINE, "m.xml").nics[0]
    assert (nic.id, nic.name, [port.name for port in nic.ports], nic.gbps, nic.rdma) == (
        CARD,
        "mlx5_0",
        ["mlx5_0", "mlx5_1"],
        800.0,
        True,
    )


def test_a_class_that_does_not_tell_leaves_the_kind_of_link_open() -> None:
    near, far = read_nccl_xml(MACHINE, "m.xml").nics
    assert {port.link for port in near.ports} == {None} and far.rdma
    ethernet = read_nccl_xml(MACHINE.replace("0x080100", "0x020000"), "m.xml").nics[0]
    assert {port.link for port in ethernet.ports} == {"Ethernet"}


def test_cpus_come_from_the_masks() -> None:
    topology = read_nccl_xml(MACHINE, "m.xml")
    assert [(node.id, node.cpus) for node in topology.numa_nodes] == [(0, tuple(range(16))), (1, tuple(range(16, 32)))]
    assert len(topology.cores) == 32 and not topology.smt_known and topology.packages is None


def test_a_mask_of_another_width_is_not_guessed() -> None:
    topology = read_nccl_xml(MACHINE.replace("00000000,ffff0000", "0000000,ffff0000"), "m.xml")
    assert topology.numa_nodes[1].cpus == () and "NUMA node 1" in topology.notes[0]


def test_masks_that_overlap_are_a_containers() -> None:
    topology = read_nccl_xml(MACHINE.replace("00000000,ffff0000", "00000000,0000ffff"), "m.xml")
    assert topology.cores == () and "overlap" in topology.notes[0]


def test_numbers_of_amd_mean_gfx_and_xgmi() -> None:
    amd = """<system version="2"><cpu numaid="0" affinity="ff">
      <pci busid="0000:11:00.0" class="0x120000" vendor="0x1002"><gpu dev="0" sm="304" gcn="gfx942:sramecc+" arch="38911">
        <xgmi target="0000:12:00.0" count="2" tclass="0x120000"/></gpu></pci>
      <pci busid="0000:12:00.0" class="0x120000" vendor="0x1002"><gpu dev="1" sm="304" gcn="gfx942" arch="38911">
        <xgmi target="0000:11:00.0" count="2" tclass="0x120000"/></gpu></pci>
      <nic><net name="eth0" speed="200000000" port="0"/></nic></cpu></system>"""
    topology = read_nccl_xml(amd, "a.xml")
    assert [gpu.architecture for gpu in topology.gpus] == ["gfx942", "gfx942"]
    assert (topology.pairs[0].class_name, topology.pairs[0].gbps) == ("XGMI2", 1024.0)
    assert topology.nics[0].gbps is None and topology.nics[0].rdma is None
    assert any("no PCI device" in note for note in topology.notes) and any("no port's speed" in note for note in topology.notes)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ('<graphs version="1"><graph id="0"/></graphs>', "what NCCL decided"),
        ("<html/>", "root is <html>"),
        ("<system/>", "no <cpu>"),
        ('<system><cpu numaid="0" host_hash="0x1"/><cpu numaid="0" host_hash="0x2"/></system>', "holds 2 machines"),
        ('<system><cpu numaid="0"/><cpu numaid="0"/></system>', "NUMA node 0 twice"),
        ('<system><cpu numaid="0"><pci busid="0000:01:00.0"/><pci busid="0000:01:00.0"/></cpu></system>', "twice"),
        ('<system><cpu numaid="0"><pci busid="nonsense"/></cpu></system>', "'nonsense'"),
        (MACHINE.replace('count="10"', 'count="ten"'), "legal target and count"),
        (MACHINE[:900], "cut off"),
        ('<!DOCTYPE s [<!ENTITY a "aaaa">]><system>&a;</system>', "x.xml"),
        ("<system>" + '<cpu numaid="0"/>' * 300 + "</system>", "no machine's"),
    ],
)
def test_what_is_no_machine_is_refused_and_says_why(broken: str, sentence: str) -> None:
    with pytest.raises(Refused, match=re.escape(sentence)):
        read_nccl_xml(broken, "x.xml")


#: file -> GPUs, NICs, ports, classes among GPUs; counts as the manifest states them
RECORDED = {
    "aws-p4d-24xl-topo": (8, 4, 0, {"PIX": 4, "PHB": 8, "SYS": 16}),
    "azure-ndv2-topo": (8, 1, 0, {"PHB": 12, "SYS": 16}),
    "azure-ndv4-topo": (8, 8, 0, {"PIX": 4, "SYS": 24}),
    "oci-A100-b4-flattened": (8, 8, 0, {"PIX": 4, "SYS": 24}),
    "oci-H100-topology": (8, 8, 16, {"NV18": 28}),
    "rccl-topo_16p1h": (16, 8, 8, {"XGMI4": 8, "XGMI2": 4, "XGMI": 16, "PXB": 10, "SYS": 82}),
    "rccl-topo_4p4h": (16, 16, 16, {"XGMI": 24, "PXB": 32, "PHB": 64}),
    "rccl-topo_4p_940": (4, 4, 4, {"XGMI": 6}),
    "rccl-topo_8p_940": (8, 8, 8, {"XGMI": 28}),
    "rccl-topo_8p6l": (8, 1, 1, {"XGMI": 24, "SYS": 4}),
    "rccl-topo_8p_pcie_1": (8, 1, 1, {"PXB": 12, "PHB": 16}),
    "rccl-topo_8p_rome_vm1": (8, 1, 1, {"XGMI": 12, "SYS": 16}),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_machines_have_their_paths(name: str) -> None:
    topology = read_nccl_xml(recorded(f"nccl-topo/{name}.xml").read_text(), name)
    gpus = {gpu.id for gpu in topology.gpus}
    among = Counter(pair.class_name for pair in topology.pairs if pair.a in gpus and pair.b in gpus)
    assert (len(gpus), len(topology.nics), sum(len(nic.ports) for nic in topology.nics), dict(among)) == RECORDED[name]


def test_the_oci_h100_has_a_card_next_to_each_gpu_and_four_nvswitches() -> None:
    topology = read_nccl_xml(recorded("nccl-topo/oci-H100-topology.xml").read_text(), "o")
    assert sum(switch.kind is SwitchKind.NVSWITCH for switch in topology.switches) == 4
    near = [pair for pair in topology.pairs if pair.path is PathClass.PXB]
    assert len(near) == 8 and {pair.gbps for pair in near} == {504.123}
    assert {pair.gbps for pair in topology.pairs if pair.path is PathClass.NV} == {3600.0}


def test_the_g5_tells_addresses_only_and_no_gpu_is_invented() -> None:
    topology = read_nccl_xml(recorded("nccl-topo/aws-g5.48xl-topo.xml").read_text(), "g5")
    assert topology.gpus == () and topology.nics == () and "9 PCI devices" in topology.notes[0]


def test_the_retyped_mask_of_oci_is_left_out() -> None:
    topology = read_nccl_xml(recorded("nccl-topo/oci-A100-b4-flattened.xml").read_text(), "o")
    assert {node.id: len(node.cpus) for node in topology.numa_nodes} == {1: 32, 3: 32, 5: 32, 7: 0}


@given(st.data())
@settings(max_examples=150)
def test_a_mutated_file_is_a_topology_or_refused(data: st.DataObject) -> None:
    answer = read_or_refuse(read_nccl_xml, data.draw(mutated(MACHINE)))
    if isinstance(answer, Topology):
        assert merge([answer, answer]) == answer
    else:
        assert answer.endswith(".") and "\n" not in answer
