"""Is this `GatewayDesired` one that Envoy can be given? A list of findings, empty when it is; never raises.

Finds what Envoy would accept and then answer with 404 or 503, and what it would reject as a whole because of one entry.
Never reads the clock, the disk or the network.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

import msgspec

from steelyard.gateway import Cluster, GatewayDesired, Neighbour, Route
from steelyard.model.ids import NAME

#: sun_path of a Unix socket address is 108 bytes with its final zero
SOCKET_PATH_BYTES_MAX = 107
#: an unsigned 32-bit number in Envoy; far below is already nonsense
LIMIT_MAX = 10_000_000


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong. `code` is stable, `subject` the cluster, route, key or machine it is about."""

    code: str
    subject: str
    message: str


def check_gateway(desired: GatewayDesired) -> list[Finding]:
    """Everything wrong with `desired`, in the order of its entries."""
    findings: list[Finding] = []
    for name, count in Counter(each.name for each in (*desired.clusters, *desired.neighbourhoods)).items():
        if count > 1:
            findings.append(Finding("cluster-twice", name, f"cluster {name} is there {count} times"))
    for label, count in Counter(route.label for route in desired.routes).items():
        if count > 1:
            findings.append(Finding("route-twice", label, f"{label} is routed {count} times"))
    for cluster in desired.clusters:
        findings += _check_cluster(cluster)
    for neighbour in dict.fromkeys(each for neighbourhood in desired.neighbourhoods for each in neighbourhood.members):
        findings += _check_neighbour(neighbour)
    here, away = {cluster.name for cluster in desired.clusters}, {each.name for each in desired.neighbourhoods}
    for route in desired.routes:
        findings += _check_route(route, away if route.away else here)
    for number, key in enumerate(desired.keys):
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            # the number, not the key: findings end in logs
            findings.append(Finding("key-unsafe", f"key {number}", "a key must be printable ASCII without spaces"))
    return findings


def _check_cluster(cluster: Cluster) -> list[Finding]:
    findings: list[Finding] = []
    function, _, revision = cluster.name.partition(".")
    if not NAME.fullmatch(function) or not revision.isascii() or not revision.isdigit():
        findings.append(Finding("name-unsafe", cluster.name, f"{cluster.name!r} is not <function>.<revision>"))
    path = cluster.socket_path
    if cluster.members:
        findings += [finding for neighbour in cluster.members for finding in _check_neighbour(neighbour)]
    elif not path.startswith("/") or "\0" in path:
        findings.append(Finding("socket-path", cluster.name, f"{path!r} is not an absolute path"))
    elif len(path.encode()) > SOCKET_PATH_BYTES_MAX:
        findings.append(Finding("socket-path", cluster.name, f"{path} is longer than {SOCKET_PATH_BYTES_MAX} bytes"))
    limits = {"connections_max": cluster.connections_max, "pending_max": cluster.pending_max}
    if cluster.requests_per_connection is not None:
        limits["requests_per_connection"] = cluster.requests_per_connection
    for field, value in limits.items():
        if not 1 <= value <= LIMIT_MAX:
            findings.append(Finding("limit", cluster.name, f"{field} is {value}, outside 1..{LIMIT_MAX}"))
    if not 0.001 <= cluster.idle_timeout_s <= 86_400:
        findings.append(Finding("limit", cluster.name, f"idle_timeout_s is {cluster.idle_timeout_s}, outside 0.001..86400"))
    return findings


def _check_neighbour(neighbour: Neighbour) -> list[Finding]:
    try:
        ipaddress.ip_address(neighbour.host)
    except ValueError:
        return [Finding("address", neighbour.machine, f"{neighbour.host!r} is not an IP address")]
    if not 1 <= neighbour.port <= 65535:
        return [Finding("address", neighbour.machine, f"{neighbour.port} is not a port")]
    return []


def _check_route(route: Route, known: set[str]) -> list[Finding]:
    findings: list[Finding] = []
    if not NAME.fullmatch(route.function):
        findings.append(Finding("name-unsafe", route.function, f"{route.function!r} is not a name of a function"))
    elif not NAME.fullmatch(route.label):
        findings.append(Finding("name-unsafe", route.segment, f"{route.label!r} is not a name of a host"))
    for name, percent in route.targets:
        if name not in known:
            findings.append(Finding("route-nowhere", route.segment, f"{route.segment} is routed to {name}, which is no cluster"))
        if not 1 <= percent <= 100:
            findings.append(Finding("share", route.segment, f"{name} has {percent} % of {route.segment}, outside 1..100"))
    if sum(percent for _, percent in route.targets) != 100 and (route.targets or not route.away):
        findings.append(Finding("share", route.segment, f"the shares of {route.segment} do not sum to 100"))
    return findings
