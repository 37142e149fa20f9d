"""What stands between the HTTP server and the user's app? The gate: counts what runs, never lets more than `concurrency` run,
restores the path that the gateway stripped, stamps the first request, and asks clients to leave when this replica should.

The gateway says by header where the function's URL begins (`x-steelyard-prefix`) and when the request arrived
(`x-steelyard-start`, seconds of the wall clock with microseconds); the app never sees either.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from . import user
from .accept import Acceptor
from .page import Page

READY_PATH = "/.steelyard/ready"
#: in a request's scope: called by an app whose answer says 200 although its work failed
FAILED = "steelyard.failed"
_PREFIX = b"x-steelyard-prefix"
_START = b"x-steelyard-start"
_OURS = b"x-steelyard-"
_CLOSE = (b"connection", b"close")
_READY = (
    {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), (b"content-length", b"6")]},
    {"type": "http.response.body", "body": b"ready\n"},
)
_STARTS = ("http.response.start", "websocket.http.response.start")
_ANSWERS = ("http.response.start", "websocket.accept", "websocket.close", "websocket.http.response.start")

Send = Callable[[Any], Awaitable[None]]


class _Answer:
    """What the app sends, on its way out: a failed answer is noted, and who should leave is asked to."""

    __slots__ = ("_gate", "_send", "failed")

    def __init__(self, gate: Gate, send: Send) -> None:
        self.failed = False
        self._gate = gate
        self._send = send

    def fail(self) -> None:
        self.failed = True

    def __call__(self, message: Any) -> Awaitable[None]:
        if message["type"] in _STARTS:
            if message["status"] >= 500:
                self.failed = True
            if message["type"] == "http.response.start" and self._gate.should_close():
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
        return self._send(message)


class Gate:
    """The ASGI app that the HTTP server sees. `app` is set and `bind` called before the first request."""

    def __init__(self, concurrency: int) -> None:
        self.app: Any = None
        self.acceptor: Any = None
        self.page: Any = None
        self.concurrency = concurrency
        self.unbind()

    def bind(self, acceptor: Acceptor, page: Page, private: bool) -> None:
        """`private`: answer READY_PATH ourselves (this replica listens on a socket of its own, which the gateway doesn't
        know)."""
        self.acceptor = acceptor
        self.page = page
        self.private = private

    def unbind(self) -> None:
        """As good as new: nothing seen, nothing running."""
        self.acceptor = self.page = None
        self.private = False
        self.retiring = False
        self.busy = 0
        self.on_quiet: Callable[[], None] | None = None
        self._seen_first = False
        self._queue: deque[asyncio.Future[None]] = deque()

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        arrival = b""
        prefix = b""
        headers = scope["headers"]
        for name, value in headers:
            if name == _START:
                arrival = value
            elif name == _PREFIX:
                prefix = value
        if arrival or prefix:
            headers[:] = [header for header in headers if not header[0].startswith(_OURS)]
        if self.private and scope["path"] == READY_PATH:
            for message in _READY:
                await _Answer(self, send)(message)
            return
        if prefix and prefix != b"/":
            _mount(scope, prefix.rstrip(b"/"))
        if self.busy >= self.concurrency:
            await self._turn()
        self.busy += 1
        page = self.page
        page.busy = self.busy
        page.last_active_ns = began_ns = time.monotonic_ns()
        answer = _Answer(self, send)
        scope[FAILED] = answer.fail
        try:
            if self._seen_first:
                await self.app(scope, receive, answer)
            else:
                await self._first(scope, receive, answer, arrival)
        except Exception:
            answer.fail()
            raise
        finally:
            page.errors += answer.failed
            self._ended(began_ns)

    def should_close(self) -> bool:
        return self.retiring or self.acceptor.someone_waits()

    async def _first(self, scope: Any, receive: Any, answer: Send, arrival: bytes) -> None:
        """The request that woke this replica: its times go to the ledger."""
        self._seen_first = True
        page = self.page
        page.arrival_us = microseconds(arrival)
        page.accepted_ns = max(self.acceptor.first_ns, page.serving_ns)

        async def stamped(message: Any) -> None:
            await answer(message)
            if not page.first_byte_ns and message["type"] in _ANSWERS:
                self._stamp()

        try:
            await self.app(scope, receive, stamped)
        finally:
            if not page.first_byte_ns:  # it raised, and the server answers 500 now
                self._stamp()

    def _stamp(self) -> None:
        phases = user.recorded_phases()
        user.stop_recording()
        if phases:
            self.page.write_phases(phases)
        self.page.first_byte_ns = time.monotonic_ns()

    async def _turn(self) -> None:
        """Wait until fewer than `concurrency` run. Only needed where requests outnumber connections: after an answer whose
        handler still works, or beside a connection that was taken in over the limit."""
        while self.busy >= self.concurrency:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._pass_on()
                raise

    def _pass_on(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _ended(self, began_ns: int) -> None:
        self.busy -= 1
        page = self.page
        page.busy = self.busy
        page.finished += 1
        page.last_active_ns = now_ns = time.monotonic_ns()
        page.service_ns += now_ns - began_ns
        if self._queue:
            self._pass_on()
        self.acceptor.answered(self.busy)
        if not self.busy and self.on_quiet is not None:
            self.on_quiet()


def _mount(scope: Any, prefix: bytes) -> None:
    """ASGI: `path` holds the whole path, of which `root_path` is the part before the app's own."""
    text = prefix.decode("latin-1")
    scope["root_path"] = text
    scope["path"] = text + scope["path"]
    scope["raw_path"] = prefix + scope["raw_path"]


def microseconds(seconds: bytes) -> int:
    """b"1700000000.123456" as an int of microseconds; 0 where that makes no sense."""
    whole, _, fraction = seconds.partition(b".")
    try:
        return int(whole) * 1_000_000 + int(fraction[:6].ljust(6, b"0"))
    except ValueError:
        return 0
