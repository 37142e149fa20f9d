"""A real Envoy with small HTTP servers behind it, all in the test's own event loop. Shared by the gateway's live tests."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steelyard.clock import SystemClock
from steelyard.config import Paths, Settings
from steelyard.gateway import Cluster
from steelyard.gateway.envoy import Envoy

DEADLINE_S = 20.0


@dataclass
class Request:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, object]:
        assert self.headers["content-type"] == "application/problem+json", self
        return json.loads(self.body)


async def read_message(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]], bytes]:
    """First line, headers (lower case) and body (by content-length or chunks) of one HTTP/1.1 message."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    known = dict(headers)
    if known.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return first, headers, body
    return first, headers, await reader.readexactly(int(known.get("content-length", 0)))


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


async def echo(request: Request, writer: asyncio.StreamWriter) -> None:
    reply(writer, json.dumps({"method": request.method, "target": request.target, "headers": request.headers}).encode())


def reply(writer: asyncio.StreamWriter, body: bytes, status: str = "200 OK") -> None:
    writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)


@dataclass
class Backend:
    """An HTTP/1.1 server on a Unix socket. It never closes an idle connection, as our runner does not."""

    path: Path
    answer: Answer = echo
    seen: list[Request] = field(default_factory=list)
    open: set[asyncio.StreamWriter] = field(default_factory=set)
    #: connections, ever
    accepted: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self.serve, self.path, backlog=4096)

    async def stop(self) -> None:
        if self._server:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def take(self, connection: socket.socket) -> None:
        """Serves a connection that somebody else accepted."""

        async def serve() -> None:
            await self.serve(*await asyncio.open_unix_connection(sock=connection))

        task = asyncio.create_task(serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self.open.add(writer)
        self.accepted += 1
        try:
            while True:
                first, headers, body = await read_message(reader)
                method, target, _ = first.split(" ")
                request = Request(method, target, headers, body)
                self.seen.append(request)
                await self.answer(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open.discard(writer)
            self._tasks.discard(task)
            writer.close()


async def until(condition: object, deadline_s: float = 10.0) -> None:
    """Waits until the callable says so, by looking."""
    assert callable(condition)
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.002)


class SleepyReplica:
    """The agent and its replicas in one. A replica ends when nothing was asked for `idle_s`, together with the connections it
    still holds; the next connection that waits in the listening socket wakes another one."""

    def __init__(self, backend: Backend, idle_s: float) -> None:
        self._backend, self._idle_s = backend, idle_s
        self._loop = asyncio.get_running_loop()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.setblocking(False)
        self._listening.bind(str(backend.path))
        self._listening.listen(4096)
        self._loop.add_reader(self._listening, self._accept)
        self._timer: asyncio.TimerHandle | None = None
        self.wakes = 0

    def close(self) -> None:
        self._loop.remove_reader(self._listening)
        self._listening.close()
        if self._timer:
            self._timer.cancel()

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self._stay()
        await echo(request, writer)

    def _stay(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._idle_s, self._end)

    def _end(self) -> None:
        # an interpreter that exits reads no more, but its connections stay open for some milliseconds
        self._timer = None
        for writer in self._backend.open:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            self._loop.call_later(0.01, writer.close)

    def _accept(self) -> None:
        connection, _ = self._listening.accept()
        self.wakes += self._timer is None
        self._stay()
        self._backend.take(connection)


class World:
    """Envoy of one home on a free port."""

    #: where it listens, and what starts it
    host = "127.0.0.1"
    argv: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.paths = Paths(home=folder / "h", run=folder / "r")
        self.settings = Settings(1, "127.0.0.1", 0, "127.0.0.1", self.port, 0, 0, "tester", 0)
        self.envoy = Envoy(self.paths, self.settings, SystemClock())
        self.folder = folder
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.envoy.prepare()
        self.process = await asyncio.create_subprocess_exec(
            *self.argv, *self.envoy.argv(), stdout=asyncio.subprocess.DEVNULL, stderr=(self.folder / "envoy.log").open("ab")
        )
        async with asyncio.timeout(DEADLINE_S):
            while True:
                assert self.process.returncode is None, (self.folder / "envoy.log").read_text()
                try:
                    _, writer = await asyncio.open_connection(self.host, self.port)
                    writer.close()
                    return
                except OSError:
                    await asyncio.sleep(0.01)

    async def kill(self) -> None:
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def cluster(self, name: str, **fields: object) -> Cluster:
        """A cluster whose socket is named after it, with room for everything unless said otherwise."""
        defaults: dict[str, object] = {"connections_max": 64, "pending_max": 100, "idle_timeout_s": 5.0}
        return Cluster(name, str(self.folder / f"{name}.sock"), **(defaults | fields))  # type: ignore[arg-type]

    def backend(self, name: str, answer: Answer = echo) -> Backend:
        return Backend(self.folder / f"{name}.sock", answer)

    async def fetch(
        self,
        target: str,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        host: str = "gateway.test",
    ) -> Response:
        """One request on a connection of its own."""
        async with self.connection() as (reader, writer):
            lines = {"host": host, "connection": "close", "content-length": str(len(body)), **(headers or {})}
            head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            writer.write(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body)
            async with asyncio.timeout(DEADLINE_S):
                first, received, data = await read_message(reader)
        return Response(int(first.split(" ")[1]), dict(received), data)

    async def admin(self, target: str) -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(self.paths.envoy_admin_socket)
        try:
            writer.write(f"GET {target} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
            _, _, body = await read_message(reader)
        finally:
            writer.close()
        return json.loads(body)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()


@asynccontextmanager
async def gateway(folder: Path, *backends: tuple[str, Answer]) -> AsyncIterator[tuple[World, list[Backend]]]:
    """A running Envoy and one server for each (cluster name, answer); all gone afterwards."""
    folder.mkdir(exist_ok=True)
    world = World(folder)
    servers = [world.backend(name, answer) for name, answer in backends]
    try:
        for server in servers:
            await server.start()
        await world.start()
        yield world, servers
    finally:
        await world.kill()
        for server in servers:
            await server.stop()


def plain(document: object) -> object:
    """A document without what says nothing: zero values, and the ways to write a duration."""
    if isinstance(document, dict):
        return {name: plain(value) for name, value in document.items() if value not in ("", 0, False, "STATIC", "ALLOW")}
    if isinstance(document, list):
        return [plain(value) for value in document]
    if isinstance(document, str) and re.fullmatch(r"[0-9.]+s", document):
        return f"{float(document[:-1])} seconds"
    return document
