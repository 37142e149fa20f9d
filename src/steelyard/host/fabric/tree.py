"""Which level has each switch, and which rail each port? Shared by the readers that see switches.

Levels: 1 is a switch that has hosts. In a meshed fabric (`ibnetdiscover`) a switch's level is its distance from the nearest
host; in a file that tells parents and children it is one more than its highest child, so that a short branch does not make a
core switch a spine.

Rails: a fabric is built in rails where hosts have several ports and most such hosts plug them into different leaves. Then each
leaf is named after the devices that at least half of its hosts have there (`mlx5_0` and `HCA-1` both count as device 0: drivers
number HCAs from 1), leaves with equal devices are one rail, and rails are numbered in the order of their devices. A port has
the rail of the leaf that it is really plugged into, so a crossed cable shows as what it is.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from steelyard.errors import Refused
from steelyard.model.fabric import FabricHost, FabricLink, FabricPort, FabricSwitch, name_key

_NUMBERED = re.compile(r"(mlx\d+_|HCA-|hfi1_|ib|bnxt_re)(\d+)")


def levels_by_distance(switches: Iterable[str], links: Iterable[FabricLink], leaves: Iterable[str]) -> dict[str, int]:
    """Distance from the nearest host; 0 for a switch that no host reaches."""
    near: dict[str, list[str]] = {switch: [] for switch in switches}
    for link in links:
        near[link.a].append(link.b)
        near[link.b].append(link.a)
    level = dict.fromkeys(near, 0)
    queue = deque(dict.fromkeys(leaves))
    for leaf in queue:
        level[leaf] = 1
    while queue:
        switch = queue.popleft()
        for neighbour in near[switch]:
            if not level[neighbour]:
                level[neighbour] = level[switch] + 1
                queue.append(neighbour)
    return level


def levels_by_height(children: Mapping[str, Sequence[str]], source: str) -> dict[str, int]:
    """One more than the highest child. `Refused` where a switch is its own ancestor."""
    level: dict[str, int] = {}
    for top in children:
        stack = [(top, iter(children[top]))]
        open_ = {top: None}
        while stack:
            switch, rest = stack[-1]
            child = next((child for child in rest if child not in level), None)
            if switch in level or child is None:
                level.setdefault(switch, 1 + max((level[below] for below in children[switch]), default=0))
                stack.pop()
                open_.pop(switch, None)
                continue
            if child in open_:
                raise Refused(f"{source}: switch {child} is above itself (a cycle): correct its Switches=")
            open_[child] = None
            stack.append((child, iter(children[child])))
    return level


def with_rails(hosts: Sequence[FabricHost]) -> tuple[FabricHost, ...]:
    """The hosts with the rail of each port, where the fabric has rails."""
    several = [host for host in hosts if len(host.ports) > 1]
    spread = [host for host in several if len({port.leaf for port in host.ports}) > 1]
    if not several or 2 * len(spread) < len(several):
        return tuple(hosts)
    on_leaf: dict[str, Counter[tuple[int, str]]] = {}
    hosts_on: Counter[str] = Counter()
    for host in hosts:
        hosts_on.update({port.leaf for port in host.ports})
        for leaf, device in {(port.leaf, _device(port)) for port in host.ports if port.device}:
            on_leaf.setdefault(leaf, Counter())[device] += 1
    usual = {
        leaf: tuple(sorted(device for device, count in devices.items() if 2 * count >= hosts_on[leaf]))
        for leaf, devices in on_leaf.items()
    }
    rails = {devices: rail for rail, devices in enumerate(sorted(set(usual.values()) - {()}))}
    if len(rails) < 2:
        return tuple(hosts)
    return tuple(
        msgspec.structs.replace(
            host,
            ports=tuple(msgspec.structs.replace(port, rail=rails.get(usual.get(port.leaf, ()))) for port in host.ports),
        )
        for host in hosts
    )


def make_switches(level: Mapping[str, int]) -> tuple[FabricSwitch, ...]:
    return tuple(FabricSwitch(id=switch, level=level[switch]) for switch in sorted(level, key=lambda s: (level[s], name_key(s))))


def _device(port: FabricPort) -> tuple[int, str]:
    match = _NUMBERED.fullmatch(port.device)
    if match is None:
        return (1 << 30, f"{port.device}:{port.number}")
    kind, number = match[1], int(match[2])
    # A second port of one device is a rail of its own.
    return (number - 1 if kind == "HCA-" else number, f"port {port.number}")
