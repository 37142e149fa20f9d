"""How do the gateways of a home and of its other machines know each other? By certificates of the home's authority, both ways.

Both Envoys read the same two files of their gateway's folder: `authority.pem`, what certificates are checked against, and
`certificate.json`, their own with its key. The second is a watched file of its own (SDS): a new one is taken for new connections
without a restart, and those that are open go on. Who the other one is stands in its certificate as an address (`Identity`) that
names its role; host names are not looked at, since nobody knows a machine's address before it is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from steelyard.config import Paths, write_file
from steelyard.gateway.protobuf import TYPE_PREFIX
from steelyard.model.certificate import Certificate, Identity, Role

Json = dict[str, object]

CERTIFICATE_FILE, AUTHORITY_FILE = "certificate.json", "authority.pem"
#: whom the gateway of another machine lets in
HOME_GATEWAY = Identity(Role.GATEWAY, "home")
_TLS = "envoy.extensions.transport_sockets.tls.v3."
#: what is spoken between two gateways: requests that the other one routes, or the bytes of a connection to a revision, which is
#: named as the server (SNI)
REQUESTS, BYTES = "h2", "steelyard-bytes"


class _Inline(msgspec.Struct):
    inline_string: str


class _Pair(msgspec.Struct):
    certificate_chain: _Inline
    private_key: _Inline


class _Secret(msgspec.Struct):
    type: str = msgspec.field(name="@type")
    name: str
    tls_certificate: _Pair


class _Discovery(msgspec.Struct):
    resources: list[_Secret]


def write_certificate(paths: Paths, certificate: Certificate, authority_pem: bytes) -> None:
    """For the gateway of these paths, whether it runs or not. Raises OSError."""
    paths.gateway.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = paths.gateway / AUTHORITY_FILE
    if not authority.exists() or authority.read_bytes() != authority_pem:
        write_file(authority, authority_pem)
    pair = _Pair(_Inline(certificate.certificate_pem.decode()), _Inline(certificate.key_pem.decode()))
    secret = _Secret(f"{TYPE_PREFIX}{_TLS}Secret", CERTIFICATE_FILE, pair)
    write_file(paths.gateway / CERTIFICATE_FILE, msgspec.json.encode(_Discovery([secret])))


def read_certificate(paths: Paths) -> tuple[bytes, bytes, bytes] | None:
    """(key, certificate, authority) of what was written last; None where there is none, or none that can be read."""
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
        found = msgspec.json.decode((paths.gateway / CERTIFICATE_FILE).read_bytes(), type=_Discovery)
        authority = (paths.gateway / AUTHORITY_FILE).read_bytes()
        for secret in found.resources:
            pair = secret.tls_certificate
            return pair.private_key.inline_string.encode(), pair.certificate_chain.inline_string.encode(), authority
    return None


def render_server(folder: Path, peer: Identity | None, protocol: str = REQUESTS) -> Json:
    """The transport of a listener that only `peer` may connect to; None: the gateways of all machines, and nobody else."""
    wanted: Json = {"exact": peer.address} if peer is not None else {"prefix": Identity(Role.NODE_GATEWAY, "").address}
    context: Json = {"common_tls_context": _common(folder, [wanted], protocol), "require_client_certificate": True}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": f"{TYPE_PREFIX}{_TLS}DownstreamTlsContext", **context},
    }


def render_client(folder: Path, peers: Iterable[Identity], revision: str = "") -> Json:
    """The transport of connections to these gateways, and to no others; with `revision` they pass its bytes on to that."""
    wanted: list[Json] = [{"exact": peer.address} for peer in peers]
    context: Json = {"common_tls_context": _common(folder, wanted, BYTES if revision else REQUESTS)}
    if revision:
        context["sni"] = revision
    return {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": f"{TYPE_PREFIX}{_TLS}UpstreamTlsContext", **context}}


def _common(folder: Path, wanted: Iterable[Json], protocol: str) -> Json:
    return {
        "validation_context": {
            "trusted_ca": {"filename": str(folder / AUTHORITY_FILE)},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": each} for each in wanted],
        },
        "alpn_protocols": [protocol],
        "tls_certificate_sds_secret_configs": [
            {"name": CERTIFICATE_FILE, "sds_config": make_source(folder, CERTIFICATE_FILE)},
        ],
    }


def make_source(folder: Path, name: str) -> Json:
    """A file that Envoy reads again when another one is moved in its place."""
    # no watched_directory: with it every move in the folder, ours of the other files too, makes Envoy read this one again. By
    # itself the path is watched by name in its folder, so moves are seen all the same
    return {"resource_api_version": "V3", "path_config_source": {"path": str(folder / name)}}
