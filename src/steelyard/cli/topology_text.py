"""How does a machine's wiring look in text? A tree of NUMA nodes, switches and devices, the links, and the matrix of all pairs.

Pure: a `Topology` in, lines joined by newlines out, without colours.
"""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.cli.topology_layout import Device, Group, NodeGroup, count_paths, find_meshes, make_tree, short_names
from steelyard.host.sysfs import format_cpus
from steelyard.model import words
from steelyard.model.topology import Gpu, Nic, Topology

LEGEND = (
    ("NV#", "# bonded NVLinks"),
    ("XGMI", "AMD's link between GPUs"),
    ("PIX", "one PCIe switch"),
    ("PXB", "several PCIe switches"),
    ("PHB", "a CPU's host bridge"),
    ("NODE", "host bridges of one NUMA node"),
    ("SYS", "across NUMA nodes"),
)


def render_topology(topology: Topology, used: dict[str, str]) -> str:
    """The tree, then the links between GPUs, then what sources disagree about."""
    names = short_names(topology)
    nodes = make_tree(topology)
    lines = [render_counts(topology)]
    for position, node in enumerate(nodes):
        last = position == len(nodes) - 1
        lines.append(f"{'└' if last else '├'}─ {_node_title(topology, node)}")
        lines += _children(node.groups, node.devices, names, used, "   " if last else "│  ")
    links = _render_links(topology, names)
    sections = [lines, links, [f"note: {note}" for note in topology.notes]]
    return "\n\n".join("\n".join(section) for section in sections if section)


def render_counts(topology: Topology) -> str:
    """`2 packages · 2 NUMA nodes · 112 cores · 224 threads · 8 GPUs · 16 NICs`; what is not known is left out."""
    cores = len(topology.cores) if topology.smt_known else None
    counts = (
        (topology.packages, "package"),
        (len(topology.numa_nodes), "NUMA node"),
        (cores, "core"),
        (topology.threads, "thread"),
        (len(topology.gpus), "GPU"),
        (len(topology.nics), "NIC"),
        (len(topology.nvme), "NVMe disk"),
    )
    parts = [f"{number} {noun}{'' if number == 1 else 's'}" for number, noun in counts if number]
    if topology.memory_bytes:
        parts.append(f"{words.size(topology.memory_bytes)} memory")
    return " · ".join(parts) or "nothing is known of this machine's cores and devices"


def render_matrix(topology: Topology) -> str:
    """Every pair of GPUs and NICs, as `nvidia-smi topo -m` shows it, with a legend of names and words."""
    names = short_names(topology)
    devices: list[Gpu | Nic] = [*topology.gpus, *topology.nics]
    if not devices:
        return "No GPU and no network card is known here."
    words = {(pair.a, pair.b): pair.class_name for pair in topology.pairs}
    rows = [["", *(names[device.id] for device in devices)]]
    for a in devices:
        cells = ["X" if a is b else words.get((a.id, b.id)) or words.get((b.id, a.id)) or "?" for b in devices]
        rows.append([names[a.id], *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    seen = {word.rstrip("0123456789#") for word in words.values()}
    legend = [f"{word.ljust(5)} {meaning}" for word, meaning in LEGEND if word.rstrip("#") in seen]
    called = [f"{names[device.id].ljust(5)} {describe(device)}" for device in devices if names[device.id] != device.id]
    return "\n\n".join("\n".join(part) for part in (table, called, legend) if part)


def describe(device: Device) -> str:
    """`0000:0f:00.0  NVIDIA H100 80GB HBM3, 80 GiB`."""
    if isinstance(device, Gpu):
        details = [device.name or device.vendor, words.size(device.memory_bytes) if device.memory_bytes else ""]
        if device.mig:
            profiles = [part.profile or "unknown" for part in device.mig_instances]
            details.append(f"MIG: {', '.join(profiles) or 'no instances'}")
        if device.pcie_width and device.pcie_width_max and device.pcie_width < device.pcie_width_max:
            details.append(f"x{device.pcie_width} of x{device.pcie_width_max} lanes")
    elif isinstance(device, Nic):
        down = bool(device.ports) and all(port.up is False for port in device.ports)
        details = [
            device.name if device.name != device.id else "",
            f"{len(device.ports)} ports" if len(device.ports) > 1 else "",
            render_gbps(device.gbps) if device.gbps else "",
            "RDMA" if device.rdma else "",
            "down" if down else "",
        ]
    else:
        details = [device.name, f"{device.size_bytes / 1e9:.0f} GB" if device.size_bytes else ""]
    return "  ".join(part for part in (device.id, ", ".join(detail for detail in details if detail)) if part)


def render_gbps(gbps: float) -> str:
    return f"{gbps:,.0f} Gb/s"


def _node_title(topology: Topology, group: NodeGroup) -> str:
    if group.node is None:
        return "place not known"
    what = "GPU memory" if group.node.id in topology.gpu_memory_nodes else "memory"
    cpus = format_cpus(group.node.cpus)
    parts = [
        f"NUMA node {group.node.id}",
        f"package {group.package}" if group.package is not None else "",
        f"{len(group.cores)} cores" if group.cores and topology.smt_known else "",
        f"CPUs {cpus}" if cpus else "no CPUs" if topology.cores else "",
        f"{words.size(group.node.memory_bytes)} {what}" if group.node.memory_bytes else "",
    ]
    return " · ".join(part for part in parts if part)


def _children(
    groups: Sequence[Group], devices: Sequence[Device], names: dict[str, str], used: dict[str, str], indent: str
) -> list[str]:
    lines: list[str] = []
    children: list[Group | Device] = [*groups, *devices]
    for position, child in enumerate(children):
        last = position == len(children) - 1
        branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        if isinstance(child, Group):
            lines.append(f"{indent}{branch}PCIe switch {child.id}".rstrip())
            lines += _children(child.groups, child.devices, names, used, indent + below)
        else:
            lines.append(indent + branch + _device_line(child, names, used))
    return lines


def _device_line(device: Device, names: dict[str, str], used: dict[str, str]) -> str:
    name = names[device.id]
    text = describe(device)
    head = text if name == device.id else f"{name}  {text}"
    return f"{head}  ← {used[device.id]}" if device.id in used else head


def _render_links(topology: Topology, names: dict[str, str]) -> list[str]:
    meshes, singles = find_meshes(topology)
    lines = [
        f"{mesh.class_name}{_rate(mesh.gbps)} between any two of {_list_names([names[gpu] for gpu in mesh.gpus])}"
        for mesh in meshes
    ]
    for key in dict.fromkeys((pair.class_name, pair.gbps) for pair in singles):
        alike = [f"{names[pair.a]}-{names[pair.b]}" for pair in singles if (pair.class_name, pair.gbps) == key]
        lines.append(f"{key[0]}{_rate(key[1])}: {', '.join(alike)}")
    paths = count_paths(topology)
    slow = [f"{count} GPU pairs {word}" for word, count in paths.items() if not word.startswith(("NV", "XGMI"))]
    return lines + (["over PCIe: " + ", ".join(slow)] if slow else [])


def _rate(gbps: float | None) -> str:
    return f" ({render_gbps(gbps)})" if gbps else ""


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} … {names[-1]} ({len(names)} GPUs)"
