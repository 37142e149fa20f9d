"""Which files make Envoy carry out a `GatewayDesired`? Structs and settings in, bytes out.

Three files: the bootstrap (listener, filters, limits; changes only with the settings or this module), `cds.pb` with every
cluster and `rds.pb` with every route, each a DiscoveryResponse in protobuf's wire format (`protobuf.py` says why). One file
each, because Envoy spends an inotify instance per watched file and the kernel allows 128 per user. Their `version_info` is
a hash of the content: Envoy shows it again once it has accepted the file, and a file that was cut off is known by it.

Never reads the clock, the disk or the network.

Choices that are easy to undo by accident:
- Every timeout of a request is 0: a quiet stream, a long queue and a slow model are all legitimate (rule 8).
- Retry only on `connect-failure`, from our policy alone: `x-envoy-*` headers of a client, which could ask for retries and
  deadlines, are taken away first (a retry on reset ran a crashing POST three times).
- The key filter is on by default and switched off for public routes, so that what is forgotten is refused, not open.
- Paths are looked up in a trie: 1,000 functions tested one after the other cost more than the whole request.
- Paths are not normalized: the app sees what the client sent, and since a function is found by its literal first segment and
  everything behind it goes to that function, `..` reaches no other function.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from steelyard.config import Settings
from steelyard.gateway import Cluster, GatewayDesired, Neighbour, Neighbourhood, Route
from steelyard.gateway.listeners import (
    ALIVE_S,
    BUFFER_BYTES,
    HOME_CLUSTER,
    KEY_FILTER,
    LISTENER,
    RETRY,
    TCP_GIVE_UP,
    render_headers,
    render_listeners,
)
from steelyard.gateway.mutual_tls import HOME_GATEWAY, make_source, render_client
from steelyard.gateway.protobuf import encode, encode_any, read_fields, typed, write_field
from steelyard.model.certificate import Identity, Role

Json = dict[str, object]

ROUTES = "functions"
#: what Envoy counts at all; a counter costs memory for each cluster
STATS_KEPT_PREFIXES = ("cluster_manager.cds.", f"http.{LISTENER}.rds.")
STATS_KEPT_SUFFIXES = (".upstream_rq_pending_active",)
#: clients connected at once; the next one is not accepted until one leaves
CLIENTS_MAX = 20_000
CONNECT_TIMEOUT_S = 5
#: where another machine can be asked instead
SEVERAL_CONNECT_TIMEOUT_S = 2
#: one that could not be connected to is left alone for so long
LEFT_ALONE_S = 5.0
#: circuit breakers that must never trip: what is bounded is connections and the queue
UNBOUNDED = 1_000_000_000

_HTTP_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def render_bootstrap(settings: Settings, admin_socket: Path, folder: Path, node: str) -> bytes:
    """Envoy's start-up file: it finds clusters and routes in `folder`, and answers its admin on `admin_socket` (mode 0600)."""
    routes: Json = {"rds": {"route_config_name": ROUTES, "config_source": make_source(folder, "rds.pb")}}
    bootstrap = _bootstrap(settings, folder, node, routes, []) | {
        "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
        "dynamic_resources": {"cds_config": make_source(folder, "cds.pb")},
    }
    return _pretty(bootstrap)


def render_static(settings: Settings, desired: GatewayDesired, folder: Path, node: str) -> bytes:
    """The same content with clusters and routes inlined, for `envoy --mode validate`, which reads no dynamic file."""
    found = {f"/{route.segment}": _path_match_json(route) for route in desired.routes}
    hosts: list[Json] = [_paths_host(found), *map(_function_host, desired.routes)]
    clusters = [_cluster(each, folder) for each in desired.clusters]
    clusters += [_neighbourhood(each, folder) for each in desired.neighbourhoods]
    return _pretty(_bootstrap(settings, folder, node, {"route_config": _route_config(desired.keys, hosts)}, clusters))


def render_clusters(desired: GatewayDesired, folder: Path, kept: Mapping[str, bytes] | None = None) -> bytes:
    """`cds.pb`. `kept` are resources of an earlier file, by name, that must stay although `desired` has them no more."""
    resources = dict(kept or {}) | {cluster.name: _cluster_resource(cluster, folder) for cluster in desired.clusters}
    resources |= {each.name: _neighbourhood_resource(each, folder) for each in desired.neighbourhoods}
    return _discovery([resources[name] for name in sorted(resources)])


def render_routes(desired: GatewayDesired) -> bytes:
    """`rds.pb`. Holds the API keys: mode 0600."""
    found = {f"/{route.segment}": _path_match(route) for route in desired.routes}
    hosts: list[Json | bytes] = [_paths_host(found), *map(_host_resource, desired.routes)]
    return _discovery([encode_any(typed("envoy.config.route.v3.RouteConfiguration", _route_config(desired.keys, hosts)))])


def shape_of(desired: GatewayDesired) -> str:
    """What of `desired` decides whether Envoy can understand it, apart from names and numbers that `check_gateway` judges.
    Two states of one shape differ only in how many there are of each kind."""
    clusters = sorted({(each.requests_per_connection is not None, min(2, len(each.members))) for each in desired.clusters})
    routes = sorted({(route.public, min(2, len(route.targets)), bool(route.tag), route.away) for route in desired.routes})
    neighbourhoods = sorted({min(2, len(each.members)) for each in desired.neighbourhoods})
    return repr((clusters, routes, bool(desired.keys), neighbourhoods))


def version_of(file: bytes) -> str:
    """The `version_info` that a rendered file begins with; empty for what is not one of ours."""
    try:
        number, version = next(read_fields(file))
    except (ValueError, StopIteration):
        return ""
    return version.decode(errors="replace") if number == 1 else ""


def is_whole(file: bytes) -> bool:
    """Is this one of our files, to the last byte?"""
    try:
        return version_of(file).encode() == _version(_resources(file)) != b""
    except ValueError:
        return False


def resources_of(file: bytes) -> dict[str, bytes]:
    """The clusters of a rendered `cds.pb` by name, each as it stands there; empty when the file is not whole."""
    if not is_whole(file):
        return {}
    named: dict[str, bytes] = {}
    for resource in _resources(file):
        message = dict(read_fields(resource))[2]
        named[next(read_fields(message))[1].decode()] = resource  # a cluster begins with its name
    return named


def _resources(file: bytes) -> list[bytes]:
    return [value for number, value in read_fields(file) if number == 2]


def _discovery(resources: Sequence[bytes]) -> bytes:
    return write_field(1, _version(resources)) + b"".join(write_field(2, resource) for resource in resources)


def _version(resources: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for resource in resources:
        digest.update(len(resource).to_bytes(8))
        digest.update(resource)
    return digest.hexdigest()[:16].encode()


def _pretty(document: Json) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _seconds(seconds: float) -> str:
    """A protobuf duration; Envoy reads a decimal number of seconds."""
    return f"{seconds:.3f}s"


def _bootstrap(settings: Settings, folder: Path, node: str, routes: Json, clusters: Sequence[Json]) -> Json:
    if settings.home_gateway:
        host, _, port = settings.home_gateway.rpartition(":")
        address: Json = {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
        clusters = [*clusters, _gateways(HOME_CLUSTER, [address], [HOME_GATEWAY], folder)]
    kept = [{"prefix": prefix} for prefix in STATS_KEPT_PREFIXES] + [{"suffix": suffix} for suffix in STATS_KEPT_SUFFIXES]
    return {
        "node": {"id": node, "cluster": "steelyard"},
        "static_resources": {"listeners": render_listeners(settings, folder, routes), "clusters": clusters},
        # tags are for exporters; pulling them out of 1,000 cluster names at each change is work for nothing
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": kept}}, "use_all_default_tags": False},
        "overload_manager": {
            "refresh_interval": "1s",
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": typed(
                        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        {"max_active_downstream_connections": CLIENTS_MAX},
                    ),
                }
            ],
        },
    }


def _cluster(cluster: Cluster, folder: Path) -> Json:
    common: Json = {"idle_timeout": _seconds(cluster.idle_timeout_s)}
    if cluster.requests_per_connection is not None:
        common["max_requests_per_connection"] = cluster.requests_per_connection
    several = len(cluster.members) > 1
    machines = max(1, len(cluster.members))
    bounds: Json = {
        "thresholds": [
            {
                "max_connections": machines * cluster.connections_max,
                "max_pending_requests": machines * cluster.pending_max,
                "max_requests": UNBOUNDED,
                "max_retries": UNBOUNDED,
            }
        ]
    }
    if several:
        bounds["per_host_thresholds"] = [{"max_connections": cluster.connections_max}]
    here: list[Json] = [{"pipe": {"path": cluster.socket_path}}]
    addresses = _addresses(cluster.members) if cluster.members else here
    return {
        "name": cluster.name,
        "type": "STATIC",
        "connect_timeout": f"{SEVERAL_CONNECT_TIMEOUT_S if several else CONNECT_TIMEOUT_S}s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "load_assignment": _load_assignment(cluster.name, addresses),
        **(_AMONG_SEVERAL if several else {}),
        **(_SURE_TO_LIVE if cluster.members else {}),
        "circuit_breakers": bounds,
        "typed_extension_protocol_options": {
            _HTTP_PROTOCOL: typed(
                _HTTP_PROTOCOL, {"common_http_protocol_options": common, "explicit_http_config": {"http_protocol_options": {}}}
            ),
        },
        **({"transport_socket": render_client(folder, _identities(cluster.members), cluster.name)} if cluster.members else {}),
    }


def _addresses(members: Iterable[Neighbour]) -> list[Json]:
    return [{"socket_address": {"address": each.host, "port_value": each.port}} for each in members]


def _identities(members: Iterable[Neighbour]) -> list[Identity]:
    return [Identity(Role.NODE_GATEWAY, each.machine) for each in members]


def _load_assignment(name: str, addresses: Iterable[Json]) -> Json:
    endpoints = [{"endpoint": {"address": address}} for address in addresses]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


def _neighbourhood(neighbourhood: Neighbourhood, folder: Path) -> Json:
    members = neighbourhood.members
    return _gateways(neighbourhood.name, _addresses(members), _identities(members), folder)


def _gateways(name: str, addresses: Sequence[Json], identities: Iterable[Identity], folder: Path) -> Json:
    """Of other machines: where they are, and as whom they have to answer."""
    # Nothing is bounded here: what may wait for a function is for the gateway beside it to say. Connections stay, so that a wake
    # does not wait for another one, and are asked now and then whether the machine is still there. A machine whose replicas are
    # fewer, busier or slower has more of our requests open than the others, and so gets less of what comes.
    several = len(addresses) > 1
    http2 = {"allow_connect": True, "connection_keepalive": {"interval": _seconds(ALIVE_S), "timeout": _seconds(ALIVE_S)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": f"{SEVERAL_CONNECT_TIMEOUT_S if several else CONNECT_TIMEOUT_S}s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "load_assignment": _load_assignment(name, addresses),
        **(_AMONG_SEVERAL if several else {}),
        "circuit_breakers": {
            "thresholds": [dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), UNBOUNDED)]
        },
        "typed_extension_protocol_options": {
            _HTTP_PROTOCOL: typed(
                _HTTP_PROTOCOL,
                {
                    "common_http_protocol_options": {"idle_timeout": _seconds(0)},
                    "explicit_http_config": {"http2_protocol_options": http2},
                },
            ),
        },
        "transport_socket": render_client(folder, identities),
    }


# At 1,000 functions a change of one is a change of one: what is rendered for the others is remembered.
@functools.lru_cache(maxsize=8192)
def _cluster_resource(cluster: Cluster, folder: Path) -> bytes:
    return encode_any(typed("envoy.config.cluster.v3.Cluster", _cluster(cluster, folder)))


@functools.lru_cache(maxsize=8192)
def _neighbourhood_resource(neighbourhood: Neighbourhood, folder: Path) -> bytes:
    return encode_any(typed("envoy.config.cluster.v3.Cluster", _neighbourhood(neighbourhood, folder)))


@functools.lru_cache(maxsize=8192)
def _host_resource(route: Route) -> bytes:
    return encode("envoy.config.route.v3.VirtualHost", _function_host(route))


@functools.lru_cache(maxsize=8192)
def _path_match(route: Route) -> bytes:
    return encode("xds.type.matcher.v3.Matcher.OnMatch", _path_match_json(route))


def _path_match_json(route: Route) -> Json:
    return _matched("envoy.config.route.v3.RouteList", _path_routes(route))


def _key_rules(keys: Iterable[str]) -> Json:
    """Whoever sends one of the keys. A hash lookup, however many there are. The header goes on to the app untouched."""
    allow = typed("envoy.config.rbac.v3.Action", {"name": "key", "action": "ALLOW"})
    deny = typed("envoy.config.rbac.v3.Action", {"name": "refuse", "action": "DENY"})
    refuse: Json = {"action": {"name": "refuse", "typed_config": deny}}
    # the scheme's case is the client's choice (RFC 9110); these are the spellings that are seen
    known = {
        f"{scheme} {key}": {"action": {"name": "key", "typed_config": allow}}
        for key in sorted(set(keys))
        for scheme in ("Bearer", "bearer")
    }
    header = typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", {"header_name": "authorization"})
    tree: Json = {"input": {"name": "authorization", "typed_config": header}, "exact_match_map": {"map": known}}
    rules = {"matcher": {"matcher_tree": tree, "on_no_match": refuse}}
    return typed("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", {"rbac": rules})


def _route_config(keys: Sequence[str], hosts: Sequence[Json | bytes]) -> Json:
    config: Json = {
        "name": ROUTES,
        "ignore_port_in_host_matching": True,
        "virtual_hosts": hosts,
    }
    if keys:
        config["typed_per_filter_config"] = {KEY_FILTER: _key_rules(keys)}
    return config


def _paths_host(found: Mapping[str, Json | bytes]) -> Json:
    """Every host that is no function's own: the first segment of the path names the function and is stripped."""
    if not found:
        # an empty trie is not allowed
        return {"name": "paths", "domains": ["*"], "routes": [_nowhere()]}
    path = typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", {"header_name": ":path"})
    return {
        "name": "paths",
        "domains": ["*"],
        "retry_policy": RETRY,
        "matcher": {
            "matcher_tree": {"input": {"name": "path", "typed_config": path}, "prefix_match_map": {"map": found}},
            "on_no_match": _matched("envoy.config.route.v3.Route", _nowhere()),
        },
    }


def _path_routes(route: Route) -> Json:
    # a trie finds `/name` in `/names`, so the rest of the path is tested, and what is left over is nobody's
    prefix = f"/{route.segment}"
    return {
        "routes": [
            _route(route, {"prefix": prefix + "/"}, prefix, rewrite=not route.away),
            _route(route, {"path": prefix}, prefix, rewrite=not route.away),
            _nowhere(),
        ]
    }


def _function_host(route: Route) -> Json:
    return {
        "name": f"host-{route.label}",
        "domains": [f"{route.label}.localhost"],
        "retry_policy": RETRY,
        "routes": [_route(route, {"prefix": "/"}, "", rewrite=False)],
    }


def _matched(kind: str, message: Json) -> Json:
    return {"action": {"name": "route", "typed_config": typed(kind, message)}}


def _route(route: Route, match: Json, prefix: str, *, rewrite: bool) -> Json:
    action: Json = {"timeout": "0s", "idle_timeout": "0s"}
    if len(route.targets) == 1:
        action["cluster"] = route.targets[0][0]
    else:
        action["weighted_clusters"] = {"clusters": [{"name": name, "weight": percent} for name, percent in route.targets]}
    if rewrite:
        action["prefix_rewrite"] = "/"
    rendered: Json = {"match": match}
    if route.targets:
        rendered["route"] = action
    else:
        rendered["direct_response"] = {"status": 503}
    if prefix and rewrite:
        rendered["request_headers_to_add"] = render_headers({"x-steelyard-prefix": prefix})
    if route.public:
        rendered["typed_per_filter_config"] = _NO_KEY
    return rendered


def _nowhere() -> Json:
    # open to everybody: who has no key should read "no such function" rather than be asked for one in vain
    return {"match": {"prefix": "/"}, "direct_response": {"status": 404}, "typed_per_filter_config": _NO_KEY}


_LEAST_BUSY: Json = {
    "name": "envoy.load_balancing_policies.least_request",
    # all are looked at: of two out of two, the busier one would be taken in a quarter of the cases
    "typed_config": typed(
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest", {"selection_method": "FULL_SCAN"}
    ),
}
_AMONG_SEVERAL: Json = {
    "load_balancing_policy": {"policies": [{"typed_extension_config": _LEAST_BUSY}]},
    # who answers nothing has no request open, and would get all that come. What functions answer is no matter of their machines
    "outlier_detection": {
        "interval": "1s",
        "base_ejection_time": _seconds(LEFT_ALONE_S),
        # with fewer than half of them Envoy would ask all again
        "max_ejection_percent": 50,
        "enforcing_consecutive_5xx": 0,
        "enforcing_success_rate": 0,
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 1,
        "enforcing_local_origin_success_rate": 0,
    },
}
# Connections of a revision's own have no pings of HTTP/2: the kernel asks, and gives up on what nobody acknowledges.
_SURE_TO_LIVE: Json = {
    "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": int(ALIVE_S), "keepalive_interval": int(ALIVE_S)}},
    "upstream_bind_config": {"socket_options": [TCP_GIVE_UP]},
}
_NO_KEY: Json = {KEY_FILTER: typed("envoy.config.route.v3.FilterConfig", {"disabled": True})}
