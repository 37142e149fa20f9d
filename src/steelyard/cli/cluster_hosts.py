"""Which hosts does a hosts.yaml name? YAML text in, the cluster that should be out. Pure.

Either a bare list of hosts, or a mapping with `hosts` and what is true of the cluster. A host is a name (`n[1-8]` names eight) or
a mapping with `name` and what is different there. What is misspelt, given twice or no name is refused with the file's name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

import msgspec

from steelyard.cli.quantities import parse_bytes
from steelyard.errors import Refused
from steelyard.host.fabric.plain_yaml import Plain, PlainMapping, read_plain_yaml
from steelyard.model.cluster import ClusterSpec, HostEntry
from steelyard.model.hostlist import expand_hostlist
from steelyard.model.ids import NAME

HOSTS_MAX = 10_000
_TOP = ("name", "controller", "hosts", "fabric", "user", "port", "memory_reserve")
_HOST = ("name", "address", "user", "port", "features", "partitions", "memory_reserve")
#: Slurm's own lists take these without quotes
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z", re.ASCII)
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\Z", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}\Z", re.ASCII)


def read_hosts(text: str, source: str) -> ClusterSpec:
    """Raises Refused, which names the file and what is wrong in it."""
    content = read_plain_yaml(text, source)
    top = content if isinstance(content, PlainMapping) else PlainMapping(1)
    _check_keys(top, _TOP, source)
    listed = top.get("hosts") if isinstance(content, PlainMapping) else content
    if not isinstance(listed, list) or not listed:
        raise Refused(f"{source} names no hosts. Write a list of names, or `hosts:` with one below it.", code="no-hosts")
    common = msgspec.structs.replace(HostEntry(name=""), **_same_everywhere(top, source))
    hosts = [host for each in listed for host in _read_host(each, common, source)]
    if len(hosts) > HOSTS_MAX:
        raise Refused(f"{source} names more than {HOSTS_MAX} hosts.", code="too-many-hosts")
    _check_twice(hosts, source)
    name = _text(top, "name", source) or "steelyard"
    if not NAME.match(name):
        raise Refused(f"{source}: {name!r} is no name of a cluster: small letters, digits and dashes.", code="bad-hosts")
    controller = _text(top, "controller", source)
    if controller and controller not in {host.name for host in hosts}:
        raise Refused(f"{source}: the controller {controller} is not among the hosts.", code="bad-hosts")
    fabric = top.get("fabric", [])
    files = [fabric] if isinstance(fabric, str) else fabric
    if not all(isinstance(file, str) and file for file in files):
        raise Refused(f"{source}: `fabric` is a file or a list of files.", code="bad-hosts")
    return ClusterSpec(tuple(hosts), name, controller or hosts[0].name, tuple(map(str, files)))


def _read_host(item: Plain, common: HostEntry, source: str) -> list[HostEntry]:
    if isinstance(item, str):
        return [
            msgspec.structs.replace(common, name=_host_name(name, source)) for name in expand_hostlist(item, source, HOSTS_MAX)
        ]
    if not isinstance(item, PlainMapping):
        raise Refused(f"{source}: a host is a name or a mapping with `name`, not a list.", code="bad-hosts")
    _check_keys(item, _HOST, source)
    name = _host_name(_text(item, "name", source), source)
    address = _text(item, "address", source)
    if address and not _ADDRESS.match(address):
        raise Refused(f"{source}: {address!r} is no address of {name}.", code="bad-hosts")
    own = msgspec.structs.replace(common, name=name, **_same_everywhere(item, source))
    return [
        msgspec.structs.replace(
            own, address=address, features=_words(item, "features", source), partitions=_words(item, "partitions", source)
        )
    ]


def _host_name(name: str, source: str) -> str:
    if not _WORD.match(name) or name.upper() in ("ALL", "DEFAULT"):
        raise Refused(f"{source}: {name!r} is no name of a host.", code="bad-hosts")
    return name


def _same_everywhere(item: PlainMapping, source: str) -> dict[str, object]:
    """What may stand at the top, for all hosts, and at one host."""
    found: dict[str, object] = {}
    if user := _text(item, "user", source):
        if not _USER.match(user):
            raise Refused(f"{source}: {user!r} is no user.", code="bad-hosts")
        found["user"] = user
    if port := _text(item, "port", source):
        if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            raise Refused(f"{source}: {port!r} is no port.", code="bad-hosts")
        found["port"] = int(port)
    if reserve := _text(item, "memory_reserve", source):
        try:
            found["reserve_bytes"] = parse_bytes(reserve)
        except Refused as err:
            raise Refused(f"{source}: memory_reserve: {err.public}", code=err.code) from err
    return found


def _text(item: PlainMapping, key: str, source: str) -> str:
    value = item.get(key, "")
    if not isinstance(value, str):
        raise Refused(f"{source}, line {item.lines[key]}: `{key}` is one word.", code="bad-hosts")
    return value.strip()


def _words(item: PlainMapping, key: str, source: str) -> tuple[str, ...]:
    value = item.get(key, [])
    found = [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value
    words = [word for word in found if isinstance(word, str) and _WORD.match(word)]
    if len(words) != len(found):
        raise Refused(f"{source}, line {item.lines[key]}: `{key}` is a list of words.", code="bad-hosts")
    return tuple(words)


def _check_keys(item: PlainMapping, known: Collection[str], source: str) -> None:
    for key in item:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f" (meant: {near[0]}?)" if near else f": it is one of {', '.join(known)}"
            raise Refused(f"{source}, line {item.lines[key]}: {key[:60]!r} is not known here{meant}.", code="bad-hosts")


def _check_twice(hosts: list[HostEntry], source: str) -> None:
    names: set[str] = set()
    places: dict[tuple[str, int], str] = {}
    for host in hosts:
        place = (host.address or host.name, host.port)
        other = host.name if host.name in names else places.get(place)
        if other is not None:
            same = "is listed twice" if other == host.name else f"and {other} are the same address"
            raise Refused(f"{source}: {host.name} {same}.", code="host-twice")
        names.add(host.name)
        places[place] = host.name
