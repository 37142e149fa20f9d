"""How is load made here? A small asyncio HTTP/1.1 client on raw streams, so that the client's own cost stays small and known.

Every loop is bounded in count and time; addresses are loopback or Unix sockets.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

REQUEST_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Target:
    """Where requests go: a TCP port on loopback or a Unix socket."""

    path: str = "/"
    port: int | None = None
    socket: Path | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    method: str = "GET"

    def render(self, close: bool = False) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", "host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.body:
            lines.append(f"content-length: {len(self.body)}")
        if close:
            lines.append("connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + self.body

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.socket is not None:
            return await asyncio.open_unix_connection(str(self.socket))
        return await asyncio.open_connection("127.0.0.1", self.port)


@dataclass(frozen=True)
class Result:
    """`first_byte_s` and `whole_s` count from just before the connection was opened (or the request was sent on an open one)."""

    status: int
    first_byte_s: float
    whole_s: float
    body: bytes


async def read_response(reader: asyncio.StreamReader) -> tuple[int, float, bytes]:
    """(status, monotonic time of the first byte, body); content-length and chunked bodies."""
    line = await reader.readline()
    first = time.monotonic()
    if not line:
        raise ConnectionError("closed without an answer")
    status, length, chunked = int(line.split()[1]), 0, False
    while (header := (await reader.readline()).strip()) != b"":
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        elif name.lower() == b"transfer-encoding" and b"chunked" in value.lower():
            chunked = True
    if not chunked:
        return status, first, await reader.readexactly(length)
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readline()
    return status, first, body


async def request_once(target: Target, timeout_s: float = REQUEST_TIMEOUT_S) -> Result:
    """One request on a connection of its own. A connection that fails gives status 0."""
    begin = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await target.connect()
            try:
                writer.write(target.render(close=True))
                status, first, body = await read_response(reader)
            finally:
                writer.close()
    except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
        return Result(0, time.monotonic() - begin, time.monotonic() - begin, b"")
    return Result(status, first - begin, time.monotonic() - begin, body)


class Connection:
    """One kept-alive connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, target: Target) -> tuple[int, bytes]:
        """(status, body). A server that closed it meanwhile gets the request on a new one."""
        if self._streams is not None and self._streams[0].at_eof():
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(target.render())
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            status, _, body = await read_response(reader)
        return status, body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def run_connections(target: Target, connections: int, seconds: float) -> list[float]:
    """Latencies (s) of back-to-back requests on kept-alive connections for a fixed time. Raises on any answer but 200."""
    latencies: list[float] = []
    payload = target.render()
    end = time.monotonic() + seconds

    async def one() -> None:
        reader, writer = await target.connect()
        try:
            while (begin := time.monotonic()) < end:
                writer.write(payload)
                status, _, _ = await read_response(reader)
                if status != 200:
                    raise RuntimeError(f"status {status}")
                latencies.append(time.monotonic() - begin)
        finally:
            writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return latencies
