"""Which volumes does a workload ask for, and what is mounted where for it? Plain values; no path is looked at here.

`NAME:/path[:ro]` is the text of one: a volume, where the workload finds it, and whether it may only read. Without a path the
workload is told the folder by a variable, and nothing is mounted.
"""

from __future__ import annotations

import posixpath

import msgspec

from steelyard.errors import Refused

_GRAMMAR = "Write NAME:/path, NAME:/path:ro, or NAME alone for a variable with its folder."


class VolumeMount(msgspec.Struct, frozen=True):
    """A volume that a job or function asks for."""

    name: str
    #: where it is mounted, absolute; "" only tells its folder by a variable
    path: str = ""
    read_only: bool = False


class MountedVolume(msgspec.Struct, frozen=True):
    """The same, with the folder that it stands for on the machine."""

    name: str
    #: "" when there is no such volume any more
    source: str
    path: str = ""
    read_only: bool = False

    @property
    def seen_at(self) -> str:
        """Where the workload finds it."""
        return self.path or self.source


class Bind(msgspec.Struct, frozen=True):
    """`source`, a folder, appears at `target` too; without set-uid programs and device files."""

    source: str
    target: str
    read_only: bool = False


class DeviceNode(msgspec.Struct, frozen=True):
    """A device file of a container, made for it alone: open to all in it, whatever the machine's own file says."""

    path: str
    #: "c" or "b"
    kind: str
    major: int
    minor: int


class Rebuilt(msgspec.Struct, frozen=True):
    """A folder that is shown with more entries than it has: mount points that are not there. What is in it stays reachable under
    its names; the folder itself can't be written. Nothing of it is on a disk."""

    folder: str
    #: absolute, below `folder`
    points: tuple[str, ...]


class Mounts(msgspec.Struct, frozen=True):
    """What a workload sees that others don't: carried out in this order in a mount namespace of its own."""

    rebuilt: tuple[Rebuilt, ...] = ()
    binds: tuple[Bind, ...] = ()


def variable_of(volume: str) -> str:
    """The variable that holds its folder. Names have no underscores, so no two volumes share one."""
    return "STEELYARD_VOLUME_" + volume.upper().replace("-", "_")


def parse_mount(text: str) -> VolumeMount:
    """`data:/data:ro` -> what is meant. Raises Refused; whether it may be mounted there is asked at the door."""
    name, *rest = text.split(":")
    if len(rest) > 2 or not name or (rest and not rest[0]):
        raise Refused(f"{text[:120]!r} is no volume. {_GRAMMAR}", code="bad-volume")
    if len(rest) == 2 and rest[1] not in ("ro", "rw"):
        raise Refused(f"{text[:120]!r}: {rest[1][:20]!r} is neither ro nor rw. {_GRAMMAR}", code="bad-volume")
    path = rest[0] if rest else ""
    if path.startswith("/") and ".." not in path.split("/"):
        path = "/" + posixpath.normpath(path).lstrip("/")  # a trailing slash, or one too many
    return VolumeMount(name, path, rest[1:] == ["ro"])
