"""Which NVIDIA GPUs does this machine have right now, by the driver itself (NVML through nvidia-ml-py)?

Run as a program of its own (`python -m steelyard.host.topology.nvml`), which prints the Topology as JSON, or `null`: the Python
module of the library costs 16 MB that an agent must not keep. Asks, and never changes a setting. A driver
that fails half-way gives the facts it could, and a note for each question that failed for another reason than "not supported".
Nothing is raised.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from typing import Any

import msgspec

from steelyard.host.topology.links import LinkTable
from steelyard.host.topology.mig import name_slices
from steelyard.host.topology.notation import GENERATIONS, read_pci
from steelyard.host.topology.tree import pcie_gbps
from steelyard.model.topology import Gpu, MigInstance, Pair, PathClass, Switch, SwitchKind, Topology

#: NVML's numbers, stable since their first release; kept here because old copies of the library lack some names
_NO_DRIVER = {9: "driver not loaded", 12: "library not found"}
_NOT_SUPPORTED = (3, 13)
_LINK_TO_GPU, _LINK_TO_CPU, _LINK_TO_SWITCH = 0, 1, 2
_ANCESTORS = {
    0: PathClass.PIX,
    10: PathClass.PIX,
    20: PathClass.PXB,
    30: PathClass.PHB,
    40: PathClass.NODE,
    50: PathClass.SYS,
}
_LINKS_MAX = 18
_MIG_ENABLED = 1
#: words of 64 bits that the driver fills: 1024 NUMA nodes, 8192 CPUs
_NODE_WORDS, _CPU_WORDS = 16, 128
#: the affinity to a NUMA node, not to a whole socket
_SCOPE_NODE = 0


@dataclass
class _Driver:
    """The library, and what it could not tell."""

    nvml: Any
    notes: list[str] = field(default_factory=list)

    def ask(self, about: str, question: str, *arguments: Any) -> Any:
        """The answer, or None. Whatever a driver raises ends here: one question that fails must not hide the others."""
        try:
            return getattr(self.nvml, question)(*arguments)
        except AttributeError:
            return None
        except Exception as error:
            if getattr(error, "value", None) not in _NOT_SUPPORTED:
                self.notes.append(f"{about}: {question} failed ({_short(error)}).")
            return None


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:120]


def observe_nvml(nvml: Any) -> Topology | None:
    """What the driver tells; None where there is no driver of NVIDIA. `nvml`: the module `pynvml`, or what stands for it."""
    try:
        nvml.nvmlInit()
    except Exception as error:
        if getattr(error, "value", None) in _NO_DRIVER or isinstance(error, OSError):
            return None
        return Topology(sources=("NVML",), smt_known=False, notes=(f"NVML: the driver can't be asked ({_short(error)}).",))
    driver = _Driver(nvml)
    try:
        return _observe(driver)
    finally:
        driver.ask("NVML", "nvmlShutdown")


def _observe(driver: _Driver) -> Topology:
    handles: dict[str, Any] = {}
    gpus: list[Gpu] = []
    links = LinkTable()
    targets: dict[str, list[tuple[str, str, int]]] = {}
    memory_nodes: set[int] = set()
    for index in range(_whole(driver.ask("NVML", "nvmlDeviceGetCount")) or 0):
        about = f"GPU {index}"
        handle = driver.ask(about, "nvmlDeviceGetHandleByIndex", index)
        pci = (
            read_pci(_text(getattr(driver.ask(about, "nvmlDeviceGetPciInfo", handle), "busId", None)))
            if handle is not None
            else None
        )
        if pci is None or pci in handles:
            driver.notes.append(f"{about} has no PCI address of its own, so it is left out.")
            continue
        handles[pci] = handle
        targets[pci] = _targets(driver, about, handle)
        capability = _two(driver.ask(about, "nvmlDeviceGetCudaComputeCapability", handle))
        architecture = f"{capability[0]}{capability[1]}" if capability else None
        count = links.read(pci, architecture, targets[pci])
        gpus.append(_gpu(driver, about, handle, pci, index, architecture, count))
        node = _whole(driver.ask(about, "nvmlDeviceGetNumaNodeId", handle))
        memory_nodes |= {node} if node is not None else set()
    switches = sorted({target for found in targets.values() for kind, target, _ in found if kind == "switch"})
    return Topology(
        sources=("NVML",),
        smt_known=False,
        gpus=tuple(gpus),
        switches=tuple(Switch(switch, SwitchKind.NVSWITCH) for switch in switches),
        pairs=_pairs(driver, gpus, handles, links),
        gpu_memory_nodes=tuple(sorted(memory_nodes)),
        notes=tuple(driver.notes),
    )


def _text(word: Any) -> str | None:
    """Old copies of the library answer in bytes."""
    return word.decode(errors="replace") if isinstance(word, bytes) else word if isinstance(word, str) else None


def _whole(word: Any) -> int | None:
    return word if isinstance(word, int) and not isinstance(word, bool) and 0 <= word < 2**62 else None


def _two(words: Any) -> tuple[int, int] | None:
    """Some questions answer with two numbers at once."""
    numbers = [_whole(word) for word in words] if isinstance(words, list | tuple) else []
    return (numbers[0], numbers[1]) if len(numbers) == 2 and numbers[0] is not None and numbers[1] is not None else None


def _gpu(driver: _Driver, about: str, handle: Any, pci: str, index: int, architecture: str | None, links: int | None) -> Gpu:
    memory = _whole(getattr(driver.ask(about, "nvmlDeviceGetMemoryInfo", handle), "total", None))
    mode = _two(driver.ask(about, "nvmlDeviceGetMigMode", handle))
    mig = mode[0] == _MIG_ENABLED if mode else None
    width = _whole(driver.ask(about, "nvmlDeviceGetCurrPcieLinkWidth", handle)) or None
    generation = _whole(driver.ask(about, "nvmlDeviceGetMaxPcieLinkGeneration", handle))
    nodes = _bits(driver.ask(about, "nvmlDeviceGetMemoryAffinity", handle, _NODE_WORDS, _SCOPE_NODE))
    return Gpu(
        id=pci,
        name=_text(driver.ask(about, "nvmlDeviceGetName", handle)) or "",
        vendor="NVIDIA",
        memory_bytes=memory,
        pci=pci,
        index=index,
        uuid=_text(driver.ask(about, "nvmlDeviceGetUUID", handle)),
        numa_node=nodes[0] if len(nodes) == 1 else None,
        cpus=_bits(driver.ask(about, "nvmlDeviceGetCpuAffinity", handle, _CPU_WORDS)),
        mig=mig,
        mig_instances=_instances(driver, about, handle, memory) if mig else (),
        pcie_gbps=pcie_gbps(GENERATIONS.get(generation or 0), width),
        pcie_width=width,
        pcie_width_max=_whole(driver.ask(about, "nvmlDeviceGetMaxPcieLinkWidth", handle)) or None,
        links=links,
        architecture=architecture,
    )


def _bits(words: Any) -> tuple[int, ...]:
    """The numbers of the bits that are set in words of 64."""
    try:
        return tuple(64 * place + bit for place, word in enumerate(words or ()) for bit in range(64) if int(word) >> bit & 1)
    except (TypeError, ValueError):
        return ()


def _instances(driver: _Driver, about: str, handle: Any, gpu_bytes: int | None) -> tuple[MigInstance, ...]:
    found: list[MigInstance] = []
    for place in range(min(_whole(driver.ask(about, "nvmlDeviceGetMaxMigDeviceCount", handle)) or 0, 64)):
        try:
            mig = driver.nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except Exception:
            continue  # "not found" is how the driver says that this place is empty
        facts = driver.ask(about, "nvmlDeviceGetAttributes_v2", mig)
        memory_mib = _whole(getattr(facts, "memorySizeMB", None))
        memory = memory_mib << 20 if memory_mib else None
        slices, compute = getattr(facts, "gpuInstanceSliceCount", None), getattr(facts, "computeInstanceSliceCount", None)
        found.append(
            MigInstance(
                uuid=_text(driver.ask(about, "nvmlDeviceGetUUID", mig)),
                profile=name_slices(_whole(slices), _whole(compute), memory, gpu_bytes),
                memory_bytes=memory,
                gpu_instance=_whole(driver.ask(about, "nvmlDeviceGetGpuInstanceId", mig)),
                compute_instance=_whole(driver.ask(about, "nvmlDeviceGetComputeInstanceId", mig)),
            )
        )
    return tuple(found)


def _targets(driver: _Driver, about: str, handle: Any) -> list[tuple[str, str, int]]:
    """Where its NVLinks that are up lead: (kind, address, 1) each. A switch that a guest can't see still is a switch."""
    found: list[tuple[str, str, int]] = []
    for link in range(_whole(getattr(driver.nvml, "NVML_NVLINK_MAX_LINKS", None)) or _LINKS_MAX):
        if driver.ask(about, "nvmlDeviceGetNvLinkState", handle, link) != 1:
            continue
        remote = driver.ask(about, "nvmlDeviceGetNvLinkRemotePciInfo_v2", handle, link)
        if remote is None:
            remote = driver.ask(about, "nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
        address = read_pci(_text(getattr(remote, "busId", None)))
        kind = driver.ask(about, "nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
        if kind == _LINK_TO_SWITCH:
            found.append(("switch", address or "some NVSwitch", 1))
        elif kind == _LINK_TO_CPU:
            found.append(("cpu", address or "cpu", 1))
        else:
            found.append(("nvlink", address or "an unknown device", 1))
    return found


def _pairs(driver: _Driver, gpus: list[Gpu], handles: dict[str, Any], links: LinkTable) -> tuple[Pair, ...]:
    """Links where there are any, else the nearest common ancestor. A pair of which the driver tells neither is left out."""
    linked, notes = links.make_pairs([gpu.id for gpu in gpus])
    driver.notes += notes
    pairs: list[Pair] = []
    for place, a in enumerate(gpus):
        for b in gpus[place + 1 :]:
            pair = linked.get((a.id, b.id))
            if pair is None:
                question = "nvmlDeviceGetTopologyCommonAncestor"
                ancestor = _whole(driver.ask(f"GPU {a.index} and {b.index}", question, handles[a.id], handles[b.id]))
                path = _ANCESTORS.get(ancestor) if ancestor is not None else None
                pair = Pair(a.id, b.id, path) if path is not None else None
            if pair is not None:
                pairs.append(pair)
    return tuple(pairs)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(observe_nvml(importlib.import_module("pynvml"))))
