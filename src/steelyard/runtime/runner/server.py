"""How does a function that starts a server of its own (`@sy.web_server`) become a program behind the relay?

Imports the user's module, runs the `@sy.enter` hooks, calls the function, and stays: until SIGTERM, or until the processes that
it started have ended. The relay sees the port open, and ends us by SIGTERM when the last connection is gone.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from collections.abc import Awaitable
from typing import Any

from . import user
from .grow import load_app
from .serve import report_failure


class _Asked(BaseException):
    """SIGTERM. No `except Exception` of the user's may keep it."""


def run_server(config: dict[str, Any]) -> int:
    """The exit code: 0 when it was asked to end."""
    sys.path.append(config["lib_dir"])
    signal.signal(signal.SIGTERM, _be_asked)
    started = False
    try:
        app = load_app(config)
        user.run_hooks(shared=True)
        for pending in user.run_hooks(shared=False):
            asyncio.run(_wait_for(pending))
        started = True
        _call(app.web.start)
        return _stay()
    except _Asked:
        return 0
    except user.UserCodeFailed as err:
        report_failure(None, str(err))
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if started:
            asyncio.run(user.run_exits())


def _be_asked(*_: object) -> None:
    raise _Asked


async def _wait_for(pending: Awaitable[Any]) -> None:
    await pending


def _call(start: Any) -> None:
    try:
        result = start()
        if inspect.isawaitable(result):
            asyncio.run(_wait_for(result))
    except _Asked:
        raise
    except BaseException as err:
        raise user.UserCodeFailed(user.user_traceback(err)) from err


def _stay() -> int:
    """A server in threads of ours is there as long as we are; one in child processes as long as they are."""
    had_children = False
    while True:
        try:
            os.waitpid(-1, 0)
            had_children = True
        except ChildProcessError:
            break
    if had_children:
        sys.stderr.write("the processes that the function had started have ended\n")
        return 1
    while True:
        signal.pause()
