"""How does a template hear and speak? In packets of JSON with descriptors beside them.

By what `socket` and `json` call in the end: each layer of Python on the way would cost every template pages that it copies from
the one it was forked from.
"""

from __future__ import annotations

import _socket
import array
import json
import os
from collections.abc import Callable, Sequence
from json import encoder
from typing import Any

Connection = _socket.socket

#: of one packet either way: a whole environment fits
PACKET_MAX = 180_000
FDS_MAX = 64
_ANCILLARY_MAX = _socket.CMSG_SPACE(FDS_MAX * 4)


def _make_writer() -> Callable[[object], bytes]:
    """What `json.dumps` makes anew each time, where the interpreter has it in C."""
    make: Any = getattr(encoder, "c_make_encoder", None)
    try:
        write = make(None, None, encoder.encode_basestring_ascii, None, ": ", ", ", False, False, True)
    except TypeError:  # none, or another one
        return lambda value: json.dumps(value).encode()
    return lambda value: "".join(write(value, 0)).encode()


write_json = _make_writer()
_read: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class Packet:
    """One packet from the agent and the descriptors that came with it."""

    def __init__(self, data: bytes, fds: list[int]) -> None:
        self.data = data
        self.fds = fds
        self._asked: Any = None

    @property
    def asked(self) -> dict[str, Any]:
        """ValueError when it is no JSON object."""
        if self._asked is None:
            try:
                self._asked, _ = _read(self.data.decode(), 0)
            except StopIteration:
                raise ValueError("not JSON") from None
        if not isinstance(self._asked, dict):
            raise ValueError("not a JSON object")
        return self._asked

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def seqpacket(fd: int) -> Connection:
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)


def make_pair() -> tuple[Connection, Connection]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def accept(listening: Connection) -> Connection:
    fd, _ = listening._accept()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    return seqpacket(fd)


def send(connection: Connection, data: bytes, fds: Sequence[int]) -> None:
    connection.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))])


def receive(connection: Connection) -> Packet | None:
    """The next packet; None at the end of the connection. BlockingIOError when a non-blocking one has nothing."""
    try:
        data, ancillary, _, _ = connection.recvmsg(PACKET_MAX, _ANCILLARY_MAX, _socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError:
        return None
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += memoryview(payload[: len(payload) // 4 * 4]).cast("i")
    return Packet(data, fds) if data else None
