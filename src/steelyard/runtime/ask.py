"""Does a program that was started accept connections, and what does it answer to one GET, on its Unix socket or its port? For
looks at programs: is it ready, what does its metrics page say.

Bounded in time and size. Never follows redirects, never asks twice, never raises for what a program may answer.
"""

from __future__ import annotations

import asyncio
import select
import socket
from typing import NamedTuple

import httptools

READ_BYTES = 1 << 16
HEAD_MAX = 1 << 16
#: how often a program that was just started is asked whether it listens yet
PROBE_S = 0.005

#: path of a Unix socket, or host and port
Address = str | tuple[str, int]


class Answer(NamedTuple):
    status: int
    #: of a successful answer, when it was asked for
    body: bytes = b""
    #: the body was larger than the bound, and is left out
    too_large: bool = False

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


async def ask(address: Address, target: str, *, timeout_s: float | None = None, body_max: int = 0) -> Answer | None:
    """None when nobody answers in time, or not in HTTP. The body is read where `body_max` is above 0."""
    try:
        async with asyncio.timeout(timeout_s):
            if isinstance(address, str):
                reader, writer = await asyncio.open_unix_connection(address)
            else:
                reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(f"GET {target} HTTP/1.1\r\nhost: steelyard\r\nconnection: close\r\n\r\n".encode())
                return await _read(reader, body_max)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, httptools.HttpParserError):
        return None


async def _read(reader: asyncio.StreamReader, body_max: int) -> Answer | None:
    coming = _Coming()
    parser = httptools.HttpResponseParser(coming)
    fed = 0
    while data := await reader.read(READ_BYTES):
        fed += len(data)
        parser.feed_data(data)
        if not coming.head_complete:
            if fed > HEAD_MAX:
                return None
            continue
        status = parser.get_status_code()
        if not (200 <= status < 300 and body_max):
            return Answer(status)
        if len(coming.body) > body_max:
            return Answer(status, too_large=True)
        if coming.complete:
            return Answer(status, bytes(coming.body))
    # a body without a length ends with the connection
    return Answer(parser.get_status_code(), bytes(coming.body)) if coming.head_complete else None


class _Coming:
    """What the parser has found so far."""

    def __init__(self) -> None:
        self.head_complete = self.complete = False
        self.body = bytearray()

    def on_headers_complete(self) -> None:
        self.head_complete = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


async def program_accepts(listener: socket.socket, address: str) -> None:
    """A connection of ours makes the private socket readable; once the program has taken it, it is not any more."""
    probe = socket.socket(socket.AF_UNIX)
    probe.setblocking(False)
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    try:
        probe.connect(address)
        while waiting.poll(0):
            await asyncio.sleep(PROBE_S)
    finally:
        probe.close()


async def port_accepts(port: int) -> None:
    while not accepts(port):
        await asyncio.sleep(PROBE_S)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
