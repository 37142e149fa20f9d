"""How are many logs shown as one? Each line whole, behind the name of the rank or array element that wrote it.

A bounded number of threads ask; one, the caller's, writes, so that lines never mix. Where only one log is shown nothing of this
is used: `attend.py` passes bytes on as they are.
"""

from __future__ import annotations

import queue
import re
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import click

from steelyard.cli.attend import POLL_S, START, Cursor, cursor_after
from steelyard.wire.api import LogChunk

#: logs that are asked for at the same time
WORKERS_MAX = 32
#: one poll where more logs are open than that: they take turns
TURN_S = 0.2
#: a longer line is shown in pieces
LINE_MAX = 1 << 16

#: a lone carriage return ends a line too: progress bars would never come to an end otherwise
_LINE_END = re.compile(rb"\r\n|\n|\r")
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")


@dataclass(frozen=True)
class Stream:
    """`poll` reads on from a cursor, and waits that long (seconds) for something to come."""

    #: a rank, the index of an array's element, or both: "3", "12.3"; or a function of an app
    label: str
    poll: Callable[[Cursor, float], LogChunk]


class Lines:
    """Cuts bytes into lines, whatever the pieces in which they come. Lines are without their ends."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        text = self._rest + data
        # what stands at the very end may be the first half of \r\n
        held = b"\r" if text.endswith(b"\r") else b""
        *whole, rest = _LINE_END.split(text[: len(text) - len(held)])
        while len(rest) >= LINE_MAX:
            whole.append(rest[:LINE_MAX])
            rest = rest[LINE_MAX:]
        self._rest = rest + held
        return whole

    def finish(self) -> list[bytes]:
        """What stands without an end."""
        rest, self._rest = self._rest, b""
        return [rest.removesuffix(b"\r")] if rest else []


class Printer:
    """Writes lines behind `[label] `: stdout to stdout, stderr to stderr. Coloured and aligned on a terminal; not in a pipe,
    where `grep '^\\[3] '` finds what rank 3 wrote. `width`: of the longest label."""

    def __init__(self, width: int, stdout: BinaryIO | None = None, stderr: BinaryIO | None = None) -> None:
        self._width = width
        self._sinks = (stdout or sys.stdout.buffer, stderr or sys.stderr.buffer)
        self._open: dict[str, tuple[Lines, Lines]] = {}
        self._attempts: dict[str, int] = {}

    def write(self, label: str, chunk: LogChunk) -> None:
        cutters = self._open.setdefault(label, (Lines(), Lines()))
        over = chunk.ended or chunk.attempt != self._attempts.setdefault(label, chunk.attempt)
        self._attempts[label] = chunk.attempt
        for cutter, data, sink in zip(cutters, (chunk.stdout, chunk.stderr), self._sinks, strict=True):
            # a new attempt begins on a line of its own
            lines = [*([] if chunk.ended or not over else cutter.finish()), *cutter.feed(data)]
            lines += cutter.finish() if chunk.ended else []
            self._show(label, lines, sink)

    def finish(self) -> None:
        """What stands without an end, of logs that go on."""
        for label, cutters in self._open.items():
            for cutter, sink in zip(cutters, self._sinks, strict=True):
                self._show(label, cutter.finish(), sink)

    def _show(self, label: str, lines: list[bytes], sink: BinaryIO) -> None:
        if lines:
            prefix = self._prefix(label, sink.isatty())
            sink.write(b"".join(prefix + line + b"\n" for line in lines))
            sink.flush()

    def _prefix(self, label: str, person: bool) -> bytes:
        if not person:
            return f"[{label}] ".encode()
        first = label.partition(".")[0]
        colour = _COLOURS[(int(first) if first.isdigit() else zlib.crc32(first.encode())) % len(_COLOURS)]
        return click.style(f"[{label}]".ljust(self._width + 2) + " ", fg=colour).encode()


class Followers:
    """Asks for many logs on a few threads. `wait` for news, then `take` it; both on one thread."""

    def __init__(self, workers_max: int = WORKERS_MAX) -> None:
        self._workers_max = workers_max
        self._workers = 0
        self._todo: queue.SimpleQueue[tuple[Stream, Cursor]] = queue.SimpleQueue()
        self._came: deque[tuple[Stream, LogChunk | Exception]] = deque()
        self._news = threading.Event()
        #: logs that have not ended
        self.open = 0

    def add(self, stream: Stream, begin: Cursor = START) -> None:
        self.open += 1
        self._todo.put((stream, begin))
        if self._workers < min(self.open, self._workers_max):
            self._workers += 1
            # a poll that hangs must not keep the command from ending
            threading.Thread(target=self._ask, name=f"log-{self._workers}", daemon=True).start()

    def wait(self, wait_s: float) -> bool:
        """True when something came. May be broken off by a signal handler that raises: nothing is lost."""
        return self._news.wait(wait_s)

    def poke(self) -> None:
        """End a `wait` though nothing came."""
        self._news.set()

    def take(self) -> list[tuple[Stream, LogChunk]]:
        """What came. Logs that have not ended are asked for again. Raises what asking raised."""
        self._news.clear()
        taken: list[tuple[Stream, LogChunk]] = []
        while self._came:
            stream, came = self._came.popleft()
            if isinstance(came, Exception):
                raise came
            taken.append((stream, came))
            if came.ended:
                self.open -= 1
            else:
                self._todo.put((stream, cursor_after(came)))
        return taken

    def _ask(self) -> None:
        while True:
            stream, cursor = self._todo.get()
            came: LogChunk | Exception
            try:
                came = stream.poll(cursor, POLL_S if self.open <= self._workers_max else TURN_S)
            except Exception as err:
                # told to whoever takes; nobody hears it here
                came = err
            self._came.append((stream, came))
            self._news.set()
