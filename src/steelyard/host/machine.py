"""What is this machine? Cores, caches, NUMA, memory, devices, bare metal or guest, and what can be isolated here.

Everything is read under a root that is a parameter, so that recorded machines replay; a missing file leaves its part out. Lists
only CPUs that are online and that we may use. Takes some 10 ms: observed at start and on demand, never in a loop of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from steelyard.host.cgroup import find_mounts
from steelyard.host.devices import observe_devices
from steelyard.host.proc import boot_id
from steelyard.host.sysfs import numbered, parse_cpus, read_cpu_mask, read_cpus, read_int, read_text
from steelyard.host.virtualisation import observe_virtualisation
from steelyard.model.ids import MachineId
from steelyard.model.machine import Cache, Core, Isolation, Machine, NumaNode

CPU_FOLDER = "sys/devices/system/cpu"
NODE_FOLDER = "sys/devices/system/node"
#: hardware UUIDs that makers forgot to fill in, so that many machines share them
EMPTY_UUID = re.compile(r"^(0[-0]*|f[-f]*|03000200-0400-0500-0006-000700080009|12345678-.*)$", re.IGNORECASE)
CAP_SETGID, CAP_SETUID = 6, 7
UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def observe_machine(root: Path = Path("/")) -> Machine:
    """The inventory under `root`. Raises nothing for odd or empty trees."""
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    nodes = _nodes_of(root)
    cpus = _cpus(root, cpuinfo)
    verdict, evidence = observe_virtualisation(root)
    memory = _memory_bytes(read_text(root / "proc/meminfo") or "")
    numa = _numa_nodes(root, nodes, cpus, memory)
    return Machine(
        id=_identity(root),
        boot_id=boot_id(root),
        hostname=read_text(root / "proc/sys/kernel/hostname") or "unknown",
        kernel=_kernel(root),
        cpu_model=_cpu_model(cpuinfo),
        cores=_cores(root, cpus, nodes),
        caches=_caches(root, cpus),
        numa_nodes=numa,
        memory_bytes=memory or sum(node.memory_bytes for node in numa),
        devices=observe_devices(root),
        virtualisation=verdict,
        virtualisation_detail=evidence,
        isolation=observe_isolation(root),
    )


def _identity(root: Path) -> MachineId:
    """A hash, so that the machine's own secrets (machine-id is one) go nowhere. Hardware first: it survives reinstallation."""
    uuid = read_text(root / "sys/class/dmi/id/product_uuid") or ""
    if not uuid or EMPTY_UUID.match(uuid):
        uuid = read_text(root / "etc/machine-id") or read_text(root / "var/lib/dbus/machine-id") or ""
    if not uuid:
        uuid = f"hostname {read_text(root / 'proc/sys/kernel/hostname')}"
    return MachineId(hashlib.sha256(f"steelyard machine {uuid.strip().lower()}".encode()).hexdigest()[:16])


def _kernel(root: Path) -> str:
    words = (read_text(root / "proc/version") or "").split()
    return read_text(root / "proc/sys/kernel/osrelease") or (words[2] if len(words) > 2 else "unknown")


def _cpu_model(cpuinfo: str) -> str:
    """x86 says `model name`, POWER `cpu`, Arm only numbers; makers pad with blanks."""
    for label in ("model name", "cpu model", "cpu", "Processor"):
        match = re.search(rf"^{label}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
        if match:
            return " ".join(match[1].split())
    parts = dict.fromkeys(re.findall(r"^CPU (?:implementer|part)\s*:\s*(\S+)$", cpuinfo, re.MULTILINE))
    return f"Arm {' '.join(parts)}" if parts else "unknown"


def _cpus(root: Path, cpuinfo: str) -> frozenset[int]:
    """Online CPUs that this process may use (a container or a batch system may have left us fewer)."""
    folder = root / CPU_FOLDER
    online = read_cpus(folder / "online")
    if online is None:
        present = numbered(folder, "cpu")
        online = tuple(
            cpu for cpu in present if (folder / f"cpu{cpu}/topology").exists() and read_int(folder / f"cpu{cpu}/online") != 0
        )
    if not online:
        online = tuple(int(cpu) for cpu in re.findall(r"^processor\s*:\s*([0-9]{1,6})$", cpuinfo, re.MULTILINE))
    allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)$", read_text(root / "proc/self/status") or "", re.MULTILINE)
    cpus = parse_cpus(allowed[1]) if allowed else _cpuset(root)
    return frozenset(online) if cpus is None else frozenset(online) & frozenset(cpus)


def _cpuset(root: Path) -> tuple[int, ...] | None:
    """The CPUs of our cpuset, for trees that were recorded without /proc/self/status; None where there is no cpuset."""
    ours = read_text(root / "proc/self/cpuset")
    for line in (read_text(root / "proc/mounts") or "").splitlines() if ours else ():
        words = line.split()
        if len(words) < 4 or (words[2] != "cpuset" and "cpuset" not in words[3].split(",")):
            continue
        folder = root / words[1].lstrip("/") / str(ours).lstrip("/")
        for name in ("cpuset.effective_cpus", "cpuset.cpus", "cpus"):
            if cpus := read_cpus(folder / name):
                return cpus
    return None


def _nodes_of(root: Path) -> dict[int, tuple[int, ...]]:
    """NUMA node -> its CPUs, offline ones included; nodes without CPUs (memory only) too."""
    found: dict[int, tuple[int, ...]] = {}
    for node in numbered(root / NODE_FOLDER, "node"):
        folder = root / NODE_FOLDER / f"node{node}"
        found[node] = read_cpus(folder / "cpulist") or read_cpu_mask(folder / "cpumap") or ()
    return found


def _numa_nodes(root: Path, nodes: dict[int, tuple[int, ...]], cpus: frozenset[int], memory_bytes: int) -> tuple[NumaNode, ...]:
    """A machine with one node or none has all its memory there (a node's own count lacks memory that was plugged in later)."""
    if len(nodes) <= 1:
        return (NumaNode(id=next(iter(nodes), 0), cpus=tuple(sorted(cpus)), memory_bytes=memory_bytes),)
    return tuple(
        NumaNode(
            id=node,
            cpus=tuple(cpu for cpu in members if cpu in cpus),
            memory_bytes=_memory_bytes(read_text(root / NODE_FOLDER / f"node{node}/meminfo") or ""),
        )
        for node, members in sorted(nodes.items())
    )


def _cores(root: Path, cpus: frozenset[int], nodes: dict[int, tuple[int, ...]]) -> tuple[Core, ...]:
    """Physical cores by their siblings. Two cores never share a CPU: siblings win over core numbers, which repeat per package."""
    node_of = {cpu: node for node, members in nodes.items() for cpu in members}
    cores: list[Core] = []
    taken: set[int] = set()
    for cpu in sorted(cpus):
        if cpu in taken:
            continue
        folder = root / CPU_FOLDER / f"cpu{cpu}/topology"
        siblings = (
            read_cpus(folder / "core_cpus_list")
            or read_cpus(folder / "thread_siblings_list")
            or read_cpu_mask(folder / "thread_siblings")
            or (cpu,)
        )
        members = tuple(sorted(({cpu} | set(siblings)) & cpus - taken))
        taken.update(members)
        # The kernel says -1 where the firmware gives no package.
        package = max(0, read_int(folder / "physical_package_id") or 0)
        cores.append(Core(cpus=members, package=package, numa_node=node_of.get(cpu, 0)))
    return tuple(cores)


def _caches(root: Path, cpus: frozenset[int]) -> tuple[Cache, ...]:
    """Each cache once, by level, kind and first CPU."""
    found: set[tuple[int, str, tuple[int, ...], int]] = set()
    for cpu in cpus:
        folder = root / CPU_FOLDER / f"cpu{cpu}/cache"
        for index in numbered(folder, "index"):
            cache = folder / f"index{index}"
            level, kind = read_int(cache / "level"), read_text(cache / "type")
            size = _size_bytes(read_text(cache / "size") or "")
            if level is None or not kind or not size:
                continue
            shared = read_cpus(cache / "shared_cpu_list") or read_cpu_mask(cache / "shared_cpu_map") or (cpu,)
            found.add((level, kind, tuple(sorted({*shared, cpu} & cpus)), size))
    return tuple(Cache(level=level, kind=kind, size_bytes=size, cpus=shared) for level, kind, shared, size in sorted(found))


def _size_bytes(text: str) -> int:
    """`1024K` -> 1048576; 0 for what is no size."""
    match = re.fullmatch(r"([0-9]{1,9})([KMG]?)B?", text.strip())
    return int(match[1]) * UNITS[match[2]] if match else 0


def _memory_bytes(meminfo: str) -> int:
    match = re.search(r"\bMemTotal:\s*([0-9]{1,15}) kB", meminfo)
    return int(match[1]) * 1024 if match else 0


def observe_isolation(root: Path = Path("/")) -> Isolation:
    """What the kernel enforces for us here. Looking at mounts, capabilities and fields changes nothing."""
    mounts = find_mounts(root)
    status = read_text(root / "proc/self/status") or ""
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    capabilities = int(effective[1], 16) if effective else 0
    own_uid = bool(capabilities >> CAP_SETUID & 1 and capabilities >> CAP_SETGID & 1)
    # The field is there since Linux 4.10, the call since 3.5; before that nothing of ours runs anyway.
    privileges = re.search(r"^NoNewPrivs:", status, re.MULTILINE) is not None
    missing = list(mounts.missing)
    if not own_uid:
        missing.append(f"Work runs as this user (uid {os.geteuid()}) and can't be given one of its own: run Steelyard as root.")
    if not privileges:
        missing.append("The kernel does not say whether work may gain privileges (Linux 4.10 or newer does).")
    return Isolation(
        cgroups=mounts.flavour,
        cpuset="cpuset" in mounts.controllers,
        memory="memory" in mounts.controllers,
        own_uid=own_uid,
        no_new_privs=privileges,
        missing=tuple(missing),
    )
