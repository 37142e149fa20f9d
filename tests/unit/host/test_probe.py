"""Active checks: those that can be made on every machine, and that one which can't look says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.host.health import gpu_probe, probe
from steelyard.host.health.probe import probe_disk, probe_gpu, probe_nic, probe_node, probe_nvme, probe_pci
from steelyard.model.health import Severity

NIC = "0000:4b:00.0"


def test_this_machine_computes_alike_on_all_cpus_and_keeps_what_is_written(tmp_path: Path) -> None:
    finding = probe_node(tmp_path)
    assert finding.severity is Severity.PASS, finding
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing_fails_the_check(tmp_path: Path) -> None:
    assert probe_node(tmp_path / "absent").severity is Severity.CRITICAL


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA GPU")
def test_without_a_driver_a_gpu_is_unknown_and_does_not_pass() -> None:
    finding = probe_gpu("0000:0f:00.0")
    assert (finding.severity, "libcuda" in finding.sentence) == (Severity.UNKNOWN, True)


class Cuda:
    """The driver's library as far as the check calls it; `fails` names a call, `rot` changes what is read back."""

    def __init__(self, fails: str = "", rot: bool = False) -> None:
        self.fails, self.rot, self.word = fails, rot, 0

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> int:
            if name == "cuMemsetD32_v2":
                self.word = arguments[1].value  # type: ignore[attr-defined]
            if name == "cuMemcpyDtoH_v2":
                buffer = arguments[0]
                buffer[:] = [self.word] * len(buffer)  # type: ignore[index, arg-type]
                if self.rot:
                    buffer[5] ^= 1  # type: ignore[index]
            return 999 if name == self.fails else 0

        return call


@pytest.mark.parametrize(
    ("cuda", "code", "word"),
    [
        (Cuda(), 0, "PASS"),
        (Cuda(rot=True), 1, "did not hold"),
        (Cuda("cuInit"), 1, "start the driver"),
        (Cuda("cuDeviceGetByPCIBusId"), 1, "find the GPU"),
        (Cuda("cuMemAlloc_v2"), 1, "allocate"),
        (Cuda("cuCtxSynchronize"), 1, "fill and read back"),
    ],
)
def test_a_gpu_passes_only_when_it_gives_back_what_was_written(
    cuda: Cuda, code: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_probe.ctypes, "CDLL", lambda name: cuda)
    monkeypatch.setattr(gpu_probe, "BYTES", 4096)
    assert gpu_probe.main("0000:0f:00.0") == code
    assert word in capsys.readouterr().out


def make_port(root: Path, state: str, errors: int) -> None:
    port = root / "sys/bus/pci/devices" / NIC / "infiniband/mlx5_2/ports/1"
    (port / "counters").mkdir(parents=True, exist_ok=True)
    (port / "state").write_text(f"{state}\n")
    (port / "counters/symbol_error").write_text(f"{errors}\n")


def test_a_card_passes_when_its_ports_are_active_and_count_no_new_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "WATCH_S", 0.0)
    make_port(tmp_path, "4: ACTIVE", 7)
    assert probe_nic(NIC, tmp_path).severity is Severity.PASS
    make_port(tmp_path, "1: DOWN", 7)
    assert probe_nic(NIC, tmp_path).severity is Severity.CRITICAL
    assert probe_nic("0000:4c:00.0", tmp_path).severity is Severity.UNKNOWN


def test_an_nvme_disk_is_read_and_one_without_namespaces_is_unknown(tmp_path: Path) -> None:
    pci = "0000:20:00.0"
    (tmp_path / "sys/bus/pci/devices" / pci / "nvme/nvme0").mkdir(parents=True)
    assert probe_nvme(pci, tmp_path).severity is Severity.UNKNOWN
    (tmp_path / "sys/class/nvme/nvme0/nvme0n1").mkdir(parents=True)
    assert probe_nvme(pci, tmp_path).severity is Severity.CRITICAL
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvme0n1").write_bytes(b"x" * 4096)
    assert probe_nvme(pci, tmp_path).severity is Severity.PASS


def test_a_disk_is_read_by_the_kernels_name(tmp_path: Path) -> None:
    assert probe_disk("sda", tmp_path) is None and probe_disk("../x", tmp_path) is None
    (tmp_path / "sys/class/block/sda").mkdir(parents=True)
    finding = probe_disk("sda", tmp_path)
    assert finding is not None and finding.severity is Severity.CRITICAL
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sda").write_bytes(b"x" * 4096)
    finding = probe_disk("sda", tmp_path)
    assert finding is not None and (finding.subject, finding.severity) == ("sda", Severity.PASS)


def test_a_disk_named_by_its_controller_is_read_through_a_namespace(tmp_path: Path) -> None:
    (tmp_path / "sys/class/nvme/nvme0/nvme0n1").mkdir(parents=True)
    (tmp_path / "sys/class/block/nvme0n1").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvme0n1").write_bytes(b"x" * 4096)
    finding = probe_disk("nvme0", tmp_path)
    assert finding is not None and (finding.subject, finding.severity) == ("nvme0", Severity.PASS)


def make_bridge(root: Path, config: bytes, errors: int | None) -> str:
    folder = root / "sys/bus/pci/devices/0000:40:01.1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config").write_bytes(config)
    if errors is not None:
        (folder / "aer_dev_fatal").write_text(f"Undefined 0\nTLP {errors}\nTOTAL_ERR_FATAL {errors}\n")
    return folder.name


@pytest.mark.parametrize(
    ("config", "errors", "severity"),
    [
        (b"\x22\x10" + bytes(62), 3, Severity.PASS),
        (b"\xff" * 64, 3, Severity.CRITICAL),
        (b"", 3, Severity.CRITICAL),
        (b"\x22\x10" + bytes(62), None, Severity.UNKNOWN),
    ],
)
def test_a_bridge_passes_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: bytes, errors: int | None, severity: Severity
) -> None:
    monkeypatch.setattr(probe, "WATCH_S", 0.0)
    finding = probe_pci(make_bridge(tmp_path, config, errors), tmp_path)
    assert finding is not None and finding.severity is severity
    assert probe_pci("0000:41:00.0", tmp_path) is None and probe_pci("gpu/../x", tmp_path) is None


def test_a_bridge_that_goes_on_counting_errors_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = make_bridge(tmp_path, b"\x22\x10" + bytes(62), 3)

    class Meanwhile:
        def wait(self, seconds: float) -> None:
            make_bridge(tmp_path, b"\x22\x10" + bytes(62), 4)

    monkeypatch.setattr(probe.threading, "Event", Meanwhile)
    finding = probe_pci(bridge, tmp_path)
    assert finding is not None and finding.severity is Severity.CRITICAL
