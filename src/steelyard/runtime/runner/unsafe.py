"""What else, beside threads, would a forked replica share with its template to its harm? A CUDA context, an open event loop,
helper processes: each with what to do about it.

Looked at once, when the user's code has been imported: nothing runs in a template afterwards. Reads /proc/self and asks libraries
that are loaded already; loads and changes nothing itself.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator

_GPUS = ("/dev/nvidia", "/dev/kfd", "/dev/dri/renderD")
_ENTER = "Do it in a function decorated with @sy.enter (without shared=True), which runs in each replica."


def unsafe_state() -> list[dict[str, str]]:
    """[{"name", "fix"}] of everything that makes a fork unsafe; empty when nothing does."""
    links = _descriptors()
    return [*_cuda(links), *_loops(links), *_children()]


def _descriptors() -> list[str]:
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.access(path, os.F_OK):  # not that of the listing; to raise and catch an error costs more pages
            found.append(os.readlink(path))
    return found


def _cuda(links: list[str]) -> list[dict[str, str]]:
    devices: list[str] = []
    for link in links:  # loops and no comprehensions here: those are functions, which a template would make in copied pages
        if link.startswith(_GPUS) and link not in devices:
            devices.append(link)
    how = ""
    if devices:
        how = f"{', '.join(sorted(devices)[:4])} is open"
    elif _torch_initialized():
        how = "torch.cuda is initialized"
    elif _has_context():
        how = "the driver has a current context"
    if not how:
        return []
    return [
        {
            "name": f"a GPU is in use ({how}); what a fork inherits of CUDA or ROCm does not work",
            "fix": f"Move nothing to a GPU and ask it nothing while the module is imported or in shared hooks. {_ENTER}",
        }
    ]


def _torch_initialized() -> bool:
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    try:
        return bool(cuda is not None and cuda.is_initialized())
    except Exception:
        return False


def _has_context() -> bool:
    """By the driver's library, if something has loaded it."""
    path = _find_mapped(b"/libcuda.so")
    if path is None:
        return False
    try:
        current = ctypes.c_void_p()
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        return library.cuCtxGetCurrent(ctypes.byref(current)) == 0 and bool(current.value)
    except (OSError, AttributeError):
        return False


def _find_mapped(part: bytes) -> str | None:
    """Path of a mapped file with `part` in it. Read in pieces: a process with torch has thousands of lines."""
    rest = b""
    for piece in _pieces("/proc/self/maps"):
        lines = rest + piece
        at = lines.find(part)
        if at >= 0 and (end := lines.find(b"\n", at)) >= 0:
            return os.fsdecode(lines[lines.rfind(b"\n", 0, at) + 1 : end].split(None, 5)[5])
        rest = lines[lines.rfind(b"\n") + 1 :]
    return None


def _pieces(path: str) -> Iterator[bytes]:
    """Of a file below /proc; nothing of one that can't be read. Not through `open`, which costs a template more copied pages."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while piece := os.read(fd, 4096):
            yield piece
    except OSError:
        return
    finally:
        os.close(fd)


def _loops(links: list[str]) -> list[dict[str, str]]:
    kinds: list[str] = []
    for link in links:
        if link in ("anon_inode:[eventpoll]", "anon_inode:[io_uring]") and (kind := link.partition(":")[2]) not in kinds:
            kinds.append(kind)
    if not kinds:
        return []
    why = " (grpc is loaded and keeps one)" if "grpc" in sys.modules else ""
    return [
        {
            "name": f"an event loop is open ({', '.join(sorted(kinds))}){why}; replicas would take each other's events",
            "fix": f"Close it, or make it later. {_ENTER}",
        }
    ]


def _children() -> list[dict[str, str]]:
    """Processes that the import started and that a replica could neither wait for nor share. Zombies are nobody's business."""
    tracker = getattr(getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None), "_pid", None)
    found: list[dict[str, str]] = []
    for pid in _running_children():
        what = "multiprocessing's resource tracker" if pid == tracker else f"process {pid} ({_command(pid)})"
        found.append({"name": f"{what} was started before the fork; replicas would share its pipes", "fix": _ENTER})
    return found


def _running_children() -> list[int]:
    words = b"".join(_pieces(f"/proc/self/task/{os.getpid()}/children")).split()
    return list(filter(_runs, map(int, words)))


def _runs(pid: int) -> bool:
    """Also between its fork and its exec, when it has no command line."""
    stat = b"".join(_pieces(f"/proc/{pid}/stat"))
    return b") " in stat and stat.rsplit(b") ", 1)[1][:1] not in b"ZX"


def _command(pid: int) -> str:
    """Empty for a moment while it executes another program, which whoever started it may have been told already."""
    for _ in range(100):
        if told := next(_pieces(f"/proc/{pid}/cmdline"), b""):
            return told[:200].replace(b"\0", b" ").decode(errors="replace").strip()
        time.sleep(0.001)
    return ""
