"""How late does a timer wake up? A loop that sleeps to absolute times and looks at the clock, on whatever CPUs it was put.

    python -m steelyard.runtime.wakeups measure SECONDS INTERVAL_US FIFO OUT       lateness of every wake-up, ns, as int64, to a
    file python -m steelyard.runtime.wakeups watch PAGE LIMIT_US INTERVAL_US FIFO       until it is ended: counts, in a page
    others read

Its memory is locked and its garbage collector off; its own work per wake-up is some microseconds. FIFO is the SCHED_FIFO priority
it gives itself, 0 for none. `watch` moves from CPU to CPU of its cpuset. It ends with whoever started `measure`; `watch` is a
workload and ends with its control group.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import mmap
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from steelyard.clock import SystemClock

_MCL_CURRENT, _MCL_FUTURE = 1, 2
_CLOCK_MONOTONIC, _TIMER_ABSTIME = 1, 1
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
#: the first wake-ups touch memory for the first time
WARM_UP = 50
#: how long `watch` stays on one CPU
STAY_NS = 250_000_000
#: magic, limit in us, samples, breaches, worst in ns, time of the last wake-up (monotonic ns)
_PAGE = struct.Struct("<6Q")
_MAGIC = 0x53594157414B4531
PAGE_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]


class Watched(NamedTuple):
    """What a page says."""

    limit_us: int
    samples: int
    breaches: int
    worst_ns: int
    #: CLOCK_MONOTONIC of the last wake-up
    seen_ns: int


def read_page(path: Path) -> Watched | None:
    """None until its writer has begun. Single words are written whole; a reading may be one wake-up apart in itself."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_PAGE.size)
    except OSError:
        return None
    if len(raw) < _PAGE.size or (words := _PAGE.unpack(raw))[0] != _MAGIC:
        return None
    return Watched(*words[1:])


def measure(seconds: float, interval_us: int, fifo: int) -> array.array[int]:
    """Lateness of each wake-up in nanoseconds, without the first ones. An overrun skips to the next time that is to come."""
    count = round(seconds * 1_000_000 / interval_us)
    late = array.array("q", bytes(8 * count))
    _settle(fifo)
    at = 0

    def take(lateness_ns: int) -> bool:
        nonlocal at
        late[at] = lateness_ns
        at += 1
        return at < count

    deadline_ns = SystemClock().mono_ns() + round(seconds * 1e9)
    _loop(interval_us * 1000, take, deadline_ns)
    return late[WARM_UP:at]


def watch(page: Path, limit_us: int, interval_us: int, fifo: int) -> None:
    """Count lateness into the page until ended."""
    fd = os.open(page, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    os.ftruncate(fd, PAGE_BYTES)
    words = memoryview(mmap.mmap(fd, PAGE_BYTES)).cast("Q")
    os.close(fd)
    if words[0] != _MAGIC or words[1] != limit_us:
        words[0:6] = memoryview(array.array("Q", [_MAGIC, limit_us, 0, 0, 0, 0]))
    cpus = sorted(os.sched_getaffinity(0))
    _settle(fifo)
    clock = SystemClock()
    limit_ns = limit_us * 1000
    skip, stay, turn = WARM_UP, STAY_NS // (interval_us * 1000), 0

    def take(lateness_ns: int) -> bool:
        nonlocal skip, turn
        if skip:
            skip -= 1
            return True
        words[2] += 1
        if lateness_ns > limit_ns:
            words[3] += 1
        if lateness_ns > words[4]:
            words[4] = lateness_ns
        words[5] = clock.mono_ns()
        turn += 1
        if turn % stay == 0 and len(cpus) > 1:
            with contextlib.suppress(OSError):  # its cpuset may have changed
                os.sched_setaffinity(0, (cpus[turn // stay % len(cpus)],))
            skip = 1  # the wake-up after the move is late because of us
        return True

    _loop(interval_us * 1000, take, None)


def _settle(fifo: int) -> None:
    """As a careful realtime program does it; what is refused shows in the figures."""
    gc.collect()
    gc.freeze()
    gc.disable()
    _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE)
    if fifo:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(fifo))


def _loop(interval_ns: int, take: Callable[[int], bool], deadline_ns: int | None) -> None:
    """Sleep to the next multiple, tell how late it was, until `take` says no or the deadline is over."""
    now_ns, sleep = SystemClock().mono_ns, _libc.clock_nanosleep
    until, at = _Timespec(), 0
    pointer = ctypes.byref(until)
    at = now_ns() + interval_ns
    while True:
        until.tv_sec, until.tv_nsec = divmod(at, 1_000_000_000)
        if sleep(_CLOCK_MONOTONIC, _TIMER_ABSTIME, pointer, None) != 0:
            continue  # a signal; the time is absolute
        now = now_ns()
        if not take(now - at) or (deadline_ns is not None and now > deadline_ns):
            return
        at += interval_ns
        if at < now:
            at += (now - at) // interval_ns * interval_ns + interval_ns


def main(argv: list[str]) -> int:
    if len(argv) != 5 or argv[0] not in ("measure", "watch"):
        sys.stderr.write(
            "usage: python -m steelyard.runtime.wakeups measure SECONDS INTERVAL_US FIFO OUT | watch PAGE LIMIT_US ...\n"
        )
        return 2
    if argv[0] == "watch":
        watch(Path(argv[1]), int(argv[2]), int(argv[3]), int(argv[4]))
        return 0
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGKILL))
    Path(argv[4]).write_bytes(measure(float(argv[1]), int(argv[2]), int(argv[3])).tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
