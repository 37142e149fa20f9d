"""Where does a workload keep what it needs only while it runs? A private folder of an enforced size on the fastest local disk.

    <disk>/steelyard-scratch-<tag>/<workload>          the folder, its owner's alone
    <disk>/steelyard-scratch-<tag>/<workload>.img      the ext4 that is mounted on it; its space is taken when it is made
    <disk>/steelyard-scratch-<tag>/<workload>.limit    instead, where nothing can be mounted: how much may be in the folder

Everything is found again by its name, so that whoever comes after a death knows what to end. Without root, mkfs or loop devices
the size is only looked at (`observe`), and `enforced` says so. Blocks for milliseconds: call from a thread. Ends no process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from steelyard.errors import EdgeFailed, NoRoom
from steelyard.host.image_mount import allocate, mount_image, unmount
from steelyard.host.local_disks import KINDS, Disk, choose_disk, observe_disk_of, observe_disks, parse_mountinfo, room_bytes
from steelyard.host.sysfs import names, read_int, read_text
from steelyard.model import words
from steelyard.model.ids import WorkloadId

log = logging.getLogger(__name__)

#: names that are looked at in one look at a folder without a file system of its own
ENTRIES_MAX = 100_000
#: files that are deleted before an unmount, so that what nobody will read is not written to the disk first
EMPTIED_MAX = 20_000
#: mounting is not allowed here, or what it needs is not there
_NOT_HERE = frozenset({errno.EPERM, errno.ENOENT, errno.ENXIO, errno.EACCES, errno.ENODEV})
_MKFS = "mkfs.ext4"
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
_BLOCK = 4096


class Scratch(msgspec.Struct, frozen=True):
    folder: str
    size_bytes: int
    #: by a file system of that size; else it is watched
    enforced: bool


class ScratchUse(msgspec.Struct, frozen=True):
    used_bytes: int
    #: False when there were more files than are looked at
    complete: bool = True


class ScratchDisk:
    """Scratch folders of one home. `configured`: the folder to use instead of choosing a disk."""

    def __init__(self, home: Path, tag: str, *, configured: Path | None = None, root: bool | None = None) -> None:
        self._home, self._configured = home, configured
        self._name = f"steelyard-scratch-{tag}"
        self._root = os.geteuid() == 0 if root is None else root
        #: why nothing can be mounted here; None while it can
        self.unenforced: str | None = None if self._root else "only root can mount a file system of that size"
        self._found: dict[WorkloadId, Scratch] = {}

    # -- making

    def make(self, workload: WorkloadId, size_bytes: int, ids: tuple[int, int] | None) -> Scratch:
        """NoRoom when no disk has that much room; EdgeFailed when the kernel refuses. Nothing is left behind then."""
        base = self._choose(size_bytes, foreign=ids is not None)
        place = base / self._name
        try:
            self._make_place(place)
            scratch = self._mount(place, workload, size_bytes, ids) if self.unenforced is None else None
            scratch = scratch or self._make_plain(place, workload, size_bytes, ids)
        except OSError as err:
            self.remove(workload)
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_room(size_bytes, [observe_disk_of(base)]) from err
            said = f"{err.strerror or err}" + (f": {err.filename}" if err.filename else "")
            raise EdgeFailed(f"Scratch space in {place} could not be made ({said}).", code="scratch-failed") from err
        self._found[workload] = scratch
        return scratch

    def _choose(self, size_bytes: int, *, foreign: bool) -> Path:
        if self._configured is not None:
            disks, home = [], observe_disk_of(self._configured)
        else:
            # A disk that work can't walk to is no use to it.
            disks, home = observe_disks(for_all=foreign), observe_disk_of(self._home)
        wanted = _image_bytes(size_bytes) if self.unenforced is None else size_bytes
        chosen = choose_disk(disks, home, wanted + self._promised([home, *disks]))
        if chosen is None:
            raise self._no_room(size_bytes, [*disks, home])
        return Path(chosen.mount)

    def _promised(self, disks: Iterable[Disk]) -> int:
        """Bytes that others were promised and have not taken yet: only files without space of their own, and watched folders."""
        promised = 0
        for place in {Path(disk.mount) / self._name for disk in disks}:
            for name in names(place):
                if name.endswith(".limit"):
                    promised += read_int(place / name) or 0
                elif name.endswith(".img"):
                    with contextlib.suppress(OSError):
                        told = (place / name).stat()
                        promised += max(0, told.st_size - told.st_blocks * 512)
        return promised

    def _no_room(self, size_bytes: int, disks: list[Disk]) -> NoRoom:
        most = max(disks, key=room_bytes)
        return NoRoom(
            f"{words.exact_size(size_bytes)} of scratch asked, and no local disk has room for it: {most.mount} has the most, "
            f"{words.exact_size(room_bytes(most))}. Nothing was started. Ask for less with --scratch, or free space there.",
            code="no-scratch",
        )

    def _make_place(self, place: Path) -> None:
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o711)
            place.chmod(0o711)
        if not _is_ours(place):
            raise OSError(errno.EEXIST, "somebody else made it", str(place))

    def _mount(self, place: Path, workload: WorkloadId, size_bytes: int, ids: tuple[int, int] | None) -> Scratch | None:
        """None when this machine turns out not to be able to: a container without loop devices."""
        program = shutil.which(_MKFS, path=_SBIN)
        if program is None or not os.path.exists("/dev/loop-control"):
            self.unenforced = "there is no mkfs.ext4" if program is None else "there are no loop devices"
            return None
        image, folder = place / f"{workload}.img", place / workload
        allocate(image, _image_bytes(size_bytes))
        done = subprocess.run(
            [program, "-q", "-F", "-b", str(_BLOCK), "-i", "16384", "-m", "0", "-O", "^has_journal,^resize_inode,sparse_super2",
             "-E", "lazy_itable_init=1,nodiscard,num_backup_sb=0,packed_meta_blocks=1", str(image)],
            capture_output=True, stdin=subprocess.DEVNULL, env={"PATH": _SBIN, "LC_ALL": "C"}, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise OSError(errno.EIO, said or f"{_MKFS} failed", str(image))
        folder.mkdir(mode=0o700)
        try:
            mount_image(image, folder)
        except OSError as err:
            if err.errno not in _NOT_HERE:
                raise
            self.unenforced = f"a file system can't be mounted ({err.strerror})"
            self.remove(workload)
            return None
        (folder / "lost+found").rmdir()
        _give(folder, ids)
        return Scratch(str(folder), size_bytes, enforced=True)

    def _make_plain(self, place: Path, workload: WorkloadId, size_bytes: int, ids: tuple[int, int] | None) -> Scratch:
        (place / f"{workload}.limit").write_text(f"{size_bytes}\n")
        folder = place / workload
        folder.mkdir(mode=0o700)
        _give(folder, ids)
        return Scratch(str(folder), size_bytes, enforced=False)

    # -- looking

    def find(self, workload: WorkloadId) -> Scratch | None:
        """What it has; after a restart as the disk tells it."""
        known = self._found.get(workload)
        if known is not None:
            return known
        for place in self._places():
            folder = place / workload
            if not folder.is_dir():
                continue
            limit = read_int(place / f"{workload}.limit")
            told = os.statvfs(folder)
            size = told.f_blocks * told.f_frsize if limit is None else limit
            self._found[workload] = Scratch(str(folder), size, enforced=limit is None)
        return self._found.get(workload)

    def observe(self, workload: WorkloadId) -> ScratchUse | None:
        """What is in it now. None: it has none, or it can't be read."""
        scratch = self.find(workload)
        if scratch is None:
            return None
        try:
            if scratch.enforced:
                told = os.statvfs(scratch.folder)
                return ScratchUse((told.f_blocks - told.f_bfree) * told.f_frsize)
            return observe_tree(Path(scratch.folder), ENTRIES_MAX)
        except OSError:
            return None

    def size_bytes(self, workload: WorkloadId) -> int | None:
        """How large its file system really is; of a watched folder, what it may hold."""
        scratch = self.find(workload)
        if scratch is None or not scratch.enforced:
            return None if scratch is None else scratch.size_bytes
        try:
            told = os.statvfs(scratch.folder)
        except OSError:
            return None
        return told.f_blocks * told.f_frsize if os.path.ismount(scratch.folder) else 0

    # -- ending

    def remove(self, workload: WorkloadId) -> bool:
        """Unmount and delete. Its processes have ended. False when something is left, which another call may get rid of."""
        self._found.pop(workload, None)
        return not [place for place in self._places() if not self._remove(place, workload)]

    def sweep(self, living: Collection[WorkloadId]) -> bool:
        """Remove what no living workload has: an agent was killed in the middle of something. False when something is left."""
        clean = True
        for place in self._places():
            for workload in {WorkloadId(name.removesuffix(".img").removesuffix(".limit")) for name in names(place)}:
                if workload not in living:
                    self._found.pop(workload, None)
                    clean = self._remove(place, workload) and clean
        return clean

    def destroy(self) -> bool:
        """All of this home's. False when something is left."""
        clean = self.sweep(())
        for place in self._places():
            with contextlib.suppress(OSError):
                place.rmdir()
        return clean

    def _remove(self, place: Path, workload: WorkloadId) -> bool:
        folder, image = place / workload, place / f"{workload}.img"
        try:
            if os.path.ismount(folder):
                _empty(folder)
                unmount(folder)
            if folder.exists():
                shutil.rmtree(folder)
            image.unlink(missing_ok=True)
            (place / f"{workload}.limit").unlink(missing_ok=True)
        except OSError as err:
            log.warning("scratch of %s could not be removed yet: %s", workload, err)
            return False
        return True

    def _places(self) -> list[Path]:
        """Wherever this home may have made some, also under an earlier setting or on a disk that would not be chosen now."""
        mounts = parse_mountinfo(read_text("/proc/self/mountinfo") or "")
        # No other kinds: a look at a network file system whose server is gone never returns.
        points = [mount.point for mount in mounts if mount.kind in KINDS]
        bases = [self._home, *([self._configured] if self._configured else []), *map(Path, points)]
        places = [Path(base) / self._name for base in dict.fromkeys(bases)]
        # Told by the mounts themselves: a configured folder that is not configured any more.
        places += [Path(point).parent for point in points if Path(point).parent.name == self._name]
        return [place for place in dict.fromkeys(places) if _is_ours(place)]


def _is_ours(place: Path) -> bool:
    """Somebody else may have made one of that name, where everybody may write."""
    try:
        told = place.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(told.st_mode) and told.st_uid == os.geteuid()


def observe_tree(folder: Path, entries_max: int) -> ScratchUse:
    """Bytes on the disk of everything below, by its blocks; follows no link and leaves no file system."""
    used, left = 0, entries_max
    queue = [str(folder)]
    while queue and left > 0:
        try:
            with os.scandir(queue.pop()) as entries:
                for entry in entries:
                    left -= 1
                    if left <= 0:
                        break
                    with contextlib.suppress(OSError):
                        used += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            queue.append(entry.path)
        except OSError:
            continue  # it went while we looked
    return ScratchUse(used, complete=left > 0)


def _image_bytes(size_bytes: int) -> int:
    """With what ext4 keeps for itself, so that all that was asked for can be written: a 64th in inode tables, bitmaps, and a
    fiftieth of the whole, at most 16 MiB, which the kernel holds back."""
    own = size_bytes // 62 + min(size_bytes // 48, 17 << 20) + (2 << 20)
    return -(-(size_bytes + own) // _BLOCK) * _BLOCK


def _give(folder: Path, ids: tuple[int, int] | None) -> None:
    if ids is not None:
        os.chown(folder, *ids)
    os.chmod(folder, 0o700)


def _empty(folder: Path) -> None:
    left = EMPTIED_MAX
    for _, _, files, descriptor in os.fwalk(folder):
        for name in files[:left]:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=descriptor)
        left -= len(files)
        if left <= 0:
            return
