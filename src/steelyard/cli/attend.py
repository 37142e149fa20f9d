"""How does a command line attend work that runs elsewhere? It streams both outputs, forwards Ctrl-C, outlives an absent server
for a while, and ends with the work's exit code.

Used by `run` and `exec`; what they ask for differs, how they wait does not.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from steelyard.cli.output import say
from steelyard.clock import Clock
from steelyard.errors import Unreachable
from steelyard.wire.api import LogChunk

T = TypeVar("T")

#: how long a submit and a log stream outlive an absent server
AWAY_S = 120.0
#: one long poll
POLL_S = 20.0


class Patience:
    """Calls again while the server is away, for a bounded time; at once gives up where nobody is there to bring it back."""

    def __init__(self, clock: Clock, supervised: Callable[[], bool]) -> None:
        self._clock = clock
        self._supervised = supervised
        self._pause = threading.Event()

    def call(self, attempt: Callable[[], T], what: str) -> T:
        deadline_ns: int | None = None
        while True:
            try:
                return attempt()
            except Unreachable as err:
                if deadline_ns is None:
                    deadline_ns = self._clock.mono_ns() + int(AWAY_S * 1e9)
                    if self._supervised():
                        say(f"steelyard: the server is away; {what} goes on when it is back")
                if not self._supervised() or self._clock.mono_ns() > deadline_ns:
                    raise err
                self._pause.wait(0.1)


class Interrupts:
    """Turns the first SIGINT or SIGTERM into that signal for the work and the second into SIGKILL. Only a wait is broken off by
    it, so that no output is lost or printed twice."""

    def __init__(self) -> None:
        self.pending: list[int] = []
        self._waiting = False
        self._previous = {signum: signal.signal(signum, self._note) for signum in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.pending.append(signum)
        if self._waiting:
            raise KeyboardInterrupt

    def wait_for(self, blocking: Callable[[], T]) -> T | None:
        """The result, or None when a signal came first."""
        try:
            self._waiting = True
            if self.pending:
                return None
            return blocking()
        except KeyboardInterrupt:
            return None
        finally:
            self._waiting = False

    def restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)


def stream(
    patience: Patience, poll: Callable[[tuple[int, int]], LogChunk], stop: Callable[[int, int], None]
) -> tuple[LogChunk, int]:
    """Stream until it has ended. `poll` reads from both offsets, `stop` sends a signal (and is told how many came so far).
    Returns the last chunk, and the first signal that was forwarded (0: none). Raises Unreachable when the server stays away."""
    interrupts = Interrupts()
    offsets = (0, 0)
    told, first_signal = 0, 0
    try:
        while True:
            while interrupts.pending:
                signum = interrupts.pending.pop(0)
                told += 1
                first_signal = first_signal or signum
                stop(signum if told == 1 else signal.SIGKILL, told)
            chunk = interrupts.wait_for(lambda at=offsets: patience.call(lambda: poll(at), "its output"))
            if chunk is None:
                continue
            offsets = (chunk.stdout_offset, chunk.stderr_offset)
            write_chunk(chunk)
            if chunk.ended:
                return chunk, first_signal
    finally:
        interrupts.restore()


def write_chunk(chunk: LogChunk) -> None:
    """Both streams to where they belong, byte for byte."""
    for data, stream in ((chunk.stdout, sys.stdout.buffer), (chunk.stderr, sys.stderr.buffer)):
        if data:
            stream.write(data)
            stream.flush()
