"""How does a fresh child of the template become a process of its own? Own cgroups, own cores, own log files.

Speaks to the kernel through descriptors that were opened for it; knows no path and needs no privilege.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def join(cgroups: Sequence[int], cpus: Sequence[int], stdout: int, stderr: int) -> None:
    """Consumes the descriptors; the caller has made its own session. OSError when the kernel refuses one of the steps."""
    for cgroup in cgroups:
        os.write(cgroup, b"0")
        os.close(cgroup)
    if cpus:
        os.sched_setaffinity(0, cpus)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)


def reseed_numpy() -> None:
    """Python re-seeds its own generator after a fork; numpy's global one would repeat itself in every replica."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def leave(code: int) -> None:
    """End this process the way an interpreter ends for its user (threads joined, atexit handlers run, output flushed),
    without tearing down every object: that would copy all the memory shared with the template only to free it."""
    import atexit
    import threading

    from .serve import flush

    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing does
        atexit._run_exitfuncs()
    finally:
        flush()
        os._exit(code)
