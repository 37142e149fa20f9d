"""On which CPUs may a process's threads run? Brings those back that may leave a set, and leaves alone what stays within it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable

from steelyard.host.sysfs import names


def keep_within(pids: Iterable[int], cpus: Collection[int]) -> int:
    """Threads that may run on any other CPU get all of `cpus`; returns how many. A thread that was bound to one of them stays
    bound. What has ended meanwhile, or is not ours to move, is passed over."""
    moved = 0
    for pid in pids:
        for thread in names(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                if not os.sched_getaffinity(int(thread)) <= set(cpus):
                    os.sched_setaffinity(int(thread), cpus)
                    moved += 1
    return moved
