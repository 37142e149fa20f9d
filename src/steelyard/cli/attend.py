"""How does a command line attend work that runs elsewhere? It streams both outputs, forwards Ctrl-C, outlives an absent server
for a while, and ends with the work's exit code.

Used by `run`, `attach` and `exec`; what they ask for differs, how they wait does not. Many logs at once are `follow.py`'s.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple, TypeVar

from steelyard.cli.patience import Patience
from steelyard.wire.api import LogChunk

T = TypeVar("T")

#: one long poll
POLL_S = 20.0


class Detached(Exception):
    """The person let go of work that goes on. Never leaves `cli`."""


class Cursor(NamedTuple):
    """How far a log has been read: in which attempt's, and up to where in each stream."""

    attempt: int = 0
    stdout: int = 0
    stderr: int = 0

    @property
    def params(self) -> dict[str, int]:
        return {"attempt": self.attempt, "stdout_offset": self.stdout, "stderr_offset": self.stderr}


#: the start of the newest attempt's log and of the first one's, and the end wherever that is
START, FIRST, END = Cursor(), Cursor(1), Cursor(0, 2**62, 2**62)


def cursor_after(chunk: LogChunk) -> Cursor:
    return Cursor(chunk.attempt, chunk.stdout_offset, chunk.stderr_offset)


class Interrupts:
    """Turns the first SIGINT or SIGTERM into that signal for the work and the second into SIGKILL; with `leave`, SIGQUIT (Ctrl-\\
    on a terminal) into Detached. Only a wait is broken off by it, so that no output is lost or printed twice. `stop` sends a
    signal, and is told how many came so far. In force until `restore`.

    What is waited for runs on a thread beside, and this one reads a pipe into which the kernel's signal handler writes: a signal
    that arrives between Python's last look at signals and the system call that waits is lost on whoever waits in that call."""

    def __init__(self, stop: Callable[[int, int], None], leave: bool = False) -> None:
        self.pending: list[int] = []
        #: that was forwarded first; 0: none
        self.first_signal = 0
        self._stop = stop
        self._told = 0
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        caught = (signal.SIGINT, signal.SIGTERM, *((signal.SIGQUIT,) if leave else ()))
        self._previous = {signum: signal.signal(signum, self._note) for signum in caught}
        self._previous_fd = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def forward(self) -> None:
        """Hand on what came. Raises Detached."""
        while self.pending:
            signum = self.pending.pop(0)
            if signum == signal.SIGQUIT:
                raise Detached
            self._told += 1
            self.first_signal = self.first_signal or signum
            self._stop(signum if self._told == 1 else signal.SIGKILL, self._told)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.pending.append(signum)

    def wait_for(self, blocking: Callable[[], T]) -> T | None:
        """The result, or None when a signal came first: then nobody learns any more what `blocking` returns."""
        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(blocking())
            except BaseException as err:
                errors.append(err)
            with contextlib.suppress(OSError):  # full, or closed: nobody needs to be woken
                self._wake.send(b"\0")

        threading.Thread(target=work, daemon=True).start()
        while not (results or errors or self.pending):
            self._woken.recv(512)
        if errors:
            raise errors[0]
        return results[0] if results else None

    def restore(self) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._woken.close()
        self._wake.close()


def stream(patience: Patience, poll: Callable[[Cursor], LogChunk], interrupts: Interrupts, begin: Cursor = START) -> LogChunk:
    """Stream until it has ended; the last chunk. `poll` reads on from a cursor. Raises Unreachable when the server stays away,
    and Detached where `interrupts` know of leaving."""
    cursor = begin
    while True:
        interrupts.forward()
        chunk = interrupts.wait_for(lambda at=cursor: patience.call(lambda: poll(at), "its output"))
        if chunk is not None:
            cursor = cursor_after(chunk)
            write_chunk(chunk)
            if chunk.ended:
                return chunk


def write_chunk(chunk: LogChunk) -> None:
    """Both streams to where they belong, byte for byte."""
    for data, stream in ((chunk.stdout, sys.stdout.buffer), (chunk.stderr, sys.stderr.buffer)):
        if data:
            stream.write(data)
            stream.flush()
