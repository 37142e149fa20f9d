"""How does a machine look in text? One readable picture: cores under their caches, NUMA nodes, memory, devices, and what can be
isolated on it. Takes the inventory and a width in columns, returns lines joined by newlines.

Pure: never reads the machine, the clock or the terminal. Plain text without colours. Up to two NUMA nodes are drawn core by core,
larger machines as a table with a row per node.
"""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Sequence

from steelyard.host.sysfs import format_cpus
from steelyard.model import words
from steelyard.model.machine import Cache, Core, Device, Machine, NumaNode

#: a picture narrower than this can't be read, a wider one is not better
WIDTH_MIN, WIDTH_MAX = 50, 110
#: more nodes than this become a table
DRAWN_NODES_MAX = 2
#: more cores than this below one cache are written as ranges
DRAWN_CORES_MAX = 24


def render_machine(machine: Machine, width: int) -> str:
    """The picture, at most `width` columns (but never less than 50), no trailing newline."""
    width = max(WIDTH_MIN, min(WIDTH_MAX, width))
    drawn = len(machine.numa_nodes) <= DRAWN_NODES_MAX
    nodes = (
        [line for node in machine.numa_nodes for line in _draw_node(machine, node, width)] if drawn else _tabulate(machine, width)
    )
    placed = {device for device in machine.devices if drawn and _node_of(machine, device) is not None}
    sections = [
        _render_head(machine, width),
        nodes,
        _render_devices([device for device in machine.devices if device not in placed], width),
        _render_isolation(machine, width),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _wrap(text: str, width: int, first: str, later: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=later, break_long_words=True) or [first.rstrip()]


def _list_cpus(cpus: Sequence[int]) -> str:
    """`0-3,8`, or `0-76 step 4` where nodes take turns (that list would fill the screen)."""
    steps = {later - earlier for earlier, later in itertools.pairwise(cpus)}
    step = next(iter(steps), 1)
    return f"{cpus[0]}-{cpus[-1]} step {step}" if len(steps) == 1 and step > 1 and len(cpus) > 2 else format_cpus(cpus)


def _render_head(machine: Machine, width: int) -> list[str]:
    threads = len(machine.cpus)
    parts = [
        words.count(len({core.package for core in machine.cores}), "package"),
        words.count(len(machine.cores), "core"),
        words.count(threads, "thread") if threads != len(machine.cores) else "one thread each",
        words.count(len(machine.numa_nodes), "NUMA node"),
        f"{words.size(machine.memory_bytes)} memory",
    ]
    title = f"{machine.hostname} · {machine.cpu_model} · Linux {machine.kernel}"
    verdict = machine.virtualisation[:1].upper() + machine.virtualisation[1:]
    return [
        *_wrap(title, width, "", "  "),
        *_wrap(" · ".join(parts), width, "", "  "),
        *_wrap(f"{verdict}. {machine.virtualisation_detail}", width, "", "  "),
    ]


def _node_of(machine: Machine, device: Device) -> int | None:
    """Where a device is drawn: its node, or the only one there is."""
    if len(machine.numa_nodes) == 1:
        return machine.numa_nodes[0].id
    known = {node.id for node in machine.numa_nodes}
    return device.numa_node if device.numa_node in known else None


def _draw_node(machine: Machine, node: NumaNode, width: int) -> list[str]:
    """A box per NUMA node: its last-level caches with the cores below each, then its devices."""
    inner = width - 4
    cores = [core for core in machine.cores if set(core.cpus) <= set(node.cpus)]
    packages = format_cpus({core.package for core in cores})
    title = f" NUMA node {node.id}" + (f" · package {packages}" if packages else "") + f" · {words.size(node.memory_bytes)} "
    lines: list[str] = []
    for cache, below in _group_by_last_cache(machine.caches, cores):
        if cache is not None:
            lines.append(f"L{cache.level} {words.size(cache.size_bytes)}, shared by {words.count(len(below), 'core')}")
        lines.extend(_draw_cores(below, inner))
    private = _describe_private(machine.caches, cores)
    if private:
        lines.extend(_wrap(private, inner, "", "  "))
    devices = [device for device in machine.devices if _node_of(machine, device) == node.id]
    if devices:
        lines.append("")
        lines.extend(line for device in devices for line in _describe_device(device, inner))
    framed = [f"│ {line.ljust(inner)} │" for line in lines]
    return [f"┌─{title.ljust(width - 3, '─')}┐", *framed, f"└{'─' * (width - 2)}┘"]


def _group_by_last_cache(caches: Sequence[Cache], cores: Sequence[Core]) -> list[tuple[Cache | None, list[Core]]]:
    """Cores under the largest cache they share with others, in order; under None where they share nothing."""
    shared = sorted(
        (cache for cache in caches if cache.level >= 2 and cache.kind != "Instruction"), key=lambda cache: -cache.level
    )
    groups: dict[int, tuple[Cache | None, list[Core]]] = {}
    for core in cores:
        found = next(
            (at for at, cache in enumerate(shared) if core.cpus[0] in cache.cpus and not set(cache.cpus) <= set(core.cpus)), -1
        )
        groups.setdefault(found, (shared[found] if found >= 0 else None, []))[1].append(core)
    return list(groups.values())


def _draw_cores(cores: Sequence[Core], width: int) -> list[str]:
    """`[0 32] [1 33]`: a bracket per core with its threads; ranges where that would fill the screen."""
    if len(cores) > DRAWN_CORES_MAX:
        first = f"cores {_list_cpus([core.cpus[0] for core in cores])}"
        second = [cpu for core in cores for cpu in core.cpus[1:]]
        return _wrap(first + (f", second threads {_list_cpus(second)}" if second else ""), width, "  ", "    ")
    digits = max((len(str(cpu)) for core in cores for cpu in core.cpus), default=1)
    cells = ["[" + " ".join(str(cpu).rjust(digits) for cpu in core.cpus) + "]" for core in cores]
    lines: list[str] = []
    for cell in cells:
        if lines and len(lines[-1]) + 1 + len(cell) <= width:
            lines[-1] += f" {cell}"
        else:
            lines.append(f"  {cell}")
    return lines


def _describe_private(caches: Sequence[Cache], cores: Sequence[Core]) -> str:
    """`each core: L2 1 MB · L1 48 KB data, 32 KB instructions`, kinds of cores apart (fast and frugal ones differ)."""
    kinds: Counter[str] = Counter()
    for core in cores:
        own = [cache for cache in caches if set(cache.cpus) <= set(core.cpus)]
        sizes: dict[int, list[str]] = {}
        for cache in sorted(own, key=lambda cache: (-cache.level, cache.kind, cache.cpus)):
            word = {"Data": " data", "Instruction": " instructions"}.get(cache.kind, "")
            text = f"{words.size(cache.size_bytes)}{word}"
            if text not in sizes.setdefault(cache.level, []):
                sizes[cache.level].append(text)
        kinds[" · ".join(f"L{level} {', '.join(found)}" for level, found in sizes.items())] += 1
    kinds.pop("", None)
    if len(kinds) == 1:
        return f"each core: {next(iter(kinds))}"
    return "; ".join(f"{count} cores: {text}" for text, count in kinds.items())


def _describe_device(device: Device, width: int) -> list[str]:
    label = {"gpu": "GPU", "nic": "net", "nvme": "NVMe", "disk": "disk"}.get(device.kind, device.kind)
    return _wrap(", ".join(part for part in (device.name, device.detail) if part), width, f"{label.ljust(5)}", " " * 5)


def _tabulate(machine: Machine, width: int) -> list[str]:
    """One row per NUMA node, for machines too large to draw."""
    rows = [("node", "memory", "cores", "cpus", "last cache", "devices")]
    for node in machine.numa_nodes:
        cores = [core for core in machine.cores if set(core.cpus) <= set(node.cpus)]
        last = Counter(
            f"L{cache.level} {words.size(cache.size_bytes)}" for cache, _ in _group_by_last_cache(machine.caches, cores) if cache
        )
        devices = Counter(
            {"gpu": "GPU", "nvme": "NVMe"}.get(d.kind, d.kind) for d in machine.devices if _node_of(machine, d) == node.id
        )
        rows.append(
            (
                str(node.id),
                words.size(node.memory_bytes),
                str(len(cores)),
                _list_cpus(node.cpus) or "none",
                ", ".join(f"{count} x {text}" for text, count in last.items()) or "-",
                ", ".join(f"{count} {kind}" for kind, count in devices.items()) or "-",
            )
        )
    sizes = [max(len(row[column]) for row in rows) for column in range(5)]
    private = _describe_private(machine.caches, machine.cores)
    table = [
        line
        for row in rows
        for line in _wrap(
            "  ".join([*(cell.ljust(size) for cell, size in zip(row, sizes, strict=False)), row[5]]), width, "  ", "      "
        )
    ]
    return [*table, *(_wrap(private, width, "  ", "    ") if private else [])]


def _render_devices(devices: Sequence[Device], width: int) -> list[str]:
    """Devices whose place is not known, or of a machine shown as a table."""
    lines = [line for device in devices for line in _describe_device(device, width - 2)]
    return ["Devices", *(f"  {line}" for line in lines)] if lines else []


def _render_isolation(machine: Machine, width: int) -> list[str]:
    """What the kernel enforces here, then what is missing and what to do about it."""
    isolation = machine.isolation
    groups = isolation.cgroups != "none"
    rows = [
        (groups, f"control groups ({isolation.cgroups}): kill and account a job as a whole"),
        (isolation.cpuset, "cores of its own, which a job can't leave"),
        (isolation.memory, "memory limits"),
        (isolation.own_uid, "an unprivileged user for work"),
        (isolation.no_new_privs, "no way to gain privileges"),
    ]
    lines = [line for enforced, text in rows for line in _wrap(text, width, "  yes  " if enforced else "  no   ", "       ")]
    missing = [line for sentence in isolation.missing for line in _wrap(sentence, width, "  - ", "    ")]
    return ["Isolation that this kernel enforces", *lines, *missing]
