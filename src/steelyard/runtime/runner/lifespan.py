"""Did the app start up, and does it want to be told about the end? The ASGI lifespan conversation, of which startup counts as
`enter`.

An app that does not know lifespan says so by raising: before it received anything, or by treating it like HTTP. That is not a
failure. An exception after `lifespan.startup` was received, or `lifespan.startup.failed`, is one: `startup` raises
`UserCodeFailed`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from .user import UserCodeFailed, user_traceback

#: an app that looks these up in a lifespan scope or message takes it for HTTP
_HTTP_FIELDS = frozenset(
    {"method", "path", "raw_path", "headers", "query_string", "body", "more_body", "client", "server", "scheme", "http_version"}
)


class _NotLifespan(Exception):
    """The app sent something that is no lifespan message."""


class Lifespan:
    """`state` is the dict that the app may fill at startup and finds (as a copy) in every scope."""

    def __init__(self, app: Any, state: dict[str, Any]) -> None:
        self.state = state
        self._app = app
        self._received: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._received.put_nowait({"type": "lifespan.startup"})
        self._startup_seen = False
        self._failed: str | None = None
        self._answered = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: the app answered startup: it takes part
        self.supported = False

    async def startup(self) -> None:
        """Returns when the app is ready or has shown that it knows no lifespan."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._answered.wait()
        if self._failed is not None:
            raise UserCodeFailed(self._failed)

    async def shutdown(self) -> None:
        """Returns when the app has ended. What it raises is logged: the replica leaves anyway."""
        if not self.supported or self._task is None or self._task.done():
            return
        self._answered.clear()
        self._received.put_nowait({"type": "lifespan.shutdown"})
        await self._answered.wait()
        if self._failed is not None:
            logging.getLogger("uvicorn.error").error("lifespan shutdown failed:\n%s", self._failed)

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as err:
            if (self._startup_seen or self.supported) and not _takes_it_for_http(err):
                self._failed = self._failed or user_traceback(err)
        finally:
            self._answered.set()

    async def _receive(self) -> dict[str, str]:
        message = await self._received.get()
        self._startup_seen = True
        return message

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message.get("type", "")
        if kind == "lifespan.startup.complete":
            self.supported = True
        elif kind in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self._failed = message.get("message") or f"the app sent {kind}"
        elif kind != "lifespan.shutdown.complete":
            raise _NotLifespan(kind)
        self._answered.set()


def _takes_it_for_http(err: BaseException) -> bool:
    return isinstance(err, _NotLifespan) or (isinstance(err, KeyError) and not _HTTP_FIELDS.isdisjoint(err.args))
