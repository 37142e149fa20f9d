"""How does a recorded /proc and /sys tree in one file become a folder again, whoever packed it? Tar, JSON and ttar archives.

Writes only below the folder it is given, only regular files, folders and links that stay inside, only the parts that the Linux
reader opens, and within bounds of bytes and files. Names that climb out are refused. Never runs anything, keeps no owner or mode.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from steelyard.errors import Refused

#: what may come out of one archive; a recorded machine has 10 MB in 20,000 files
BYTES_MAX = 256 * 1024**2
ENTRIES_MAX = 200_000
#: files of /sys are a page; only /proc/cpuinfo of large machines is more
FILE_BYTES_MAX = 8 * 1024**2
DEPTH_MAX = 40
#: Folders and files that the Linux reader opens. Addresses, GUIDs and serial numbers are not among them and never unpacked.
_FOLDERS = re.compile(
    r"sys/(devices/(system/(cpu|node)|pci|platform|virtual/kfd)|bus/pci/devices|class/(infiniband|net|nvme|block|kfd|pci_bus)|fs/cgroup)"
    r"|proc/(cpuinfo$|meminfo$|mounts$|version$|self/|driver/nvidia/)|dev/cpuset"
)
# fmt: off
_FILES = frozenset({
    "cpuinfo", "meminfo", "mounts", "version", "status", "cpuset", "online", "core_cpus_list", "thread_siblings_list",
    "thread_siblings", "physical_package_id", "level", "type", "size", "shared_cpu_list", "shared_cpu_map", "cpulist",
    "cpumap", "distance", "cpus", "cpuset.cpus", "cpuset.effective_cpus", "class", "vendor", "device", "numa_node",
    "local_cpulist", "local_cpus", "current_link_speed", "max_link_speed", "current_link_width", "max_link_width",
    "speed", "operstate", "rate", "state", "link_layer", "properties", "mem_info_vram_total", "information",
    "numa_status",
})
# fmt: on
_LINKS = re.compile(r"sys/(bus/pci/devices|class/(infiniband|net|nvme|block|kfd))/[^/]+|sys/class/(net|infiniband)/[^/]+/device")
#: folders whose bare presence tells something: a controller, an interface, an RDMA device, a CPU, a NUMA node
_PRESENT = re.compile(
    r"(sys/(class|bus|devices/pci).{0,200}?/(nvme|net|infiniband)/[^/]+(/nvme[0-9c]+n[0-9]+)?|sys/devices/system/(cpu/cpu|node/node)[0-9]+)/"
)
_TOP = ("sys", "proc", "dev")

#: path and either content or the target of a link
Entry = tuple[str, bytes | None, str | None]


def unpack(path: Path, into: Path) -> None:
    """Fills the folder `into`, which must be empty. Raises `Refused` for what is cut off, unsafe, too large or no archive."""
    try:
        if path.stat().st_size > BYTES_MAX:
            raise Refused(f"{path.name} is larger than {BYTES_MAX // 1024**2} MiB, so it is not unpacked.", code="too-large")
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            _write(_entries(file, start, path.name), into, path.name)
    except OSError as error:
        raise Refused(f"{path.name} can't be unpacked: {error.strerror or error}.", code="illegal") from error


def _entries(file: BinaryIO, start: bytes, source: str) -> Iterator[Entry]:
    if start.lstrip()[:1] == b"{":
        return _json_entries(file.read(), source)
    if start.startswith((b"Path: ", b"Directory: ", b"# ttar")):
        return _ttar_entries(file.read(), source)
    return _tar_entries(_opened(file, start), source)


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends in a refusal, not in all our memory."""

    def __init__(self, stream: BinaryIO, source: str) -> None:
        self.stream, self.source, self.left = stream, source, BYTES_MAX

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(data)
        if self.left < 0:
            raise Refused(f"{self.source} holds more than {BYTES_MAX // 1024**2} MiB, so it is not unpacked.", code="too-large")
        return data


def _opened(file: BinaryIO, start: bytes) -> BinaryIO:
    if start.startswith(b"BZh"):
        return cast("BinaryIO", bz2.open(file))
    if start.startswith(b"\x1f\x8b"):
        return cast("BinaryIO", gzip.open(file))
    return cast("BinaryIO", lzma.open(file)) if start.startswith(b"\xfd7zXZ") else file


def _tar_entries(stream: BinaryIO, source: str) -> Iterator[Entry]:
    try:
        with tarfile.open(fileobj=_Bounded(stream, source), mode="r|") as archive:
            for member in archive:
                if member.issym():
                    yield member.name, None, member.linkname
                elif member.isreg():
                    part = archive.extractfile(member) if member.size <= FILE_BYTES_MAX and _needed(member.name) else None
                    yield member.name, part.read() if part else b"", None
    # Corrupt streams show as any of these, by where the damage is.
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, ValueError, OSError) as error:
        raise Refused(f"{source} is no tar archive, or is cut off ({str(error)[:80]}).", code="truncated") from error


def _json_entries(data: bytes, source: str) -> Iterator[Entry]:
    try:
        tree: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{source} is no JSON, or is cut off.", code="truncated") from error
    if not isinstance(tree, dict) or not all(isinstance(value, str) for value in cast("dict[str, Any]", tree).values()):
        raise Refused(f"{source} is JSON, but no recorded tree of paths and contents.", code="illegal")
    for name, content in cast("dict[str, str]", tree).items():
        yield name, content.encode(errors="replace"), None


def _ttar_entries(data: bytes, source: str) -> Iterator[Entry]:
    """Blocks of `Path: p`, `Lines: n` and n lines, or `SymlinkTo: t`. `NULLBYTE` is a NUL, `EOF` at the end a missing newline."""
    lines = data.decode(errors="replace").split("\n")
    at, name = 0, ""
    while at < len(lines):
        line = lines[at]
        at += 1
        if line.startswith("Path: "):
            name = line[6:]
        elif line.startswith("SymlinkTo: ") and name:
            yield name, None, line[11:]
        elif (match := re.fullmatch(r"Lines: ([0-9]{1,9})", line)) and name:
            count = int(match[1])
            if at + count > len(lines) - 1:
                raise Refused(f"{source} is cut off in {name[:80]}.", code="truncated")
            text = "".join(f"{part}\n" for part in lines[at : at + count]).removesuffix("EOF\n")
            yield name, re.sub(r"(?<!\\)NULLBYTE", "\0", text).encode(), None
            at += count
        elif line and not line.startswith(("#", "Directory: ", "Mode: ")):
            raise Refused(f"{source}, line {at}: {line[:40]!r} is no part of a ttar archive.", code="illegal")


def _needed(name: str) -> bool:
    inside = _inside(name)
    return inside.rpartition("/")[2] in _FILES and _FOLDERS.match(inside) is not None


def _inside(name: str) -> str:
    """The path below the recorded root: what comes before `sys` or `proc` is the archive's own folder. A packed
    /sys/class/infiniband alone is told by its ports."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    start = next((at for at, part in enumerate(parts[:3]) if part in _TOP), None)
    if start is not None:
        return "/".join(parts[start:])
    if len(parts) > 2 and parts[2] == "ports":
        return "/".join(["sys/class/infiniband", *parts[1:]])
    return "/".join(parts)


def _write(entries: Iterator[Entry], into: Path, source: str) -> None:
    """Files first and links last, so that no file is written through a link."""
    links: list[tuple[str, str]] = []
    total = 0
    for count, (name, content, target) in enumerate(entries, start=1):
        total += len(content or b"")
        if count > ENTRIES_MAX or total > BYTES_MAX:
            raise Refused(f"{source} holds more than {ENTRIES_MAX} files or {BYTES_MAX // 1024**2} MiB.", code="too-large")
        if ".." in name.split("/") or "\0" in name or name.count("/") > DEPTH_MAX:
            raise Refused(f"{source} holds the name {name[:80]!r}, which leads out of it, so it is not unpacked.", code="unsafe")
        inside = _inside(name)
        if target is not None:
            if _LINKS.fullmatch(inside):
                links.append((inside, target))
        elif _needed(name):
            (into / inside).parent.mkdir(parents=True, exist_ok=True)
            (into / inside).write_bytes(content or b"")
        elif present := _PRESENT.match(inside):
            (into / present[1]).mkdir(parents=True, exist_ok=True)
    if not any(into.iterdir()) and not links:
        raise Refused(f"{source} holds nothing of /sys or /proc that tells about a machine.", code="illegal")
    _link(links, into)


def _link(links: list[tuple[str, str]], into: Path) -> None:
    """Links that lead out, or stand where a folder is, are left away: they are hints, not facts."""
    root = os.path.realpath(into)
    made: list[Path] = []
    for inside, target in links:
        place = into / inside
        if "\0" in target or PurePosixPath(target).is_absolute() or place.exists() or place.is_symlink():
            continue
        if not os.path.normpath(f"/x/{inside}/../{target}").startswith("/x/"):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
        made.append(place)
    # Two links that are harmless alone may lead out together.
    for place in made:
        if not os.path.realpath(place).startswith(root + os.sep):
            place.unlink()
