"""What machine does this /proc and /sys describe? The live one, a recorded tree, or a tree packed into one file.

Reads files only: asks no driver, starts no program, follows no path out of the root that it was given. Serial numbers and network
addresses lie in the same folders and are never opened. sysfs knows nothing of NVLink; xGMI comes from AMD's /sys/class/kfd.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from steelyard.errors import Refused
from steelyard.host.devices import driver_name, model_names
from steelyard.host.machine import CPU_FOLDER, NODE_FOLDER, observe_machine
from steelyard.host.sysfs import names, read_cpus, read_int, read_text
from steelyard.host.topology.gpu_memory import find_gpu_memory_nodes
from steelyard.host.topology.linux_kfd import KfdGpus, read_kfd
from steelyard.host.topology.linux_network import read_nics
from steelyard.host.topology.linux_pci import PciFunction, make_bridges, read_functions
from steelyard.host.topology.pci import GPU_VENDOR_NAMES, check_device_count, is_nvswitch, make_pcie_switches
from steelyard.host.topology.tree import make_pairs
from steelyard.model.machine import Machine, NumaNode
from steelyard.model.topology import Bridge, Gpu, Nic, Nvme, Pair, Switch, SwitchKind, Topology

_NVIDIA_PROC = "proc/driver/nvidia/gpus"
#: files of a CPU that tell its siblings, newest first
_SIBLINGS = ("core_cpus_list", "thread_siblings_list", "thread_siblings")


def read_linux(root: Path, source: str = "this machine") -> Topology:
    """The machine under `root`. A missing file leaves its part out; a folder without /proc and /sys is refused."""
    if not (root / "sys").is_dir() and not (root / "proc").is_dir():
        raise Refused(f"{source} holds neither sys nor proc: give the folder that they lie in.", code="illegal")
    machine = observe_machine(root)
    functions = read_functions(root, machine.numa_nodes)
    bridges = make_bridges(functions)
    kfd = read_kfd(root)
    gpus = _gpus(root, functions, kfd)
    nics = read_nics(root, functions)
    check_device_count(len(gpus), len(nics), source)
    known = bool(machine.cores or machine.memory_bytes)
    nodes = machine.numa_nodes if known else ()
    own = find_gpu_memory_nodes(nodes, gpus, said=_said_by_driver(root), architecture=_architecture(machine))
    own_bytes = sum(node.memory_bytes for node in nodes if node.id in own and len(nodes) > 1)
    switches = tuple(
        Switch(address, SwitchKind.NVSWITCH)
        for address, function in functions.items()
        if is_nvswitch(function.code or 0, function.vendor or 0)
    )
    return Topology(
        sources=(f"Linux ({source})",),
        packages=_packages(root, machine),
        numa_nodes=nodes,
        cores=machine.cores,
        smt_known=any(
            (root / CPU_FOLDER / f"cpu{cpu}/topology" / name).exists() for cpu in machine.cpus[:1] for name in _SIBLINGS
        ),
        caches=machine.caches,
        # /proc/meminfo counts the memory of GPUs that shows as NUMA nodes.
        memory_bytes=max(0, machine.memory_bytes - own_bytes) or None,
        gpus=gpus,
        nics=nics,
        nvme=tuple(nvme for function in functions.values() if (nvme := _nvme(root, function, functions)) is not None),
        bridges=bridges,
        switches=(*switches, *make_pcie_switches(bridges)),
        pairs=_pairs(gpus, nics, bridges, kfd),
        numa_distances=_distances(root, nodes),
        gpu_memory_nodes=own,
        notes=tuple(_notes(root, machine, gpus, kfd)),
    )


def _architecture(machine: Machine) -> str:
    """As far as it matters here: POWER and Arm say it in /proc/cpuinfo."""
    return "ppc64" if machine.cpu_model.startswith("POWER") else "aarch64" if machine.cpu_model.startswith("Arm ") else ""


def _packages(root: Path, machine: Machine) -> int | None:
    told = [core.package for core in machine.cores if _package_told(root, core.cpus[0])]
    return len(set(told)) or None


def _package_told(root: Path, cpu: int) -> bool:
    number = read_int(root / CPU_FOLDER / f"cpu{cpu}/topology/physical_package_id")
    return number is not None and number >= 0


def _gpus(root: Path, functions: dict[str, PciFunction], kfd: KfdGpus) -> tuple[Gpu, ...]:
    shown = {address: function for address, function in functions.items() if function.kind == "gpu"}
    models = model_names(root, {(function.vendor or 0, function.device or 0) for function in shown.values()})
    gpus: list[Gpu] = []
    for address, function in shown.items():
        vendor = GPU_VENDOR_NAMES.get(function.vendor or 0, "")
        model = models.get((function.vendor or 0, function.device or 0), "")
        whole = Gpu(
            id=address,
            name=driver_name(root, address) or " ".join(word for word in (vendor, model) if model and word),
            vendor=vendor,
            memory_bytes=read_int(function.folder / "mem_info_vram_total") or None,
            pci=address,
            uuid=_nvidia_uuid(root, address),
            numa_node=function.numa_node,
            cpus=function.cpus,
            pcie_gbps=function.link_gbps(functions),
            pcie_width=function.width,
            pcie_width_max=function.width_max,
            parent=function.parent,
        )
        parts = kfd.parts.get(address, [])
        architecture = parts[0].architecture if parts else None
        gpus.append(msgspec.structs.replace(whole, architecture=architecture))
        gpus += [
            # The driver splits one device; how much of its memory each part gets is not in sysfs.
            msgspec.structs.replace(whole, id=f"{address}/{at}", architecture=architecture, memory_bytes=None)
            for at in range(1, len(parts))
        ]
    return tuple(gpus)


def _nvidia_uuid(root: Path, address: str) -> str | None:
    """CUDA_VISIBLE_DEVICES needs it; the driver writes question marks until the GPU was first used."""
    text = read_text(root / _NVIDIA_PROC / address / "information") or ""
    match = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)$", text, re.MULTILINE)
    return match[1] if match else None


def _said_by_driver(root: Path) -> set[int]:
    """NVIDIA's driver tells the NUMA node that it made of a GPU's memory."""
    said: set[int] = set()
    for address in names(root / _NVIDIA_PROC):
        text = read_text(root / _NVIDIA_PROC / address / "numa_status") or ""
        if match := re.search(r"^Node:\s*([0-9]{1,4})$", text, re.MULTILINE):
            said.add(int(match[1]))
    return said


def _nvme(root: Path, function: PciFunction, functions: dict[str, PciFunction]) -> Nvme | None:
    controllers = names(function.folder / "nvme")
    if function.kind != "nvme" and not controllers:
        return None
    # Older kernels have the namespaces at the device, newer ones at its controller, where `nvme0c1n1` is a path to `nvme0n1`.
    below = [name for controller in controllers for name in names(function.folder / "nvme" / controller)]
    below += names(function.folder / "block")
    parts = sorted({re.sub(r"c[0-9]+n", "n", name) for name in below if re.fullmatch(r"nvme[0-9]+(c[0-9]+)?n[0-9]+", name)})
    sizes = [_sectors(root, function, part) for part in parts]
    return Nvme(
        id=function.address,
        name=next(iter(parts or controllers), ""),
        pci=function.address,
        size_bytes=sum(sizes) * 512 or None,
        numa_node=function.numa_node,
        pcie_gbps=function.link_gbps(functions),
        parent=function.parent,
    )


def _sectors(root: Path, function: PciFunction, part: str) -> int:
    """Units of 512 bytes whatever the drive's sectors are."""
    places = [root / "sys/class/block" / part, function.folder / "block" / part]
    places += [function.folder / "nvme" / controller / part for controller in names(function.folder / "nvme")]
    return next((size for place in places if (size := read_int(place / "size")) is not None and 0 < size < 2**44), 0)


def _pairs(gpus: tuple[Gpu, ...], nics: tuple[Nic, ...], bridges: tuple[Bridge, ...], kfd: KfdGpus) -> tuple[Pair, ...]:
    """None at all where the tree holds no PCIe paths: everything would look far apart."""
    return make_pairs(gpus, nics, bridges, kfd.pairs([gpu.id for gpu in gpus])) if bridges else ()


def _distances(root: Path, nodes: tuple[NumaNode, ...]) -> tuple[tuple[int, ...], ...]:
    """Each node's file has one number per online node, in their order."""
    rows = [(read_text(root / NODE_FOLDER / f"node{node.id}/distance") or "").split() for node in nodes]
    if not rows or any(len(row) != len(nodes) or not all(re.fullmatch("[0-9]{1,9}", word) for word in row) for row in rows):
        return ()
    return tuple(tuple(int(word) for word in row) for row in rows)


def _notes(root: Path, machine: Machine, gpus: tuple[Gpu, ...], kfd: KfdGpus) -> list[str]:
    notes: list[str] = []
    online = read_cpus(root / CPU_FOLDER / "online")
    if online and machine.cpus and len(machine.cpus) < len(online):
        notes.append(f"A cpuset allows {len(machine.cpus)} of {len(online)} online CPUs; only those are listed.")
    if sum(gpu.vendor == "NVIDIA" for gpu in gpus) > 1:
        notes.append("Linux does not tell of NVLink: the paths of NVIDIA GPUs are those over PCIe.")
    if sum(gpu.vendor == "AMD" for gpu in gpus) > 1 and not kfd.parts:
        notes.append("AMD's driver shows no links: the paths of its GPUs are those over PCIe.")
    return notes
