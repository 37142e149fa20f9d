"""Which shape has `topo --json`? Counts at the top, devices by id, one entry per pair. UUIDs only when asked for."""

from __future__ import annotations

import msgspec

from steelyard.model.topology import Gpu, Nic, Topology


def make_json(topology: Topology, used: dict[str, str], identifiers: bool = False) -> dict[str, object]:
    """`used`: device id or `cpu:N` -> by whom. A fact that no source tells is None, as everywhere."""
    return {
        "sources": topology.sources,
        "packages": topology.packages,
        "numa_nodes": len(topology.numa_nodes),
        "cores": len(topology.cores) if topology.smt_known else None,
        "threads": topology.threads,
        "memory_bytes": topology.memory_bytes,
        "numa": [
            {
                "id": node.id,
                "cpus": node.cpus,
                "memory_bytes": node.memory_bytes,
                "gpu_memory": node.id in topology.gpu_memory_nodes,
            }
            for node in topology.numa_nodes
        ],
        "numa_distances": topology.numa_distances,
        "core_list": [{"cpus": core.cpus, "package": core.package, "numa_node": core.numa_node} for core in topology.cores],
        "caches": topology.caches,
        "gpus": [_gpu(gpu, used, identifiers) for gpu in topology.gpus],
        "nics": [_nic(nic, used) for nic in topology.nics],
        "nvme": [
            {
                "id": disk.id,
                "name": disk.name,
                "pci": disk.pci,
                "size_bytes": disk.size_bytes,
                "numa_node": disk.numa_node,
                "pcie_gbps": disk.pcie_gbps,
                "parent": disk.parent,
            }
            for disk in topology.nvme
        ],
        "bridges": topology.bridges,
        "switches": topology.switches,
        "pairs": [{"a": pair.a, "b": pair.b, "class": pair.class_name, "gbps": pair.gbps} for pair in topology.pairs],
        "used": used,
        "notes": topology.notes,
    }


def _gpu(gpu: Gpu, used: dict[str, str], identifiers: bool) -> dict[str, object]:
    shown = msgspec.structs.asdict(gpu)
    del shown["uuid"]
    shown["mig_instances"] = [
        {
            "profile": part.profile,
            "memory_bytes": part.memory_bytes,
            "gpu_instance": part.gpu_instance,
            "compute_instance": part.compute_instance,
            **({"uuid": part.uuid} if identifiers else {}),
        }
        for part in gpu.mig_instances
    ]
    return {**shown, **({"uuid": gpu.uuid} if identifiers else {}), "used_by": used.get(gpu.id)}


def _nic(nic: Nic, used: dict[str, str]) -> dict[str, object]:
    return {**msgspec.structs.asdict(nic), "gbps": nic.gbps, "used_by": used.get(nic.id)}
