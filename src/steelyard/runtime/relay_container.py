"""How does the relay stand before a program that is in a container? It is started as root, in the place of the container's
runtime: it starts that itself, and then gives up all rights but one, that of signalling it.

The mounts were made for it before (`rootfs.py`). A program without a network finds the relay in its own network namespace, so
that a port is reached as anywhere. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct

from steelyard.runtime import mount_calls
from steelyard.runtime.deaf import end_deaf

#: <linux/prctl.h>, <linux/capability.h>, <linux/sockios.h>, <linux/if.h>
_PR_SET_KEEPCAPS = 8
_CAPABILITY_VERSION_3, _CAP_KILL = 0x2008_0522, 5
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_libc = ctypes.CDLL(None, use_errno=True)


def enter_network() -> None:
    """A network of its own with nothing but loopback, which works. OSError."""
    mount_calls.unshare(mount_calls.NEWNET)
    with contextlib.suppress(FileNotFoundError), open(mount_calls.FIRST_PORT, "w") as file:
        file.write("0")  # as in a bundle (`lifecycle/bundle.py`)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def bind_as(private: socket.socket, path: str, ids: tuple[int, int]) -> None:
    """A socket that this user may connect to. OSError."""
    os.setegid(ids[1])
    os.seteuid(ids[0])
    try:
        private.bind(path)
    finally:
        os.seteuid(0)
        os.setegid(0)


def become(ids: tuple[int, int]) -> None:
    """This user, with the right to signal processes of others. OSError."""
    _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    os.setgroups([])
    os.setresgid(ids[1], ids[1], ids[1])
    os.setresuid(ids[0], ids[0], ids[0])
    head = struct.pack("II", _CAPABILITY_VERSION_3, 0)
    sets = struct.pack("6I", 1 << _CAP_KILL, 1 << _CAP_KILL, 0, 0, 0, 0)
    _check(_libc.capset(head, sets), "capset")


def end_deaf_child(pid: int, signum: int) -> None:
    """The container's first process, whose parent `pid` was told to pass the signal on, where the kernel keeps it away."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            end_deaf([int(word) for word in file.read().split()], signum)
    except OSError:
        return  # it ended meanwhile


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
