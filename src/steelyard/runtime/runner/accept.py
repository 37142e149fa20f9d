"""Which waiting connections does this replica take, and when? All replicas of a function accept from one listening socket.

A replica holds at most `limit` connections, so what it can't serve now stays in the kernel's backlog for the others. A
connection whose peer is gone already is closed without a handler ever seeing it. One exception to the limit keeps a request
from being stranded: when every slot is held by connections of which some are idle, and one that came too late to be announced
by `Connection: close` is still waiting RESCUE_S after the last answer, it is taken in although it is one too many (the gate
bounds what runs, see gate.py). Closing an idle connection instead would race with a request on its way through it.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from .page import Page

RESCUE_S = 0.005
#: pause after the process ran out of descriptors or memory, instead of spinning on a readable socket
SHORTAGE_S = 0.1
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


def accept_living(listener: socket.socket) -> tuple[bool, socket.socket | None]:
    """(whether something was in the backlog, the connection). No connection for one whose peer has gone already: it is closed
    unread. OSError when the process is short of descriptors or memory."""
    try:
        connection, _ = listener.accept()
    except (BlockingIOError, InterruptedError):
        return False, None
    except ConnectionAbortedError:
        return True, None
    peer = select.poll()
    peer.register(connection, _GONE)
    if peer.poll(0):
        connection.close()
        return True, None
    return True, connection


class Acceptor:
    """`make_protocol` makes the asyncio protocol of one connection; it must call `closed` once when that is lost."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, limit: int, page: Page, make_protocol: Callable[[], Any]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._limit = limit
        self._page = page
        self._make_protocol = make_protocol
        self._waiting = select.poll()
        self._waiting.register(listener, select.POLLIN)
        self._watching = False
        self._rescue: asyncio.TimerHandle | None = None
        self._openings: set[asyncio.Task[Any]] = set()
        self._open = True
        self.connections = 0
        #: CLOCK_MONOTONIC of the first connection taken
        self.first_ns = 0
        #: called at zero connections
        self.on_quiet: Callable[[], None] | None = None

    def start(self) -> None:
        """Take what waits now, then watch."""
        self._take()

    def stop(self) -> None:
        """Take nothing any more; open connections go on."""
        self._open = False
        self._watch(False)
        if self._rescue is not None:
            self._rescue.cancel()
        self._listener.close()

    def someone_waits(self) -> bool:
        """At the limit while the backlog holds a connection: the next answer should close its own."""
        return self.connections >= self._limit and bool(self._waiting.poll(0))

    def answered(self, busy: int) -> None:
        """A request has ended, `busy` are left: if all slots are held and some idle, look again in a moment."""
        if self._open and self._rescue is None and self.connections >= self._limit and busy < self._limit:
            self._rescue = self._loop.call_later(RESCUE_S, self._take_stranded)

    def closed(self) -> None:
        """A connection is lost. Called exactly once per connection."""
        self.connections -= 1
        self._page.connections = self.connections
        if self._open:
            if not self._watching and self.connections < self._limit:
                self._take()
        elif self.connections == 0 and self.on_quiet is not None:
            self.on_quiet()

    def _take(self) -> None:
        while self._open and self.connections < self._limit:
            if not self._accept():
                break
        self._watch(self._open and self.connections < self._limit)

    def _take_stranded(self) -> None:
        self._rescue = None
        for _ in range(self._limit - self._page.busy):
            if not self._open or self.connections < self._limit or not self._accept():
                break

    def _watch(self, on: bool) -> None:
        if on is self._watching:
            return
        self._watching = on
        if on:
            self._loop.add_reader(self._listener.fileno(), self._take)
        else:
            self._loop.remove_reader(self._listener.fileno())

    def _accept(self) -> bool:
        """True when something was in the backlog."""
        try:
            found, connection = accept_living(self._listener)
        except OSError:
            self._watch(False)
            self._loop.call_later(SHORTAGE_S, self._take)
            return False
        if connection is None:
            return found
        self.connections += 1
        page = self._page
        page.connections = self.connections
        page.accepted += 1
        if not self.first_ns:
            self.first_ns = time.monotonic_ns()
        opening = self._loop.create_task(self._loop.connect_accepted_socket(self._make_protocol, connection))
        self._openings.add(opening)
        opening.add_done_callback(self._opened)
        return True

    def _opened(self, opening: asyncio.Task[Any]) -> None:
        self._openings.discard(opening)
        if not opening.cancelled() and opening.exception() is not None:
            self.closed()
