"""Which groups of machines are near each other? From a `Fabric` to nested levels, and one order of all machines.

Levels, from the inside out; a fabric has those that its sources tell:
- `domain`: one NVLink domain. `block`, `block-36`: Slurm's blocks, and neighbours that its BlockSizes put together.
- `leaf`: hosts that reach each other over one leaf switch. With rails a host has several leaves; hosts are one group where
  every two sets of leaves in it meet. Where they do not all meet, only hosts with equal leaves are a group.
- `spine`, `core`, `tier4`: hosts joined by switches up to level 2, 3, 4. `fabric`: all, joined or not.
Levels are nested: each group lies in one group of the next level. Where the sources cross (a leaf with parts of two NVLink
domains), the domains stay and the switch level is left out, because NVLink is the faster road; blocks give way to both. A host
about which a level tells nothing is alone there. Nothing is guessed from names: they only decide the order among equals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from steelyard.model.fabric import Fabric, HostGroup, name_key

#: host -> what its group is called
Groups = Mapping[str, str]
_SWITCH_LEVELS = {2: "spine", 3: "core"}


class Level(msgspec.Struct, frozen=True):
    name: str
    #: group of each host, in the order of `FabricLevels.hosts`; numbers grow along that order
    group: tuple[int, ...]
    #: what each group is called
    labels: tuple[str, ...]


class FabricLevels(msgspec.Struct, frozen=True):
    #: so ordered that every group of every level is one run: groups by their first name, hosts by name
    hosts: tuple[str, ...]
    #: from the innermost to `fabric`
    levels: tuple[Level, ...]
    notes: tuple[str, ...] = ()


def make_levels(fabric: Fabric) -> FabricLevels:
    notes: list[str] = []
    hosts = [host.name for host in fabric.hosts]
    chain = _switch_levels(fabric)
    if fabric.domains:
        chain = _insert_domains(chain, _told(fabric.domains), hosts, notes)
    for name, groups in _block_levels(fabric):
        at = _place(chain, groups, hosts)
        if at is None:
            notes.append(f"level {name} is left out: its groups cross those of other levels")
        else:
            chain.insert(at[0], (name, at[1]))
    chain.append(("fabric", dict.fromkeys(hosts, "fabric")))
    return _order(hosts, chain, notes)


def _switch_levels(fabric: Fabric) -> list[tuple[str, Groups]]:
    if not fabric.switches:
        return []
    chain: list[tuple[str, Groups]] = [("leaf", _leaf_groups(fabric))]
    level = {switch.id: switch.level for switch in fabric.switches}
    for upto in range(2, max(level.values()) + 1):
        joined = _Joined(level)
        for link in fabric.links:
            if 0 < level[link.a] <= upto and 0 < level[link.b] <= upto:
                joined.join(link.a, link.b)
        for host in fabric.hosts:
            for port in host.ports[1:]:
                joined.join(host.ports[0].leaf, port.leaf)
        label: dict[str, str] = {}
        for switch in sorted((s for s in level if level[s] == upto), key=name_key):
            label.setdefault(joined.find(switch), switch)
        groups: dict[str, str] = {}
        for host in fabric.hosts:
            root = joined.find(host.ports[0].leaf) if host.ports else None
            groups[host.name] = f"alone: {host.name}" if root is None else label.get(root, root)
        chain.append((_SWITCH_LEVELS.get(upto, f"tier{upto}"), groups))
    return chain


def _leaf_groups(fabric: Fabric) -> Groups:
    leaves = {host.name: tuple(sorted({port.leaf for port in host.ports}, key=name_key)) for host in fabric.hosts}
    joined = _Joined(leaf for on in leaves.values() for leaf in on)
    for on in leaves.values():
        for leaf in on[1:]:
            joined.join(on[0], leaf)
    sets: dict[str, set[tuple[str, ...]]] = {}
    for on in leaves.values():
        if on:
            sets.setdefault(joined.find(on[0]), set()).add(on)
    meets = {root: all(set(a) & set(b) for a in found for b in found) for root, found in sets.items()}
    groups: dict[str, str] = {}
    for host, on in leaves.items():
        if not on:
            groups[host] = f"alone: {host}"
            continue
        root = joined.find(on[0])
        whole = sorted({leaf for each in sets[root] for leaf in each}, key=name_key) if meets[root] else on
        groups[host] = whole[0] if len(whole) == 1 else f"{whole[0]} (+{len(whole) - 1})"
    return groups


def _block_levels(fabric: Fabric) -> list[tuple[str, Groups]]:
    if not fabric.blocks:
        return []
    levels: list[tuple[str, Groups]] = [("block", _told(fabric.blocks))]
    for size in fabric.block_sizes[1:]:
        together = size // fabric.block_sizes[0]
        merged = {
            host: f"{fabric.blocks[place - place % together].id} (+{together - 1})"
            for place, block in enumerate(fabric.blocks)
            for host in block.hosts
        }
        if together < len(fabric.blocks):
            levels.append((f"block-{size}", merged))
    return levels


def _told(groups: Sequence[HostGroup]) -> Groups:
    return {host: group.id for group in groups for host in group.hosts}


def _insert_domains(
    chain: list[tuple[str, Groups]], domains: Groups, hosts: Sequence[str], notes: list[str]
) -> list[tuple[str, Groups]]:
    at = _place(chain, domains, hosts)
    if at is None:
        kept = [level for level in chain if _place([level], domains, hosts) is not None]
        crossing = ", ".join(name for name, _ in chain if name not in {kept_name for kept_name, _ in kept})
        notes.append(f"level {crossing or 'domain'} is left out: its groups cross those of other levels")
        at = _place(kept, domains, hosts) if crossing else None
        if at is None:
            return kept
        chain = kept
    return [*chain[: at[0]], ("domain", at[1]), *chain[at[0] :]]


def _place(chain: Sequence[tuple[str, Groups]], told: Groups, hosts: Sequence[str]) -> tuple[int, Groups] | None:
    """Where a level nests, as far inside as possible, with a group for every host. None where it crosses."""
    for at in range(len(chain) + 1):
        filled = _fill(told, chain[at - 1][1] if at else None, hosts)
        if (at == 0 or _nests(chain[at - 1][1], filled)) and (at == len(chain) or _nests(filled, chain[at][1])):
            return at, filled
    return None


def _fill(told: Groups, inner: Groups | None, hosts: Sequence[str]) -> Groups:
    """Hosts that the level does not tell: with their inner group where it tells nothing about any of it, else alone."""
    known = {inner[host] for host in told if host in inner} if inner is not None else set[str]()
    return {
        host: told[host]
        if host in told
        else f"alone: {host}"
        if inner is None or inner[host] in known
        else f"alone: {inner[host]}"
        for host in hosts
    }


def _nests(inner: Groups, outer: Groups) -> bool:
    holder: dict[str, str] = {}
    return all(holder.setdefault(group, outer[host]) == outer[host] for host, group in inner.items())


def _order(hosts: Sequence[str], chain: Sequence[tuple[str, Groups]], notes: Sequence[str]) -> FabricLevels:
    by_name = sorted(hosts, key=name_key)
    first: list[dict[str, int]] = []
    for _, groups in chain:
        lowest: dict[str, int] = {}
        for place, host in enumerate(by_name):
            lowest.setdefault(groups[host], place)
        first.append(lowest)
    place = {host: at for at, host in enumerate(by_name)}
    outside_in = list(zip(reversed(chain), reversed(first), strict=True))

    def key(host: str) -> tuple[int, ...]:
        return (*(lowest[groups[host]] for (_, groups), lowest in outside_in), place[host])

    ordered = sorted(hosts, key=key)
    levels: list[Level] = []
    for name, groups in chain:
        labels = tuple(dict.fromkeys(groups[host] for host in ordered))
        number = {label: at for at, label in enumerate(labels)}
        levels.append(Level(name, tuple(number[groups[host]] for host in ordered), labels))
    return FabricLevels(tuple(ordered), tuple(levels), tuple(notes))


class _Joined:
    """Union-find: which names are connected."""

    def __init__(self, names: Iterable[str]) -> None:
        self._up = {name: name for name in names}

    def find(self, name: str) -> str:
        while self._up[name] != name:
            self._up[name] = self._up[self._up[name]]
            name = self._up[name]
        return name

    def join(self, a: str, b: str) -> None:
        self._up[self.find(a)] = self.find(b)
