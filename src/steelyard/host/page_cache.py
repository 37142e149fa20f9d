"""How much of these files does the kernel hold in its page cache, and how is the rest read ahead of demand?

Blocking: belongs into a thread. What can't be read, or is no regular file, counts for nothing; who may not know what is in the
cache (neither root nor a file's owner nor its writer) is told None.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

#: a folder with more is no model's
FILES_MAX = 10_000
#: a file is looked at in so many windows of this size, evenly spread: all of it up to 256 MiB, a sample beyond
WINDOW_BYTES, WINDOWS = 1 << 20, 256
#: read ahead in pieces of this size, each waited for: whoever else reads comes in between
PIECE_BYTES = 4 << 20
#: ioprio_set(2), which has no wrapper in libc; only while nobody else reads
_IOPRIO_SET, _THIS_THREAD, _IDLE = {"x86_64": 251, "aarch64": 30}, (1, 0), 3 << 13

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_MAP_FAILED = ctypes.c_void_p(-1).value


class CachedFile(NamedTuple):
    path: str
    size: int


def list_files(path: Path) -> list[CachedFile]:
    """The file, or those below the folder, each once however many links lead to it."""
    found: dict[tuple[int, int], CachedFile] = {}
    below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names) if path.is_dir() else iter((path,))
    for at, file in enumerate(below):
        if at >= FILES_MAX:
            break
        try:
            told = file.stat()
        except OSError:
            continue
        if stat.S_ISREG(told.st_mode) and told.st_size:
            found[told.st_dev, told.st_ino] = CachedFile(str(file), told.st_size)
    return list(found.values())


def measure_resident(files: list[CachedFile]) -> int | None:
    """Bytes of them that are in the page cache: counted for small files, estimated from a sample for large ones."""
    total = 0.0
    for file in files:
        with contextlib.suppress(OSError), _opened(file) as fd:
            if not _may_know(fd):
                return None
            total += _resident_share(fd, file.size) * file.size
    return round(total)


def yield_the_disk() -> None:
    """This thread's reads wait for everybody else's, where the disk's scheduler knows of such."""
    if (number := _IOPRIO_SET.get(os.uname().machine)) is not None:
        _libc.syscall(number, *_THIS_THREAD, _IDLE)


def read_ahead(files: list[CachedFile], may_go_on: Callable[[], bool]) -> None:
    """Until all is read or `may_go_on` says no, which is asked before each piece."""
    # read, not POSIX_FADV_WILLNEED: of a long range the kernel takes no more than one request of the disk's
    piece = bytearray(PIECE_BYTES)
    for file in files:
        with contextlib.suppress(OSError), _opened(file) as fd:
            for at in range(0, file.size, PIECE_BYTES):
                if not may_go_on():
                    return
                os.preadv(fd, [piece], at)


@contextlib.contextmanager
def _opened(file: CachedFile) -> Iterator[int]:
    fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def _may_know(fd: int) -> bool:
    """mincore tells anybody else that everything is resident."""
    told, user = os.fstat(fd), os.geteuid()
    return user == 0 or told.st_uid == user or os.access(f"/proc/self/fd/{fd}", os.W_OK)


def _resident_share(fd: int, size: int) -> float:
    """Raises OSError."""
    pages = resident = 0
    windows = min(WINDOWS, -(-size // WINDOW_BYTES))
    step = max(WINDOW_BYTES, size // windows // WINDOW_BYTES * WINDOW_BYTES)
    for window in range(windows):
        at = window * step
        length = min(WINDOW_BYTES, size - at)
        if length <= 0:
            break
        states = _look(fd, at, length)
        pages += len(states)
        resident += sum(state & 1 for state in states)
    return resident / pages if pages else 0.0


def _look(fd: int, at: int, length: int) -> bytes:
    address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, at)
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        states = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        if _libc.mincore(address, length, states):
            raise OSError(ctypes.get_errno(), "mincore")
        return states.raw
    finally:
        _libc.munmap(address, length)
