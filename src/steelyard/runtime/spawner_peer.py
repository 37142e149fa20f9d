"""How does the spawner talk to one agent? Packets in and out of its socket, whoever is at the other end and however it behaves.

A malformed packet ends the connection and nothing else. An agent that does not read gets a bounded queue, then is cut off; it
finds everything again when it comes back. Never blocks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import socket
import struct
from collections import deque
from pathlib import Path

import msgspec

from steelyard.runtime.records import WORKLOAD_ID
from steelyard.wire import spawn as wire

#: packets that wait for an agent that does not read
OUTBOX_MAX = 10_000


class Peer:
    """One connected agent."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        sock.setblocking(False)
        self.closed = False
        self._sock = sock
        self._selector = selector
        #: what did not fit into the socket, each with its own copy of the descriptor
        self._outbox: deque[tuple[bytes, int | None]] = deque()

    def receive(self) -> tuple[wire.ToSpawner, list[int]] | None:
        """The next request and its descriptors (the caller closes them); None when there is none, or the connection ended."""
        if self.closed:
            return None
        fds: list[int] = []
        try:
            data, fds, flags, _ = socket.recv_fds(self._sock, wire.PACKET_MAX, wire.FDS_MAX, socket.MSG_CMSG_CLOEXEC)
            if not data:
                raise ConnectionResetError("the agent left")
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("packet too large")
            message = wire.decode_to_spawner(data)
            check_request(message, len(fds))
        except BlockingIOError:
            return None
        except (OSError, msgspec.MsgspecError, ValueError) as err:
            if not isinstance(err, OSError):
                note(f"connection dropped: {err}")
            for fd in fds:
                os.close(fd)
            self.close()
            return None
        return message, fds

    def send(self, message: wire.FromSpawner, fd: int | None = None) -> bool:
        """False when the agent is gone. `fd` stays the caller's."""
        if self.closed:
            return False
        data = wire.encode(message)
        if not self._outbox and self._push(data, fd):
            return True
        if not self.closed and len(self._outbox) >= OUTBOX_MAX:
            note("connection dropped: the agent does not read")
            self.close()
        if self.closed:
            return False
        self._outbox.append((data, None if fd is None else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)))
        self._watch()
        return True

    def flush(self) -> None:
        """The socket takes more."""
        while self._outbox and not self.closed:
            data, fd = self._outbox[0]
            if not self._push(data, fd):
                return
            self._outbox.popleft()
            if fd is not None:
                os.close(fd)
        if not self.closed:
            self._watch()

    def close(self) -> None:
        self.closed = True
        self._selector.unregister(self._sock)
        self._sock.close()
        for _, fd in self._outbox:
            if fd is not None:
                os.close(fd)
        self._outbox.clear()

    def _push(self, data: bytes, fd: int | None) -> bool:
        try:
            if fd is None:
                self._sock.send(data)
            else:
                socket.send_fds(self._sock, [data], [fd])
        except BlockingIOError:
            return False
        except OSError as err:
            # too many descriptors on their way (only without root): wait until some arrived
            if err.errno != errno.ETOOMANYREFS:
                self.close()
            return False
        return True

    def _watch(self) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
        self._selector.modify(self._sock, events, self._selector.get_key(self._sock).data)


def note(text: str) -> None:
    """A line in the spawner's log. A full disk under that log must never end the spawner."""
    with contextlib.suppress(OSError):
        os.write(2, f"spawner: {text}\n".encode(errors="replace"))


def check_request(message: wire.ToSpawner, fd_count: int) -> None:
    """ValueError for what no agent of ours would send."""
    fds_due = 0
    if isinstance(message, wire.Spawn):
        fds_due = len(message.fds) + message.cgroups
        if not message.argv or len(set(message.fds)) != len(message.fds) or any(not 0 <= fd < 1024 for fd in message.fds):
            raise ValueError(f"spawn of {message.workload!r}: no argv, or descriptor numbers that are double or out of range")
        if message.cgroups < 0 or any(not name.startswith("RLIMIT_") for name, _, _ in message.rlimits):
            raise ValueError(f"spawn of {message.workload!r}: {message.cgroups} cgroups, limits {message.rlimits!r}")
    elif isinstance(message, wire.HoldSocket):
        fds_due = 1
    if fds_due != fd_count:
        raise ValueError(f"{type(message).__name__} with {fd_count} descriptors instead of {fds_due}")
    if isinstance(message, wire.Spawn | wire.Claim) and not WORKLOAD_ID.match(message.workload):
        raise ValueError(f"{message.workload!r} is not the id of a workload")


def peer_is_ours(sock: socket.socket) -> bool:
    """Same user, or root. The socket's mode says so already; a moved or copied path must not get around it."""
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())


def open_listener(path: Path) -> tuple[socket.socket, int] | None:
    """The listening socket and the lock that makes us the only spawner on it; None when another one lives."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(64)
    return listener, lock
