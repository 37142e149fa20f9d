"""Which threads of this process would a fork lose? Anything but the main thread makes a fork unsafe: a lock that another thread
holds stays locked for ever in the child. So the rule is: the main thread alone is accounted for.

Reads /proc/self/task and Python's own list of threads; changes nothing.
"""

from __future__ import annotations

import os
import sys
import threading


def unaccounted_threads() -> list[dict[str, object]]:
    """[{"tid", "name"}] of every other thread; the name says the kernel's name and, for Python threads, whose code they run."""
    names = os.listdir("/proc/self/task")
    if len(names) == 1:
        return []
    me = os.getpid()
    tids = [int(name) for name in names]
    known = {thread.native_id: thread for thread in threading.enumerate()}
    return [{"tid": tid, "name": _describe(tid, known.get(tid))} for tid in sorted(tids) if tid != me]


def _describe(tid: int, thread: threading.Thread | None) -> str:
    try:
        with open(f"/proc/self/task/{tid}/comm") as file:
            comm = file.read().strip()
    except OSError:
        comm = "gone"
    if thread is None:
        return f"thread '{comm}', started by native code{_suspects()}"
    target = getattr(thread, "_target", None)
    module = getattr(target, "__module__", None) or type(thread).__module__
    return f"thread '{thread.name}' from module {module}"


#: libraries that are known to start threads when imported or first used
_STARTERS = ("torch", "tensorflow", "jax", "numpy", "grpc", "tokenizers", "pyarrow", "polars", "duckdb", "cv2")


def _suspects() -> str:
    loaded = [name for name in _STARTERS if name in sys.modules]
    return f" (loaded and known to start threads: {', '.join(loaded)})" if loaded else ""
