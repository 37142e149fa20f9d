"""What kind of fabric file is this, and what do several of them say together?

Formats are told apart by content, never by name. Files are bounded, binary ones are refused, and files that are known but say
nothing about the wiring are refused with what to give instead. Several files join by host name: one that tells the switches (or
blocks) and one that tells the NVLink domains, for example. Two files that both tell the same kind of fact are contradictory
unless they agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from steelyard.errors import Refused
from steelyard.host.bounded import read_bounded
from steelyard.host.fabric import domains
from steelyard.host.fabric.domains import read_domains
from steelyard.host.fabric.ibnetdiscover import read_ibnetdiscover
from steelyard.host.fabric.slurm import read_slurm_topology
from steelyard.host.fabric.topograph import read_topograph_model
from steelyard.model.fabric import Fabric, FabricHost, HostGroup, name_key

FILE_BYTES_MAX = 64 << 20

Reader = Callable[[str, str], Fabric]

_READERS: tuple[tuple[re.Pattern[str], Reader], ...] = (
    (
        re.compile(r'^(Switch|Ca|Rt)\s+\d+\s+"[SHR]-|^# Topology file: generated|^(vendid|switchguid|caguid)=0x', re.M),
        read_ibnetdiscover,
    ),
    (re.compile(r"^(CA|SW|RT)\s+\d+\s+\d+\s+0x[0-9a-fA-F]+\s+\d+x", re.M), read_ibnetdiscover),
    (re.compile(r"^[ \t]*(#[ \t]*)?(SwitchName|BlockName|BlockSizes)[ \t]*=", re.M | re.I), read_slurm_topology),
    (re.compile(r"^[ \t]*(?:-[ \t]*)?topology[ \t]*:", re.M), read_slurm_topology),
    (re.compile(r"^switches[ \t]*:", re.M), read_topograph_model),
    (re.compile(rf"^{domains.LINE.pattern}[ \t\r]*$", re.M), read_domains),
)

#: files of the same places that tell no wiring: what they look like, what to give instead
_USELESS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"^block \d+\s*: # of Nodes", re.M),
        "a drawing of a block topology: give the topology.conf or the list of hosts and cluster UUIDs that it was drawn from",
    ),
    (
        re.compile(r"^part number\s+\|", re.M),
        "the output of ibswinfo (the health of one switch): give the output of ibnetdiscover for the wiring",
    ),
    (
        re.compile(r"^# Port (extended )?counters:|^PortSelect:\.+", re.M),
        "the output of perfquery (counters of a port): give the output of ibnetdiscover for the wiring",
    ),
    (
        re.compile(r"^# PortRcvErrorDetails", re.M),
        "the output of perfquery (counters of a port): give the output of ibnetdiscover for the wiring",
    ),
    (
        re.compile(r'"lldp"\s*:|^LLDP neighbors', re.M),
        "the output of lldpctl (one machine's Ethernet neighbours): give a Slurm topology or the output of ibnetdiscover",
    ),
    (
        re.compile(r'"(netq|compressed-links|fabric-id|link_speed_domain)|<netq', re.I),
        "the output of NetQ: give a Slurm topology or the output of ibnetdiscover",
    ),
    (
        re.compile(r"^CA '.*'\s*$|^[ \t]*CA type: ", re.M),
        "the output of ibstat (one machine's ports): give the output of ibnetdiscover",
    ),
    (
        re.compile(r"^Hca:|^Ca\s+: 0x|^Switch\s+: 0x", re.M),
        "the output of ibhosts or ibswitches: give the output of ibnetdiscover",
    ),
    (re.compile(r"\A\s*PARTITION\s*$", re.M), "a list of Slurm partitions: give topology.conf"),
    (re.compile(r"\A\s*<"), "an XML file: it describes one machine, give it to `topo --from` instead"),
    (re.compile(r"\A\s*[\[{]"), "JSON: give the output of ibnetdiscover or a Slurm topology"),
)


def read_fabric(paths: Sequence[Path]) -> Fabric:
    """All files as one fabric. `Refused` for a file that can't be read, is no fabric, is cut off, or contradicts another."""
    if not paths:
        raise Refused("no fabric file was given")
    return join_fabrics(
        [read_fabric_text(read_bounded(path, FILE_BYTES_MAX).decode(errors="replace"), path.name) for path in paths]
    )


def read_fabric_text(text: str, source: str) -> Fabric:
    """One file's fabric, whatever its format."""
    if "\x00" in text or text.count("\ufffd") > len(text) // 100:
        raise Refused(f"{source}: this is a binary file, not the text of a fabric")
    if not text.strip():
        raise Refused(f"{source}: this file is empty")
    for looks, instead in _USELESS:
        if looks.search(text):
            raise Refused(f"{source}: this looks like {instead}")
    for looks, read in _READERS:
        if looks.search(text):
            return read(text, source)
    if all(len(line.split()) < 2 for line in text.splitlines()):
        raise Refused(
            f"{source}: this looks like a list of names: add each host's cluster UUID (`host: uuid`), or give topology.conf"
        )
    raise Refused(
        f"{source}: no known kind of fabric file: give the output of ibnetdiscover, a Slurm topology.conf or topology.yaml, "
        "or a list of hosts and NVLink cluster UUIDs"
    )


def join_fabrics(fabrics: Sequence[Fabric]) -> Fabric:
    """One fabric of several by host name. `Refused` where two contradict each other."""
    with_ports = [fabric for fabric in fabrics if fabric.switches]
    with_domains = [fabric for fabric in fabrics if fabric.domains]
    with_blocks = [fabric for fabric in fabrics if fabric.blocks]
    if len(with_ports) > 1:
        raise Refused(f"{_names(with_ports)} each tell the switches: give one of them")
    for found, what in ((with_domains, "NVLink domains"), (with_blocks, "blocks")):
        if len(found) > 1 and len({_grouping(fabric.domains if what != "blocks" else fabric.blocks) for fabric in found}) > 1:
            raise Refused(f"{_names(found)} disagree about the {what}: give one of them")
    tree = with_ports[0] if with_ports else Fabric()
    hosts = {host.name: host for host in tree.hosts}
    notes = [note for fabric in fabrics for note in fabric.notes]
    for fabric in fabrics:
        for host in fabric.hosts:
            hosts.setdefault(host.name, FabricHost(host.name))
    extra = len(hosts) - len(tree.hosts)
    if with_ports and extra and len(fabrics) > 1:
        notes.append(f"{extra} of {len(hosts)} hosts are on no known switch")
    block = with_blocks[0] if with_blocks else Fabric()
    return Fabric(
        sources=tuple(source for fabric in fabrics for source in fabric.sources),
        hosts=tuple(hosts[name] for name in sorted(hosts, key=name_key)),
        switches=tree.switches,
        links=tree.links,
        domains=with_domains[0].domains if with_domains else (),
        blocks=block.blocks,
        block_sizes=block.block_sizes,
        notes=tuple(dict.fromkeys(notes)),
    )


def _grouping(groups: Sequence[HostGroup]) -> frozenset[frozenset[str]]:
    """Who is with whom; what the groups are called does not matter."""
    return frozenset(frozenset(group.hosts) for group in groups)


def _names(fabrics: Sequence[Fabric]) -> str:
    return " and ".join(source for fabric in fabrics for source in fabric.sources)
