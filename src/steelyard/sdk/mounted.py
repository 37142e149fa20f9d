"""How does a function give a whole web app? `@sy.asgi_app` and `@sy.wsgi_app`: it is called once, and what it returns is served;
`@sy.web_server`: it is called once, and starts something that opens the port.

It is called in the template, after what `@sy.enter(shared=True)` loaded; where something has an `@sy.enter` for each replica, in
the replica after that, since the app may need it. A WSGI app runs in threads, of which only replicas have any.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from steelyard.sdk.errors import DeclarationError


class Server:
    """A function that starts a server of its own, which the relay stands before."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self.start = start


class Mounted:
    """An ASGI app that comes to be when `make` is called, before the first request."""

    def __init__(self, function: Callable[..., Any], label: str, kind: str, threads: int) -> None:
        if inspect.iscoroutinefunction(function):
            raise DeclarationError(f"{label} is a coroutine function; what returns an app is a plain one.")
        self._function = function
        self._label = label
        self._kind = kind
        self._threads = threads
        self.app: Any = None

    def make(self) -> None:
        app = self._function()
        self.app = self._wrap(app) if self._kind == "wsgi" else self._check(app, 3, "asgi", "wsgi")

    async def make_here(self) -> None:
        """In a replica: a coroutine, so that those of `@sy.enter` come before it."""
        self.make()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    def _wrap(self, app: Any) -> Any:
        from a2wsgi import WSGIMiddleware  # beside the runner, or the environment's own

        return WSGIMiddleware(self._check(app, 2, "wsgi", "asgi"), workers=self._threads)

    def _check(self, app: Any, count: int, kind: str, other: str) -> Any:
        """DeclarationError for what can't be called as an app of that kind."""
        if not callable(app):
            raise DeclarationError(f"{self._label} returned {type(app).__name__}, which is no {kind.upper()} app.")
        if not _takes(app, count):
            hint = f" Decorate it with @sy.{other}_app." if _takes(app, 5 - count) else ""
            raise DeclarationError(f"{self._label} returned what can't be called as {kind.upper()} app.{hint}")
        return app


def _takes(app: Any, count: int) -> bool:
    try:
        inspect.signature(app).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return True  # compiled code that doesn't tell
    return True
