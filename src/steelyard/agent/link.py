"""How does the agent talk to the server? One outbound WebSocket, reconnected for ever with a capped, jittered delay.

Sends Hello, then a Report whenever something changed and the server has taken note of the last one; receives assignments,
acknowledgements and questions. A lost connection loses nothing: the next report holds everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from steelyard.config import Settings
from steelyard.wire.agent import Answer, Ask, Assignment, Hello, Report, ReportAck, encode
from steelyard.wire.assignments import AssignmentReader
from steelyard.wire.reports import ReportWriter

log = logging.getLogger(__name__)

RETRY_MIN_S, RETRY_MAX_S = 0.05, 2.0
FRAME_MAX = 64 * 1024 * 1024
#: a wake is told after its answer: on two cores a report of a thousand functions, and what the server makes of it, delays it
LATER_S = 0.03
#: at most that long changes gather for the next report until the server has taken note of the one before
ACK_WAIT_S = 0.25


class Link:
    """`make_report(seq)` is asked for the newest truth each time a report can leave."""

    def __init__(
        self,
        settings: Settings,
        token_file: Path,
        hello: Hello,
        make_report: Callable[[int], Report],
        on_assignment: Callable[[Assignment], None],
        on_ack: Callable[[int], None],
        on_ask: Callable[[Ask], Awaitable[Answer]],
    ) -> None:
        self._settings, self._token_file, self._hello = settings, token_file, hello
        self._make_report, self._on_assignment = make_report, on_assignment
        self._on_ack, self._on_ask = on_ack, on_ask
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._seq = 0
        #: the server has taken note of the newest report
        self._noted = asyncio.Event()
        self.connected = False

    def poke(self) -> None:
        """Something changed; report soon. Several pokes make one report."""
        self._changed.set()

    def poke_later(self) -> None:
        """The same, when whoever just woke or was started has the cores no more; or with the next report, if that is sooner."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATER_S, self._poke_now)

    def _poke_now(self) -> None:
        self._timer = None
        self.poke()

    async def run(self) -> None:
        """Until cancelled."""
        delay_s = RETRY_MIN_S
        scheme = "wss" if self._settings.tls_cert else "ws"
        uri = f"{scheme}://{self._settings.api_host}:{self._settings.api_port}/v1/agent"
        tls = ssl.create_default_context(cafile=self._settings.tls_cert) if self._settings.tls_cert else None
        while True:
            try:
                headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}
                async with connect(
                    uri, additional_headers=headers, ssl=tls, max_size=FRAME_MAX, compression=None, open_timeout=5, proxy=None
                ) as socket:
                    self.connected = True
                    delay_s = RETRY_MIN_S
                    await self._converse(socket)
            except (OSError, TimeoutError, InvalidHandshake, WebSocketException, msgspec.MsgspecError) as err:
                log.info("no connection to the server: %s", err)
            finally:
                self.connected = False
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(RETRY_MAX_S, delay_s * 2)

    async def _converse(self, socket: ClientConnection) -> None:
        await socket.send(encode(self._hello))
        self._changed.set()
        # Not a TaskGroup: it would wrap the connection's end into an exception group.
        tasks = {asyncio.create_task(self._send_reports(socket))}
        reader = AssignmentReader()
        try:
            async for frame in socket:
                if isinstance(frame, bytes):
                    self._receive(socket, tasks, reader.decode(frame))
        finally:
            for task in tasks:
                task.cancel()

    async def _send_reports(self, socket: ClientConnection) -> None:
        writer = ReportWriter()
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._timer is not None:  # this report tells of that too
                self._timer.cancel()
                self._timer = None
            self._noted.clear()
            self._seq += 1
            try:
                await socket.send(writer.encode(self._make_report(self._seq)))
            except WebSocketException:
                return  # the reader sees the same end and reconnects
            # A report tells everything: one that came before this one was read would only be read in its place.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ACK_WAIT_S):
                    await self._noted.wait()

    def _receive(self, socket: ClientConnection, tasks: set[asyncio.Task[None]], frame: Assignment | ReportAck | Ask) -> None:
        match frame:
            case Assignment() as assignment:
                self._on_assignment(assignment)
            case ReportAck(seq):
                self._on_ack(seq)
                if seq == self._seq:
                    self._noted.set()
            case Ask() as ask:
                task = asyncio.create_task(self._answer(socket, ask))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    async def _answer(self, socket: ClientConnection, ask: Ask) -> None:
        try:
            answer = await self._on_ask(ask)
        except OSError as err:
            answer = Answer(id=ask.id, error=f"The agent could not read it: {err}.")
        with contextlib.suppress(WebSocketException):  # the server asks again on its next connection
            await socket.send(encode(answer))
