"""What is in topology.conf for these nodes? The discovered fabric as Slurm's tree, or as its blocks. Pure.

Slurm's tree knows one leaf per node and no cables, and a fabric may have rails: so its switches are the groups of machines that
are near each other (`placement/fabric_levels.py`), from the innermost to all. Blocks (Slurm 23.11 and later) are NVLink domains.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import msgspec

from steelyard.model.fabric import Fabric, HostGroup
from steelyard.placement.fabric_levels import FabricLevels, make_levels

TREE, BLOCK = "topology/tree", "topology/block"
#: the first Slurm with blocks
_BLOCKS_SINCE = (23, 11)


def render_topology_conf(fabric: Fabric | None, nodes: Sequence[str], slurm: tuple[int, int]) -> tuple[str, str]:
    """The value of TopologyPlugin, "" for none, and the file."""
    known = _restrict(fabric, frozenset(nodes)) if fabric is not None else Fabric()
    if not known.hosts:
        return "", "# Of no node is it known where it is plugged in.\n"
    source = f"# From {', '.join(known.sources)}."
    grouped = known.domains or known.blocks
    in_groups = {host for group in grouped for host in group.hosts}
    if grouped and slurm >= _BLOCKS_SINCE and in_groups == set(nodes):
        return BLOCK, "\n".join([source, *_blocks(grouped), ""])
    lines = [source]
    if grouped:
        why = f"Slurm {slurm[0]}.{slurm[1]:02} has none" if slurm < _BLOCKS_SINCE else "some nodes are in no domain"
        lines.append(f"# A tree and not blocks of NVLink domains: {why}.")
    left = [name for name in nodes if name not in {host.name for host in known.hosts}]
    if left:
        lines.append(f"# Unknown to it, and far from all others for Slurm: {', '.join(left)}.")
    return TREE, "\n".join([*lines, *_tree(make_levels(known)), ""])


def _restrict(fabric: Fabric, names: Collection[str]) -> Fabric:
    def only(groups: Sequence[HostGroup]) -> tuple[HostGroup, ...]:
        left = (HostGroup(group.id, tuple(host for host in group.hosts if host in names)) for group in groups)
        return tuple(group for group in left if group.hosts)

    return msgspec.structs.replace(
        fabric,
        hosts=tuple(host for host in fabric.hosts if host.name in names),
        domains=only(fabric.domains),
        blocks=only(fabric.blocks),
    )


def _blocks(groups: Sequence[HostGroup]) -> list[str]:
    least = min(len(group.hosts) for group in groups)
    lines = [f"BlockName=block{at} Nodes={','.join(group.hosts)}" for at, group in enumerate(groups, 1)]
    return [*lines, "# A larger base would leave the smallest block unused.", f"BlockSizes={least}"]


def _tree(levels: FabricLevels) -> list[str]:
    """A line per group and level, children first; levels that join nothing are passed over."""
    lines: list[str] = []
    names: set[str] = set()
    below: list[str] = list(levels.hosts)
    key = "Nodes"
    for level in levels.levels:
        if len(set(level.group)) == len(set(below)) and key != "Nodes":
            continue
        groups: dict[int, dict[str, None]] = {}
        for child, group in zip(below, level.group, strict=True):
            groups.setdefault(group, {})[child] = None
        called = {group: _name(f"{level.name}-{level.labels[group]}", names) for group in groups}
        lines += [f"SwitchName={called[group]} {key}={','.join(children)}" for group, children in groups.items()]
        below, key = [called[group] for group in level.group], "Switches"
    return lines


def _name(text: str, taken: set[str]) -> str:
    """Letters that a hostlist takes, and no other switch's name."""
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", text)[:60].strip("-")
    name = next(each for each in (plain, *(f"{plain}-{at}" for at in range(2, len(taken) + 3))) if each not in taken)
    taken.add(name)
    return name
