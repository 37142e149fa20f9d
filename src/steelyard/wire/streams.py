"""How do bytes travel both ways between a command line and something on a machine: a terminal, a connection, files?

    command line ──WebSocket──▶ server ◀──WebSocket── agent

The server asks the agent to open one (`StreamStart`); the agent dials back under the name it was given, and the server joins both
without reading what passes. Binary frames are bytes, text frames are a `Word`. Each end tells how much it has taken, and sends no
more than `WINDOW_BYTES` beyond what the other has: so no end ever stops reading, pings are always answered, and one stream that
stands still holds up nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from steelyard.errors import SteelyardError, Unreachable
from steelyard.model.ids import AttemptId, WorkloadId

#: bytes on their way that the other end has not taken yet
WINDOW_BYTES = 1 << 20
#: bytes of one frame
FRAME_BYTES = 1 << 16
OPEN_S = 10.0


class TerminalStream(msgspec.Struct, frozen=True, tag="terminal"):
    """The terminal of a workload that has one. `offset`: bytes of its output that the caller has seen."""

    workload: WorkloadId
    offset: int = 0


class PortStream(msgspec.Struct, frozen=True, tag="port"):
    """A new connection to a port, as a process of that attempt would make it to itself."""

    attempt: AttemptId
    port: int
    rank: int | None = None


class CopyStream(msgspec.Struct, frozen=True, tag="copy"):
    """Files out of an attempt, or into it (`runtime/copying.py` has the bytes)."""

    attempt: AttemptId
    path: str
    #: into the attempt: what it is called when `path` is a folder; None: out of it
    name: str | None = None
    rank: int | None = None


#: what there is
Wanted = TerminalStream | PortStream | CopyStream


class StreamStart(msgspec.Struct, frozen=True):
    """What the agent is asked with "stream". It answers once what is wanted is there, and then dials `name`."""

    name: str
    what: Wanted


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """A text frame; what it does not tell is as it was."""

    #: bytes taken altogether
    taken: int | None = None
    #: no more bytes will come from here
    end: bool = False
    #: the window is that large now: rows, columns
    window: tuple[int, int] | None = None
    #: the terminal is to be taken away
    hang_up: bool = False


class StreamLost(Exception):
    """The stream broke off; whether the other end is still there is not known. Never leaves the folder of who opened it."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Word).decode


class Stream:
    """One end. `on_word` hears of words that are not about bytes. Use as a context."""

    def __init__(self, connection: ClientConnection, on_word: Callable[[Word], None] | None = None) -> None:
        self._connection = connection
        self._on_word = on_word
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._moved = asyncio.Event()
        self._sent = self._acknowledged = 0
        self._taken = self._told = 0
        self._lost = self._end_told = self._ended = False
        self._reader = asyncio.create_task(self._read())

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def acknowledged(self) -> int:
        """Bytes that the other end has taken."""
        return self._acknowledged

    async def send(self, data: bytes | memoryview) -> None:
        """Returns when it is on its way. Raises StreamLost."""
        view = memoryview(data)
        while view:
            while not self._lost and self._sent - self._acknowledged >= WINDOW_BYTES:
                self._moved.clear()
                await self._moved.wait()
            piece = view[: min(FRAME_BYTES, WINDOW_BYTES - (self._sent - self._acknowledged))]
            self._sent += len(piece)
            await self._push(bytes(piece))
            view = view[len(piece) :]

    async def tell(self, word: Word) -> None:
        """Raises StreamLost."""
        await self._push(_encode(word).decode())

    async def end(self) -> None:
        """No more bytes come from here; those of the other end still do. Raises StreamLost."""
        await self.tell(Word(end=True))

    async def receive(self) -> bytes | None:
        """The next bytes; None: no more come. What was given before counts as taken. Raises StreamLost."""
        if self._taken - self._told >= WINDOW_BYTES // 4:
            await self._tell_taken()
        if self._ended:
            return None
        data = await self._arrived.get()
        if data is None:
            if not self._end_told:
                raise StreamLost
            self._ended = True
            await self._tell_taken()
            return None
        self._taken += len(data)
        return data

    async def _tell_taken(self) -> None:
        self._told = self._taken
        # an end that has gone does not need to know, and what it sent before is here
        with contextlib.suppress(StreamLost):
            await self.tell(Word(taken=self._taken))

    async def close(self) -> None:
        self._reader.cancel()
        await self._connection.close()

    async def _push(self, frame: bytes | str) -> None:
        try:
            await self._connection.send(frame)
        except WebSocketException as err:
            raise StreamLost from err

    async def _read(self) -> None:
        try:
            async for frame in self._connection:
                if isinstance(frame, bytes):
                    self._arrived.put_nowait(frame)
                    continue
                word = _decode(frame)
                if word.taken is not None:
                    self._acknowledged = word.taken
                    self._moved.set()
                if word.end and not self._end_told:
                    self._end_told = True
                    self._arrived.put_nowait(None)
                if self._on_word is not None:
                    self._on_word(word)
        except (WebSocketException, msgspec.MsgspecError):
            pass  # told below
        self._lost = True
        self._moved.set()
        if not self._end_told:
            self._arrived.put_nowait(None)


async def dial(
    base_url: str,
    path: str,
    token: str,
    ca_file: str | None,
    *,
    params: Mapping[str, str | int] | None = None,
    explain: Callable[[bytes], SteelyardError] | None = None,
    on_word: Callable[[Word], None] | None = None,
) -> Stream:
    """`explain`: what a first frame means that is the server's refusal; without it none is waited for. Raises Unreachable, or
    what the server said."""
    scheme, _, where = base_url.partition("://")
    uri = f"{'wss' if scheme == 'https' else 'ws'}://{where}{path}{'?' + urlencode(params) if params else ''}"
    tls = ssl.create_default_context(cafile=ca_file) if scheme == "https" else None
    try:
        connection = await connect(
            uri,
            additional_headers={"Authorization": f"Bearer {token}"},
            ssl=tls,
            compression=None,
            open_timeout=OPEN_S,
            proxy=None,
        )
        if explain is not None:
            try:
                async with asyncio.timeout(OPEN_S):
                    frame = await connection.recv()
            except BaseException:
                await connection.close()
                raise
            said = frame.encode() if isinstance(frame, str) else frame
            if said != OPENED.encode():
                await connection.close()
                raise explain(said)
    except (OSError, TimeoutError, InvalidHandshake, WebSocketException) as err:
        raise Unreachable(f"Steelyard does not answer at {base_url}, or went away.", detail=repr(err)) from err
    return Stream(connection, on_word)


#: the server's first frame: both ends are there
OPENED = "{}"


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that nobody takes what came for all there was."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def carry(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Between a stream and a connection until both directions have ended, each by itself. The connection is closed then, or reset
    when either broke. Raises StreamLost, or OSError when it was the connection."""

    async def out() -> None:
        while data := await reader.read(FRAME_BYTES):
            await stream.send(data)
        await stream.end()

    async def into() -> None:
        while (data := await stream.receive()) is not None:
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    tasks = [asyncio.create_task(out()), asyncio.create_task(into())]
    try:
        await asyncio.gather(*tasks)
        writer.close()
    finally:
        if not writer.is_closing():
            reset(writer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
