"""How does the agent open a stream that the server asks for? What is wanted comes first, so that a refusal is an answer; then the
agent dials back, and bytes pass until either side has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from steelyard.agent.execs import ExecHost, FindHost
from steelyard.agent.terminals import TerminalKeeper
from steelyard.clock import Clock
from steelyard.config import Settings
from steelyard.errors import SteelyardError
from steelyard.host.inside import connect_inside
from steelyard.model.ids import WorkloadId
from steelyard.wire.streams import CopyStream, PortStream, Stream, StreamLost, StreamStart, TerminalStream, Word, carry, dial

_log = logging.getLogger(__name__)
PATH = "/v1/agent/streams/"


class _Wanted(NamedTuple):
    serve: Callable[[Stream], Awaitable[None]]
    on_word: Callable[[Word], None] | None = None


class StreamKeeper:
    """`start_copy`: a copier inside, on a descriptor. Raises SteelyardError."""

    def __init__(
        self,
        settings: Settings,
        token_file: Path,
        clock: Clock,
        terminals: TerminalKeeper,
        find_host: FindHost,
        start_copy: Callable[[CopyStream, int], Awaitable[None]],
    ) -> None:
        self._settings, self._token_file, self._clock = settings, token_file, clock
        self._terminals, self._find_host, self._start_copy = terminals, find_host, start_copy
        self._tasks: set[asyncio.Task[None]] = set()
        #: connections into each workload
        self._connected: Counter[WorkloadId] = Counter()

    @property
    def inside(self) -> set[WorkloadId]:
        """Workloads that connections lead into."""
        return set(self._connected)

    async def start(self, asked: StreamStart) -> None:
        """Raises SteelyardError; nothing is open then."""
        match asked.what:
            case TerminalStream(workload, offset):
                terminal = self._terminals.find(workload)

                def on_word(word: Word) -> None:
                    if word.hang_up:
                        self._terminals.hang_up(workload)
                    terminal.on_word(word)

                wanted = _Wanted(lambda stream: terminal.serve(stream, offset, self._clock), on_word)
            case CopyStream():
                wanted = await self._copy(asked.what)
            case PortStream(attempt, port, rank):
                wanted = await self._connect(await self._find_host(attempt, rank), port)
        task = asyncio.create_task(self._serve(asked.name, wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, host: ExecHost, port: int) -> _Wanted:
        wanted = await self._join(await connect_inside(host.inner_pid, port))

        async def serve(stream: Stream) -> None:
            self._connected[host.workload] += 1
            try:
                await wanted.serve(stream)
            finally:
                self._connected[host.workload] -= 1
                if not self._connected[host.workload]:
                    del self._connected[host.workload]

        return _Wanted(serve)

    async def _copy(self, what: CopyStream) -> _Wanted:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                await self._start_copy(what, theirs.fileno())
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return await self._join(ours)

    async def _join(self, connected: socket.socket) -> _Wanted:
        reader, writer = await asyncio.open_connection(sock=connected)

        async def serve(stream: Stream) -> None:
            with contextlib.suppress(OSError):  # it was reset: so is the other end, by the stream's
                await carry(stream, reader, writer)

        return _Wanted(serve)

    async def _serve(self, name: str, wanted: _Wanted) -> None:
        try:
            token = self._token_file.read_text().strip()
            stream = await dial(self._settings.api_url, PATH + name, token, self._settings.tls_cert, on_word=wanted.on_word)
        except (SteelyardError, OSError) as err:
            _log.warning("a stream could not be brought to the server: %s", err)
            return
        async with stream:
            with contextlib.suppress(StreamLost):
                await wanted.serve(stream)
