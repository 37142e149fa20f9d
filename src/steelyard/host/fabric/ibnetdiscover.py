"""Which hosts, switches and cables does the output of `ibnetdiscover` show? Both its topology file and its port list (`-p`).

Grammar: infiniband-diags' `ibnetdiscover(8)`, "Topology file format". In a topology file each cable stands on both ends; a file
whose ends do not match was cut off and is refused. A port list may be an excerpt: cables may stand once.

A host is what a CA calls itself in the form `host device`. CAs that only give a product's name ("MT4129 ConnectX7 ...") belong
to some host that nobody can tell, so they are counted and left out; so are aggregation nodes inside switches, and names that
two machines claim.
"""

from __future__ import annotations

import re
from collections import Counter

import msgspec

from steelyard.errors import Refused
from steelyard.host.fabric.tree import levels_by_distance, make_switches, with_rails
from steelyard.model.fabric import Fabric, FabricHost, FabricLink, FabricPort, name_key

#: Gbit/s of one lane
LANE_GBPS = {
    "SDR": 2.0,
    "DDR": 4.0,
    "QDR": 8.0,
    "FDR10": 10.0,
    "FDR": 13.64,
    "EDR": 25.0,
    "HDR": 50.0,
    "NDR": 100.0,
    "XDR": 200.0,
}
#: a node's description has at most 64 characters
LINE_MAX = 1000
_HEAD = re.compile(r'(Switch|Ca|Rt)\s+(\d{1,5})\s+"([SHR])-([0-9a-fA-F]+)"\s*(?:#\s*"(.*)"(.*))?')
_CABLE = re.compile(
    r"\[(\d{1,5})\](?:\[ext \d+\])?(?:\([0-9a-fA-F]+\))?\s+"
    r'"([SHR])-([0-9a-fA-F]+)"\[(\d{1,5})\](?:\[ext \d+\])?(?:\([0-9a-fA-F]+\))?\s*#(.*)'
)
#: `--full` writes more behind it
_SPEED = re.compile(r"lid \d+ (\d{1,3})x([A-Z]+\d*)(?:\s|$)")
#: lines that tell nothing needed here
_PASSED = re.compile(
    r"#|(vendid|devid|sysimgguid|switchguid|caguid|rtguid)=|(Non-)?Chassis\b|(Spine|Line|Leaf) Nodes|\s*(Hostname|Host name):"
)
_LISTED = re.compile(r"(CA|SW|RT)\s+(\d{1,6})\s+(\d{1,5})\s+0x([0-9a-fA-F]+)\s+(\d{1,3})x\s+(\?\?\?|[A-Z]+\d*)(.*)")
_PEER = re.compile(r"\s+-\s+(CA|SW|RT)\s+(\d{1,6})\s+(\d{1,5})\s+0x([0-9a-fA-F]+)\s+\(\s'(.*)'\s-\s'(.*)'\s\)\s*")
_HOST = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\s+([A-Za-z][\w-]*\d))?")
_SWITCH = re.compile(r"MF\d+;(?P<name>[^;:]+):(?P<model>[^/]*)(?P<unit>/.*)?")
_PRODUCT = re.compile(r"Mellanox|NVIDIA|Intel|QLogic|Voltaire|Infiniscale|SwitchX|SwitchIB|Quantum", re.I)
_AGGREGATION = "aggregation node"


class _Node(msgspec.Struct):
    kind: str
    description: str = ""
    #: our port -> (its node, its port, Gbit/s)
    cables: dict[int, tuple[str, int, float | None]] = {}


def read_ibnetdiscover(text: str, source: str) -> Fabric:
    """The fabric. `Refused` where the text is cut off or is no output of `ibnetdiscover`."""
    if any(len(line) > LINE_MAX for line in text.splitlines()):
        raise Refused(f"{source}: a line has more than {LINE_MAX} characters: ibnetdiscover did not write this")
    listed = any(_LISTED.match(line) for line in text.splitlines()[:50])
    nodes = _read_list(text, source) if listed else _read_blocks(text, source)
    if not nodes:
        raise Refused(f"{source}: this is no output of ibnetdiscover: it has no Switch, Ca or Rt in it")
    if not listed:
        _check_both_ends(nodes, source)
    return _make_fabric(nodes, f"ibnetdiscover{' -p' if listed else ''} ({source})", source)


def _read_blocks(text: str, source: str) -> dict[str, _Node]:
    nodes: dict[str, _Node] = {}
    node: _Node | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            node = None
        elif head := _HEAD.fullmatch(line.rstrip()):
            key = f"{head[3]}-{head[4].lower()}"
            if key in nodes:
                raise Refused(f"{source}: line {number} describes {_what(head[1])} a second time: give the output of one run")
            node = nodes[key] = _Node(kind=head[3], description=(head[5] or "").strip())
        elif cable := _CABLE.fullmatch(line.rstrip()):
            if node is None:
                raise Refused(f"{source}: line {number} is a port of no Switch or Ca: the beginning of the file is missing")
            node.cables[int(cable[1])] = (f"{cable[2]}-{cable[3].lower()}", int(cable[4]), _end_rate(cable[5], source, number))
        elif not _PASSED.match(line):
            raise Refused(f"{source}: line {number} is not written by ibnetdiscover: the file is cut off or another kind of file")
    return nodes


def _read_list(text: str, source: str) -> dict[str, _Node]:
    nodes: dict[str, _Node] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        row = _LISTED.fullmatch(line.rstrip())
        peer = _PEER.fullmatch(row[7]) if row else None
        if row is None or (peer is None and row[7].lstrip().startswith("-")):
            raise Refused(f"{source}: line {number} is no line of ibnetdiscover -p: the file is cut off or another kind of file")
        key = f"{_KIND[row[1]]}-{row[4].lower()}"
        node = nodes.setdefault(key, _Node(kind=_KIND[row[1]]))
        if peer is None:
            # A port without a cable; its rate says nothing. Newer versions quote the name.
            name = row[7].strip()
            if not name or (name[0] == "'" and (name[-1] != "'" or len(name) < 2)):
                raise Refused(f"{source}: line {number} ends before the name of its node: the file is cut off")
            node.description = node.description or name.strip("'")
            continue
        gbps = _rate(row[5], row[6])
        other_key = f"{_KIND[peer[1]]}-{peer[4].lower()}"
        other = nodes.setdefault(other_key, _Node(kind=_KIND[peer[1]]))
        node.description, other.description = peer[5].strip(), peer[6].strip()
        node.cables[int(row[3])] = (other_key, int(peer[3]), gbps)
        other.cables[int(peer[3])] = (key, int(row[3]), gbps)
    return nodes


_KIND = {"SW": "S", "CA": "H", "RT": "R"}


def _what(kind: str) -> str:
    return {"Switch": "a switch", "Ca": "an adapter", "Rt": "a router"}[kind]


def _end_rate(text: str, source: str, line: int) -> float | None:
    found = _SPEED.findall(text)
    if not found:
        raise Refused(f"{source}: line {line} does not end with a rate such as 4xNDR: the file is cut off")
    return _rate(*found[-1])


def _rate(width: str, speed: str) -> float | None:
    """Gbit/s; None for a generation that is not known here."""
    lane = LANE_GBPS.get(speed)
    return None if lane is None or not 1 <= int(width) <= 16 else round(lane * int(width), 3)


def _check_both_ends(nodes: dict[str, _Node], source: str) -> None:
    for key, node in nodes.items():
        for port, (other, other_port, _) in node.cables.items():
            if other not in nodes:
                raise Refused(
                    f"{source}: {_name(node)} has a cable to a node that is not described: the file is cut off; give all of it"
                )
            back = nodes[other].cables.get(other_port)
            if back is None or back[:2] != (key, port):
                raise Refused(
                    f"{source}: port {port} of {_name(node)} and the other end of its cable disagree: "
                    "the file is cut off or was changed by hand"
                )


def _name(node: _Node) -> str:
    return {"S": "switch", "H": "adapter", "R": "router"}[node.kind] + f" {node.description[:60]!r}"


def _make_fabric(nodes: dict[str, _Node], name: str, source: str) -> Fabric:
    notes: list[str] = []
    switches = _switch_names(nodes)
    hosts = _hosts(nodes, switches, notes)
    links: dict[tuple[str, str], list[float | None]] = {}
    for key, node in nodes.items():
        for port, (other, other_port, gbps) in node.cables.items():
            if key in switches and other in switches and (key, port) < (other, other_port):
                a, b = sorted((switches[key], switches[other]), key=name_key)
                links.setdefault((a, b), []).append(gbps)
    made = [_link(a, b, rates, notes) for (a, b), rates in links.items()]
    made.sort(key=lambda link: (name_key(link.a), name_key(link.b)))
    level = levels_by_distance(switches.values(), made, (port.leaf for host in hosts for port in host.ports))
    unreached = sum(not at for at in level.values())
    if unreached:
        notes.append(f"{unreached} of {len(level)} switches have no known host below them; their level is 0")
    if not hosts:
        notes.append("no host gives its name in this file")
    return Fabric(sources=(name,), hosts=with_rails(hosts), switches=make_switches(level), links=tuple(made), notes=tuple(notes))


def _link(a: str, b: str, rates: list[float | None], notes: list[str]) -> FabricLink:
    known = [rate for rate in rates if rate is not None]
    if len(set(known)) > 1:
        notes.append(f"the cables between {a} and {b} have different rates ({min(known):g} to {max(known):g} Gbit/s)")
    return FabricLink(a=a, b=b, count=len(rates), gbps=min(known) if known else None)


def _switch_names(nodes: dict[str, _Node]) -> dict[str, str]:
    """What people call each switch. Units of one chassis get their unit; a switch without a name of its own gets its GUID."""
    plain: dict[str, str] = {}
    for key, node in nodes.items():
        if node.kind != "S":
            continue
        match = _SWITCH.fullmatch(node.description)
        plain[key] = match["name"].strip() if match else "" if _is_product(node.description) else node.description
    count = Counter(plain.values())
    for key, name in plain.items():
        match = _SWITCH.fullmatch(nodes[key].description)
        if name and count[name] > 1 and match and match["unit"]:
            plain[key] = name + match["unit"]
    count = Counter(plain.values())
    return {key: name if name and count[name] == 1 else key for key, name in plain.items()}


def _hosts(nodes: dict[str, _Node], switches: dict[str, str], notes: list[str]) -> list[FabricHost]:
    ports: dict[str, list[FabricPort]] = {}
    claimed: Counter[tuple[str, str]] = Counter()
    nameless = unplugged = routers = 0
    for node in nodes.values():
        routers += node.kind == "R"
        if node.kind != "H" or _AGGREGATION in node.description.lower():
            continue
        match = _HOST.fullmatch(node.description)
        if match is None:
            nameless += 1
            continue
        plugged = [
            FabricPort(leaf=switches[other], device=match[2] or "", number=number, gbps=gbps)
            for number, (other, _, gbps) in sorted(node.cables.items())
            if other in switches
        ]
        claimed[match[1], match[2] or ""] += 1
        unplugged += not plugged
        ports.setdefault(match[1], []).extend(plugged)
    twice = {host for (host, device), count in claimed.items() if count > 1 and device}
    if nameless:
        notes.append(f"{nameless} adapters do not tell their host (only a product's name): they are left out")
    if twice:
        notes.append(f"{len(twice)} host names are claimed by several machines: they are left out")
    if unplugged:
        notes.append(f"{unplugged} adapters are not plugged into a switch")
    if routers:
        notes.append(f"{routers} InfiniBand routers are left out")
    return [
        FabricHost(name=host, ports=tuple(sorted(found, key=lambda port: (name_key(port.device), port.number))))
        for host, found in sorted(ports.items(), key=lambda item: name_key(item[0]))
        if host not in twice
    ]


def _is_product(description: str) -> bool:
    """A switch that nobody gave a name calls itself `Infiniscale-IV Mellanox Technologies`."""
    return not description or (" " in description and _PRODUCT.search(description) is not None)
