"""What is one machine like, by several sources about it? Pure: topologies in, one topology out.

Devices join by PCI address (`merge_names.py` gives addresses to bare matrices first). The earliest source that tells a fact wins,
later ones fill what is missing, and each disagreement becomes a sentence in `notes`. Of paths, one over NVLink or xGMI wins over
PCIe: a source without knowledge of links does not contradict one that has it. Sources about different machines are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from steelyard.errors import Refused
from steelyard.host.topology.merge_names import name_devices
from steelyard.model import words
from steelyard.model.machine import NumaNode
from steelyard.model.topology import Gpu, MigInstance, Nic, Nvme, Pair, PathClass, Port, Switch, SwitchKind, Topology

_Device = TypeVar("_Device", Gpu, Nic, Nvme)
_LINKS = (PathClass.NV, PathClass.XGMI, PathClass.C2C)
#: tools count memory with and without what the driver keeps, and rates with and without line codes
_TOLERANCES = {"memory_bytes": 0.06, "size_bytes": 0.06, "pcie_gbps": 0.02}
#: a driver's own numbers and a tree's own ids may differ without contradiction
_LOOSE = ("id", "index", "parent")
#: never written into a sentence
_SECRET = ("uuid",)
_NOTES_MAX = 200


def merge(topologies: Sequence[Topology]) -> Topology:
    """One machine, by sources in order of trust. Raises `Refused` for different machines, and for a matrix that can't join."""
    if not topologies:
        raise Refused("There is nothing to merge: give at least one source.")
    named, notes = name_devices(topologies)
    _check_same_machine(named)
    base = next((topology for topology in named if topology.bridges), None)
    gpus = _join([(_label(t), t.gpus, t is base or base is None) for t in named], "GPU", notes)
    nics = _join([(_label(t), t.nics, t is base or base is None) for t in named], "NIC", notes)
    nvme = _join([(_label(t), t.nvme, t is base or base is None) for t in named], "NVMe", notes)
    notes += _missing_gpus(named)
    pairs = _join_pairs(named, {device.id: place for place, device in enumerate((*gpus, *nics))}, notes)
    whole = _join_cpus(named, notes)
    told = dict.fromkeys(note for topology in topologies for note in topology.notes)
    if len(notes) > _NOTES_MAX:
        notes = [*notes[:_NOTES_MAX], f"{len(notes) - _NOTES_MAX} more disagreements are not listed."]
    return msgspec.structs.replace(
        whole,
        sources=tuple(dict.fromkeys(source for topology in topologies for source in topology.sources)),
        gpus=gpus,
        nics=nics,
        nvme=nvme,
        bridges=base.bridges if base else (),
        switches=_join_switches(named, base),
        pairs=pairs,
        notes=tuple(dict.fromkeys((*told, *notes))),
    )


def _label(topology: Topology) -> str:
    return topology.sources[0] if topology.sources else "one source"


def _check_same_machine(topologies: Sequence[Topology]) -> None:
    """One address is the same in every machine of a kind, a UUID is not: both must not contradict."""
    with_gpus = [topology for topology in topologies if topology.gpus]
    for place, a in enumerate(with_gpus):
        for b in with_gpus[place + 1 :]:
            uuids = {gpu.id: gpu.uuid for gpu in b.gpus}
            common = [gpu for gpu in a.gpus if gpu.id in uuids]
            told = [gpu for gpu in common if gpu.uuid and uuids[gpu.id]]
            if not common or (told and all(gpu.uuid != uuids[gpu.id] for gpu in told)):
                raise Refused(f"These files describe different machines: {_label(a)} and {_label(b)} have no GPU in common.")


def _missing_gpus(topologies: Sequence[Topology]) -> list[str]:
    sources = [topology for topology in topologies if topology.gpus]
    every = list(dict.fromkeys(gpu.id for topology in sources for gpu in topology.gpus))
    notes: list[str] = []
    for topology in sources:
        missing = [gpu for gpu in every if gpu not in {gpu.id for gpu in topology.gpus}]
        if missing:
            notes.append(f"{_label(topology)} does not list the GPUs {', '.join(missing[:16])}; another source does.")
    return notes


def _join(sources: Sequence[tuple[str, Sequence[_Device], bool]], kind: str, notes: list[str]) -> tuple[_Device, ...]:
    """Every device once. `sources`: label, devices, and whether its bridges are the ones that are kept."""
    found: dict[str, list[tuple[str, _Device]]] = {}
    parents: dict[str, str | None] = {}
    for label, devices, has_tree in sources:
        for device in devices:
            found.setdefault(device.id, []).append((label, device))
            if has_tree and device.parent is not None:
                parents.setdefault(device.id, device.parent)
    return tuple(_join_device(kind, several, parents.get(name), notes) for name, several in found.items())


def _join_device(kind: str, several: list[tuple[str, _Device]], parent: str | None, notes: list[str]) -> _Device:
    device = several[0][1]
    values: dict[str, Any] = {}
    for name in device.__struct_fields__:
        told = [(label, value) for label, one in several if (value := getattr(one, name)) not in (None, "", ())]
        if not told:
            continue
        (label, values[name]), rest = told[0], told[1:]
        if name == "ports":
            values[name] = _join_ports([ports for _, ports in told])
        elif name == "mig_instances":
            values[name] = _join_instances([instances for _, instances in told])
        else:
            for other_label, other in rest:
                if not _agree(name, values[name], other):
                    notes.append(_sentence(f"{kind} {device.id}", name, label, values[name], other_label, other))
    return msgspec.structs.replace(device, **{**values, "parent": parent})


def _agree(name: str, a: Any, b: Any) -> bool:
    if a == b or name in _LOOSE:
        return True
    if name == "name":
        return a.lower() in b.lower() or b.lower() in a.lower()
    if name == "cpus":
        return set(a) <= set(b) or set(b) <= set(a)
    tolerance = _TOLERANCES.get(name)
    return tolerance is not None and abs(a - b) <= tolerance * max(a, b)


def _sentence(what: str, name: str, label: str, value: Any, other_label: str, other: Any) -> str:
    if name in _SECRET:
        return f"{what}: {label} and {other_label} tell different {name}s; the first is used."
    a, b = (words.exact_size(word) if name.endswith("_bytes") else str(word)[:60] for word in (value, other))
    return f"{what}: {label} says {name} {a}, {other_label} says {b}; the first is used."


def _join_ports(several: Sequence[tuple[Port, ...]]) -> tuple[Port, ...]:
    """The ports of the first source, their gaps filled by name. One unnamed port on each side is the same port."""
    ports = {port.name: port for port in several[0]}
    for others in several[1:]:
        for other in others:
            mine = ports.get(other.name)
            if mine is None and len(ports) == 1 == len(others):
                mine = next(iter(ports.values()))
            if mine is not None:
                gaps = {name: getattr(other, name) for name in ("gbps", "link", "up") if getattr(mine, name) is None}
                ports[mine.name] = msgspec.structs.replace(mine, **gaps)
    return tuple(ports.values())


def _join_instances(several: Sequence[tuple[MigInstance, ...]]) -> tuple[MigInstance, ...]:
    """The instances of the first source, their gaps filled by GPU instance and compute instance."""
    joined = list(several[0])
    for others in several[1:]:
        by_ids: dict[tuple[int | None, int | None], MigInstance] = {
            (one.gpu_instance, one.compute_instance): one for one in others if one.gpu_instance is not None
        }
        for place, mine in enumerate(joined):
            other = by_ids.get((mine.gpu_instance, mine.compute_instance))
            if other is not None:
                gaps = {name: getattr(other, name) for name in mine.__struct_fields__ if getattr(mine, name) is None}
                joined[place] = msgspec.structs.replace(mine, **gaps)
    return tuple(joined)


def _join_switches(topologies: Sequence[Topology], base: Topology | None) -> tuple[Switch, ...]:
    """PCIe switches belong to the tree that is kept. A source that sees NVSwitches tells which one another could not name."""
    sets = [[switch for switch in topology.switches if switch.kind is SwitchKind.NVSWITCH] for topology in topologies]
    named = any(found and all(":" in switch.id for switch in found) for found in sets)
    kept = {
        switch.id: switch
        for topology in topologies
        for switch in topology.switches
        if (switch.kind is SwitchKind.NVSWITCH and (":" in switch.id or not named))
        or (switch.kind is SwitchKind.PCIE and (base is None or topology is base))
    }
    return tuple(kept.values())


def _join_pairs(topologies: Sequence[Topology], order: dict[str, int], notes: list[str]) -> tuple[Pair, ...]:
    best: dict[tuple[str, str], tuple[str, Pair]] = {}
    contradictions: Counter[tuple[str, str, str, str]] = Counter()
    examples: dict[tuple[str, str, str, str], tuple[str, str]] = {}
    for topology in topologies:
        label = _label(topology)
        for told in topology.pairs:
            if told.a not in order or told.b not in order or told.a == told.b:
                continue
            a, b = sorted((told.a, told.b), key=order.__getitem__)
            pair = msgspec.structs.replace(told, a=a, b=b)
            known_label, known = best.get((a, b), (label, pair))
            best[a, b] = _better(known_label, known, label, pair)
            if _contradict(known, pair):
                words = (known_label, known.class_name, label, pair.class_name)
                contradictions[words] += 1
                examples.setdefault(words, (a, b))
    for (label, name, other_label, other), count in contradictions.items():
        a, b = examples[label, name, other_label, other]
        which = f"{a} to {b}" + (f" and {count - 1} more pairs" if count > 1 else "")
        notes.append(f"{which}: {label} says {name}, {other_label} says {other}; the first is used.")
    return tuple(best[key][1] for key in sorted(best, key=lambda key: (order[key[0]], order[key[1]])))


def _better(known_label: str, known: Pair, label: str, pair: Pair) -> tuple[str, Pair]:
    if pair.path in _LINKS and known.path not in _LINKS:
        return label, pair
    if pair.path is known.path and pair.links in (known.links, 0) and known.gbps is None:
        return known_label, msgspec.structs.replace(known, gbps=pair.gbps)
    if pair.path is known.path and not known.links:
        return known_label, msgspec.structs.replace(
            known, links=pair.links, gbps=known.gbps if known.gbps is not None else pair.gbps
        )
    return known_label, known


def _contradict(known: Pair, pair: Pair) -> bool:
    if (known.path in _LINKS) != (pair.path in _LINKS):
        return False
    if known.path is not pair.path:
        return True
    if known.links and pair.links and known.links != pair.links:
        return True
    return known.gbps is not None and pair.gbps is not None and not _agree("pcie_gbps", known.gbps, pair.gbps)


def _join_cpus(topologies: Sequence[Topology], notes: list[str]) -> Topology:
    """Cores from the first source that knows SMT, else from the first that has any; the rest from the first that tells it."""
    with_cores = [topology for topology in topologies if topology.cores]
    chosen = next((topology for topology in with_cores if topology.smt_known), with_cores[0] if with_cores else topologies[0])
    for other in with_cores:
        if {cpu for core in chosen.cores for cpu in core.cpus} != {cpu for core in other.cores for cpu in core.cpus}:
            notes.append(
                f"CPUs: {_label(chosen)} names {chosen.threads}, {_label(other)} others or another number ({other.threads})."
            )
    nodes = chosen if chosen.numa_nodes else next((topology for topology in topologies if topology.numa_nodes), chosen)
    ids = [node.id for node in nodes.numa_nodes]
    distances = nodes.numa_distances or next(
        (other.numa_distances for other in topologies if other.numa_distances and [node.id for node in other.numa_nodes] == ids),
        (),
    )
    for name in ("packages", "memory_bytes"):
        told = [(_label(topology), value) for topology in topologies if (value := getattr(topology, name)) is not None]
        for label, value in told[1:]:
            if not _agree(name, told[0][1], value):
                notes.append(_sentence("The machine", name, *told[0], label, value))
    return Topology(
        packages=next((topology.packages for topology in topologies if topology.packages is not None), None),
        numa_nodes=tuple(_with_memory(node, topologies) for node in nodes.numa_nodes),
        cores=chosen.cores,
        smt_known=chosen.smt_known,
        caches=chosen.caches or next((topology.caches for topology in topologies if topology.caches), ()),
        memory_bytes=next((topology.memory_bytes for topology in topologies if topology.memory_bytes is not None), None),
        numa_distances=distances,
        gpu_memory_nodes=next((topology.gpu_memory_nodes for topology in topologies if topology.gpu_memory_nodes), ()),
    )


def _with_memory(node: NumaNode, topologies: Sequence[Topology]) -> NumaNode:
    """0 is what sources without knowledge of memory write."""
    twins = (other for topology in topologies for other in topology.numa_nodes if other.id == node.id and other.memory_bytes)
    return (
        node
        if node.memory_bytes
        else next((msgspec.structs.replace(node, memory_bytes=twin.memory_bytes) for twin in twins), node)
    )
