"""Which PCI device is `GPU3` or `mlx5_4` of a bare matrix? Pure: gives each source the names that all sources share.

A matrix numbers GPUs as the driver does, so they join in the order of that number to a source that has numbers and addresses.
Where counts differ, or no source has both, any join would be a guess: it is refused, and the sentence names the file that would
help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from steelyard.errors import Refused
from steelyard.model.topology import Gpu, Topology


def name_devices(topologies: Sequence[Topology]) -> tuple[list[Topology], list[str]]:
    """The topologies under shared names, in the same order, and sentences about devices that could not be joined."""
    notes: list[str] = []
    addressed = [topology for topology in topologies if not _is_bare(topology)]
    if len(addressed) in (0, len(topologies)):
        return list(topologies), notes
    named: list[Topology] = []
    for topology in topologies:
        if _is_bare(topology):
            topology = _renamed(topology, _gpu_names(topology, addressed) | _nic_names(topology, addressed), addressed, notes)
        named.append(topology)
    return named, notes


def _is_bare(topology: Topology) -> bool:
    return bool(topology.gpus) and all(gpu.pci is None for gpu in topology.gpus)


def _label(topology: Topology) -> str:
    return topology.sources[0] if topology.sources else "one source"


def _gpu_names(bare: Topology, addressed: Sequence[Topology]) -> dict[str, str]:
    with_gpus = [topology for topology in addressed if topology.gpus]
    if not with_gpus:
        return {}
    numbered = [topology for topology in with_gpus if all(gpu.index is not None for gpu in topology.gpus)]
    if not numbered or any(gpu.index is None for gpu in bare.gpus):
        raise Refused(
            f"{_label(bare)} names GPUs by number only and {_label(with_gpus[0])} by PCI address only, so they can't be joined:"
            " add the nvidia-smi -q -x of the same machine."
        )
    guide = next((topology for topology in numbered if len(topology.gpus) == len(bare.gpus)), None)
    if guide is None:
        raise Refused(
            f"{_label(bare)} has {len(bare.gpus)} GPUs and {_label(numbered[0])} has {len(numbered[0].gpus)}, so they"
            " can't be joined: which is which is not told."
        )
    return {mine.id: theirs.id for mine, theirs in zip(_by_index(bare.gpus), _by_index(guide.gpus), strict=True)}


def _by_index(gpus: Sequence[Gpu]) -> list[Gpu]:
    return sorted(gpus, key=lambda gpu: (gpu.index or 0, gpu.id))


def _nic_names(bare: Topology, addressed: Sequence[Topology]) -> dict[str, str]:
    """By the name of the card or of one of its ports."""
    owners: dict[str, str] = {}
    for topology in addressed:
        for nic in topology.nics:
            for name in (nic.name, *(port.name for port in nic.ports)):
                if name:
                    owners.setdefault(name, nic.id)
    return {nic.id: owners[nic.name] for nic in bare.nics if nic.name in owners}


def _renamed(bare: Topology, names: Mapping[str, str], addressed: Sequence[Topology], notes: list[str]) -> Topology:
    """Under the shared names. A NIC without one is kept only if it can't be one that another source has without a name."""
    doubtful = any(not nic.name for topology in addressed for nic in topology.nics)
    lost = [nic.name or nic.id for nic in bare.nics if nic.id not in names and doubtful]
    if lost:
        notes.append(f"{_label(bare)}: which PCI device {', '.join(lost[:16])} is can't be told, so its paths are left out.")
    pci = {nic.id: nic.pci for topology in addressed for nic in topology.nics}
    gpus = tuple(msgspec.structs.replace(gpu, id=names.get(gpu.id, gpu.id), pci=_address(names.get(gpu.id))) for gpu in bare.gpus)
    nics = {
        name: msgspec.structs.replace(nic, id=name, pci=pci.get(name))
        for nic in reversed(bare.nics)
        if (name := names.get(nic.id, nic.id)) and (nic.id in names or not doubtful)
    }
    kept = {*(gpu.id for gpu in bare.gpus), *(nic.id for nic in bare.nics if nic.id in names or not doubtful)}
    pairs = tuple(
        msgspec.structs.replace(pair, a=names.get(pair.a, pair.a), b=names.get(pair.b, pair.b))
        for pair in bare.pairs
        if pair.a in kept and pair.b in kept
    )
    return msgspec.structs.replace(bare, gpus=gpus, nics=tuple(reversed(nics.values())), pairs=pairs)


def _address(name: str | None) -> str | None:
    """Partitions of one device share its address: `0000:0f:00.0/1`."""
    return name.split("/")[0] if name else None
