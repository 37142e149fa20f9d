"""Which form has a recorded file, and what does it say about health? Text and JSON of the tools that administrators know.

A file that is none of them is refused with one sentence; it is never guessed at. At most 100 MB are read. Packed trees
(`{path: content}`) are unpacked into a folder of their own that goes away again.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from steelyard.errors import Refused
from steelyard.host.bounded import read_bounded
from steelyard.host.health.disks import parse_lsblk
from steelyard.host.health.ecc import parse_dmidecode
from steelyard.host.health.infiniband import observe_ports, parse_ibstat, parse_ibstatus, parse_perfquery
from steelyard.host.health.kernel_log import parse_log, split_stamp
from steelyard.host.health.network import observe_interfaces, parse_interfaces
from steelyard.host.health.observe import observe_health
from steelyard.host.health.pci import observe_pci
from steelyard.host.health.sel import parse_sel
from steelyard.model.health_facts import HealthFacts, PlatformFact, Unread

#: trees of one class only: `sys-class-infiniband-h100.0/mlx5_0/…`
_CLASS = re.compile(r"^sys-class-([a-z]\w{1,40})[^/]{0,80}/")
SIZE_MAX = 100 * 1024 * 1024
FORMS = (
    "a kernel log (dmesg, /dev/kmsg, journal, syslog, pstore), a fabric manager log, ibstat, ibstatus, perfquery, "
    "`ipmitool sel elist`, dmidecode, `lsblk --json`, a packed tree {path: content}, or a folder with /proc and /sys"
)


def read_recorded(path: Path) -> HealthFacts:
    """Raises `Refused` for what can't be read or isn't one of `FORMS`."""
    if path.is_dir():
        if not (path / "sys").is_dir() and not (path / "proc").is_dir():
            raise Refused(f"{path.name} is a folder without /proc or /sys below it. Give {FORMS}.", code="unknown-form")
        return observe_health(path)
    text = read_text(path)
    if text.lstrip().startswith("{") and not _looks_like_log(text):
        return _read_json(path, text)
    return _read_text(path, text)


def read_text(path: Path) -> str:
    data = read_bounded(path, SIZE_MAX)
    if b"\x00" in data[:4096]:
        raise Refused(f"{path.name} is binary. Give {FORMS}.", code="unknown-form")
    return data.decode(errors="replace")


def _read_text(path: Path, text: str) -> HealthFacts:
    if not text.strip():
        raise Refused(f"{path.name} is empty.", code="unknown-form")
    if re.search(r"^CA '", text, re.MULTILINE):
        return HealthFacts(ports=parse_ibstat(text))
    if re.search(r"^Infiniband device '", text, re.MULTILINE):
        return HealthFacts(ports=parse_ibstatus(text))
    if re.search(r"^# Port (?:extended )?counters:", text, re.MULTILINE):
        return HealthFacts(ports=parse_perfquery(text))
    if re.search(r"^# dmidecode ", text, re.MULTILINE):
        dimms = parse_dmidecode(text)
        if dimms is None:
            return HealthFacts(
                unread=(Unread("memory-slots", "node", f"{path.name} lists no memory slots (records of type 17)."),)
            )
        return HealthFacts(platform=PlatformFact(dimms=dimms))
    if records := parse_sel(text):
        return HealthFacts(sel=records)
    if _looks_like_log(text):
        return HealthFacts(logs=(parse_log(text, path.name),))
    raise Refused(f"{path.name} is in no form that is known here. Give {FORMS}.", code="unknown-form")


def _looks_like_log(text: str) -> bool:
    """Some line of the first ones has a stamp that kernels write, or is a driver's."""
    for line in text.splitlines()[:200]:
        message, seconds, _ = split_stamp(line[:2000])
        if seconds is not None or message.startswith(("NVRM: ", "kernel: ")):
            return True
    return False


def _read_json(path: Path, text: str) -> HealthFacts:
    try:
        document = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError) as err:
        raise Refused(f"{path.name} is damaged JSON ({err}).", code="damaged") from err
    if not isinstance(document, dict) or not document:
        raise Refused(f"{path.name} holds JSON of no form that is known here. Give {FORMS}.", code="unknown-form")
    if all(key.startswith("/") for key in document):
        return _read_packed(path, document)
    if all(_CLASS.match(key) for key in document):
        return _read_packed(path, {_CLASS.sub(r"/sys/class/\1/", key): content for key, content in document.items()})
    if "intf_status" in document:
        return HealthFacts(interfaces=parse_interfaces(document))
    if "blockdevices" in document:
        return HealthFacts(disks=parse_lsblk(document))
    if "pci" in document and "disks" in document:
        raise Refused(
            f"{path.name} says what a machine should have, not what it has: give it with --expect, and a recording with --from.",
            code="expectation",
        )
    raise Refused(f"{path.name} holds JSON of no form that is known here. Give {FORMS}.", code="unknown-form")


def _read_packed(path: Path, document: Mapping[str, Any]) -> HealthFacts:
    """Reads the tree from files, as every other tree is read."""
    with tempfile.TemporaryDirectory(prefix="steelyard-tree-") as folder:
        root = Path(folder)
        unpack(path, document, root)
        return HealthFacts(ports=observe_ports(root), interfaces=observe_interfaces(root), pci=observe_pci(root))


def unpack(path: Path, document: Mapping[str, Any], root: Path) -> None:
    """Only plain relative paths below `root`; an entry that is both file and folder is refused."""
    for name, content in document.items():
        parts = PurePosixPath(name).parts[1:]
        if not parts or ".." in parts or "\x00" in name or not isinstance(content, str) or any(len(part) > 200 for part in parts):
            raise Refused(f"{path.name} has an entry that is no file of a tree: {name[:80]!r}.", code="damaged")
        target = root.joinpath(*parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
        except OSError as err:
            raise Refused(f"{path.name} has entries that contradict each other at {name[:80]!r}.", code="damaged") from err
