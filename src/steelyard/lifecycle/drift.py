"""Is the hardware still what it was? Compares the kept topology of a machine with the one seen now.

Volatile facts say nothing about hardware and are left out of hash and comparison: sources and notes, whether a port is up
(health looks at that), drivers' index numbers and UUIDs, MIG and its instances, affinity lists, rates (an idle link lowers
them), what caches a source can tell, and memory to less than 1 GiB (kernels reserve differently).

What each change takes out of use:
- a device that is missing: that device;
- a PCIe link with fewer lanes: that device (its promises of distance and bandwidth no longer hold);
- fewer links (NVLink, xGMI) between two GPUs, or none: only using these two together;
- a GPU with fewer links in all, where the source gives no pairs: that GPU;
- less memory on a NUMA node (a module is missing or disabled): that memory node;
- cores that are missing: nothing, for placement sees only what is there.
Something new is INFO. A fact that one of both sources does not tell is not compared.
"""

from __future__ import annotations

import hashlib

import msgspec

from steelyard.model.health import NODE, Finding, Remedy, Severity
from steelyard.model.topology import Gpu, Nic, Nvme, PathClass, Topology

GIB = 1 << 30
#: less than this share of a node's memory may vanish with another kernel
MEMORY_TOLERANCE = 0.03


def topology_hash(topology: Topology) -> str:
    """Equal for two readings of unchanged hardware, in whatever order a source lists it. 64 hexadecimal digits."""
    facts: dict[str, object] = {
        "packages": topology.packages,
        "cores": sorted((core.package, core.numa_node, sorted(core.cpus)) for core in topology.cores),
        "nodes": sorted((node.id, node.memory_bytes // GIB) for node in topology.numa_nodes),
        "gpus": sorted(
            (gpu.id, gpu.name, (gpu.memory_bytes or 0) // GIB, gpu.pcie_width or 0, gpu.links or 0) for gpu in topology.gpus
        ),
        "nics": sorted((nic.id, nic.pcie_width or 0, sorted(port.name for port in nic.ports)) for nic in topology.nics),
        "nvme": sorted((disk.id, (disk.size_bytes or 0) // GIB) for disk in topology.nvme),
        "pairs": sorted((*sorted((pair.a, pair.b)), pair.path.value, pair.links) for pair in topology.pairs),
        "distances": [list(row) for row in topology.numa_distances],
    }
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def check_drift(kept: Topology, seen: Topology) -> tuple[Finding, ...]:
    """One finding per change; PASS when nothing changed."""
    findings = [
        *_check_devices("GPU", kept.gpus, seen.gpus),
        *_check_devices("network card", kept.nics, seen.nics),
        *_check_devices("NVMe disk", kept.nvme, seen.nvme),
        *_check_pairs(kept, seen),
        *_check_memory(kept, seen),
        *_check_cores(kept, seen),
    ]
    if not findings:
        return (Finding("drift", NODE, Severity.PASS, "The hardware is as it was kept."),)
    return tuple(findings)


def tells_less(kept: Topology, seen: Topology) -> bool:
    """Does `seen` leave out facts that `kept` has? (A driver was not loaded.) Then it must not take its place."""
    now = {gpu.id: gpu for gpu in seen.gpus}
    for gpu in kept.gpus:
        other = now.get(gpu.id)
        if other is not None and any(
            getattr(gpu, fact) is not None and getattr(other, fact) is None for fact in ("links", "memory_bytes", "pcie_width")
        ):
            return True
    counts = ((kept.pairs, seen.pairs), (kept.cores, seen.cores), (kept.numa_nodes, seen.numa_nodes))
    return any(before and not after for before, after in counts)


def _check_devices(noun: str, kept: tuple[Gpu | Nic | Nvme, ...], seen: tuple[Gpu | Nic | Nvme, ...]) -> list[Finding]:
    now = {device.id: device for device in seen}
    before = {device.id for device in kept}
    findings: list[Finding] = []
    for device in kept:
        other = now.get(device.id)
        if other is None:
            action = (
                "Look at its seating and power, and for what the kernel's log says of it; `check --keep` if it was taken out."
            )
            findings.append(_changed(device.id, f"The {noun} is missing.", action, Remedy.CHECK_POWER))
            continue
        if isinstance(device, Gpu) and isinstance(other, Gpu):
            findings += _check_gpu(device, other)
        if isinstance(device, Nvme) or isinstance(other, Nvme):
            continue
        if device.pcie_width is not None and other.pcie_width is not None and other.pcie_width < device.pcie_width:
            sentence = f"The {noun} uses {other.pcie_width} PCIe lanes, and used {device.pcie_width}."
            findings.append(_changed(device.id, sentence, "Look at its seating and its riser.", Remedy.CHECK_LINK))
    for device in seen:
        if device.id not in before:
            findings.append(Finding("drift", device.id, Severity.INFO, f"The {noun} is new."))
    return findings


def _check_gpu(kept: Gpu, seen: Gpu) -> list[Finding]:
    findings: list[Finding] = []
    if kept.name and seen.name and kept.name != seen.name:
        findings.append(
            _changed(
                kept.id, f"It is another GPU: {seen.name}, not {kept.name}.", "`check --keep` if that is meant.", Remedy.NONE
            )
        )
    if kept.memory_bytes and seen.memory_bytes and seen.memory_bytes < kept.memory_bytes * (1 - MEMORY_TOLERANCE):
        sentence = f"The GPU has {seen.memory_bytes / GIB:.1f} GiB of memory, and had {kept.memory_bytes / GIB:.1f}."
        findings.append(_changed(kept.id, sentence, "Run the maker's diagnostics.", Remedy.RUN_DIAGNOSTICS))
    return findings


def _check_pairs(kept: Topology, seen: Topology) -> list[Finding]:
    """Links between GPUs. Where the pairs tell nothing, a GPU's number of links in all does."""
    linked = (PathClass.NV, PathClass.XGMI)
    now = {frozenset((pair.a, pair.b)): pair for pair in seen.pairs}
    here = {device.id for device in (*seen.gpus, *seen.nics)}
    findings: list[Finding] = []
    told: set[str] = set()
    for pair in kept.pairs:
        other = now.get(frozenset((pair.a, pair.b)))
        if pair.path not in linked or pair.a not in here or pair.b not in here or other is None:
            continue
        a, b = sorted((pair.a, pair.b))
        if other.path not in linked:
            sentence = f"{a} and {b} have lost their {pair.class_name}: their path is {other.class_name}."
        elif pair.links and other.links and other.links < pair.links:
            sentence = f"{a} and {b} are joined by {other.links} links, and were by {pair.links}."
        else:
            continue
        told |= {a, b}
        action = "Look for Xid 74 or 144 to 150 in the log; reset both GPUs, then look at the links' connections."
        findings.append(Finding("drift", f"{a}+{b}", Severity.CRITICAL, sentence, action, Remedy.CHECK_LINK, (), (a, b)))
    before = {gpu.id: gpu.links for gpu in kept.gpus}
    for gpu in seen.gpus:
        had = before.get(gpu.id)
        if had and gpu.links is not None and gpu.links < had and gpu.id not in told:
            sentence = f"The GPU has {gpu.links} links up, and had {had}."
            findings.append(_changed(gpu.id, sentence, "Reset the GPU; then look at the links' connections.", Remedy.CHECK_LINK))
    return findings


def _check_memory(kept: Topology, seen: Topology) -> list[Finding]:
    now = {node.id: node.memory_bytes for node in seen.numa_nodes}
    findings: list[Finding] = []
    for node in kept.numa_nodes:
        left = now.get(node.id, 0)
        if node.memory_bytes and seen.numa_nodes and left < node.memory_bytes * (1 - MEMORY_TOLERANCE) - GIB / 2:
            had = node.memory_bytes / GIB
            sentence = f"NUMA node {node.id} has {left / GIB:.1f} GiB, and had {had:.1f}: a module is missing."
            action = "Look for memory errors in the management log, then at the modules' seating."
            findings.append(_changed(f"numa:{node.id}", sentence, action, Remedy.REPLACE))
    before, after = kept.memory_bytes or 0, seen.memory_bytes or kept.memory_bytes or 0
    if not kept.numa_nodes and after < before * (1 - MEMORY_TOLERANCE) - GIB / 2:
        sentence = f"The machine has {after / GIB:.1f} GiB of memory, and had {before / GIB:.1f}."
        findings.append(Finding("drift", NODE, Severity.WARNING, sentence, "Look at the memory modules.", Remedy.REPLACE))
    return findings


def _check_cores(kept: Topology, seen: Topology) -> list[Finding]:
    before = {cpu for core in kept.cores for cpu in core.cpus}
    now = {cpu for core in seen.cores for cpu in core.cpus}
    gone = sorted(before - now)
    if gone and now:
        words = ", ".join(str(cpu) for cpu in gone[:16]) + (", …" if len(gone) > 16 else "")
        sentence = f"{len(gone)} CPUs are gone: {words}."
        action = "Bring them online; if the firmware took them away, look at its log."
        return [Finding("drift", NODE, Severity.WARNING, sentence, action, Remedy.CONFIGURE)]
    if now - before and before:
        return [Finding("drift", NODE, Severity.INFO, f"{len(now - before)} CPUs are new.")]
    return []


def _changed(subject: str, sentence: str, action: str, remedy: Remedy) -> Finding:
    return Finding("drift", subject, Severity.CRITICAL, sentence, action, remedy, (), (subject,))
