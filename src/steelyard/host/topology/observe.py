"""How is this very machine wired? The kernel's view, and what NVIDIA's driver adds where there is one."""

from __future__ import annotations

from pathlib import Path

from steelyard.host.topology.linux import read_linux
from steelyard.host.topology.merge import merge
from steelyard.host.topology.nvml import observe_nvml
from steelyard.model.topology import Topology


def observe_topology(root: Path = Path("/")) -> Topology:
    """Takes some 10 ms, more with many GPUs: observed at start and on demand. A driver is only asked about the real root."""
    seen = read_linux(root)
    driver = observe_nvml() if root == Path("/") else None
    return seen if driver is None else merge([seen, driver])
