"""Machines as `cluster up` sees them, for tests: recorded ones and small ones of our own."""

from __future__ import annotations

from typing import Any

import msgspec

from steelyard.model.cluster import ClusterSpec, HostEntry, SeenHost
from steelyard.model.topology import Topology


def seen_host(name: str, topology: Topology | None, **fields: Any) -> SeenHost:
    """A Debian machine with all packages and root, on which nothing of a cluster is yet."""
    told: dict[str, Any] = {
        "hostname": name, "address": f"10.0.0.{sum(map(ord, name)) % 250}", "uid": 0, "root": True, "distribution": "debian 12",
        "clock_ahead_s": 0.0, "systemd": True, "missing": (), "slurm": (22, 5), "key": "k" * 64, "cgroups": "v2",
        "name_is_public": True, "topology": topology, "steelyard": "/opt/steelyard/bin/steelyard",
    }  # fmt: skip
    if topology is not None:
        told["gpu_files"] = {gpu.pci or gpu.id: f"/dev/nvidia{at}" for at, gpu in enumerate(topology.gpus)}
    return SeenHost(name, **{**told, **fields})


def with_pci(topology: Topology) -> Topology:
    """GPUs of our own machines are named by their address alone."""
    gpus = tuple(msgspec.structs.replace(gpu, pci=gpu.pci or gpu.id) for gpu in topology.gpus)
    return msgspec.structs.replace(topology, gpus=gpus)


def spec_of(*names: str) -> ClusterSpec:
    return ClusterSpec(tuple(HostEntry(name) for name in names))
