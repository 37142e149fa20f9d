"""Where may volumes be mounted, and how are they brought there without a trace on the machine? Pure.

`check_mounts` is asked at the door, without a machine. `plan_mounts` is given what the machine shows of each path and answers
with what to mount, or with a sentence. A path that is there is mounted over. One that is not there is made inside a copy of the
nearest folder above it that is there (`Rebuilt`), in the workload's own namespace: that folder can't be written then, so this is
done only where the workload could not have written anyway. Elsewhere its owner makes the folder first.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from steelyard.model.ids import NAME
from steelyard.model.mount import Bind, MountedVolume, Mounts, Rebuilt, VolumeMount, variable_of

#: the machine's own, with all that is below them
SYSTEM = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/usr",
)  # fmt: skip
VOLUMES_MAX = 32
_PATH_MAX = 1024
#: entries of a folder that is rebuilt: each is a mount
ENTRIES_MAX = 256


class PointSeen(msgspec.Struct, frozen=True):
    """What the machine shows of a path at which something is to be mounted."""

    #: the nearest folder that is there, links followed: the path itself, or one above it
    nearest: str
    #: names below `nearest` that are not there; none: it is all there
    missing: tuple[str, ...] = ()
    #: the first name of those is there, and is no folder
    blocked: bool = False
    #: `nearest`, and every folder above it, can be changed by nobody but root
    roots_own: bool = False
    #: names in `nearest`; 0 where nothing is missing
    entries: int = 0


def check_mounts(mounts: Sequence[VolumeMount]) -> list[tuple[str, str]]:
    """(stable code, text) for each thing that no machine would do."""
    findings: list[tuple[str, str]] = []
    if len(mounts) > VOLUMES_MAX:
        findings.append(("too-many-volumes", f"at most {VOLUMES_MAX} volumes can be mounted"))
    for mount in mounts:
        if not NAME.fullmatch(mount.name):
            text = f"{mount.name[:80]!r} can't be a volume's name: up to 63 of a-z, 0-9 and -, no - at the ends"
            findings.append(("bad-volume", text))
        if (wrong := check_path(mount.path)) is not None:
            findings.append(("bad-volume-path", wrong))
        if mount.read_only and not mount.path:
            findings.append(("bad-volume", f"volume {mount.name[:80]} can be read-only only where it is mounted: give it a path"))
    named = [mount.name for mount in mounts]
    for name in sorted({name for name in named if named.count(name) > 1}):
        findings.append(("volume-twice", f"volume {name[:80]} is named more than once"))
    paths = sorted(mount.path for mount in mounts if mount.path)
    for at, path in enumerate(paths):
        for other in paths[at + 1 :]:
            if is_within(other, path):
                text = f"two volumes can't be at one path: {path}" if other == path else f"{other} would be inside {path}"
                findings.append(("volumes-overlap", text))
    return findings


def check_path(path: str) -> str | None:
    """What is wrong with a path to mount at; None: nothing, or there is none."""
    if not path:
        return None
    shown = repr(path[:120])
    if not path.startswith("/") or ".." in path.split("/"):
        return f"{shown}: volumes are mounted at absolute paths without .., such as /data"
    if path != "/" + posixpath.normpath(path).lstrip("/") or len(path) > _PATH_MAX or any(ord(char) < 32 for char in path):
        return f"{shown}: write the path plainly, without double or trailing slashes and control characters"
    system = _system(path)
    if path == "/" or system is not None:
        what = "it is all there is" if path == "/" else f"{system} belongs to the machine"
        return f"{shown}: nothing can be mounted there, because {what}; choose a path such as /data"
    if ":" in path:
        return f"{shown}: a path with a colon can't be told from its options"
    return None


def plan_mounts(
    volumes: Sequence[MountedVolume], points: Mapping[str, PointSeen], needed: Iterable[str], *, as_root: bool
) -> Mounts | str:
    """`points` by path. `needed`: what the workload must go on seeing. `as_root`: it may write everywhere. A str says why not."""
    kept = tuple(needed)
    binds: list[Bind] = []
    making: dict[str, list[str]] = {}
    for volume in volumes:
        if not volume.path:
            continue
        point = points[volume.path]
        target = posixpath.join(point.nearest, *point.missing)
        if (wrong := _check_point(volume, point, target, as_root)) is not None:
            return wrong
        hidden = next((path for path in kept if is_within(path, target)), None)
        if hidden is not None:
            return f"volume {volume.name} at {volume.path} would hide {hidden}, which the work needs. Choose another path"
        if point.missing:
            making.setdefault(point.nearest, []).append(target)
        binds.append(Bind(volume.source, target, volume.read_only))
    rebuilt = tuple(Rebuilt(folder, tuple(making[folder])) for folder in sorted(making))
    return Mounts(rebuilt, tuple(binds))


def _check_point(volume: MountedVolume, point: PointSeen, target: str, as_root: bool) -> str | None:
    if target == "/" or _system(target) is not None:
        return f"volume {volume.name}: {volume.path} leads to {target}, which belongs to the machine. Choose another path"
    if point.blocked:
        first = posixpath.join(point.nearest, point.missing[0])
        return f"volume {volume.name} can't be mounted at {volume.path}: {first} is no folder. Choose another path"
    if not point.missing or point.nearest == "/":
        return None
    if as_root or not point.roots_own or point.entries > ENTRIES_MAX:
        return (
            f"volume {volume.name} can't be mounted at {volume.path}: there is no such folder, and in {point.nearest} none can "
            f"be made for this work alone. Make it (mkdir -p {volume.path}), or choose a path right below /, such as /data"
        )
    return None


def make_variables(volumes: Iterable[MountedVolume]) -> dict[str, str]:
    """By which the work finds them, mounted or not."""
    return {variable_of(volume.name): volume.seen_at for volume in volumes}


def render_mount(name: str, path: str, read_only: bool) -> str:
    """A mounted volume in a proof."""
    return f"{name} at {path}{' (read-only)' if read_only else ''}"


def to_machine(path: str, volumes: Iterable[MountedVolume]) -> str:
    """A path as the workload names it, as the machine names it."""
    for volume in volumes:
        if volume.path and is_within(path, volume.path):
            return posixpath.join(volume.source, posixpath.relpath(path, volume.path)) if path != volume.path else volume.source
    return path


def to_workload(path: str, volumes: Iterable[MountedVolume]) -> str:
    """The other way round."""
    for volume in volumes:
        if volume.path and is_within(path, volume.source):
            return posixpath.join(volume.path, posixpath.relpath(path, volume.source)) if path != volume.source else volume.path
    return path


def is_within(path: str, folder: str) -> bool:
    """`folder` itself, or below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _system(path: str) -> str | None:
    return next((system for system in SYSTEM if is_within(path, system)), None)
