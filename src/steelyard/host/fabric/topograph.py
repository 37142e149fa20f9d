"""Which cluster does a model file of NVIDIA's topograph describe? (`switches:`, `blocks:` or `capacity_blocks:` in YAML.)

Simulated clusters, used to try a scheduler. The label `accelerator.../domain` is the NVLink domain; `.../sub-domain` divides it
and is read as a block. A switch without hosts and children is an empty rack there, not a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from steelyard.errors import Refused
from steelyard.host.fabric.plain_yaml import Plain, read_plain_yaml
from steelyard.host.fabric.slurm import TreeSwitch, make_slurm_fabric
from steelyard.model.fabric import Fabric, HostGroup
from steelyard.model.hostlist import expand_hostlist


def read_topograph_model(text: str, source: str) -> Fabric:
    document = read_plain_yaml(text, source)
    if not isinstance(document, dict) or "switches" not in document:
        raise Refused(f"{source}: this is no topograph model: it has no `switches:`")
    children, hung = _switches(document["switches"], source)
    nodes: dict[str, list[str]] = {}
    groups: dict[str, dict[str, list[str]]] = {"domain": {}, "sub-domain": {}}
    for block in _blocks(document, source):
        hosts = _names(block.get("nodes"), source)
        switch = block.get("switch", hung.get(_text(block.get("name"))))
        if not isinstance(switch, str):
            raise Refused(f"{source}: a block of hosts has no switch")
        nodes.setdefault(switch, []).extend(hosts)
        annotations = block.get("annotations")
        for key, value in annotations.items() if isinstance(annotations, dict) else ():
            kind = key.rpartition("/")[2]
            if kind in groups and key.startswith("accelerator"):
                groups[kind].setdefault(_text(value), []).extend(hosts)
    named = dict.fromkeys([*children, *nodes])
    empty = {child for below in children.values() for child in below if child not in named}
    empty |= {switch for switch in named if not children.get(switch) and not nodes.get(switch)}
    tree = [
        TreeSwitch(switch, tuple(nodes.get(switch, ())), tuple(child for child in children.get(switch, ()) if child not in empty))
        for switch in named
        if switch not in empty
    ]
    domains = _groups(groups["domain"], source)
    fabric = make_slurm_fabric(tree, _groups(groups["sub-domain"], source), None, source, f"topograph model ({source})")
    notes = [f"{len(empty)} switches have no hosts and are left out"] if empty else []
    if groups["sub-domain"]:
        notes.append("sub-domains are read as blocks")
    return msgspec.structs.replace(fabric, domains=domains, notes=(*fabric.notes, *notes))


def _switches(told: Plain, source: str) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Children of each switch, and the switch of each capacity block."""
    items: list[tuple[str, Plain]]
    if isinstance(told, dict):
        items = list(told.items())
    elif isinstance(told, list):
        items = [(_text(item.get("name")), item) for item in told if isinstance(item, dict)]
    else:
        items = []
    children: dict[str, tuple[str, ...]] = {}
    hung: dict[str, str] = {}
    for name, item in items:
        if not isinstance(item, dict) or not name or name in children:
            raise Refused(f"{source}: each of `switches:` needs a name of its own and a mapping")
        children[name] = _names(item.get("switches"), source)
        hung |= dict.fromkeys(_names(item.get("capacity_blocks"), source), name)
    return children, hung


def _blocks(document: Mapping[str, Plain], source: str) -> list[dict[str, Plain]]:
    told = document.get("blocks", document.get("capacity_blocks"))
    blocks = [item for item in told if isinstance(item, dict)] if isinstance(told, list) else []
    if not isinstance(told, list) or len(blocks) != len(told):
        raise Refused(f"{source}: a topograph model needs a list of `blocks:` with their hosts")
    return blocks


def _names(told: Plain | None, source: str) -> tuple[str, ...]:
    if told is None or told == "":
        return ()
    if not isinstance(told, list) or not all(isinstance(part, str) for part in told):
        raise Refused(f"{source}: hosts and switches must be lists of names")
    return tuple(name for part in told for name in expand_hostlist(str(part), source))


def _text(value: Plain | None) -> str:
    return value if isinstance(value, str) else ""


def _groups(found: Mapping[str, list[str]], source: str) -> tuple[HostGroup, ...]:
    home: dict[str, str] = {}
    for name, hosts in found.items():
        for host in hosts:
            if home.setdefault(host, name) != name:
                raise Refused(f"{source}: {host} is in {home[host]} and in {name}: give it one domain")
    return tuple(HostGroup(name, tuple(dict.fromkeys(hosts))) for name, hosts in found.items() if name)
