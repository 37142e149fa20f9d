"""How does a prepared app become a replica that answers, until it is told to retire and its last connection has ended?

`Machinery` is what can be made before the fork (classes, configuration, the gate); `Serving` binds it to one event loop, page and
listening socket and runs to the exit code. `warm_up` leads a whole such life around an app of our own and leaves nothing
open, so that a replica finds every code path and cache warm; nothing of the user's is called by it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable
from typing import Any

from . import page as pages
from . import user
from .accept import Acceptor
from .gate import Gate
from .isolate import Server
from .lifespan import Lifespan
from .page import Page

#: longer than the gateway's upstream idle timeout (5 s), so that an idle connection is never closed from this side first
KEEP_ALIVE_S = 75


class Machinery:
    """Everything that serving needs and that no loop, process or request is part of yet."""

    def __init__(self, server: Server, concurrency: int) -> None:
        self._new_event_loop = server.new_event_loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self.concurrency = concurrency
        self.acceptor: Acceptor
        self.app_state: dict[str, Any] = {}
        machinery = self

        class Http(server.http):  # type: ignore[misc,name-defined]
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                machinery.acceptor.closed()

        class WebSocket(server.websocket or object):  # type: ignore[misc,name-defined]
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                machinery.acceptor.closed()

        self.http: Any = Http
        self.gate = Gate(concurrency)
        self.config: Any = server.config(
            self.gate,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,  # the gateway sets `server` and `date`
            date_header=False,
            lifespan="off",
            interface="asgi3",
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        # what Config.load() would do by importing names, which no longer lead to our modules
        self.config.loaded_app = self.gate
        self.config.ws_protocol_class = WebSocket if server.websocket is not None else None
        self.config.loaded = True
        self.state: Any = server.state()

    def allow(self, concurrency: int) -> None:
        """How much one replica takes at once. Before it serves."""
        self.concurrency = self.gate.concurrency = concurrency

    def open_loop(self) -> None:
        """Make the loop now rather than when it is taken. Never before a fork: its descriptors would be shared."""
        self._loop = self._new_event_loop()

    def take_loop(self) -> asyncio.AbstractEventLoop:
        loop, self._loop = self._loop, None
        return loop or self._new_event_loop()


class Serving:
    """One run of the machinery. `listener` must be listening; replicas of a function share it."""

    def __init__(self, machinery: Machinery, page: Page, listener: socket.socket, private: bool) -> None:
        loop = self.loop = machinery.take_loop()
        asyncio.set_event_loop(loop)
        listener.setblocking(False)
        self.page = page
        self.gate = machinery.gate
        self._app_state = machinery.app_state
        http, config, state, app_state = machinery.http, machinery.config, machinery.state, machinery.app_state

        def make_protocol() -> Any:
            return http(config=config, server_state=state, app_state=app_state, _loop=loop)

        self.acceptor = machinery.acceptor = Acceptor(loop, listener, machinery.concurrency, page, make_protocol)
        self.gate.bind(self.acceptor, page, private)
        self.ended: asyncio.Future[None] = loop.create_future()
        self._serves = False

    def run(self, app: Any, warming: bool = False) -> int:
        """Per-replica hooks, lifespan, serving, retirement. Returns the exit code; a failed start leaves its text in the page and
        on stderr. `warming` leaves out what is not ours alone: the user's hooks, and the process's answer to SIGTERM."""
        self.gate.app = app
        if not warming:
            signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            lifespan = Lifespan(app, self._app_state)
            return self.loop.run_until_complete(self._run(lifespan, warming))
        except user.UserCodeFailed as err:
            report_failure(self.page, str(err))
            return 1
        finally:
            close_loop(self.loop)

    async def _run(self, lifespan: Lifespan, warming: bool) -> int:
        page = self.page
        if not warming:
            for pending in user.run_hooks(shared=False):
                await _awaited(pending)
        await lifespan.startup()
        if not warming:
            signal.signal(signal.SIGTERM, self._on_sigterm)  # user code may have taken it
        page.entered_ns = time.monotonic_ns()
        page.state = pages.ENTERED
        self._serves = True
        page.serving_ns = time.monotonic_ns()
        page.state = pages.SERVING
        self.acceptor.start()
        await self.ended
        await lifespan.shutdown()
        if not warming:
            await user.run_exits()
        return 0

    def retire(self) -> None:
        """Take nothing new, ask every client to leave, end when the last has left."""
        if self.gate.retiring:
            return
        self.gate.retiring = True
        self.page.state = pages.RETIRING
        self.acceptor.stop()
        self.acceptor.on_quiet = self.gate.on_quiet = self._end_if_quiet
        self._end_if_quiet()

    def _end_if_quiet(self) -> None:
        if not self.acceptor.connections and not self.gate.busy and not self.ended.done():
            self.ended.set_result(None)

    def _on_sigterm(self, *_: object) -> None:
        if self._serves:
            self.loop.call_soon_threadsafe(self.retire)
            return
        # nobody was served yet: there is nothing to finish, and a hook may hang for ever
        self.page.state = pages.RETIRING
        flush()
        os._exit(0)


async def _awaited(pending: Awaitable[Any]) -> None:
    try:
        await pending
    except BaseException as err:
        raise user.UserCodeFailed(user.user_traceback(err)) from err


def report_failure(page: Page | None, text: str) -> None:
    """The traceback goes to the log, its end to the page."""
    sys.stderr.write(text.rstrip("\n") + "\n")
    if page is not None:
        page.fail(text)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError, RuntimeError):
            continue  # closed or missing: nothing to save; or a signal came while it is flushed


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """What asyncio.run does at its end: cancel what is left, end generators and the executor, close every descriptor."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    asyncio.set_event_loop(None)
    loop.close()


def warm_up(machinery: Machinery) -> None:
    """One whole life of a replica, startup to retirement, around one request to an app of our own. Leaves no descriptor, task
    or thread."""
    page_fd = os.memfd_create("steelyard-warm-up")
    os.ftruncate(page_fd, pages.PAGE_BYTES)
    page = Page.from_fd(page_fd)
    os.close(page_fd)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")  # Linux: an abstract address nobody else knows
    listener.listen(1)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(listener.getsockname())
    client.sendall(WARM_UP_REQUEST)
    serving = Serving(machinery, page, listener, private=True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await receive()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/plain"), (b"content-length", b"2")],
            }
        )
        await send({"type": "http.response.body", "body": b"ok"})
        serving.loop.call_soon(client.close)
        serving.loop.call_soon(serving.retire)

    try:
        if serving.run(app, warming=True) != 0:
            raise RuntimeError(f"the warm-up request failed: {page.error}")
    finally:
        client.close()
        listener.close()
        serving.gate.unbind()
        machinery.app_state.clear()
        user.forget_phases()
        page.close()


WARM_UP_REQUEST = (
    b"POST /warm%20up?a=b HTTP/1.1\r\nhost: warm-up\r\nx-steelyard-start: 1700000000.000001\r\nx-steelyard-prefix: /warm-up\r\n"
    b"user-agent: steelyard\r\naccept: */*\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nhi"
)
