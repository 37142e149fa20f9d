"""How does a machine look as a picture? NUMA nodes with their cores, PCIe switches with GPUs, NICs and disks inside, and the
links between GPUs below, as thick as they are fast; who uses what in strong colour.

Pure: a `Topology` and who uses what in, one SVG document out. No scripts, no fonts to load, no outside references.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from steelyard.cli.topology_layout import Device, Group, Mesh, NodeGroup, find_meshes, make_tree, short_names
from steelyard.cli.topology_text import describe, render_counts, render_gbps
from steelyard.model import words
from steelyard.model.cores import Core
from steelyard.model.topology import Gpu, Nic, Pair, Topology

GPU_WIDTH, GPU_HEIGHT = 112, 66
SMALL_WIDTH, SMALL_HEIGHT = 112, 34
GAP, PAD, TITLE = 8, 10, 20
CORE = 11
ROW_WIDTH_MAX = 1400
#: fill when free, fill in use, line
COLOURS = {
    "gpu": ("#e7f3da", "#76a83b", "#5d8a2a"),
    "nic": ("#e0edfa", "#4a8fd0", "#2f74b5"),
    "nvme": ("#fcf0d9", "#d9a036", "#b9821c"),
}
CORE_FREE, CORE_USED = "#dcdce6", "#7a5cc0"
LINKS = ("#c0392b", "#8e44ad", "#16a085", "#d35400", "#2c3e50", "#7f8c8d")

Draw = Callable[[float, float], list[str]]


class Block(NamedTuple):
    """Something with a size that can be drawn at a place."""

    width: float
    height: float
    draw: Draw


class _Scene:
    """What the blocks leave behind while they are drawn: where each GPU's lower edge is."""

    def __init__(self, topology: Topology, used: dict[str, str]) -> None:
        self.topology = topology
        self.used = used
        self.names = short_names(topology)
        self.feet: dict[str, tuple[float, float]] = {}


def render_svg(topology: Topology, used: dict[str, str], title: str) -> str:
    """`used`: device id or `cpu:N` -> by whom."""
    scene = _Scene(topology, used)
    nodes = make_tree(topology)
    # Nodes with GPUs stand at the bottom, next to their links, in boxes of one height.
    upper = [_node_block(scene, node) for node in nodes if not _gpus_in(node)]
    lower = [_node_block(scene, node) for node in nodes if _gpus_in(node)]
    tallest = max((block.height for block in lower), default=0)
    lower = [_node_block(scene, node, tallest) for node in nodes if _gpus_in(node)]
    body = _column([*_rows(upper), *([_row(lower)] if lower else [])])
    left, top = 20.0, 64.0
    parts = body.draw(left, top)
    links, depth, width = _links(scene, top + body.height)
    width = max(body.width + 2 * left, width + left, 560)
    height = top + body.height + depth + 24
    head = [
        _text(left, 30, title, size=18, weight="600"),
        _text(left, 50, render_counts(topology), size=12, fill="#555"),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" font-family="Inter, Helvetica, Arial, sans-serif" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
            *head,
            *parts,
            *links,
            "</svg>",
            "",
        ]
    )


def _gpus_in(group: NodeGroup | Group) -> bool:
    return any(isinstance(device, Gpu) for device in group.devices) or any(_gpus_in(inner) for inner in group.groups)


def _row(blocks: Sequence[Block], gap: float = GAP) -> Block:
    """Side by side, on one base line, so that GPUs stand at the bottom."""
    width = sum(block.width for block in blocks) + gap * max(0, len(blocks) - 1)
    height = max((block.height for block in blocks), default=0)

    def draw(x: float, y: float) -> list[str]:
        parts: list[str] = []
        for block in blocks:
            parts += block.draw(x, y + height - block.height)
            x += block.width + gap
        return parts

    return Block(width, height, draw)


def _column(blocks: Sequence[Block], gap: float = GAP) -> Block:
    blocks = [block for block in blocks if block.height]
    width = max((block.width for block in blocks), default=0)
    height = sum(block.height for block in blocks) + gap * max(0, len(blocks) - 1)

    def draw(x: float, y: float) -> list[str]:
        parts: list[str] = []
        for block in blocks:
            parts += block.draw(x, y)
            y += block.height + gap
        return parts

    return Block(width, height, draw)


def _rows(blocks: Sequence[Block]) -> list[Block]:
    """As many rows as keep the picture from growing too wide."""
    rows: list[list[Block]] = []
    for block in blocks:
        if rows and sum(b.width + GAP for b in rows[-1]) + block.width <= ROW_WIDTH_MAX:
            rows[-1].append(block)
        else:
            rows.append([block])
    return [_row(row) for row in rows]


def _frame(title: str, inside: Block, fill: str, line: str, size: int = 12, height_min: float = 0) -> Block:
    """A titled box around a block, which stands on its floor."""
    width = max(inside.width, 8.0 * size / 12 * len(title)) + 2 * PAD
    height = max(height_min, inside.height + TITLE + 2 * PAD - (PAD if not inside.height else 0))

    def draw(x: float, y: float) -> list[str]:
        box = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="8" fill="{fill}" stroke="{line}"/>'
        return [
            box,
            _text(x + PAD, y + TITLE - 4, title, size=size, fill="#444", weight="600"),
            *inside.draw(x + PAD, y + height - PAD - inside.height),
        ]

    return Block(width, height, draw)


def _node_block(scene: _Scene, node: NodeGroup, height_min: float = 0) -> Block:
    if node.node is None:
        title = "place not known"
    else:
        package = f" · package {node.package}" if node.package is not None else ""
        what = "GPU memory" if node.node.id in scene.topology.gpu_memory_nodes else "memory"
        size = f" · {words.size(node.node.memory_bytes)} {what}" if node.node.memory_bytes else ""
        cores = f" · {len(node.cores)} {'cores' if scene.topology.smt_known else 'CPUs'}" if node.cores else ""
        title = f"NUMA node {node.node.id}{package}{cores}{size}"
    cores, devices = _cores_block(scene, node.cores), _devices_block(scene, node.groups, node.devices)
    # The cores stay under the title, the devices on the floor, however high the box has to be.
    spare = max(0, height_min - _frame(title, _column([cores, devices], gap=PAD), "", "", size=13).height)
    gap = PAD + spare if cores.height and devices.height else PAD
    return _frame(title, _column([cores, devices], gap=gap), "#f6f6fa", "#b8b8c8", size=13, height_min=height_min)


def _cores_block(scene: _Scene, cores: Sequence[Core]) -> Block:
    """A square per core, split among its threads."""
    if not cores:
        return Block(0, 0, lambda x, y: [])
    columns = max(16, math.ceil(math.sqrt(len(cores) * 4)))
    step = CORE + 3

    def draw(x: float, y: float) -> list[str]:
        parts: list[str] = []
        for place, core in enumerate(cores):
            left, top = x + place % columns * step, y + place // columns * step
            share = CORE / max(1, len(core.cpus))
            for thread, cpu in enumerate(core.cpus):
                user = scene.used.get(f"cpu:{cpu}")
                label = escape(f"CPU {cpu}: {user}" if user else f"CPU {cpu}")
                parts.append(
                    f'<rect x="{left + thread * share:.1f}" y="{top:.1f}" width="{share - 0.6:.1f}" height="{CORE}" '
                    f'fill="{CORE_USED if user else CORE_FREE}"><title>{label}</title></rect>'
                )
        return parts

    return Block(min(columns, len(cores)) * step, math.ceil(len(cores) / columns) * step, draw)


def _devices_block(scene: _Scene, groups: Sequence[Group], devices: Sequence[Device]) -> Block:
    """Small devices above, then switches, then GPUs."""
    gpus = [device for device in devices if isinstance(device, Gpu)]
    small = [device for device in devices if not isinstance(device, Gpu)]
    columns = max(2, min(6, max(len(gpus) + len(groups), math.ceil(math.sqrt(len(small))))))
    lines = [small[start : start + columns] for start in range(0, len(small), columns)]
    inner = [
        _frame(f"switch {group.id}".rstrip(), _devices_block(scene, group.groups, group.devices), "#fff", "#c9c9d6", 11)
        for group in groups
    ]
    return _column(
        [
            *(_row([_device_block(scene, device) for device in line]) for line in lines),
            _row(inner),
            _row([_device_block(scene, gpu) for gpu in gpus]),
        ]
    )


def _device_block(scene: _Scene, device: Device) -> Block:
    kind = "gpu" if isinstance(device, Gpu) else "nic" if isinstance(device, Nic) else "nvme"
    width, height = (GPU_WIDTH, GPU_HEIGHT) if kind == "gpu" else (SMALL_WIDTH, SMALL_HEIGHT)
    user = scene.used.get(device.id)
    free, taken, line = COLOURS[kind]
    ink = "#fff" if user else "#222"
    lines = _device_lines(scene, device, user)

    def draw(x: float, y: float) -> list[str]:
        if kind == "gpu":
            scene.feet[device.id] = (x + width / 2, y + height)
        label = escape(f"{describe(device)} · {user}" if user else describe(device))
        parts = [
            f"<g><title>{label}</title>",
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="{height}" rx="5" fill="{taken if user else free}" '
            f'stroke="{line}"/>',
        ]
        for place, text in enumerate(lines):
            parts.append(
                _text(
                    x + 7,
                    y + 15 + 13 * place,
                    text,
                    size=11 if place == 0 else 10,
                    fill=ink,
                    weight="600" if place == 0 else "400",
                )
            )
        return [*parts, "</g>"]

    return Block(width, height, draw)


def _device_lines(scene: _Scene, device: Device, user: str | None) -> list[str]:
    """What fits into the box, the most useful first."""
    name = scene.names[device.id]
    if isinstance(device, Gpu):
        model = device.name.removeprefix("NVIDIA ").removeprefix("AMD ").removeprefix("Tesla ")
        size = words.size(device.memory_bytes) if device.memory_bytes else ""
        rows = [name, model, device.id if device.id != name else "", user or size]
    elif isinstance(device, Nic):
        rows = [
            " ".join(part for part in (name, render_gbps(device.gbps) if device.gbps else "") if part),
            user or device.name or device.id,
        ]
    else:
        size = _disk_size(device.size_bytes)
        rows = [" ".join(part for part in (name, size) if part), user or device.name or device.id]
    return [_shorten(row, 17) for row in rows if row]


def _disk_size(size_bytes: int | None) -> str:
    """As it stands on the disk: in powers of ten."""
    if not size_bytes:
        return ""
    return f"{size_bytes / 1e12:.3g} TB" if size_bytes >= 1e12 else f"{size_bytes / 1e9:.0f} GB"


def _links(scene: _Scene, top: float) -> tuple[list[str], float, float]:
    """(lines and bars between GPUs, the height and the right edge they need)."""
    meshes, singles = find_meshes(scene.topology)
    fastest = max((value for value in (*(m.gbps for m in meshes), *(p.gbps for p in singles)) if value), default=0.0)
    parts: list[str] = []
    depth = 0.0
    for place, mesh in enumerate(_free_of_overlap(scene, meshes)):
        parts += _mesh(scene, mesh[0], top + 26 + 36 * mesh[1], fastest, LINKS[place % len(LINKS)])
        depth = max(depth, 66 + 36 * mesh[1])
    kinds = list(dict.fromkeys(pair.class_name for pair in singles))
    start, reach = top + depth, 0.0
    for pair in singles:
        (xa, ya), (xb, yb) = scene.feet[pair.a], scene.feet[pair.b]
        sag = 26 + min(200.0, abs(xb - xa) * 0.2)
        reach = max(reach, sag)
        colour = LINKS[kinds.index(pair.class_name) % len(LINKS)]
        parts.append(
            f'<path d="M{xa:.1f} {ya:.1f} C{xa:.1f} {start + sag:.1f} {xb:.1f} {start + sag:.1f} {xb:.1f} {yb:.1f}" fill="none" '
            f'stroke="{colour}" stroke-width="{_thickness(pair, fastest):.1f}" stroke-opacity="0.8"><title>'
            f"{escape(f'{scene.names[pair.a]} - {scene.names[pair.b]}: {_link_text(pair.class_name, pair.gbps)}')}</title></path>"
        )
    depth += reach
    right = 20.0
    for place, kind in enumerate(kinds):
        example = next(pair for pair in singles if pair.class_name == kind)
        text = _link_text(kind, example.gbps)
        y = top + depth + 18
        parts.append(f'<rect x="{right:.0f}" y="{y - 8:.0f}" width="26" height="5" fill="{LINKS[place % len(LINKS)]}"/>')
        parts.append(_text(right + 32, y, text, size=12))
        right += 60 + 7 * len(text)
    return parts, depth + (26 if kinds else 0), right


def _free_of_overlap(scene: _Scene, meshes: Sequence[Mesh]) -> list[tuple[Mesh, int]]:
    """Each mesh with the row in which its bar meets no other."""
    rows: list[list[tuple[float, float]]] = []
    placed: list[tuple[Mesh, int]] = []
    for mesh in meshes:
        left, right = _span(scene, mesh)
        row = next((place for place, taken in enumerate(rows) if all(right < a or left > b for a, b in taken)), len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append((left, right))
        placed.append((mesh, row))
    return placed


def _span(scene: _Scene, mesh: Mesh) -> tuple[float, float]:
    edges = [scene.feet[gpu][0] for gpu in mesh.gpus]
    return min(edges) - GPU_WIDTH / 2, max(edges) + GPU_WIDTH / 2


def _mesh(scene: _Scene, mesh: Mesh, y: float, fastest: float, colour: str) -> list[str]:
    left, right = _span(scene, mesh)
    width = 2 + 4 * (mesh.gbps / fastest if mesh.gbps and fastest else 0.5)
    drops = [
        f'<line x1="{x:.1f}" y1="{foot:.1f}" x2="{x:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="{width:.1f}"/>'
        for x, foot in (scene.feet[gpu] for gpu in mesh.gpus)
    ]
    bar = f'<rect x="{left:.1f}" y="{y:.1f}" width="{right - left:.1f}" height="26" rx="6" fill="{colour}"/>'
    text = f"{_link_text(mesh.class_name, mesh.gbps)} between any two"
    return [*drops, bar, _text(left + 10, y + 17, text, size=12, fill="#fff", weight="600")]


def _thickness(pair: Pair, fastest: float) -> float:
    return 1.5 + (4 * pair.gbps / fastest if pair.gbps and fastest else min(4, pair.links))


def _link_text(class_name: str, gbps: float | None) -> str:
    return f"{class_name} · {render_gbps(gbps)}" if gbps else class_name


def _text(x: float, y: float, text: str, size: int = 11, fill: str = "#222", weight: str = "400") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" font-weight="{weight}">{escape(text)}</text>'


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
