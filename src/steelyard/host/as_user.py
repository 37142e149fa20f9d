"""What does a folder look like to a user? Reads it with that user's rights, so that nobody learns by us what they may not read.

Linux keeps the identity for files per thread: a thread of its own takes it on, looks, and ends. Nothing else of this process
changes. Where we are not root, we have no other rights than the user's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from steelyard.errors import EdgeFailed

#: glibc's own would change all threads of the process
_SYS_SETGROUPS = {"x86_64": 116, "aarch64": 159}
#: a folder on a network disk that is gone may never answer
WAIT_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def find_newest(folder: str, ids: tuple[int, int] | None) -> str:
    """Path of the entry that was changed last, hidden ones left out; "" when there is none, or no such folder. `ids` are the
    user's uid and gid; None: our own. EdgeFailed when it can't be read. Blocks for up to `WAIT_S`."""

    def look() -> str:
        try:
            entries = [entry for entry in Path(folder).iterdir() if not entry.name.startswith(".")]
            return max(((entry.lstat().st_mtime_ns, str(entry)) for entry in entries), default=(0, ""))[1]
        except (FileNotFoundError, NotADirectoryError):
            return ""

    return _look_as(folder, ids, look)


def observe_file(path: str, ids: tuple[int, int] | None) -> str:
    """What changes when the file does: device, inode, size, times of change. EdgeFailed unless it is a regular file that `ids`
    may read. Blocks for up to `WAIT_S`."""

    def look() -> str:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            told = os.fstat(fd)
        finally:
            os.close(fd)
        if not stat.S_ISREG(told.st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        return f"{told.st_dev} {told.st_ino} {told.st_size} {told.st_mtime_ns} {told.st_ctime_ns}"

    return _look_as(path, ids, look)


def read_small(path: str, ids: tuple[int, int] | None, bytes_max: int) -> bytes | None:
    """A file's content; None when it is not there or not theirs to read. EdgeFailed when it is larger. Blocks for up to
    `WAIT_S`."""

    def look() -> bytes | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is no file")
            data = file.read(bytes_max + 1)
        if len(data) > bytes_max:
            raise OSError(errno.EFBIG, f"it is larger than {bytes_max} bytes")
        return data

    return _look_as(path, ids, look)


def _look_as(what: str, ids: tuple[int, int] | None, look: Callable[[], T]) -> T:
    found: list[T] = []
    failed: list[OSError] = []

    def run() -> None:
        try:
            if ids is not None and os.geteuid() == 0:
                _become(*ids)
            found.append(look())
        except OSError as err:
            failed.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    if failed:
        raise EdgeFailed(f"{what} can't be read: {failed[0].strerror}", code="folder-unreadable")
    if not found:
        raise EdgeFailed(f"{what} did not answer for {WAIT_S:.0f} s", code="folder-unreadable")
    return found[0]


def _become(uid: int, gid: int) -> None:
    """This thread's rights on files. Group first: with the user's rights it could not be changed any more."""
    number = _SYS_SETGROUPS.get(os.uname().machine)
    if number is None or _libc.syscall(ctypes.c_long(number), ctypes.c_long(0), None) != 0:
        raise OSError(ctypes.get_errno(), "its groups could not be left")
    _libc.setfsgid(ctypes.c_uint(gid))
    _libc.setfsuid(ctypes.c_uint(uid))
    # neither tells whether it worked, but says what was there before
    if (_libc.setfsgid(ctypes.c_uint(gid)), _libc.setfsuid(ctypes.c_uint(uid))) != (gid, uid):
        raise OSError(0, f"the rights of uid {uid} could not be taken on")
