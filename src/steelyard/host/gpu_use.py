"""How busy are GPUs now? Asked of NVIDIA's driver by the four functions of its C library that this takes.

By ctypes: the Python module of the library costs 16 MB that an agent must not keep. Loaded at the first question, so a machine
whose work uses no GPU pays nothing. Blocks as long as the driver does: call from a thread. Raises nothing; what can't be told is
left out. AMD tells it in a file of /sys.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from steelyard.host.sysfs import read_int

_LIBRARY = "libnvidia-ml.so.1"


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t"""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class GpuMeter:
    """`library`: what stands for NVML in tests."""

    def __init__(self, root: Path = Path("/"), library: Any = None) -> None:
        self._root = root
        self._library = library
        self._started = False
        self._handles: dict[str, ctypes.c_void_p] = {}

    def read(self, pci_addresses: Iterable[str]) -> dict[str, float]:
        """PCI address -> percent of the last moment (the driver's own, up to a second) in which it computed something."""
        found: dict[str, float] = {}
        for pci in sorted(set(pci_addresses)):
            percent = read_int(self._root / "sys/bus/pci/devices" / pci / "gpu_busy_percent")
            percent = self._ask(pci) if percent is None else percent
            if percent is not None and 0 <= percent <= 100:
                found[pci] = float(percent)
        return found

    def _ask(self, pci: str) -> int | None:
        nvml = self._start()
        if nvml is None or (handle := self._find(nvml, pci)) is None:
            return None
        told = _Utilization()
        if nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(told)) != 0:
            self._handles.pop(pci, None)  # it was reset, or is gone: found anew the next time
            return None
        return int(told.gpu)

    def _start(self) -> Any:
        if not self._started:
            self._started = True
            try:
                nvml = ctypes.CDLL(_LIBRARY) if self._library is None else self._library
                self._library = nvml if nvml.nvmlInit_v2() == 0 else None
            except (OSError, AttributeError):
                self._library = None
        return self._library

    def _find(self, nvml: Any, pci: str) -> ctypes.c_void_p | None:
        handle = self._handles.get(pci)
        if handle is None:
            handle = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByPciBusId_v2(pci.encode(), ctypes.byref(handle)) != 0:
                return None
            self._handles[pci] = handle
        return handle
