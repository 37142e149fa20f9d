"""Is the agent there, and what does it say? The server's end of the agent's WebSocket; the only place that knows the connection.

One agent at a time: the one that connects last wins, the one before is closed. Whoever connects gets the newest assignment at
once. Nothing here decides: reports go to `control/reports.py`, assignments come from `control/assignment.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from steelyard.api.views import AGENT_LOST_S
from steelyard.clock import Clock
from steelyard.control import ASSIGNMENT, JOBS, REPORTS
from steelyard.control.reports import greet
from steelyard.errors import SteelyardError, Unreachable
from steelyard.store import Store
from steelyard.wire import WIRE_VERSION
from steelyard.wire.agent import Answer, Ask, Assignment, Hello, Report, ReportAck, encode
from steelyard.wire.reports import FrameReader

_log = logging.getLogger("steelyard.agents")

#: an agent that does not answer a question for this long is treated as silent
ASK_TIMEOUT_S = 5.0
HELLO_TIMEOUT_S = 10.0
#: questions an agent may have open; more means that it is stuck
ASKS_MAX = 1024
#: close codes: RFC 6455, and the private range
_BAD_FRAME, _RESTARTING, _REPLACED, _BAD_VERSION = 1007, 1012, 4001, 4002


class Socket(Protocol):
    """What is needed of a WebSocket. Raises ConnectionError when the peer is gone."""

    async def receive_bytes(self) -> bytes:
        """The next frame; empty for a text frame, which nothing of ours sends."""
        ...

    async def send_bytes(self, data: bytes) -> None: ...
    async def close(self, code: int) -> None: ...


class _Connection:
    """Outgoing frames of one agent, in order; of assignments only the newest."""

    def __init__(self) -> None:
        #: the report that the loop took last
        self.applying: Report | None = None
        self.closing: int | None = None
        self.asked: dict[int, asyncio.Future[Answer]] = {}
        self._frames: deque[bytes] = deque()
        self._assignment: Assignment | None = None
        self._wanted = asyncio.Event()

    def push(self, frame: ReportAck | Ask) -> None:
        self._frames.append(encode(frame))
        self._wanted.set()

    def offer(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._wanted.set()

    def shut(self, code: int) -> None:
        self.closing = code
        self._wanted.set()

    async def write(self, socket: Socket) -> None:
        """Until `shut`: returns then, so that the reader is ended too."""
        while self.closing is None:
            if self._assignment is not None:
                frame, self._assignment = encode(self._assignment), None
            elif self._frames:
                frame = self._frames.popleft()
            else:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            await socket.send_bytes(frame)


class AgentHub:
    """Implements `control.AgentLink`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._poke: Callable[..., None] = lambda *names: None
        self._connection: _Connection | None = None
        self._assignment: Assignment | None = None
        self._report: Report | None = None
        self._ask_id = 0
        self._stopping = False
        self._silent_since_ns = clock.mono_ns()

    def attach(self, poke: Callable[..., None]) -> None:
        """Whom to poke when the agent spoke (the driver's loops need the hub first)."""
        self._poke = poke

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def lost(self) -> bool:
        """Silent for so long that its last word is no longer shown as the state of functions."""
        return not self.connected and self._clock.mono_ns() - self._silent_since_ns > AGENT_LOST_S * 1e9

    def newest_report(self) -> Report | None:
        if self._connection is not None:
            self._connection.applying = self._report
        return self._report

    def acknowledge(self, report: Report) -> None:
        if self._report is report:
            self._report = None
        # numbers belong to one connection: an agent that came back counts its own
        if self._connection is not None and self._connection.applying is report:
            self._connection.push(ReportAck(report.seq))

    def offer(self, assignment: Assignment) -> None:
        self._assignment = assignment
        if self._connection is not None:
            self._connection.offer(assignment)

    def holds(self, assignment: Assignment) -> bool:
        return self._assignment is assignment

    def names_secret(self, owner: str, name: str) -> bool:
        """Does what the agent was told last name it, for work of that owner?"""
        return self._assignment is not None and any((each.owner, each.name) == (owner, name) for each in self._assignment.secrets)

    async def ask(
        self, what: str, workload: str, stream: str = "stdout", offset: int = 0, body: bytes = b"", margin: int = 0
    ) -> Answer:
        """Raises Unreachable when no agent is there or it does not answer in time."""
        connection = self._connection
        if connection is None:
            raise Unreachable("The machine's agent is not connected; it knows the answer. Try again.", code="agent-unreachable")
        if len(connection.asked) >= ASKS_MAX:
            raise Unreachable("The machine's agent has too many questions open. Try again.", code="agent-busy")
        self._ask_id += 1
        question = Ask(self._ask_id, what, workload, stream, offset, body=body, margin=margin)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        connection.asked[question.id] = future
        connection.push(question)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await future
        except TimeoutError as err:
            raise Unreachable("The machine's agent did not answer in time. Try again.", code="agent-unreachable") from err
        finally:
            connection.asked.pop(question.id, None)

    def stop(self) -> None:
        """The server ends: agents are told to come back, and none is let in any more."""
        self._stopping = True
        if self._connection is not None:
            self._connection.shut(_RESTARTING)

    async def serve(self, socket: Socket) -> None:
        """One accepted connection, until it ends. Never raises for what the peer does."""
        try:
            hello = await self._receive_hello(socket)
        except (TimeoutError, ConnectionError, msgspec.MsgspecError) as err:
            _log.warning("an agent did not say hello: %s", err)
            await _close(socket, _BAD_FRAME)
            return
        if not WIRE_VERSION - 1 <= hello.wire_version <= WIRE_VERSION + 1:
            _log.error("an agent speaks wire version %d, this server %d", hello.wire_version, WIRE_VERSION)
            await _close(socket, _BAD_VERSION)
            return
        try:
            restarted = await greet(self._store, hello.machine, self._clock.now_us())
        except SteelyardError as err:
            _log.error("an agent could not be greeted: %s %s", err.public, err.detail)
            # it may be stored all the same, and the next hello says nothing new then
            self._assignment = None
            await _close(socket, _RESTARTING)
            return
        if restarted:
            _log.warning("machine %s restarted", hello.machine.id)
            # what was assigned before may name attempts that the machine's first report gives up
            self._assignment = None
        await self._hold(socket)

    async def _hold(self, socket: Socket) -> None:
        if self._stopping:
            await _close(socket, _RESTARTING)
            return
        if self._connection is not None:
            self._connection.shut(_REPLACED)
        connection = self._connection = _Connection()
        # a report of an earlier connection was complete then; the next one of this is newer
        self._report = None
        if self._assignment is not None:
            connection.offer(self._assignment)
        self._poke(JOBS, ASSIGNMENT)
        reader = asyncio.create_task(self._read(socket, connection))
        writer = asyncio.create_task(connection.write(socket))
        try:
            done, _ = await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                err = task.exception()
                if isinstance(err, msgspec.MsgspecError):
                    _log.error("the agent sent a frame that can't be read: %s", err)
                    connection.closing = _BAD_FRAME
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            for future in connection.asked.values():
                if not future.done():
                    future.set_exception(Unreachable("The machine's agent went away. Try again.", code="agent-unreachable"))
            if self._connection is connection:
                self._connection = None
                self._silent_since_ns = self._clock.mono_ns()
            if connection.closing is not None:
                await _close(socket, connection.closing)

    async def _receive_hello(self, socket: Socket) -> Hello:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            frame = FrameReader().decode(await socket.receive_bytes())
        if not isinstance(frame, Hello):
            raise msgspec.ValidationError("the first frame is not a Hello")
        return frame

    async def _read(self, socket: Socket, connection: _Connection) -> None:
        reader = FrameReader()
        while True:
            frame = reader.decode(await socket.receive_bytes())
            if self._connection is not connection:
                return
            match frame:
                case Report():
                    self._report = frame
                    self._poke(REPORTS)
                case Answer():
                    future = connection.asked.get(frame.id)
                    if future is not None and not future.done():
                        future.set_result(frame)
                case Hello():
                    raise msgspec.ValidationError("a second Hello")


async def _close(socket: Socket, code: int) -> None:
    # the peer may be gone already, which is what closing wants
    with contextlib.suppress(Exception):
        await socket.close(code)
