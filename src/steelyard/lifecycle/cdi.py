"""Is this a CDI specification, and which of several says what a device is? Pure: decoded files in, specifications or words out.

The rules are those of https://github.com/cncf-tags/container-device-interface (SPEC.md): of two folders the later wins, device by
device; two files of one folder that name the same device make it unusable. A file with anything that the standard does not know
is refused as a whole, because what it left out could be what keeps devices apart.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence

import msgspec

from steelyard.model.cdi import CdiDevice, CdiEdits, Problem, Specification, SpecificationFile

VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0")
DEVICES_MAX = 4096
_VENDOR = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*(?<![_.-])", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?", re.ASCII)
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_NODE_TYPES = ("", "b", "c", "u", "p")
#: where nothing of a file's may be mounted: it would hide what keeps the container apart
_KEPT = ("/proc", "/sys", "/dev/pts", "/dev/shm", "/dev/mqueue")
_NAME_MAX, _PATH_MAX = 253, 4096


def read_specification(content: object, path: str, *, typed: bool) -> Specification | Problem:
    """`content`: what JSON or YAML decoded to; not `typed`: all of its scalars are text."""
    try:
        made = msgspec.convert(content, Specification, strict=typed)
    except (msgspec.ValidationError, RecursionError) as err:
        return Problem(path, f"it is no CDI specification: {err}")
    wrong = next(_find_wrong(made), None)
    return made if wrong is None else Problem(path, wrong)


def _find_wrong(made: Specification) -> Iterator[str]:
    if made.cdi_version.removeprefix("v") not in VERSIONS:
        yield f"its version {made.cdi_version[:40]!r} is not known here; known are {VERSIONS[0]} to {VERSIONS[-1]}"
    vendor, slash, kind = made.kind.partition("/")
    if not slash or not _VENDOR.fullmatch(vendor) or not _VENDOR.fullmatch(kind) or len(made.kind) > _NAME_MAX:
        yield f"its kind {made.kind[:80]!r} is not vendor/class, such as nvidia.com/gpu"
    if not 1 <= len(made.devices) <= DEVICES_MAX:
        yield f"it names {len(made.devices)} devices; 1 to {DEVICES_MAX} may be named"
    yield from _find_wrong_edits(made.container_edits, "for all devices")
    seen: set[str] = set()
    for device in made.devices:
        if not _NAME.fullmatch(device.name) or len(device.name) > _NAME_MAX:
            yield f"{device.name[:80]!r} can't be the name of a device"
        if device.name in seen:
            yield f"it names the device {device.name} twice"
        seen.add(device.name)
        yield from _find_wrong_edits(device.container_edits, f"of {device.name}")


def _find_wrong_edits(edits: CdiEdits, whose: str) -> Iterator[str]:
    for each in edits.env or ():
        if not each.partition("=")[1] or each.startswith("=") or "\0" in each:
            yield f"the variable {each[:80]!r} {whose} is not NAME=VALUE"
    for node in edits.device_nodes or ():
        # a container's device files are made below /dev alone
        if not _is_path(node.path) or not node.path.startswith("/dev/") or _is_kept(node.path):
            yield f"the device file {node.path[:120]!r} {whose} is not a path below /dev"
        if node.host_path and not _is_path(node.host_path):
            yield f"the device file {node.host_path[:120]!r} {whose} is not an absolute path"
        if node.type not in _NODE_TYPES or set(node.permissions) - set("rwm"):
            yield f"the device file {node.path[:120]} {whose} has an unknown type or unknown permissions"
        if any(number is not None and not 0 <= number < 1 << 32 for number in (node.major, node.minor)):
            yield f"the device file {node.path[:120]} {whose} has numbers that no device has"
    for mount in edits.mounts or ():
        target = mount.container_path
        if not _is_path(mount.host_path) or not _is_path(target) or target == "/" or _is_kept(target) or target == "/dev":
            yield f"{mount.host_path[:120]!r} can't be mounted at {target[:120]!r} {whose}"
        if mount.type not in ("", "none", "bind"):
            yield f"a mount of type {mount.type[:40]!r} {whose} is not supported: files and folders are bound, nothing else"
    for hook in edits.hooks or ():
        if hook.hook_name not in _HOOKS or not _is_path(hook.path):
            yield f"the hook {hook.hook_name[:40]!r} {whose} is none that the standard knows, or its program has no absolute path"
    for gid in edits.additional_gids or ():
        if not 0 <= gid < 1 << 32:
            yield f"{gid} {whose} is no group's number"


def _is_path(path: str) -> bool:
    """Absolute and plain: what is written is where it leads, and nothing in it can end a line of anything."""
    plain = path.startswith("/") and not path.startswith("//") and path == posixpath.normpath(path)
    return plain and len(path) <= _PATH_MAX and not any(ord(char) < 32 for char in path)


def _is_kept(path: str) -> bool:
    return any(path == kept or path.startswith(f"{kept}/") for kept in _KEPT)


class Found(msgspec.Struct, frozen=True):
    """A device, and the file that says what it is."""

    file: SpecificationFile
    device: CdiDevice

    @property
    def name(self) -> str:
        """As the standard writes it: `nvidia.com/gpu=0`."""
        return f"{self.file.specification.kind}={self.device.name}"


def resolve(files: Sequence[SpecificationFile]) -> tuple[tuple[Found, ...], tuple[Problem, ...]]:
    """(each device once, by name; what two files of one folder disagree about). A conflict below a file that wins is none."""
    winners: dict[str, list[Found]] = {}
    for file in sorted(files, key=lambda each: (-each.priority, each.path)):
        for device in file.specification.devices:
            found = Found(file, device)
            others = winners.setdefault(found.name, [])
            if not others or others[0].file.priority == file.priority:
                others.append(found)
    problems = [
        Problem(each.file.path, f"it names {name}, and so does {all_of[1 - min(at, 1)].file.path}; neither is used for it")
        for name, all_of in sorted(winners.items())
        if len(all_of) > 1
        for at, each in enumerate(all_of)
    ]
    return tuple(all_of[0] for _, all_of in sorted(winners.items()) if len(all_of) == 1), tuple(problems)
