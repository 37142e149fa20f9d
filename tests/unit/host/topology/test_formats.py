from __future__ import annotations

import re

import pytest

from mutated import read_or_refuse
from recorded import recorded
from steelyard.errors import Refused
from steelyard.host.topology.formats import Format, find_format


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('<?xml version="1.0"?>\n<!DOCTYPE topology SYSTEM "hwloc2.dtd">\n<topology version="2.0">', Format.HWLOC_XML),
        ("<!-- a > b --><!--\n<topology>--><system version='1'/>", Format.NCCL_XML),
        ("\ufeff<?xml version='1.0' ?><nvidia_smi_log>", Format.NVIDIA_SMI_XML),
        ("\n==============NVSMI LOG==============\n\nAttached GPUs : 1\n", Format.NVIDIA_SMI_TEXT),
        ("$ nvidia-smi topo -m\n\x1b[4mGPU0\x1b[0m\tGPU1\tCPU Affinity\nGPU0\t X \tSYS\n", Format.NVIDIA_MATRIX),
        ("GPU 0: NVIDIA A100 (UUID: GPU-1)\n\t Link 0: 25 GB/s\n", Format.NVLINK_STATUS),
        ("==== ROCm System Management Interface ====\n   GPU0  GPU1\n", Format.ROCM_TOPO),
        ('{"card0": {"PCI Bus": "0000:01:00.0"}}', Format.ROCM_JSON),
        ('{\n"/sys/class/net/eth0/speed": "1000"}', Format.PACKED),
        ("Directory: fixtures/sys/class\nMode: 755\n# ttar - - - -\n", Format.PACKED),
    ],
)
def test_formats_are_told_by_content(text: str, kind: Format) -> None:
    assert find_format(text, "any.name") is kind


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("  \n\t", "is empty"),
        ("<", "cut off or malformed"),
        ("<!-- never closed <system>", "cut off or malformed"),
        ("<svg width='3'/>", "root is <svg>"),
        ('{"@odata.id": "/redfish/v1"}', "Redfish"),
        ('{"a": 1}', "JSON of no kind"),
        ("| NVIDIA-SMI 550.90.07   Driver Version: 550 |", "nvidia-smi -q -x"),
        ("GPU 0: NVIDIA A100 (UUID: GPU-1)\n", "nvidia-smi -L"),
        ("# Topology file: generated on Wed\n", "--fabric"),
        ("SwitchName=s1 Nodes=n[1-4]\n", "--fabric"),
        ("[  201.650687] sysrq: SysRq\n", "steelyard check"),
        ("<6>[  201.650687] sysrq: SysRq\n", "steelyard check"),
        ("[Fri Aug 30 11:11:22 2024] NVRM: Xid (PCI:0000:38:00): 13\n", "steelyard check"),
        ("00:00.0 Host bridge [0600]: Intel [8086:29c0]\n", "looks like lspci"),
        ("# dmidecode 3.3\n", "looks like dmidecode"),
        ("a,b,c\n1,2,3\n", "looks like CSV"),
        ("hello world\n", "none of the formats"),
    ],
)
def test_what_describes_no_machine_is_refused_by_what_it_looks_like(text: str, sentence: str) -> None:
    with pytest.raises(Refused, match=re.escape(sentence)) as refusal:
        find_format(text, "any.name")
    assert refusal.value.public.startswith("any.name ") and "\n" not in refusal.value.public


@pytest.mark.parametrize(
    "text", ["\n" * 60_000 + "x", "{" + '"/' * 30_000, "<!" * 30_000, "GPU0 " * 12_000, "=" * 60_000, " " * 60_000 + "x"]
)
def test_crafted_heads_are_decided_at_once(text: str) -> None:
    answer = read_or_refuse(find_format, text)
    assert answer is Format.NVIDIA_MATRIX or answer.startswith("x ")


KINDS = {
    "fabric": None, "health": None, "redfish": None, "hwloc-xml": {Format.HWLOC_XML}, "nccl-topo": {Format.NCCL_XML},
    "rocm-smi": {Format.ROCM_TOPO, Format.ROCM_JSON}, "sysfs": {Format.PACKED}, "nvml-mock": None,
}  # fmt: skip


@pytest.mark.parametrize("folder", KINDS)
def test_recorded_files_are_told_apart(folder: str) -> None:
    allowed = KINDS[folder]
    for path in sorted(recorded(folder).rglob("*.*")):
        if path.is_dir():
            continue
        answer = read_or_refuse(find_format, path.read_text(errors="replace"))
        if isinstance(answer, Format):
            assert answer in (allowed or {Format.PACKED}), path.name
        else:
            assert allowed is None, f"{path.name}: {answer}"


def test_recorded_screens_of_nvidia_smi_are_told_apart() -> None:
    starts = {"topo-m": Format.NVIDIA_MATRIX, "qx-": Format.NVIDIA_SMI_XML, "q-nvidia-smi-query": Format.NVIDIA_SMI_TEXT}
    for path in sorted(recorded("nvidia-smi").iterdir()):
        kind = next((kind for start, kind in starts.items() if path.name.startswith(start)), None)
        if kind is not None:
            assert find_format(path.read_text(), path.name) is kind
        elif "nvlink" not in path.name:
            with pytest.raises(Refused, match=r"looks like lspci|nvidia-smi -q -x"):
                find_format(path.read_text(), path.name)
