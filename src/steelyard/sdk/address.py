"""Which Steelyard is meant, and as whom? Looked for in this order, once per process:

    STEELYARD_GATEWAY_URL, STEELYARD_KEY     the gateway itself with an API key; enough to call, not to spawn
    STEELYARD_API_URL, STEELYARD_TOKEN       as every function and job is given them; STEELYARD_CA names the API's certificate
    STEELYARD_HOME, or the default home      as the command line finds it: its settings and its admin token

The key for private functions is fetched from the API when the first call needs it.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from steelyard.sdk.errors import NotAllowed, NotReachable


class Place(NamedTuple):
    """Where to connect to. `ca`: the certificate to believe in, "" for the system's."""

    tls: bool
    host: str
    port: int
    prefix: str
    ca: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_place(url: str, ca: str = "") -> Place:
    """NotReachable when it is no http(s) address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NotReachable(f"{url!r} is no address of a Steelyard; it begins with http:// or https://.")
    tls = parts.scheme == "https"
    return Place(tls, parts.hostname, port or (443 if tls else 80), parts.path.rstrip("/"), ca)


class Api(NamedTuple):
    place: Place
    token: str


class Gateway(NamedTuple):
    place: Place
    key: str


def find_api() -> Api:
    """NotReachable or NotAllowed say what is missing."""
    if url := os.environ.get("STEELYARD_API_URL"):
        return Api(parse_place(url, os.environ.get("STEELYARD_CA", "")), os.environ.get("STEELYARD_TOKEN", ""))
    home = os.environ.get("STEELYARD_HOME") or default_home()
    settings = _read_settings(home)
    scheme = "https" if settings["tls_cert"] else "http"
    place = parse_place(f"{scheme}://{_host(settings['api_host'])}:{settings['api_port']}", settings["tls_cert"] or "")
    try:
        with open(os.path.join(home, "admin.token")) as file:
            return Api(place, file.read().strip())
    except OSError as err:
        raise NotAllowed(
            f"{home}/admin.token can't be read ({err.strerror}). Call as the user who started Steelyard, or set "
            "STEELYARD_GATEWAY_URL and STEELYARD_KEY (`steelyard keys create NAME` makes one)."
        ) from None


def default_home() -> str:
    """As the command line has it."""
    if os.getuid() == 0:
        return "/var/lib/steelyard"
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.environ.get("HOME", "/"), ".local/share")
    return os.path.join(data, "steelyard")


def _read_settings(home: str) -> dict[str, Any]:
    try:
        with open(os.path.join(home, "settings.json"), "rb") as file:
            settings = json.load(file)
        return {"tls_cert": None, "api_host": settings["api_host"], "api_port": settings["api_port"], **settings}
    except PermissionError:
        raise NotAllowed(f"{home} can't be read by this user. Call as the user who started Steelyard.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise NotReachable(
            f"There is no Steelyard at {home}. `steelyard up` starts one; STEELYARD_HOME names another, STEELYARD_GATEWAY_URL "
            "and STEELYARD_KEY one on another machine."
        ) from None


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Known:
    """What was found in this process."""

    def __init__(self) -> None:
        self.gateway: Gateway | None = None
        self.api: Api | None = None


_known = _Known()


def api() -> Api:
    if _known.api is None:
        _known.api = find_api()
    return _known.api


def known_gateway() -> Gateway | None:
    """Without asking anybody."""
    if _known.gateway is None and (url := os.environ.get("STEELYARD_GATEWAY_URL")):
        _known.gateway = Gateway(parse_place(url, os.environ.get("STEELYARD_CA", "")), os.environ.get("STEELYARD_KEY", ""))
    return _known.gateway


def read_gateway(answer: bytes) -> Gateway:
    """Of the API's answer to GET /v1/call-key; remembered."""
    told = json.loads(answer)
    _known.gateway = Gateway(parse_place(told["gateway"]), told["key"])
    return _known.gateway


def forget() -> None:
    """The next call looks anew: the key did not fit, or nobody answered."""
    _known.gateway = _known.api = None


def _after_fork() -> None:
    forget()  # the template's token and address may not be the replica's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
