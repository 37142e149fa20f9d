"""Which switches and blocks does a Slurm topology file tell? `topology.conf` (tree and block) and `topology.yaml`.

Grammar: topology.conf(5) and topology.yaml(5). Slurm knows no cables: a link here is parent and child, and its LinkSpeed is a
number without a unit, so bandwidths stay unknown. What makes slurmctld stop is refused here too: a switch without children, a
child that is never defined, a cycle, BlockSizes without blocks. A block smaller than the block size would never be used: it is
refused as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from steelyard.errors import Refused
from steelyard.host.fabric.plain_yaml import Plain, read_plain_yaml
from steelyard.host.fabric.tree import levels_by_height, make_switches
from steelyard.model.fabric import Fabric, FabricHost, FabricLink, FabricPort, HostGroup, name_key
from steelyard.model.hostlist import NAMES_MAX, expand_hostlist

_SETTING = re.compile(r"\s*(\w{1,40})\s*=\s*(\"[^\"]*\"|[^\s\"]+)(?=\s|$)")
_KEYS = {"switchname", "nodes", "switches", "linkspeed", "blockname", "blocksizes"}


class TreeSwitch(msgspec.Struct, frozen=True):
    name: str
    nodes: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()


def read_slurm_topology(text: str, source: str) -> Fabric:
    """The fabric of either file. `Refused` where Slurm itself would not start with it, or where it is cut off."""
    if re.search(r"^[ \t]*(?:-[ \t]*)?topology[ \t]*:", text, re.M):
        return _read_yaml(text, source)
    switches: list[TreeSwitch] = []
    blocks: list[HostGroup] = []
    sizes: tuple[int, ...] | None = None
    commented = 0
    for number, line in _lines(text, source):
        commented += bool(re.match(r"\s*#\s*(blockname|switchname)\s*=", line, re.I))
        settings = _settings(line, f"{source}: line {number}")
        if not settings:
            continue
        where = f"{source}: line {number}"
        names = {key: expand_hostlist(settings[key], where) for key in ("nodes", "switches") if key in settings}
        if "switchname" in settings:
            # Slurm takes a hostlist here too, but a name that stands for several switches can't have the same children.
            switches.append(TreeSwitch(settings["switchname"], names.get("nodes", ()), names.get("switches", ())))
        elif "blockname" in settings:
            blocks.append(HostGroup(settings["blockname"], names.get("nodes", ())))
        elif "blocksizes" in settings and sizes is None:
            sizes = _sizes(settings["blocksizes"].split(","), where)
        else:
            raise Refused(f"{where} has no SwitchName, BlockName or (first) BlockSizes")
    hint = f" ({commented} are commented out)" if commented else ""
    return make_slurm_fabric(switches, blocks, sizes, source, f"Slurm topology.conf ({source})", hint)


def make_slurm_fabric(
    switches: Sequence[TreeSwitch],
    blocks: Sequence[HostGroup],
    sizes: tuple[int, ...] | None,
    source: str,
    name: str,
    hint: str = "",
) -> Fabric:
    """A checked tree and checked blocks. `hint` goes into the refusal where nothing is left."""
    if not switches and not blocks:
        told = "BlockSizes but no blocks" if sizes else "no SwitchName and no BlockName"
        raise Refused(f"{source}: this topology has {told}{hint}: no host has a place in it")
    _check_unique((switch.name for switch in switches), "switch", source)
    _check_unique((block.id for block in blocks), "block", source)
    if sum(len(switch.nodes) for switch in switches) + sum(len(block.hosts) for block in blocks) > NAMES_MAX:
        raise Refused(f"{source}: this topology names more than {NAMES_MAX} hosts")
    _check_blocks(blocks, sizes, source)
    notes: list[str] = []
    hosts, level, links = _tree(switches, notes, source)
    in_tree = set(hosts)
    missing = [host for block in blocks for host in block.hosts if host not in in_tree]
    for host in missing:
        hosts.setdefault(host, [])
    if missing and switches:
        notes.append(f"{len(missing)} hosts are in a block but under no switch")
    return Fabric(
        sources=(name,),
        hosts=tuple(FabricHost(host, tuple(hosts[host])) for host in sorted(hosts, key=name_key)),
        switches=make_switches(level),
        links=tuple(links),
        blocks=tuple(blocks),
        block_sizes=sizes or (),
        notes=tuple(notes),
    )


def _tree(
    switches: Sequence[TreeSwitch], notes: list[str], source: str
) -> tuple[dict[str, list[FabricPort]], dict[str, int], list[FabricLink]]:
    known = {switch.name for switch in switches}
    hosts: dict[str, list[FabricPort]] = {}
    parents: dict[str, str] = {}
    for switch in switches:
        if not switch.nodes and not switch.switches:
            raise Refused(f"{source}: switch {switch.name} has neither Nodes nor Switches: the file is cut off or wrong")
        for host in dict.fromkeys(switch.nodes):
            hosts.setdefault(host, []).append(FabricPort(leaf=switch.name))
        for child in switch.switches:
            if child not in known:
                raise Refused(
                    f"{source}: switch {switch.name} has a child {child} that is never defined: the file is cut off or wrong"
                )
            if child in parents:
                notes.append(f"switch {child} is below {parents[child]} and below {switch.name}")
            parents[child] = switch.name
    level = levels_by_height({switch.name: switch.switches for switch in switches}, source)
    several = [host for host, ports in hosts.items() if len(ports) > 1]
    if several:
        notes.append(f"{len(several)} hosts are on more than one leaf switch, first {several[0]}")
    links = [FabricLink(a=switch.name, b=child) for switch in switches for child in dict.fromkeys(switch.switches)]
    return hosts, level, links


def _check_unique(names: Iterable[str], what: str, source: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise Refused(f"{source}: {what} {name} is defined twice")
        seen.add(name)


def _check_blocks(blocks: Sequence[HostGroup], sizes: tuple[int, ...] | None, source: str) -> None:
    seen: dict[str, str] = {}
    for block in blocks:
        if not block.hosts:
            raise Refused(f"{source}: block {block.id} has no Nodes: the file is cut off or wrong")
        if sizes and len(block.hosts) < sizes[0]:
            raise Refused(
                f"{source}: block {block.id} has {len(block.hosts)} hosts and BlockSizes begins with {sizes[0]}: it is never used"
            )
        for host in block.hosts:
            if host in seen:
                raise Refused(f"{source}: {host} stands twice in blocks ({seen[host]} and {block.id})")
            seen[host] = block.id


def _lines(text: str, source: str) -> Iterable[tuple[int, str]]:
    """Lines with continuations (`\\` at the end) joined, with the number of their first."""
    held, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        first = first or number
        if line.rstrip().endswith("\\"):
            held += line.rstrip()[:-1]
            continue
        yield first, held + line
        held, first = "", 0
    if first:
        raise Refused(f"{source}: the last line continues on a line that is missing: the file is cut off")


def _settings(line: str, where: str) -> dict[str, str]:
    line = line.split("#", 1)[0].strip()
    settings: dict[str, str] = {}
    end = 0
    while end < len(line):
        match = _SETTING.match(line, end)
        key = match[1].lower() if match else ""
        if match is None or key not in _KEYS or key in settings:
            raise Refused(f"{where} is no line of a Slurm topology: {line[end : end + 40].strip()!r} is not understood")
        settings[key] = match[2].strip('"')
        end = match.end()
    return settings


def _sizes(parts: Iterable[str], where: str) -> tuple[int, ...]:
    texts = [part.strip() for part in parts]
    if not all(text.isascii() and text.isdigit() and 0 < len(text) < 8 and int(text) > 0 for text in texts):
        raise Refused(f"{where}: BlockSizes must be numbers from 1, such as 18,36")
    sizes = tuple(int(text) for text in texts)
    for size in sizes:
        factor = size // sizes[0]
        if size % sizes[0] or factor & (factor - 1):
            raise Refused(f"{where}: block size {size} is not the first one ({sizes[0]}) times a power of two")
    return tuple(sorted(set(sizes)))


def _read_yaml(text: str, source: str) -> Fabric:
    document = read_plain_yaml(text, source)
    if not isinstance(document, list) or not all(isinstance(item, dict) and "topology" in item for item in document):
        raise Refused(f"{source}: topology.yaml must be a list of topologies, each beginning with `topology: NAME`")
    topologies = [item for item in document if isinstance(item, dict)]
    trees = [item for item in topologies if "tree" in item]
    grouped = [item for item in topologies if "block" in item]
    if not trees and not grouped:
        raise Refused(f"{source}: no topology in this file is a tree or has blocks: nothing can be told about distances")
    tree, block = _default(trees), _default(grouped)
    switches = _yaml_tree(tree["tree"], source) if tree else []
    blocks, sizes = _yaml_blocks(block["block"], source) if block else ([], None)
    fabric = make_slurm_fabric(switches, blocks, sizes, source, f"Slurm topology.yaml ({source})")
    unused = [str(item["topology"]) for item in topologies if item is not tree and item is not block]
    if unused:
        fabric = msgspec.structs.replace(fabric, notes=(*fabric.notes, f"topologies that were not used: {', '.join(unused)}"))
    return fabric


def _default(topologies: Sequence[dict[str, Plain]]) -> dict[str, Plain] | None:
    """The cluster's default among those of one kind, else the first."""
    marked = [item for item in topologies if str(item.get("cluster_default", "")).lower() in ("true", "yes", "on")]
    return next(iter([*marked, *topologies]), None)


def _yaml_tree(tree: Plain, source: str) -> list[TreeSwitch]:
    made: list[TreeSwitch] = []
    for item in _items(tree, "switches", source):
        name = item.get("switch")
        if not isinstance(name, str):
            raise Refused(f"{source}: each entry of `tree: switches:` needs `switch: NAME`")
        made.append(TreeSwitch(name, _names(item.get("nodes"), source), _names(item.get("children"), source)))
    return made


def _yaml_blocks(block: Plain, source: str) -> tuple[list[HostGroup], tuple[int, ...] | None]:
    made: list[HostGroup] = []
    for item in _items(block, "blocks", source):
        name = item.get("block")
        if not isinstance(name, str):
            raise Refused(f"{source}: each entry of `block: blocks:` needs `block: NAME`")
        made.append(HostGroup(name, _names(item.get("nodes"), source)))
    told = block.get("block_sizes") if isinstance(block, dict) else None
    if told is None:
        return made, None
    return made, _sizes([str(size) for size in told] if isinstance(told, list) else str(told).split(","), source)


def _items(holder: Plain, key: str, source: str) -> list[dict[str, Plain]]:
    found = holder.get(key) if isinstance(holder, dict) else None
    items = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    if not isinstance(found, list) or len(items) != len(found):
        raise Refused(f"{source}: `{key}:` must be a list of mappings")
    return items


def _names(told: Plain | None, source: str) -> tuple[str, ...]:
    """A hostlist, or a list of them."""
    if told is None or told == "":
        return ()
    parts = told if isinstance(told, list) else [told]
    if not all(isinstance(part, str) for part in parts):
        raise Refused(f"{source}: hosts and switches are given as text such as node[01-18]")
    return tuple(name for part in parts for name in expand_hostlist(str(part), source))
