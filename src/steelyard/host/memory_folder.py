"""Where does something lie that is not to be written to a disk? In a file system in memory, where there is one."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from steelyard.errors import Refused
from steelyard.host.local_disks import parse_mountinfo
from steelyard.host.sysfs import read_text

SHARED_MEMORY = Path("/dev/shm")
_KINDS = ("tmpfs", "ramfs")


def make_memory_folder(path: Path, name: str) -> None:
    """A folder (0711) at `path`; where that is on a disk, and there is shared memory, a link to the folder `name` in there.
    Raises Refused where somebody else has that."""
    in_memory = {mount.number for mount in parse_mountinfo(read_text("/proc/self/mountinfo") or "") if mount.kind in _KINDS}
    if path.is_symlink():
        folder = Path(os.readlink(path))
    elif path.is_dir() or _number(path.parent) in in_memory or _number(SHARED_MEMORY) not in in_memory:
        folder = path
    else:
        folder = SHARED_MEMORY / name
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o711)
    seen = folder.lstat()
    if seen.st_uid != os.getuid() or not stat.S_ISDIR(seen.st_mode):
        text = f"{folder} belongs to another user (uid {seen.st_uid}). Have it removed, or use another --home."
        raise Refused(text, code="run-folder-taken")
    if folder != path and not path.is_symlink():
        path.symlink_to(folder)


def remove_memory_folder(path: Path) -> None:
    if path.is_symlink():
        shutil.rmtree(os.readlink(path), ignore_errors=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _number(folder: Path) -> str:
    try:
        number = os.stat(folder).st_dev
    except OSError:
        return ""
    return f"{os.major(number)}:{os.minor(number)}"
