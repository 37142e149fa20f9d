"""How is this very machine wired? The kernel's view, and what NVIDIA's driver adds where there is one."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import msgspec

from steelyard.host.health.ask import ask
from steelyard.host.topology.linux import read_linux
from steelyard.host.topology.merge import merge
from steelyard.model.topology import Topology


def observe_topology(root: Path = Path("/")) -> Topology:
    """Takes some 10 ms, and a program's start more with a driver: observed at start and on demand. A driver is only asked about
    the real root."""
    seen = read_linux(root)
    driver = _observe_driver() if root == Path("/") else None
    return seen if driver is None else merge([seen, driver])


def _observe_driver() -> Topology | None:
    """By a program that ends: what the driver's Python module needs would stay with an agent for good."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    told = ask([sys.executable, "-P", "-m", "steelyard.host.topology.nvml"])
    error = told.error
    try:
        if not error:
            return msgspec.json.decode(told.text, type=Topology | None)
    except msgspec.DecodeError as err:
        error = str(err)
    return Topology(sources=("NVML",), smt_known=False, notes=(f"NVML: the driver can't be asked ({error.rstrip('.')}).",))
