"""Who waits for news of which object? Wakes long polls after a commit; carries no content: a waiter always reads the store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """Subjects are strings such as `job/j-000001`. Used from one event loop only."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        #: set when the server stops: every long poll answers what it has
        self.stopping = False

    def notify(self, subject: str) -> None:
        for event in self._waiting.get(subject, ()):
            event.set()

    def stop(self) -> None:
        self.stopping = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    @contextmanager
    def subscribe(self, subject: str) -> Iterator[asyncio.Event]:
        """Subscribe, then read, then wait: whatever is committed after the reading sets the event."""
        event = asyncio.Event()
        self._waiting.setdefault(subject, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[subject]
            events.discard(event)
            if not events:
                del self._waiting[subject]


async def wait_for(event: asyncio.Event, wait_s: float) -> bool:
    """True when the event came, False when the time was over. Clears the event."""
    try:
        async with asyncio.timeout(wait_s):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
