from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from steelyard.host.health.ask import Told
from steelyard.host.topology import observe
from steelyard.host.topology.nvml import observe_nvml
from steelyard.model.topology import PathClass, SwitchKind, Topology


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(
            {3: "Not Supported", 6: "Not Found", 9: "Driver Not Loaded", 15: "GPU is lost"}.get(value, "Unknown Error")
        )
        self.value = value


class Box:
    """Stands for the module pynvml on a machine. GPU handles are numbers; MIG handles are pairs."""

    NVML_NVLINK_MAX_LINKS = 4

    def __init__(self, gpus: int, **answers: Any) -> None:
        self.gpus, self.answers, self.ended = gpus, answers, False

    def __getattr__(self, question: str) -> Any:
        if not question.startswith("nvml"):
            raise AttributeError(question)

        def answer(*arguments: Any) -> Any:
            told = self.answers.get(question, NVMLError(3))
            told = told(*arguments) if callable(told) else told
            if isinstance(told, Exception):
                raise told
            return told

        return answer

    def nvmlInit(self) -> None:
        if isinstance(error := self.answers.get("init"), Exception):
            raise error

    def nvmlShutdown(self) -> None:
        self.ended = True

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.answers.get("lost", ()):
            raise NVMLError(15)
        return index

    def nvmlDeviceGetPciInfo(self, gpu: int) -> Any:
        return SimpleNamespace(busId=f"00000000:{0x0F + gpu:02X}:00.0".encode())


def linked_box() -> Box:
    """Four GPUs: 0-1 and 2-3 by two links each, all four by one link to a switch; the fourth link is down."""
    return Box(
        4,
        nvmlDeviceGetName=lambda _: "NVIDIA A100-SXM4-40GB",
        nvmlDeviceGetUUID=lambda gpu: f"GPU-{gpu}",
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=40 << 30),
        nvmlDeviceGetCudaComputeCapability=lambda _: (8, 0),
        nvmlDeviceGetMigMode=lambda _: [0, 0],
        nvmlDeviceGetNvLinkState=lambda _, link: int(link < 3),
        nvmlDeviceGetNvLinkRemoteDeviceType=lambda _, link: 2 if link == 2 else 0,
        nvmlDeviceGetNvLinkRemotePciInfo_v2=lambda gpu, link: SimpleNamespace(
            busId="00000000:C4:00.0" if link == 2 else f"00000000:{0x0F + (gpu ^ 1):02X}:00.0"
        ),
        nvmlDeviceGetTopologyCommonAncestor=lambda a, b: 30 if a // 2 == b // 2 else 50,
        nvmlDeviceGetMaxPcieLinkGeneration=lambda _: 4,
        nvmlDeviceGetMaxPcieLinkWidth=lambda _: 16,
        nvmlDeviceGetCurrPcieLinkWidth=lambda gpu: 16 if gpu else 8,
        nvmlDeviceGetMemoryAffinity=lambda gpu, words, _: [1 << gpu // 2] + [0] * (words - 1),
        nvmlDeviceGetCpuAffinity=lambda gpu, _: [0b1100 if gpu > 1 else 0b0011, 0],
    )


def test_a_box_with_links_tells_gpus_and_pairs() -> None:
    box = linked_box()
    topology = observe_nvml(box)
    assert topology is not None and topology.notes == () and box.ended
    gpu = topology.gpus[0]
    assert (gpu.id, gpu.memory_bytes, gpu.architecture, gpu.links, gpu.mig) == ("0000:0f:00.0", 40 << 30, "80", 3, False)
    assert (gpu.pcie_width, gpu.pcie_width_max, gpu.pcie_gbps) == (8, 16, 126.031)
    assert [(gpu.numa_node, gpu.cpus) for gpu in topology.gpus] == [(0, (0, 1)), (0, (0, 1)), (1, (2, 3)), (1, (2, 3))]
    assert [(pair.class_name, pair.gbps) for pair in topology.pairs] == [
        ("NV2", 400.0), ("NV1", 200.0), ("NV1", 200.0), ("NV1", 200.0), ("NV1", 200.0), ("NV2", 400.0),
    ]  # fmt: skip
    assert [(switch.id, switch.kind) for switch in topology.switches] == [("0000:c4:00.0", SwitchKind.NVSWITCH)]


def test_without_links_the_common_ancestor_tells_the_path() -> None:
    box = linked_box()
    del box.answers["nvmlDeviceGetNvLinkState"]
    topology = observe_nvml(box)
    assert topology is not None
    assert [pair.path for pair in topology.pairs] == [PathClass.PHB, *[PathClass.SYS] * 4, PathClass.PHB]
    assert all(gpu.links is None for gpu in topology.gpus)


def test_mig_instances_are_named_and_empty_places_skipped() -> None:
    box = Box(
        1,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=80 << 30),
        nvmlDeviceGetMigMode=lambda _: [1, 1],
        nvmlDeviceGetMaxMigDeviceCount=lambda _: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=lambda gpu, place: (gpu, place) if place in (0, 2) else NVMLError(6),
        nvmlDeviceGetUUID=lambda handle: "MIG-1" if isinstance(handle, tuple) else "GPU-1",
        nvmlDeviceGetGpuInstanceId=lambda mig: 7 + mig[1],
        nvmlDeviceGetComputeInstanceId=lambda _: 0,
        nvmlDeviceGetAttributes_v2=lambda _: SimpleNamespace(
            memorySizeMB=9856, gpuInstanceSliceCount=1, computeInstanceSliceCount=1
        ),
    )
    topology = observe_nvml(box)
    assert topology is not None and topology.gpus[0].mig
    assert [(mig.uuid, mig.profile, mig.gpu_instance) for mig in topology.gpus[0].mig_instances] == [
        ("MIG-1", "1g.10gb", 7),
        ("MIG-1", "1g.10gb", 9),
    ]


def test_what_is_not_supported_is_left_out_in_silence() -> None:
    topology = observe_nvml(Box(2))
    assert topology is not None and topology.notes == () and topology.pairs == ()
    assert [(gpu.id, gpu.name, gpu.memory_bytes, gpu.mig) for gpu in topology.gpus] == [
        ("0000:0f:00.0", "", None, None),
        ("0000:10:00.0", "", None, None),
    ]


def test_a_gpu_that_is_lost_does_not_hide_the_others() -> None:
    topology = observe_nvml(Box(2, lost={0}, nvmlDeviceGetName=lambda _: NVMLError(999)))
    assert topology is not None and [gpu.id for gpu in topology.gpus] == ["0000:10:00.0"]
    assert "GPU is lost" in topology.notes[0] and any("nvmlDeviceGetName failed" in note for note in topology.notes)


@pytest.mark.parametrize("value", [9, 12])
def test_without_a_driver_there_is_nothing(value: int) -> None:
    assert observe_nvml(Box(1, init=NVMLError(value))) is None


def test_a_driver_of_another_version_than_its_library_is_a_note() -> None:
    topology = observe_nvml(Box(1, init=NVMLError(18)))
    assert topology is not None and topology.gpus == () and "can't be asked" in topology.notes[0]


@pytest.mark.parametrize("nonsense", [None, "text", -1, [], object(), 2.5])
def test_nonsense_answers_never_raise(nonsense: Any) -> None:
    questions = [*linked_box().answers]
    topology = observe_nvml(Box(2, **{question: (lambda *_: nonsense) for question in questions}))
    assert topology is not None and len(topology.gpus) == 2


def test_the_program_prints_what_the_installed_library_tells() -> None:
    pytest.importorskip("pynvml")
    said = subprocess.run([sys.executable, "-m", "steelyard.host.topology.nvml"], capture_output=True, check=True).stdout
    topology = msgspec.json.decode(said, type=Topology | None)
    assert topology is None or topology.sources == ("NVML",)


def test_observing_this_machine_never_loads_the_library_s_module() -> None:
    script = "import sys, steelyard.host.topology.observe as o; o.observe_topology(); print('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"False\n"


@pytest.mark.parametrize("told", [Told(error="it failed with code 1."), Told("cut off"), Told("[]")])
def test_a_program_that_fails_is_a_note(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe.ctypes, "CDLL", lambda _: None)
    monkeypatch.setattr(observe, "ask", lambda _: told)
    topology = observe.observe_topology()
    assert any("can't be asked" in note for note in topology.notes)
