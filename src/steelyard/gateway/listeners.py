"""Which doors has a gateway, and what becomes of a request at them before a route is looked for? The listeners of `render.py`'s
bootstrap: settings in, JSON out.

- the gateway itself, for clients; of a pilot's machine, for the home's gateway alone
- of a home that machines of pools reach: one for their gateways, which bring the requests of the work there
- of a pilot's machine: one on loopback, for that work

Never reads the clock, the disk or the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from steelyard.config import Settings, bind_address
from steelyard.gateway.mutual_tls import BYTES, HOME_GATEWAY, render_server
from steelyard.gateway.protobuf import typed

Json = dict[str, object]

LISTENER = "gateway"
KEY_FILTER = "envoy.filters.http.rbac"
BUFFER_BYTES = 256 * 1024
RETRY_AFTER_S = 1
LOOPBACK = "127.0.0.1"
#: a connection to another machine that says nothing for so long is asked, and closed when it does not answer for as long again
ALIVE_S = 10.0
_SOL_SOCKET, _SO_KEEPALIVE = 1, 9
_IPPROTO_TCP, _TCP_KEEPIDLE, _TCP_KEEPINTVL, _TCP_USER_TIMEOUT = 6, 4, 5, 18
#: on a pilot's machine: the home's gateway
HOME_CLUSTER = "@home"
#: no cluster: of a connection that names no revision
_NOWHERE = "@nowhere"
#: when the kernel refuses a connection (nobody listens, or the backlog is full); nothing was sent yet
RETRIES = 3
RETRY: Json = {
    "retry_on": "connect-failure",
    "num_retries": RETRIES,
    # where there are several machines, another one
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", {}),
        }
    ],
    "host_selection_retry_max_attempts": str(RETRIES),
    "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.250s"},
}


def _socket_option(level: int, name: int, value: int) -> Json:
    # 64 bits wide: text in JSON
    return {"level": str(level), "name": str(name), "int_value": str(value)}


#: what the kernel sent and nobody acknowledged for so long ends the connection
TCP_GIVE_UP = _socket_option(_IPPROTO_TCP, _TCP_USER_TIMEOUT, int(2 * ALIVE_S * 1000))


def render_listeners(settings: Settings, folder: Path, routes: Json) -> list[Json]:
    """`routes`: of functions, or where they are found."""
    host, port = settings.gateway_host, settings.gateway_port
    if settings.node_gateway:
        # the home's gateway alone is heard: it has asked for keys, and what it says of the client is taken over, as is its stamp
        manager = _manager(routes, [_change_headers(_strip("x-envoy-"))], believed=True)
        doors = [_pass_bytes(_listener(LISTENER, host, port, manager, render_server(folder, HOME_GATEWAY)), folder)]
        if settings.home_gateway:
            doors.append(_listener("home", LOOPBACK, settings.calls_port, _manager(_to_home(), []), None))
        return doors
    manager = _manager(routes, [_change_headers(_strip("x-steelyard-"), _strip("x-envoy-"), _STAMP), _ASK_FOR_KEY])
    doors = [_listener(LISTENER, host, port, manager, None)]
    if settings.cluster_host is not None:
        where = bind_address(settings.cluster_host)
        doors.append(_listener("machines", where, settings.cluster_gateway_port, manager, render_server(folder, None)))
    return doors


def _to_home() -> Json:
    action: Json = {"cluster": HOME_CLUSTER, "timeout": "0s", "idle_timeout": "0s"}
    host = {"name": "home", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}], "retry_policy": RETRY}
    return {"route_config": {"name": "home", "virtual_hosts": [host]}}


def _manager(routes: Json, filters: Sequence[Json], *, believed: bool = False) -> Json:
    """`believed`: who connects has said of the client what is true."""
    # counts by status, which nobody reads, would be looked up with each answer
    router = typed("envoy.extensions.filters.http.router.v3.Router", {"suppress_envoy_headers": True, "dynamic_stats": False})
    return typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        {
            "stat_prefix": LISTENER,
            "codec_type": "AUTO",
            "server_name": "steelyard",
            "server_header_transformation": "PASS_THROUGH",
            "use_remote_address": not believed,
            "generate_request_id": False,
            "stream_idle_timeout": "0s",
            # no request_headers_timeout: a timer for each request took 6 % of the throughput; CLIENTS_MAX bounds the slow ones
            "request_timeout": "0s",
            "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "localhost"},
            "http2_protocol_options": {"allow_connect": True, "max_concurrent_streams": 1024},
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "local_reply_config": _local_replies(),
            "http_filters": [*filters, {"name": "envoy.filters.http.router", "typed_config": router}],
            **routes,
        },
    )


def _listener(name: str, host: str, port: int, manager: Json, tls: Json | None) -> Json:
    return {
        "name": name,
        "address": {"socket_address": {"address": host, "port_value": port}},
        # with it a second Envoy on the port would start without a word and get half the connections
        "enable_reuse_port": False,
        "tcp_backlog_size": 4096,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [
            {
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
                **({"transport_socket": tls} if tls is not None else {}),
            }
        ],
    }


def _pass_bytes(listener: Json, folder: Path) -> Json:
    """The listener, which also passes the bytes of a connection on to the revision that it is for, unread. Nothing of it is
    connected to before the home's gateway is known to be who asks: whoever connects there wakes the function."""
    named = {"text_format_source": {"inline_string": "%REQUESTED_SERVER_NAME%"}}
    choose = typed(
        "envoy.extensions.filters.network.set_filter_state.v3.Config",
        {"on_new_connection": [{"object_key": "envoy.tcp_proxy.cluster", "format_string": named}]},
    )
    copy = typed(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        {
            "stat_prefix": BYTES,
            "cluster": _NOWHERE,
            "idle_timeout": "0s",
            "upstream_connect_mode": "ON_DOWNSTREAM_TLS_HANDSHAKE",
            "max_early_data_bytes": BUFFER_BYTES,
        },
    )
    chain: Json = {
        "filter_chain_match": {"application_protocols": [BYTES]},
        "filters": [
            {"name": "envoy.filters.network.set_filter_state", "typed_config": choose},
            {"name": "envoy.filters.network.tcp_proxy", "typed_config": copy},
        ],
        "transport_socket": render_server(folder, HOME_GATEWAY, BYTES),
    }
    chains = listener["filter_chains"]
    assert isinstance(chains, list)
    inspector = typed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector", {})
    return listener | {
        "filter_chains": [chain, *chains],
        "listener_filters": [{"name": "envoy.filters.listener.tls_inspector", "typed_config": inspector}],
        # inherited by what is accepted: a home that is gone is noticed
        "socket_options": [
            _socket_option(_SOL_SOCKET, _SO_KEEPALIVE, 1),
            _socket_option(_IPPROTO_TCP, _TCP_KEEPIDLE, int(ALIVE_S)),
            _socket_option(_IPPROTO_TCP, _TCP_KEEPINTVL, int(ALIVE_S)),
            TCP_GIVE_UP,
        ],
    }


def _change_headers(*changes: Json) -> Json:
    """Of a request."""
    mutations = {"mutations": {"request_mutations": list(changes)}}
    return {
        "name": "envoy.filters.http.header_mutation",
        "typed_config": typed("envoy.extensions.filters.http.header_mutation.v3.HeaderMutation", mutations),
    }


def _strip(prefix: str) -> Json:
    """Takes what only we may say (x-steelyard-*), or what would steer the router (x-envoy-*), out of a client's request."""
    return {"remove_on_match": {"key_matcher": {"prefix": prefix}}}


def _local_replies() -> Json:
    """What Envoy answers by itself, as problem+json with stable codes. The first mapper that fits is used."""
    retry = {"Retry-After": str(RETRY_AFTER_S)}
    return {
        "mappers": [
            _reply(
                _flag("UO"),
                429,
                "queue-full",
                "Too Many Requests",
                "The function's replicas are busy and its queue is full. Try again later.",
                retry,
            ),
            _reply(
                _status(403),
                401,
                "key-required",
                "Unauthorized",
                "This function is private. Send 'Authorization: Bearer <key>' with a key made by 'steelyard keys'.",
                {"WWW-Authenticate": "Bearer"},
            ),
            _reply(
                _status(404),
                404,
                "function-not-found",
                "Not Found",
                "No function has this address. 'steelyard functions' lists them.",
            ),
            _reply(
                _flag("UF"),
                503,
                "function-unreachable",
                "Service Unavailable",
                "Nobody listens for this function at the moment. Nothing was executed; try again.",
                retry,
            ),
            _reply(
                _flag("UC"),
                502,
                "replica-lost",
                "Bad Gateway",
                "The replica went away before it answered. Whether the request was executed is not known.",
            ),
            _reply(
                _status(503),
                503,
                "gateway-unavailable",
                "Service Unavailable",
                "The gateway could not pass this request on (%RESPONSE_CODE_DETAILS%). Try again later.",
                retry,
            ),
        ],
        "body_format": _problem(
            "%RESPONSE_CODE%",
            "gateway-refused",
            "Refused by the gateway",
            "The gateway did not pass this request on (%RESPONSE_CODE_DETAILS%).",
        ),
    }


def _flag(flag: str) -> Json:
    return {"response_flag_filter": {"flags": [flag]}}


def _status(status: int) -> Json:
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": status, "runtime_key": "none"}}}}


def _reply(when: Json, status: int, code: str, title: str, detail: str, headers: Mapping[str, str] | None = None) -> Json:
    return {
        "filter": when,
        "status_code": status,
        "headers_to_add": render_headers(headers or {}),
        "body_format_override": _problem(status, code, title, detail),
    }


def _problem(status: int | str, code: str, title: str, detail: str) -> Json:
    """`wire.api.Problem` as Envoy writes it."""
    return {
        "content_type": "application/problem+json",
        "json_format": {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code},
    }


def render_headers(headers: Mapping[str, str]) -> list[Json]:
    action = "OVERWRITE_IF_EXISTS_OR_ADD"
    return [{"header": {"key": key, "value": value}, "append_action": action} for key, value in headers.items()]


_STAMP: Json = {"append": render_headers({"x-steelyard-start": "%START_TIME(%s.%6f)%"})[0]}
# Rules without a policy let nobody in: with no key at all a private function refuses everybody. The keys stand in rds.pb, so that
# one can be added without touching the listener. (Envoy's own api_key_auth filter is marked work in progress and outside its
# threat model, and it warns about each key at each change. The role filter is neither.)
_ASK_FOR_KEY: Json = {
    "name": KEY_FILTER,
    "typed_config": typed("envoy.extensions.filters.http.rbac.v3.RBAC", {"rules": {"action": "ALLOW"}}),
}
