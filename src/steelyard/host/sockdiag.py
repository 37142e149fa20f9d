"""How many connections wait in the backlog of a listening Unix socket? Asked of the kernel by netlink (man 7 sock_diag).

One request by the socket's inode, one answer; no dump of all sockets, and nothing of the listening socket itself is touched.
None where the kernel lacks `unix_diag`, or the socket is of another network namespace.
"""

from __future__ import annotations

import os
import socket
import struct
from types import TracebackType
from typing import Self

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
NLMSG_HEADER = struct.Struct("=IHHII")
#: family, protocol, padding, states, inode, show, cookie (two words; all ones: any)
UNIX_REQUEST = struct.Struct("=BBHIIIII")
#: family, type, state, padding, inode, cookie
UNIX_ANSWER = struct.Struct("=BBBBIII")
ATTRIBUTE = struct.Struct("=HH")
UDIAG_SHOW_RQLEN = 0x10
UNIX_DIAG_RQLEN = 4
ALL_STATES = 0xFFFF_FFFF
NO_COOKIE = 0xFFFF_FFFF


class SocketQueue:
    """Keeps one netlink socket for any number of questions. Not for several threads at once. `close` it."""

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None
        self._sequence = 0
        try:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
            self._netlink.bind((0, 0))
        except OSError:
            self.close()

    def length(self, fd: int) -> int | None:
        """Connections made but not accepted yet on the listening socket `fd`."""
        return self.length_of(os.fstat(fd).st_ino)

    def length_of(self, inode: int) -> int | None:
        """The same by the socket's inode number, which never changes: spares the look at the descriptor."""
        if self._netlink is None:
            return None
        self._sequence = self._sequence + 1 & 0xFFFF_FFFF
        try:
            self._netlink.send(make_request(inode, self._sequence))
            # The kernel answers before send returns; one packet, whether answer or error. An older one is passed over.
            while True:
                answer = self._netlink.recv(4096, socket.MSG_DONTWAIT)
                if len(answer) >= NLMSG_HEADER.size and NLMSG_HEADER.unpack_from(answer)[3] == self._sequence:
                    return parse_answer(answer)
        except OSError:
            return None

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def make_request(inode: int, sequence: int) -> bytes:
    """A request for the queue length of the Unix socket with this inode, in the machine's byte order."""
    body = UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, ALL_STATES, inode & 0xFFFF_FFFF, UDIAG_SHOW_RQLEN, NO_COOKIE, NO_COOKIE)
    return NLMSG_HEADER.pack(NLMSG_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, sequence, 0) + body


def parse_answer(packet: bytes) -> int | None:
    """The first word of the attribute UNIX_DIAG_RQLEN; None for an error message or an answer without it."""
    length, kind, _, _, _ = NLMSG_HEADER.unpack_from(packet)
    if kind != SOCK_DIAG_BY_FAMILY:
        return None
    at, end = NLMSG_HEADER.size + UNIX_ANSWER.size, min(length, len(packet))
    while at + ATTRIBUTE.size <= end:
        size, name = ATTRIBUTE.unpack_from(packet, at)
        if size < ATTRIBUTE.size:
            return None
        if name == UNIX_DIAG_RQLEN and at + ATTRIBUTE.size + 8 <= end:
            return struct.unpack_from("=I", packet, at + ATTRIBUTE.size)[0]
        at += size + 3 & ~3
    return None
