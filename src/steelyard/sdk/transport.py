"""How does a request get to the gateway or the API, and its answer back? Plain sockets that are kept and used again, from any
thread; the same sockets serve coroutines.

`Reply` reads an answer (HTTP, then frames) from bytes and does no I/O, so that blocking calls, coroutines and `map`'s event loop
share it.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from steelyard.sdk.address import Place
from steelyard.sdk.errors import NotReachable
from steelyard.sdk.frames import CONTENT_TYPE, Buffer, Frame, FrameReader, FramingError, join
from steelyard.wire.http1 import BadResponse, ResponseReader

if TYPE_CHECKING:
    import asyncio

CONNECT_S = 10.0
RECV_BYTES = 1 << 18
#: an idle connection is used again within that time; whoever is at the other end keeps them for longer
IDLE_S = 20.0
IDLE_MAX = 64
_CALL = CONTENT_TYPE.encode()


class Lost(Exception):
    """The connection ended before the answer was complete. `sent`: part of the request may have arrived."""

    def __init__(self, text: str, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class Pool:
    def __init__(self) -> None:
        self._idle: dict[Place, list[tuple[float, socket.socket]]] = {}
        self._lock = threading.Lock()

    def take(self, place: Place) -> socket.socket:
        """A connected, blocking socket. NotReachable."""
        return self.take_idle(place) or connect(place)

    def take_idle(self, place: Place) -> socket.socket | None:
        while True:
            with self._lock:
                idle = self._idle.get(place)
                if not idle:
                    return None
                since, connection = idle.pop()
            if time.monotonic() - since < IDLE_S and not _readable(connection):
                return connection
            connection.close()

    def give(self, place: Place, connection: socket.socket) -> None:
        """Back, in blocking mode, with nothing left to read."""
        with self._lock:
            idle = self._idle.setdefault(place, [])
            if len(idle) < IDLE_MAX:
                idle.append((time.monotonic(), connection))
                return
        connection.close()

    def forget(self) -> None:
        """In a fork's child: the connections are the parent's."""
        self._lock = threading.Lock()
        for idle in self._idle.values():
            for _, connection in idle:
                connection.close()
        self._idle = {}


pool = Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.forget)


def would_block() -> tuple[type[OSError], ...]:
    """What a socket that does not block raises then. TLS is imported only where it is used: it costs as much as a whole call."""
    tls = sys.modules.get("ssl")
    plain = (BlockingIOError, InterruptedError)
    return plain if tls is None else (*plain, tls.SSLWantReadError, tls.SSLWantWriteError)


def _readable(connection: socket.socket) -> bool:
    """An idle connection with something to read has ended."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def connect(place: Place) -> socket.socket:
    """NotReachable."""
    try:
        connection = socket.create_connection((place.host, place.port), CONNECT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if place.tls:
            connection = _wrap(connection, place)
        connection.settimeout(None)
    except OSError as err:
        raise NotReachable(
            f"Nobody answers at {place.authority} ({err.strerror or err}). Does Steelyard run there? `steelyard status` tells."
        ) from err
    return connection


def _wrap(connection: socket.socket, place: Place) -> socket.socket:
    import ssl

    context = ssl.create_default_context()
    if place.ca:
        context.load_verify_locations(place.ca)
    return context.wrap_socket(connection, server_hostname=place.host)


def make_request(
    place: Place, method: str, path: str, bearer: str, body: Sequence[Buffer], kind: str, headers: Sequence[tuple[str, str]] = ()
) -> list[Buffer]:
    """The whole request as buffers, small ones joined."""
    length = sum(map(len, body))
    lines = [f"{method} {place.prefix}{path} HTTP/1.1", f"host: {place.authority}"]
    if bearer:
        lines.append(f"authorization: Bearer {bearer}")
    if body:
        lines.append(f"content-type: {kind}")
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"content-length: {length}\r\n\r\n")
    return join(["\r\n".join(lines).encode("latin-1"), *body])


class Reply:
    """An answer as it comes. `frames` of a call's answer, or the `body` of anything else."""

    def __init__(self) -> None:
        self.http = ResponseReader()
        self._frames: FrameReader | None = None
        self.body = b""
        #: of a call's answer that was wanted as a whole
        self.frames: list[Frame] = []

    @property
    def done(self) -> bool:
        return self.http.done

    @property
    def status(self) -> int:
        return self.http.status

    @property
    def is_call(self) -> bool:
        return self.http.status == 200 and self.http.headers.get(b"content-type") == _CALL

    def header(self, name: bytes) -> str:
        return self.http.headers.get(name, b"").decode("latin-1")

    def feed(self, data: bytes) -> list[Frame]:
        """`data` of length 0 is the connection's end. Lost when the answer can't be completed any more."""
        if not data:
            if not self.http.end():
                raise Lost("the connection ended before the answer was complete", True)
            return []
        try:
            pieces = self.http.feed(data)
            if not pieces:
                return []
            if self._frames is None:
                if not self.is_call:
                    self.body += b"".join(pieces)
                    return []
                self._frames = FrameReader()
            found: list[Frame] = []
            for piece in pieces:
                found += self._frames.feed(piece)
        except (BadResponse, FramingError) as err:
            raise Lost(f"what came makes no sense: {err}", True) from err
        return found


class Exchange:
    """One request and its answer, in the calling thread. Use as a context manager: it ends the connection unless it was read to
    its end."""

    def __init__(self, place: Place, request: Sequence[Buffer]) -> None:
        self._place = place
        self._connection = pool.take(place)
        self.reply = Reply()
        try:
            for buffer in request:
                self._connection.sendall(buffer)
        except OSError as err:
            # an answer may stand there all the same: too large, not allowed
            if not _readable(self._connection):
                self._connection.close()
                raise Lost(f"sending failed: {err}", True) from err

    def frames(self) -> Iterator[Frame]:
        """As they come. Lost."""
        reply, connection = self.reply, self._connection
        while not reply.done:
            try:
                data = connection.recv(RECV_BYTES)
            except OSError as err:
                raise Lost(f"receiving failed: {err}", True) from err
            yield from reply.feed(data)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.reply.done and self.reply.http.keep_alive:
            pool.give(self._place, self._connection)
        else:
            self._connection.close()


class AsyncExchange:
    """The same for coroutines. Over TLS every step is one of a thread."""

    def __init__(self, place: Place, connection: socket.socket) -> None:
        self._place = place
        self._connection = connection
        self.reply = Reply()

    @classmethod
    async def open(cls, place: Place, request: Sequence[Buffer]) -> AsyncExchange:
        import asyncio

        loop = asyncio.get_running_loop()
        connection = pool.take_idle(place) or await loop.run_in_executor(None, connect, place)
        made = cls(place, connection)
        try:
            for buffer in request:
                await made._send(loop, buffer)
        except OSError as err:
            if not _readable(connection):
                connection.close()
                raise Lost(f"sending failed: {err}", True) from err
        except BaseException:
            connection.close()
            raise
        return made

    async def _send(self, loop: asyncio.AbstractEventLoop, buffer: Buffer) -> None:
        if self._place.tls:
            await loop.run_in_executor(None, self._connection.sendall, buffer)
            return
        self._connection.setblocking(False)
        await loop.sock_sendall(self._connection, buffer)

    async def read(self) -> list[Frame]:
        """The next frames, maybe none; ask again while the reply is not done. Lost."""
        import asyncio

        loop = asyncio.get_running_loop()
        try:
            if self._place.tls:
                data = await loop.run_in_executor(None, self._connection.recv, RECV_BYTES)
            else:
                data = await loop.sock_recv(self._connection, RECV_BYTES)
        except OSError as err:
            raise Lost(f"receiving failed: {err}", True) from err
        return self.reply.feed(data)

    async def __aenter__(self) -> AsyncExchange:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.reply.done and self.reply.http.keep_alive:
            self._connection.setblocking(True)
            pool.give(self._place, self._connection)
        else:
            self._connection.close()


def ask(place: Place, request: Sequence[Buffer]) -> Reply:
    """A request whose whole answer is wanted. NotReachable, Lost."""
    with Exchange(place, request) as exchange:
        exchange.reply.frames.extend(exchange.frames())
        return exchange.reply


async def ask_async(place: Place, request: Sequence[Buffer]) -> Reply:
    async with await AsyncExchange.open(place, request) as exchange:
        while not exchange.reply.done:
            exchange.reply.frames += await exchange.read()
        return exchange.reply


def problem_of(reply: Reply) -> dict[str, Any]:
    """The answer's problem+json; an empty one when it is none."""
    import json

    try:
        told = json.loads(reply.body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
