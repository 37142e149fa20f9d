"""How busy GPUs are, by a driver that is made up (answers fill in the caller's structure, as the C library does)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steelyard.host.gpu_use import GpuMeter

PCI = "0000:19:00.0"


class Driver:
    """Percent by PCI address; anything else is no GPU."""

    def __init__(self, busy: dict[str, int], init: int = 0) -> None:
        self.busy, self.init, self.lookups = busy, init, 0
        self.lost = False

    def nvmlInit_v2(self) -> int:
        return self.init

    def nvmlDeviceGetHandleByPciBusId_v2(self, pci: bytes, handle: Any) -> int:
        self.lookups += 1
        if pci.decode() not in self.busy:
            return 6
        handle._obj.value = 1 + list(self.busy).index(pci.decode())
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: Any, told: Any) -> int:
        if self.lost:
            return 15
        told._obj.gpu = list(self.busy.values())[handle.value - 1]
        return 0


def test_each_gpu_is_asked_and_found_once(tmp_path: Path) -> None:
    driver = Driver({PCI: 70, "0000:3b:00.0": 10})
    meter = GpuMeter(tmp_path, driver)
    assert meter.read([PCI, "0000:3b:00.0", "0000:ff:00.0"]) == {PCI: 70.0, "0000:3b:00.0": 10.0}
    assert meter.read([PCI]) == {PCI: 70.0}
    assert driver.lookups == 3


def test_a_gpu_that_was_lost_is_left_out_and_found_again(tmp_path: Path) -> None:
    driver = Driver({PCI: 70})
    meter = GpuMeter(tmp_path, driver)
    driver.lost = True
    assert meter.read([PCI]) == {}
    driver.lost = False
    assert meter.read([PCI]) == {PCI: 70.0}


def test_a_machine_without_a_driver_tells_nothing(tmp_path: Path) -> None:
    assert GpuMeter(tmp_path, Driver({PCI: 70}, init=9)).read([PCI]) == {}
    assert GpuMeter(tmp_path, object()).read([PCI]) == {}


def test_amd_tells_it_in_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/pci/devices" / PCI
    folder.mkdir(parents=True)
    (folder / "gpu_busy_percent").write_text("33\n")
    assert GpuMeter(tmp_path, object()).read([PCI]) == {PCI: 33.0}
