"""Which nodes does a slurm.conf of ours hold? The way back from text to nodes, for machines that can't be asked now. Pure.

Reads only files that are as we wrote them, so nothing but our own lines is known here; of any other text the answer is none.
"""

from __future__ import annotations

import re

import msgspec

from steelyard.engine.bringup.node import Node, NodeGpu
from steelyard.engine.bringup.written import whose
from steelyard.model.cluster import Written

#: partitions that are made of the machines, not named by hosts
_MADE = ("main", "gpu")


def read_nodes(slurm_conf: str, gres_conf: str) -> dict[str, Node]:
    if whose(slurm_conf) is not Written.OURS:
        return {}
    gpus = _read_gpus(gres_conf) if whose(gres_conf) is Written.OURS else {}
    nodes: dict[str, Node] = {}
    remarks: dict[str, list[str]] = {}
    for line in slurm_conf.splitlines():
        if remark := re.match(r"# ([A-Za-z0-9.-]+): (.*)", line):
            remarks.setdefault(remark[1], []).append(remark[2])
        words = _words(line)
        if "NodeName" in words:
            nodes[words["NodeName"]] = _node(words, gpus, remarks.get(words["NodeName"], []))
        elif words.get("PartitionName", _MADE[0]) not in _MADE:
            for name in words["Nodes"].split(","):
                nodes[name] = msgspec.structs.replace(nodes[name], partitions=(*nodes[name].partitions, words["PartitionName"]))
    return nodes


def read_controller(slurm_conf: str) -> str:
    """Whose node a machine with this file is; "" where the file is none of ours."""
    match = re.search(r"^SlurmctldHost=([^(\s]+)", slurm_conf, re.MULTILINE)
    return match[1] if match and whose(slurm_conf) is Written.OURS else ""


def _words(line: str) -> dict[str, str]:
    return {} if line.startswith("#") else dict(word.split("=", 1) for word in line.split() if "=" in word)


def _node(words: dict[str, str], gpus: dict[str, list[NodeGpu]], remarks: list[str]) -> Node:
    kept = [re.fullmatch(r"(\d+) MiB of its memory stay with the system\.", remark) for remark in remarks]
    return Node(
        name=words["NodeName"],
        address=words["NodeAddr"],
        sockets=int(words["SocketsPerBoard"]),
        cores_per_socket=int(words["CoresPerSocket"]),
        threads_per_core=int(words["ThreadsPerCore"]),
        real_memory_mib=int(words["RealMemory"]),
        reserve_mib=next((int(match[1]) for match in kept if match), 0),
        gpus=tuple(gpus.get(words["NodeName"], ())),
        features=tuple(words["Feature"].split(",")) if "Feature" in words else (),
        notes=tuple(remark for remark, match in zip(remarks, kept, strict=True) if not match),
    )


def _read_gpus(gres_conf: str) -> dict[str, list[NodeGpu]]:
    found: dict[str, list[NodeGpu]] = {}
    for line in gres_conf.splitlines():
        words = _words(line)
        if "NodeName" in words:
            links = tuple(int(count) for count in words["Links"].split(",")) if "Links" in words else ()
            cores = tuple(core for run in words["Cores"].split(",") for core in _run(run)) if "Cores" in words else ()
            found.setdefault(words["NodeName"], []).append(NodeGpu(words["File"], words["Type"], links, cores))
    return found


def _run(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
