"""How does a configuration look in the form that Envoy reads fastest? The same documents as its JSON, as protobuf's wire format.

Why not JSON: at 1,000 functions Envoy parses the two JSON files for 150 ms and the two binary ones for 55 ms, and its main
thread does nothing else meanwhile. Why not a protobuf library: Envoy's message definitions in Python bring gRPC with them;
what is needed of the format fits below. The fields' numbers are those of Envoy's .proto files (a number never changes once
it is published); a live test compares what Envoy made of them with the JSON, field by field.

Never reads the clock, the disk or the network. Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Message = Mapping[str, object]

TYPE_PREFIX = "type.googleapis.com/"
#: well-known types that JSON writes as a number or a string
_WRAPPER = "google.protobuf.UInt32Value"
_DURATION = "google.protobuf.Duration"
_ANY = "google.protobuf.Any"
_ENUMS = {"STATIC": 0, "OVERWRITE_IF_EXISTS_OR_ADD": 2, "ALLOW": 0, "DENY": 1, "URI": 3, "V3": 2}
_ENUMS |= {"FULL_SCAN": 1}

#: message -> field -> (number, kind). `map:` fields are keyed by strings. Only what `render.py` writes.
FIELDS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "envoy.config.cluster.v3.Cluster": {
        "name": (1, "string"),
        "type": (2, "number"),
        "connect_timeout": (4, _DURATION),
        "per_connection_buffer_limit_bytes": (5, _WRAPPER),
        "circuit_breakers": (10, "envoy.config.cluster.v3.CircuitBreakers"),
        "upstream_bind_config": (21, "envoy.config.core.v3.BindConfig"),
        "transport_socket": (24, "envoy.config.core.v3.TransportSocket"),
        "upstream_connection_options": (30, "envoy.config.cluster.v3.UpstreamConnectionOptions"),
        "load_assignment": (33, "envoy.config.endpoint.v3.ClusterLoadAssignment"),
        "outlier_detection": (19, "envoy.config.cluster.v3.OutlierDetection"),
        "typed_extension_protocol_options": (36, "map:" + _ANY),
        "load_balancing_policy": (41, "envoy.config.cluster.v3.LoadBalancingPolicy"),
    },
    "envoy.config.cluster.v3.OutlierDetection": {
        "interval": (2, _DURATION),
        "base_ejection_time": (3, _DURATION),
        "max_ejection_percent": (4, _WRAPPER),
        "enforcing_consecutive_5xx": (5, _WRAPPER),
        "enforcing_success_rate": (6, _WRAPPER),
        "split_external_local_origin_errors": (12, "bool"),
        "consecutive_local_origin_failure": (13, _WRAPPER),
        "enforcing_local_origin_success_rate": (15, _WRAPPER),
    },
    "envoy.config.cluster.v3.LoadBalancingPolicy": {"policies": (1, "envoy.config.cluster.v3.LoadBalancingPolicy.Policy")},
    "envoy.config.cluster.v3.LoadBalancingPolicy.Policy": {
        "typed_extension_config": (4, "envoy.config.core.v3.TypedExtensionConfig"),
    },
    "envoy.config.core.v3.TypedExtensionConfig": {"name": (1, "string"), "typed_config": (2, _ANY)},
    "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest": {"selection_method": (6, "number")},
    "envoy.config.core.v3.BindConfig": {"socket_options": (3, "envoy.config.core.v3.SocketOption")},
    "envoy.config.core.v3.SocketOption": {"level": (2, "number"), "name": (3, "number"), "int_value": (4, "number")},
    "envoy.config.cluster.v3.UpstreamConnectionOptions": {"tcp_keepalive": (1, "envoy.config.core.v3.TcpKeepalive")},
    "envoy.config.core.v3.TcpKeepalive": {"keepalive_time": (2, _WRAPPER), "keepalive_interval": (3, _WRAPPER)},
    "envoy.config.cluster.v3.CircuitBreakers": {
        "thresholds": (1, "envoy.config.cluster.v3.CircuitBreakers.Thresholds"),
        "per_host_thresholds": (2, "envoy.config.cluster.v3.CircuitBreakers.Thresholds"),
    },
    "envoy.config.cluster.v3.CircuitBreakers.Thresholds": {
        "max_connections": (2, _WRAPPER),
        "max_pending_requests": (3, _WRAPPER),
        "max_requests": (4, _WRAPPER),
        "max_retries": (5, _WRAPPER),
    },
    "envoy.config.endpoint.v3.ClusterLoadAssignment": {
        "cluster_name": (1, "string"),
        "endpoints": (2, "envoy.config.endpoint.v3.LocalityLbEndpoints"),
    },
    "envoy.config.endpoint.v3.LocalityLbEndpoints": {"lb_endpoints": (2, "envoy.config.endpoint.v3.LbEndpoint")},
    "envoy.config.endpoint.v3.LbEndpoint": {"endpoint": (1, "envoy.config.endpoint.v3.Endpoint")},
    "envoy.config.endpoint.v3.Endpoint": {"address": (1, "envoy.config.core.v3.Address")},
    "envoy.config.core.v3.Address": {
        "socket_address": (1, "envoy.config.core.v3.SocketAddress"),
        "pipe": (2, "envoy.config.core.v3.Pipe"),
    },
    "envoy.config.core.v3.SocketAddress": {"address": (2, "string"), "port_value": (3, "number")},
    "envoy.config.core.v3.Pipe": {"path": (1, "string")},
    "envoy.config.core.v3.TransportSocket": {"name": (1, "string"), "typed_config": (3, _ANY)},
    "envoy.config.core.v3.DataSource": {"filename": (1, "string")},
    "envoy.config.core.v3.ConfigSource": {
        "resource_api_version": (6, "number"),
        "path_config_source": (8, "envoy.config.core.v3.PathConfigSource"),
    },
    "envoy.config.core.v3.PathConfigSource": {"path": (1, "string")},
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext": {
        "common_tls_context": (1, "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext"),
        "sni": (2, "string"),
    },
    "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext": {
        "validation_context": (3, "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext"),
        "alpn_protocols": (4, "string"),
        "tls_certificate_sds_secret_configs": (6, "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig"),
    },
    "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext": {
        "trusted_ca": (1, "envoy.config.core.v3.DataSource"),
        "match_typed_subject_alt_names": (15, "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher"),
    },
    "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher": {
        "san_type": (1, "number"),
        "matcher": (2, "envoy.type.matcher.v3.StringMatcher"),
    },
    "envoy.type.matcher.v3.StringMatcher": {"exact": (1, "string")},
    "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig": {
        "name": (1, "string"),
        "sds_config": (2, "envoy.config.core.v3.ConfigSource"),
    },
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "common_http_protocol_options": (1, "envoy.config.core.v3.HttpProtocolOptions"),
        "explicit_http_config": (3, "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig"),
    },
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig": {
        "http_protocol_options": (1, "envoy.config.core.v3.Http1ProtocolOptions"),
        "http2_protocol_options": (2, "envoy.config.core.v3.Http2ProtocolOptions"),
    },
    "envoy.config.core.v3.Http1ProtocolOptions": {},
    "envoy.config.core.v3.Http2ProtocolOptions": {
        "allow_connect": (5, "bool"),
        "connection_keepalive": (15, "envoy.config.core.v3.KeepaliveSettings"),
    },
    "envoy.config.core.v3.KeepaliveSettings": {"interval": (1, _DURATION), "timeout": (2, _DURATION)},
    "envoy.config.core.v3.HttpProtocolOptions": {"idle_timeout": (1, _DURATION), "max_requests_per_connection": (6, _WRAPPER)},
    "envoy.config.route.v3.RouteConfiguration": {
        "name": (1, "string"),
        "virtual_hosts": (2, "envoy.config.route.v3.VirtualHost"),
        "ignore_port_in_host_matching": (14, "bool"),
        "typed_per_filter_config": (16, "map:" + _ANY),
    },
    "envoy.config.route.v3.VirtualHost": {
        "name": (1, "string"),
        "domains": (2, "string"),
        "routes": (3, "envoy.config.route.v3.Route"),
        "retry_policy": (16, "envoy.config.route.v3.RetryPolicy"),
        "matcher": (21, "xds.type.matcher.v3.Matcher"),
    },
    "envoy.config.route.v3.RetryPolicy": {
        "retry_on": (1, "string"),
        "num_retries": (2, _WRAPPER),
        "retry_host_predicate": (5, "envoy.config.route.v3.RetryPolicy.RetryHostPredicate"),
        "host_selection_retry_max_attempts": (6, "number"),
        "retry_back_off": (8, "envoy.config.route.v3.RetryPolicy.RetryBackOff"),
    },
    "envoy.config.route.v3.RetryPolicy.RetryHostPredicate": {"name": (1, "string"), "typed_config": (3, _ANY)},
    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate": {},
    "envoy.config.route.v3.RetryPolicy.RetryBackOff": {"base_interval": (1, _DURATION), "max_interval": (2, _DURATION)},
    "envoy.config.route.v3.RouteList": {"routes": (1, "envoy.config.route.v3.Route")},
    "envoy.config.route.v3.Route": {
        "match": (1, "envoy.config.route.v3.RouteMatch"),
        "route": (2, "envoy.config.route.v3.RouteAction"),
        "direct_response": (7, "envoy.config.route.v3.DirectResponseAction"),
        "request_headers_to_add": (9, "envoy.config.core.v3.HeaderValueOption"),
        "typed_per_filter_config": (13, "map:" + _ANY),
    },
    "envoy.config.route.v3.RouteMatch": {"prefix": (1, "string"), "path": (2, "string")},
    "envoy.config.route.v3.RouteAction": {
        "cluster": (1, "string"),
        "weighted_clusters": (3, "envoy.config.route.v3.WeightedCluster"),
        "prefix_rewrite": (5, "string"),
        "timeout": (8, _DURATION),
        "idle_timeout": (24, _DURATION),
    },
    "envoy.config.route.v3.WeightedCluster": {"clusters": (1, "envoy.config.route.v3.WeightedCluster.ClusterWeight")},
    "envoy.config.route.v3.WeightedCluster.ClusterWeight": {"name": (1, "string"), "weight": (2, _WRAPPER)},
    "envoy.config.route.v3.DirectResponseAction": {"status": (1, "number")},
    "envoy.config.route.v3.FilterConfig": {"disabled": (3, "bool")},
    "envoy.config.core.v3.HeaderValueOption": {"header": (1, "envoy.config.core.v3.HeaderValue"), "append_action": (3, "number")},
    "envoy.config.core.v3.HeaderValue": {"key": (1, "string"), "value": (2, "string")},
    "envoy.extensions.filters.http.rbac.v3.RBACPerRoute": {"rbac": (2, "envoy.extensions.filters.http.rbac.v3.RBAC")},
    "envoy.extensions.filters.http.rbac.v3.RBAC": {"matcher": (4, "xds.type.matcher.v3.Matcher")},
    "envoy.config.rbac.v3.Action": {"name": (1, "string"), "action": (2, "number")},
    "envoy.type.matcher.v3.HttpRequestHeaderMatchInput": {"header_name": (1, "string")},
    "xds.core.v3.TypedExtensionConfig": {"name": (1, "string"), "typed_config": (2, _ANY)},
    "xds.type.matcher.v3.Matcher": {
        "matcher_tree": (2, "xds.type.matcher.v3.Matcher.MatcherTree"),
        "on_no_match": (3, "xds.type.matcher.v3.Matcher.OnMatch"),
    },
    "xds.type.matcher.v3.Matcher.MatcherTree": {
        "input": (1, "xds.core.v3.TypedExtensionConfig"),
        "exact_match_map": (2, "xds.type.matcher.v3.Matcher.MatcherTree.MatchMap"),
        "prefix_match_map": (3, "xds.type.matcher.v3.Matcher.MatcherTree.MatchMap"),
    },
    "xds.type.matcher.v3.Matcher.MatcherTree.MatchMap": {"map": (1, "map:xds.type.matcher.v3.Matcher.OnMatch")},
    "xds.type.matcher.v3.Matcher.OnMatch": {"action": (2, "xds.core.v3.TypedExtensionConfig")},
}


def typed(kind: str, message: Message) -> dict[str, object]:
    """As JSON has a google.protobuf.Any."""
    return {"@type": TYPE_PREFIX + kind, **message}


def encode_any(message: Message) -> bytes:
    """A message whose `@type` says what it is, as google.protobuf.Any. Raises KeyError for a field that FIELDS lacks."""
    url = str(message["@type"])
    fields = {name: value for name, value in message.items() if name != "@type"}
    return write_field(1, url.encode()) + write_field(2, encode(url.removeprefix(TYPE_PREFIX), fields))


def encode(kind: str, message: Message) -> bytes:
    """A message of that kind. Values that are bytes are taken as encoded already."""
    known = FIELDS[kind]
    parts: list[bytes] = []
    for name, value in message.items():
        number, field_kind = known[name]
        if field_kind.startswith("map:"):
            assert isinstance(value, Mapping)
            parts += [
                write_field(number, write_field(1, key.encode()) + write_field(2, _encode_value(field_kind[4:], item)))
                for key, item in value.items()
            ]
        elif isinstance(value, list):
            parts += [write_field(number, _encode_value(field_kind, item)) for item in value]
        elif field_kind in ("bool", "number"):
            plain = _ENUMS.get(value) if isinstance(value, str) else value
            # 64 bits wide are text in JSON as well
            plain = int(str(value)) if plain is None else plain
            assert isinstance(plain, int)
            parts.append(_varint(number << 3) + _varint(plain))
        else:
            parts.append(write_field(number, _encode_value(field_kind, value)))
    return b"".join(parts)


def write_field(number: int, value: bytes) -> bytes:
    """A length-delimited field: a string, bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def read_fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields at the top of a message, in order; others are passed over where they have a varint.
    Raises ValueError where the bytes are not a message."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag & 7 == 0:
            _, at = _read_varint(data, at)
            continue
        if tag & 7 != 2:
            raise ValueError(f"wire type {tag & 7} at byte {at}")
        length, at = _read_varint(data, at)
        if at + length > len(data):
            raise ValueError(f"cut off at byte {len(data)}")
        yield tag >> 3, data[at : at + length]
        at += length


def _encode_value(kind: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if kind == "string":
        return str(value).encode()
    if kind == _WRAPPER:
        assert isinstance(value, int)
        return _varint(1 << 3) + _varint(value)
    if kind == _DURATION:
        return _duration(str(value))
    assert isinstance(value, Mapping)
    return encode_any(value) if kind == _ANY else encode(kind, value)


def _duration(text: str) -> bytes:
    """`1.500s`, as JSON writes it: whole seconds and nanoseconds."""
    seconds, _, fraction = text.removesuffix("s").partition(".")
    return _varint(1 << 3) + _varint(int(seconds)) + _varint(2 << 3) + _varint(int((fraction or "0").ljust(9, "0")))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"no number at byte {at}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
