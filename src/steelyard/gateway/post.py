"""How does the server itself ask at the gateway? One POST, streamed both ways, over connections that are kept.

A small client on `httptools`, which the server has loaded already: a general one costs it 7 MB and most of a millisecond per
request. Waits without a deadline for an answer (a quiet function is a legitimate one); only connecting has one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import httptools

CONNECT_TIMEOUT_S = 5.0
READ_BYTES = 1 << 18
#: connections that are kept while nobody uses them
IDLE_MAX = 64


class NoConnection(Exception):
    """Nothing was sent."""


class Cut(Exception):
    """The connection ended before the answer did."""


class Answer:
    """Status and headers (names in small letters) are there; the body is read from `pieces`."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.status = connection.parser.get_status_code()
        self.headers = connection.headers

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises Cut."""
        connection = self._connection
        while True:
            for piece in connection.take_body():
                yield piece
            if connection.complete:
                return
            await connection.read()


class Gateway:
    """`async with gateway.post(...) as answer:`. A connection whose answer was read to its end is used again; any other is
    closed, which is how a request is given up."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[_Connection] = []

    @contextlib.asynccontextmanager
    async def post(self, path: str, headers: Mapping[str, str], body: AsyncIterator[bytes]) -> AsyncIterator[Answer]:
        """`headers` name the body's length. Raises NoConnection, Cut, and what `body` raises."""
        connection = await self._obtain()
        sending = asyncio.create_task(connection.send(path, {"Host": f"{self._host}:{self._port}", **headers}, body))
        try:
            yield await connection.receive_head(sending)
            if connection.reusable and sending.done() and len(self._idle) < IDLE_MAX:
                self._idle.append(connection)
                connection = None
        finally:
            if connection is not None:
                connection.close()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _obtain(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.gone:
                connection.begin()
                return connection
            connection.close()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return _Connection(*await asyncio.open_connection(self._host, self._port, limit=READ_BYTES))
        except (OSError, TimeoutError) as err:
            raise NoConnection(str(err)) from err


class _Connection:
    """One exchange after the other. What its parser finds arrives in the `on_` methods."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.begin()

    def begin(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self.head_complete = self.complete = self.reusable = False
        self._body: list[bytes] = []

    @property
    def gone(self) -> bool:
        """The gateway closed it while nobody used it."""
        return self._reader.at_eof() or self._writer.is_closing()

    def close(self) -> None:
        self._writer.transport.abort()

    def take_body(self) -> list[bytes]:
        body, self._body = self._body, []
        return body

    async def send(self, path: str, headers: Mapping[str, str], body: AsyncIterator[bytes]) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._writer.write(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        try:
            async for piece in body:
                self._writer.write(piece)
                await self._writer.drain()
        except ConnectionError:
            return  # the answer may be there all the same
        except BaseException:
            self.close()
            raise

    async def receive_head(self, sending: asyncio.Task[None]) -> Answer:
        """An answer may come before everything was sent. Where the body could not be read, that is raised."""
        try:
            while not self.head_complete:
                await self.read()
        except Cut:
            if sending.done():
                sending.result()
            raise
        return Answer(self)

    async def read(self) -> None:
        try:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise Cut("the connection was closed")
            self.parser.feed_data(data)
        except (OSError, httptools.HttpParserError) as err:
            raise Cut(str(err)) from err

    # the parser's

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.head_complete = self.parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.complete = self.head_complete
        # asked here: the parser forgets it with the message
        self.reusable = self.complete and self.parser.should_keep_alive()
