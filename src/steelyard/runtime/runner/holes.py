"""Why does a child write to a page of its parent that it never reads? Because a free block in it is the next one to be given out:
a few small objects of its own cost it a page of 4 KB each.

`fill_holes` takes the free blocks of this process for good, so that what a child allocates lies together in pages of its own.
The blocks hold nothing and were paid for already. Knows CPython's allocator of small objects and the C library's of larger ones;
where either is another one, nothing is done: that costs memory and changes nothing else.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

#: a row of the table that CPython prints of its small blocks: class, size, pools, blocks in use, blocks free
_CLASS = re.compile(rb"^ *\d+ +(\d+) +\d+ +\d+ +(\d+) *$", re.MULTILINE)
#: larger blocks are the C library's, and from `_LARGE_MAX` on it maps each by itself
SMALL_MAX, _LARGE_MAX = 512, 64 * 1024
#: more than this much free memory is not given up: something large was freed, and its pages are touched once at most
_GIVEN_UP_MAX = 4 << 20

#: what the blocks are held by
_held: list[object] = []


class _Heap:
    """The C library's, where it is the one that is known here."""

    def __init__(self) -> None:
        self.libc: Any = None
        self.trim: Any = None

    def find(self) -> Any:
        """None where there is another."""
        try:
            import ctypes

            libc: Any = ctypes.CDLL(None)
            libc.gnu_get_libc_version  # noqa: B018
        except (ImportError, OSError, AttributeError):
            return None
        libc.malloc.restype = ctypes.c_void_p
        libc.malloc.argtypes = [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
        self.libc = libc
        self.trim = libc.malloc_trim
        return libc


_heap = _Heap()


def fill_holes() -> None:
    """Before this process is forked. Once more after more was imported."""
    _fill_large()
    _fill_small()


def give_back() -> None:
    """Whole pages that this process has freed. For a child of one that has filled its holes: there is little to look through."""
    if _heap.trim is not None:
        _heap.trim(0)


def _fill_small() -> None:
    """Twice, since the first time itself allocates and frees."""
    empty = sys.getsizeof(b"")
    for _ in range(2):
        free = {int(size): int(count) for size, count in _CLASS.findall(_small_blocks())}
        if sum(size * count for size, count in free.items()) > _GIVEN_UP_MAX:
            return
        for size in sorted(free, reverse=True):
            if size > empty:
                _held.extend([bytes(size - empty) for _ in range(free[size])])
            elif size > 16:
                _held.extend([number + 0.5 for number in range(free[size])])  # a float is the smallest but an object
            else:
                _held.extend([object() for _ in range(free[size])])


def _small_blocks() -> bytes:
    """The table; it can only be had on stderr."""
    report = getattr(sys, "_debugmallocstats", None)
    if report is None:
        return b""
    table, stderr = os.memfd_create("steelyard-blocks"), os.dup(2)
    try:
        os.dup2(table, 2)
        try:
            report()
        finally:
            os.dup2(stderr, 2)
        return os.pread(table, 1 << 20, 0)
    finally:
        os.close(stderr)
        os.close(table)


def _fill_large() -> None:
    """Blocks of each size are taken until one comes from the heap's end, where memory is that nobody had yet."""
    libc = _heap.find()
    if libc is None:
        return
    end = libc.malloc(_LARGE_MAX)
    taken, size = 0, _LARGE_MAX
    while size >= 32 and taken < _GIVEN_UP_MAX:
        block = libc.malloc(size - 8)
        if block is None:
            break
        if block >= end:
            libc.free(block)
            size -= 16 if size <= 1040 else size // 8 // 16 * 16
        else:
            taken += size
    libc.free(end)
