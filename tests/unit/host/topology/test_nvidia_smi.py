from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mutated import mutated, read_or_refuse
from recorded import recorded
from steelyard.errors import Refused
from steelyard.host.topology.merge import merge
from steelyard.host.topology.mig import name_engines, name_slices
from steelyard.host.topology.nvidia_smi import read_nvidia_smi_text, read_nvidia_smi_xml, read_nvlink_status
from steelyard.model.topology import Topology

MIG = """<mig_device><index>0</index><gpu_instance_id>9</gpu_instance_id><compute_instance_id>0</compute_instance_id>
<device_attributes><shared><multiprocessor_count>14</multiprocessor_count><copy_engine_count>1</copy_engine_count>
<jpg_count>0</jpg_count></shared></device_attributes><fb_memory_usage><total>9728 MiB</total></fb_memory_usage></mig_device>"""
XML = f"""<?xml version="1.0" ?><!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log><attached_gpus>1</attached_gpus><gpu id="00000000:0F:00.0"><product_name>NVIDIA A100-SXM4-80GB</product_name>
<mig_mode><current_mig>Enabled</current_mig></mig_mode><mig_devices>{MIG}</mig_devices><serial>1234567890123</serial>
<uuid>GPU-00000000-0000-0000-0000-000000000001</uuid><fb_memory_usage><total>81920 MiB</total></fb_memory_usage>
<pci><pci_bus_id>00000000:0F:00.0</pci_bus_id><pci_gpu_link_info><pcie_gen><max_link_gen>4</max_link_gen>
<current_link_gen>1</current_link_gen></pcie_gen><link_widths><max_link_width>16x</max_link_width>
<current_link_width>8x</current_link_width></link_widths></pci_gpu_link_info></pci></gpu></nvidia_smi_log>"""
TEXT = """==============NVSMI LOG==============

Driver Version                            : 535.129.03
Attached GPUs                             : 2
GPU 00000000:0F:00.0
    Product Name                          : NVIDIA H100 80GB HBM3
    MIG Mode
        Current                           : Enabled
    MIG Device
        Index                             : 0
        GPU Instance ID                   : 1
        Compute Instance ID               : 0
        Device Attributes
            Shared
                Multiprocessor count      : 48
                Copy Engine count         : 3
        FB Memory Usage
            Total                         : 40448 MiB
    MIG Device
        Index                             : 1
        GPU Instance ID                   : 2
        Compute Instance ID               : 0
        FB Memory Usage
            Total                         : 9984 MiB
    GPU UUID                              : GPU-00000000-0000-0000-0000-000000000002
    PCI
        Bus Id                            : 00000000:0F:00.0
        GPU Link Info
            PCIe Generation
                Max                       : 5
                Current                   : 1
            Link Width
                Max                       : 16x
                Current                   : 16x
    FB Memory Usage
        Total                             : 81559 MiB
    BAR1 Memory Usage
        Total                             : 131072 MiB
    Processes                             : None
GPU 00000000:8F:00.0
    Product Name                          : NVIDIA H100 80GB HBM3
    MIG Mode
        Current                           : N/A
    FB Memory Usage
        Total                             : [N/A]
    Processes                             : None
"""
STATUS = """GPU 0: NVIDIA A100 (UUID: GPU-00000000-0000-0000-0000-000000000001)
\t Link 0: 25 GB/s
\t Link 1: <inactive>
\t Link 2: 25 GB/s
GPU 1: NVIDIA A100 (UUID: GPU-00000000-0000-0000-0000-000000000003)
NVML: Unable to retrieve NVLink information as all links are inActive
"""


def test_an_xml_screen_tells_each_gpu_with_its_instances() -> None:
    topology = read_nvidia_smi_xml(XML, "q.xml")
    (gpu,) = topology.gpus
    assert (gpu.id, gpu.pci, gpu.index, gpu.memory_bytes, gpu.mig) == ("0000:0f:00.0", "0000:0f:00.0", 0, 81920 << 20, True)
    assert (gpu.pcie_width, gpu.pcie_width_max, gpu.pcie_gbps) == (8, 16, 126.031)  # an idle GPU's speed is not its limit
    assert [(mig.profile, mig.gpu_instance, mig.memory_bytes) for mig in gpu.mig_instances] == [("1g.10gb", 9, 9728 << 20)]
    assert "1234567890123" not in str(topology)
    assert topology.pairs == ()


@pytest.mark.parametrize("nothing", ["N/A", "[N/A]", "[Not Supported]", "None", "Unknown Error", ""])
def test_what_is_not_told_is_none_however_it_is_spelled(nothing: str) -> None:
    (gpu,) = read_nvidia_smi_xml(XML.replace("81920 MiB", nothing).replace(">Enabled<", f">{nothing}<"), "q.xml").gpus
    assert gpu.memory_bytes is None and gpu.mig is None


def test_text_tells_the_same_as_xml() -> None:
    one, two = read_nvidia_smi_text(TEXT, "q.txt").gpus
    assert (one.name, one.memory_bytes, one.mig, one.pcie_gbps, one.pcie_width) == (
        "NVIDIA H100 80GB HBM3", 81559 << 20, True, 504.123, 16,
    )  # fmt: skip
    assert [(mig.gpu_instance, mig.profile) for mig in one.mig_instances] == [(1, "3g.40gb"), (2, None)]
    assert (two.id, two.index, two.memory_bytes, two.mig) == ("0000:8f:00.0", 1, None, None)


def test_a_screen_about_some_of_the_gpus_says_so() -> None:
    topology = read_nvidia_smi_xml(XML.replace("<attached_gpus>1", "<attached_gpus>4"), "q.xml")
    assert topology.notes == ("The machine has 4 GPUs; this screen describes 1 of them.",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (TEXT[: TEXT.index("GPU 00000000:8F")], "names 2 GPUs and describes 1"),
        (TEXT[: TEXT.rindex("    Processes")], "cut off in its last GPU"),
        (TEXT.replace("8F:00.0", "0F:00.0"), "one GPU twice"),
        ("Driver Version : 1\n", "describes no GPU"),
        ("x" * 10_000, "more or longer lines"),
    ],
)
def test_text_that_is_cut_or_doubled_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(Refused, match=re.escape(sentence)):
        read_nvidia_smi_text(text, "q.txt")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (XML[:500], "cut off"),
        (XML.replace("00000000:0F:00.0", "?"), "no legal PCI address"),
        ("<nvidia_smi_log/>", "describes no GPU"),
        ("<other/>", "<other>"),
    ],
)
def test_xml_that_is_cut_or_foreign_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(Refused, match=re.escape(sentence)):
        read_nvidia_smi_xml(text, "q.xml")


def test_link_status_counts_the_links_that_are_up() -> None:
    with pytest.raises(Refused, match="not of nvidia-smi nvlink"):
        read_nvlink_status(STATUS, "s.txt")  # a line that belongs to no GPU
    topology = read_nvlink_status(STATUS.replace("\nNVML", "\n\tNVML"), "s.txt")
    assert [(gpu.id, gpu.links) for gpu in topology.gpus] == [("GPU0", 2), ("GPU1", None)]


def test_profiles_are_named_as_the_driver_names_them() -> None:
    gib = 2**30
    names = [name_slices(slices, slices, mib << 20, 80 * gib) for slices, mib in [(1, 9856), (1, 19968), (3, 40192), (7, 80384)]]
    assert names == ["1g.10gb", "1g.20gb", "3g.40gb", "7g.80gb"]
    assert name_slices(1, 1, 18 * gib, 141 * gib) == "1g.35gb" and name_slices(1, 1, 17 * gib, 141 * gib) == "1g.18gb"
    assert name_slices(3, 1, 40 * gib, 80 * gib) == "1c.3g.40gb"
    assert name_slices(None, 1, 5, 80 * gib) is None and name_slices(1, 1, 90 * gib, 80 * gib) is None


def test_a_part_of_an_instance_is_not_taken_for_the_whole() -> None:
    def name(multiprocessors: int, copy_engines: int, media: int = 0) -> str | None:
        return name_engines(80 << 30, 40 << 30, multiprocessors=multiprocessors, copy_engines=copy_engines, media_engines=media)

    assert name(42, 3) == "3g.40gb" and name(56, 4) == "4g.40gb"
    assert name(42, 4) is None and name(14, 3) is None and name(14, 0) is None
    assert name_engines(80 << 30, 10 << 30, multiprocessors=16, copy_engines=1, media_engines=1) == "1g.10gb+me"


#: file -> GPUs, name of the first, its memory in MiB, its lanes
RECORDED = {
    "qx-3090-v13.xml": (1, "NVIDIA GeForce RTX 3090", 24576, 16),
    "qx-a10g.xml": (1, "NVIDIA A10G", 23028, 8),
    "qx-a100-sxm4-v12.xml": (1, "NVIDIA A100-SXM4-80GB", 81920, 16),
    "qx-dual_2070-v13.xml": (2, "NVIDIA GeForce RTX 2070", 8192, 8),
    "qx-dual_2080-v13.xml": (2, "NVIDIA GeForce RTX 2080", 8192, 8),
    "qx-gt-1030.xml": (1, "NVIDIA GeForce GT 1030", 1998, 4),
    "qx-gtx-1660-ti.xml": (1, "Graphics Device", 5912, 16),
    "qx-quadro-p2000-v12.xml": (1, "Quadro P2000", 5120, 8),
    "qx-quadro-p400.xml": (1, "Quadro P400", 1998, 16),
    "qx-rtx-3060-v12.xml": (1, "NVIDIA GeForce RTX 3060", 12288, 16),
    "qx-rtx-3080-v12.xml": (1, "NVIDIA GeForce RTX 3080", 10240, 16),
    "qx-rtx-3080-v13.xml": (1, "NVIDIA GeForce RTX 3080", 10240, 16),
    "qx-tesla-t4.xml": (1, "Tesla T4", 15360, 8),
    "q-nvidia-smi-query.535.129.03.out.0.valid.a10.txt": (1, "NVIDIA A10", 23028, 16),
    "q-nvidia-smi-query.535.154.05.out.0.valid.4090.txt": (8, "NVIDIA GeForce RTX 4090", 24564, 16),
    "q-nvidia-smi-query.535.154.05.out.1.valid.txt": (8, "NVIDIA GeForce RTX 4090", 24564, 16),
    "q-nvidia-smi-query.535.161.08.out.0.valid.txt": (8, "NVIDIA H100 80GB HBM3", 81559, 16),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_screens_of_all_versions_are_read(name: str) -> None:
    read = read_nvidia_smi_xml if name.endswith("xml") else read_nvidia_smi_text
    gpus = read(recorded(f"nvidia-smi/{name}").read_text(), name).gpus
    assert (len(gpus), gpus[0].name, (gpus[0].memory_bytes or 0) >> 20, gpus[0].pcie_width) == RECORDED[name]


def test_the_recorded_a100_has_four_instances() -> None:
    (gpu,) = read_nvidia_smi_xml(recorded("nvidia-smi/qx-a100-sxm4-v12.xml").read_text(), "a").gpus
    assert gpu.mig and [mig.profile for mig in gpu.mig_instances] == ["1g.20gb"] * 4


def test_the_recorded_link_status_has_twelve_links_per_gpu() -> None:
    gpus = read_nvlink_status(recorded("nvidia-smi/nvidia-smi.nvlink.status.a100.txt").read_text(), "s").gpus
    assert [gpu.links for gpu in gpus] == [12] * 8


@given(st.data())
@settings(max_examples=150)
def test_a_mutated_xml_screen_is_a_topology_or_refused(data: st.DataObject) -> None:
    answer = read_or_refuse(read_nvidia_smi_xml, data.draw(mutated(XML)))
    if isinstance(answer, Topology):
        assert merge([answer, answer]) == answer
    else:
        assert answer.endswith(".") and "\n" not in answer


@given(st.data())
@settings(max_examples=150)
def test_a_mutated_text_screen_is_a_topology_or_refused(data: st.DataObject) -> None:
    answer = read_or_refuse(read_nvidia_smi_text, data.draw(mutated(TEXT)))
    if isinstance(answer, Topology):
        assert merge([answer, answer]) == answer
    else:
        assert answer.endswith(".") and "\n" not in answer


@given(st.data())
@settings(max_examples=150)
def test_a_mutated_link_status_is_a_topology_or_refused(data: st.DataObject) -> None:
    answer = read_or_refuse(read_nvlink_status, data.draw(mutated(STATUS.replace("\nNVML", "\n\tNVML"))))
    if isinstance(answer, Topology):
        assert merge([answer, answer]) == answer
    else:
        assert answer.endswith(".") and "\n" not in answer
