"""Where do volumes lie on this machine, can they be mounted now, and are they really there for a process?

    <home>/volumes/<name>        a volume's folder, its owner's alone
    <home>/volumes/.gone-*       one that was deleted; emptied in the background, also after a death in the middle of it

Volumes made with a path of their own are only looked at. On a machine of a pool all are: a folder counts there only where it lies
on storage that is not this machine's own. Blocks: a network file system may take its time, so call from a thread.
Never mounts anything; what is to be mounted where `lifecycle/mounts.py` decides from what is seen here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from steelyard.errors import EdgeFailed, Refused
from steelyard.host.local_disks import Mount, parse_mountinfo
from steelyard.host.sysfs import names, read_text
from steelyard.lifecycle.mounts import PointSeen, check_path, is_within, plan_mounts, render_mount
from steelyard.model.mount import MountedVolume, Mounts

log = logging.getLogger(__name__)

#: of disks and memory of one machine alone; whatever else is mounted comes from elsewhere
_OWN_KINDS = frozenset(
    {
        "bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs",
        "tmpfs", "vfat", "xfs", "zfs",
    }
)  # fmt: skip
_GONE = ".gone-"
#: a network file system that is gone may never answer
LOOK_S = 2.0
_MOUNTS = Path("/proc/self/mountinfo")


class VolumeFolders:
    """Of one home. `needed`: paths that all work must go on seeing; `shared`: of a machine of a pool, a folder that certainly is
    the home's too."""

    def __init__(self, folder: Path, needed: Sequence[str], shared: Path | None = None) -> None:
        self._folder, self._shared = folder, shared
        self._needed = tuple(dict.fromkeys(os.path.realpath(path) for path in needed))

    # -- making and deleting

    def make(self, name: str, ids: tuple[int, int] | None) -> str:
        """The folder of a volume, empty or as it was left. Raises EdgeFailed."""
        folder = self._folder / name
        uid = os.geteuid() if ids is None else ids[0]
        try:
            self._folder.mkdir(mode=0o711, exist_ok=True)
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                if folder.lstat().st_uid not in (uid, os.geteuid()) or not stat.S_ISDIR(folder.lstat().st_mode):
                    raise
            if ids is not None:
                os.chown(folder, *ids, follow_symlinks=False)
        except OSError as err:
            raise EdgeFailed(f"The folder {folder} could not be made ({err.strerror or err}).", code="volume-not-made") from err
        return str(folder)

    def check_external(self, path: str, ids: tuple[int, int] | None) -> str:
        """The real path of somebody's folder that is to be a volume. Raises Refused."""
        real = os.path.realpath(path)
        if (wrong := check_path(real)) is not None:
            raise Refused(f"{wrong}. Nothing was made.", code="bad-volume-path")
        try:
            told = os.stat(real)
        except OSError as err:
            raise Refused(
                f"{path} can't be looked at ({err.strerror}). Nothing was made. Make it first.", code="no-folder"
            ) from err
        if not stat.S_ISDIR(told.st_mode):
            raise Refused(f"{path} is no folder. Nothing was made.", code="no-folder")
        if ids is not None and not _may_enter(told, *ids):
            raise Refused(
                f"{path} may not be read by uid {ids[0]}, which work runs as. Nothing was made. Give it that folder first: "
                f"chown {ids[0]}:{ids[1]} {path}",
                code="folder-forbidden",
            )
        return real

    def retire(self, name: str) -> None:
        """Out of sight at once; `sweep` deletes what is in it. Nothing happens where there is none. Raises EdgeFailed."""
        try:
            if (self._folder / name).exists():
                os.rename(self._folder / name, Path(tempfile.mkdtemp(prefix=_GONE, dir=self._folder)) / name)
        except OSError as err:
            raise EdgeFailed(f"{self._folder / name} could not be deleted ({err.strerror}).", code="volume-not-deleted") from err

    def sweep(self) -> None:
        """Delete what was retired; takes as long as there are files."""
        for name in names(self._folder):
            if name.startswith(_GONE):
                try:
                    shutil.rmtree(self._folder / name)
                except OSError as err:
                    log.warning("what was in volume %s could not be deleted yet: %s", name, err)

    # -- mounting

    async def mounts(self, volumes: Sequence[MountedVolume], uid: int, needed: Collection[str]) -> Mounts | None:
        """`prepare` without blocking, for work of that uid."""
        return await asyncio.to_thread(self.prepare, volumes, needed, as_root=uid == 0) if volumes else None

    async def check_reach(self, volumes: Sequence[MountedVolume]) -> None:
        """Are they here what they are at home? Raises EdgeFailed, with the reason."""
        if self._shared is None:
            return
        shared = self._shared
        try:
            found = await asyncio.wait_for(
                asyncio.to_thread(lambda: [explain_reach(each, shared, read_text(_MOUNTS) or "") for each in volumes]), LOOK_S
            )
        except TimeoutError:
            raise _refuse("the file system of a volume does not answer on this machine. Look at it, then try again") from None
        if (wrong := next((each for each in found if each is not None), None)) is not None:
            raise _refuse(wrong)

    async def identify(self, volumes: Sequence[MountedVolume]) -> tuple[tuple[int, int], ...]:
        """Device and inode of each folder, zeros where there is none: a mount goes on showing a folder that was deleted, and does
        not show the one that took its place. Nothing is told of volumes on a file system that does not answer."""
        if not volumes:
            return ()
        try:
            return await asyncio.wait_for(asyncio.to_thread(lambda: tuple(_identify(each.source) for each in volumes)), LOOK_S)
        except TimeoutError:
            return ()

    def prepare(self, volumes: Sequence[MountedVolume], needed: Collection[str], *, as_root: bool) -> Mounts | None:
        """What to mount for work that also needs to see these paths; None: nothing. Raises EdgeFailed, which says why not."""
        for volume in volumes:
            if (wrong := check_source(volume)) is not None:
                raise _refuse(wrong)
        points = {volume.path: observe_point(volume.path) for volume in volumes if volume.path}
        if not points:
            return None
        kept = (*self._needed, *(os.path.realpath(path) for path in needed if path))
        planned = plan_mounts(volumes, points, kept, as_root=as_root)
        if isinstance(planned, str):
            raise _refuse(planned)
        return planned


def _refuse(text: str) -> EdgeFailed:
    return EdgeFailed(f"Not started: {text}", code="start-failed", detail="volumes")


def _identify(folder: str) -> tuple[int, int]:
    try:
        told = os.stat(folder)
    except OSError:
        return (0, 0)
    return (told.st_dev, told.st_ino)


def check_source(volume: MountedVolume) -> str | None:
    """Why it can't be used now; None: it can."""
    if not volume.source:
        return f"there is no volume {volume.name} any more; `steelyard volumes create {volume.name}` makes one"
    try:
        told = os.statvfs(volume.source)
        if not os.path.isdir(volume.source):
            return f"{volume.source}, the folder of volume {volume.name}, is no folder"
    except OSError as err:
        return (
            f"{volume.source}, the folder of volume {volume.name}, is not there ({err.strerror}). Bring it back, or make another"
        )
    full = (told.f_blocks and not told.f_bavail) or (told.f_files and not told.f_favail)
    if full and not volume.read_only:
        return f"the file system of volume {volume.name} is full. Free some space in {volume.source}, or mount it read-only (:ro)"
    return None


def explain_reach(volume: MountedVolume, shared: Path, mountinfo: str) -> str | None:
    """Why that folder is not the home's; None: it is. It is where it lies on the same file system as `shared`, which certainly
    is, or on any that is not this machine's own: the same path of that is taken for the same folder."""
    if not volume.source:
        return check_source(volume)
    advice = f"volumes for pools lie where all machines see them: `steelyard volumes create {volume.name} --path FOLDER`"
    node = os.uname().nodename
    try:
        real = os.path.realpath(volume.source)
        told = os.stat(real)
        if told.st_dev == os.stat(shared).st_dev:
            return None
    except OSError as err:
        return f"{volume.source}, the folder of volume {volume.name}, is not seen on {node} ({err.strerror}); {advice}"
    mounts = [each for each in parse_mountinfo(mountinfo) if is_within(real, each.point)]
    kind = max(mounts, key=lambda each: len(each.point)).kind if mounts else ""
    if kind not in _OWN_KINDS and mounts:
        return None
    what = f"{node}'s own ({kind or 'unknown file system'}), and not the home's"
    return f"{volume.source} is the folder of volume {volume.name}; what lies there on this machine is {what}; {advice}"


def observe_point(path: str) -> PointSeen:
    """Follows links. Raises EdgeFailed where we may not look."""
    at, missing = path, list[str]()
    while True:
        try:
            told = os.stat(at)
            break
        except (FileNotFoundError, NotADirectoryError):
            at, name = os.path.split(at)
            missing.insert(0, name)
        except OSError as err:
            raise _refuse(f"{path} can't be looked at ({err.strerror})") from err
    if not stat.S_ISDIR(told.st_mode):
        at, name = os.path.split(at)
        missing.insert(0, name)
    nearest = os.path.realpath(at)
    if not missing:
        return PointSeen(nearest)
    above = [nearest, *map(str, Path(nearest).parents)]
    return PointSeen(
        nearest,
        tuple(missing),
        blocked=os.path.lexists(os.path.join(nearest, missing[0])),
        roots_own=all(_is_roots_own(folder) for folder in above),
        entries=len(names(nearest)),
    )


def _is_roots_own(folder: str) -> bool:
    told = os.stat(folder)
    return told.st_uid == 0 and not told.st_mode & 0o022


def _may_enter(told: os.stat_result, uid: int, gid: int) -> bool:
    shift = 6 if told.st_uid == uid else 3 if told.st_gid == gid else 0
    return uid == 0 or told.st_mode >> shift & 0o5 == 0o5


def observe_mounted(pid: int, volumes: Sequence[MountedVolume], root: Path = Path("/")) -> list[str] | None:
    """Those that are really mounted for this process, as `render_mount` says it; None where that can't be read. Compares mount
    tables, so that no file system is waited for."""
    theirs, ours = (parse_mountinfo(read_text(root / f"proc/{each}/mountinfo") or "") for each in (pid, "self"))
    if not theirs:
        return None
    found: list[str] = []
    for volume in volumes:
        place = _find_place(volume.source, ours) if volume.path else None
        same = [each for each in theirs if place is not None and (each.number, each.root) == place and each not in ours]
        # a link may have led elsewhere
        mount = next((each for each in same if each.point == volume.path), same[0] if same else None)
        if mount is not None:
            found.append(render_mount(volume.name, volume.path, mount.read_only))
    return found


def _find_place(path: str, mounts: Sequence[Mount]) -> tuple[str, str] | None:
    """(file system, path within it), by the mount nearest above."""
    above = max((each for each in mounts if is_within(path, each.point)), key=lambda each: len(each.point), default=None)
    if above is None:
        return None
    return above.number, os.path.normpath(os.path.join(above.root, os.path.relpath(path, above.point)))


def free_bytes(path: str) -> int | None:
    """Of its file system, for an ordinary user; None where it can't be looked at."""
    try:
        told = os.statvfs(path)
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.EACCES, errno.ENOTDIR):
            log.warning("%s can't be looked at: %s", path, err)
        return None
    return told.f_bavail * told.f_frsize
