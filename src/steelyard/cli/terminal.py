"""How does a person's terminal become that of a program elsewhere? Keys go there as they are, output comes back as it is, the
window's size is followed; and whatever happens, the terminal is put back as it was.

Outlives an absent server for a while, as everything that attends work does: what was written meanwhile is shown when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator

from steelyard.cli.escape import Escape
from steelyard.cli.output import say
from steelyard.cli.patience import AWAY_S, Patience
from steelyard.clock import Clock
from steelyard.errors import Refused, Unreachable
from steelyard.model.job import Terminal
from steelyard.wire.streams import FRAME_BYTES, Stream, StreamLost, Word

RETRY_S = 0.2
#: opens a stream, from an offset on
Open = Callable[[int], Awaitable[Stream]]


def observe_terminal() -> Terminal:
    """The one that the command was started in. Raises Refused where it is none."""
    for name, stream in (("input", sys.stdin), ("output", sys.stdout)):
        if not stream.isatty():
            raise Refused(f"Standard {name} is no terminal, so there is none to give. Nothing was started.", code="no-terminal")
    rows, columns = _window()
    return Terminal(rows, columns, os.environ.get("TERM") or "xterm")


def _window() -> tuple[int, int]:
    try:
        rows, columns = termios.tcgetwinsize(sys.stdout.fileno())
    except (OSError, termios.error):
        return 24, 80
    return rows or 24, columns or 80


def attend_terminal(open_stream: Open, patience: Patience, clock: Clock) -> bool:
    """Until the program has ended; False when the person hung up. Raises SteelyardError. The terminal is as before then."""
    with _raw(sys.stdin.fileno()):
        return asyncio.run(_Session(open_stream, patience.supervised, clock).run())


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead is kept
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _Session:
    def __init__(self, open_stream: Open, supervised: Callable[[], bool], clock: Clock) -> None:
        self._open_stream, self._supervised, self._clock = open_stream, supervised, clock
        self._stream: Stream | None = None
        self._typed: asyncio.Queue[bytes] = asyncio.Queue()
        self._escape = Escape()
        self._hung_up = asyncio.Event()
        self._shown = 0

    async def run(self) -> bool:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._read_keys)
        loop.add_signal_handler(signal.SIGWINCH, self._resize)
        # a terminal that goes, or whoever ends us, hangs up
        for signum in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._hung_up.set)
        tasks = [asyncio.create_task(self._show()), asyncio.create_task(self._hung_up.wait()), asyncio.create_task(self._type())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if self._hung_up.is_set() and self._stream is not None:
                with contextlib.suppress(StreamLost):
                    await self._stream.tell(Word(hang_up=True))
            return not self._hung_up.is_set()
        finally:
            loop.remove_reader(sys.stdin.fileno())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._stream is not None:
                await self._stream.close()

    def _read_keys(self) -> None:
        try:
            typed = os.read(sys.stdin.fileno(), FRAME_BYTES)
        except OSError:
            typed = b""
        passed, over = self._escape.feed(typed)
        if passed:
            self._typed.put_nowait(passed)
        if over or not typed:
            self._hung_up.set()

    def _resize(self) -> None:
        if self._stream is not None:
            task = asyncio.ensure_future(self._tell_window(self._stream))
            task.add_done_callback(lambda _: None)

    async def _tell_window(self, stream: Stream) -> None:
        with contextlib.suppress(StreamLost):
            await stream.tell(Word(window=_window()))

    async def _type(self) -> None:
        while True:
            typed = await self._typed.get()
            with contextlib.suppress(StreamLost):
                if self._stream is not None:
                    await self._stream.send(typed)

    async def _show(self) -> None:
        """Ends when the program's output has."""
        while True:
            self._stream = stream = await self._come_back()
            await self._tell_window(stream)
            try:
                while (data := await stream.receive()) is not None:
                    _write(data)
                    self._shown += len(data)
                return
            except StreamLost:
                self._stream = None
                await stream.close()

    async def _come_back(self) -> Stream:
        deadline_ns: int | None = None
        while True:
            try:
                return await self._open_stream(self._shown)
            except Unreachable:
                if deadline_ns is None:
                    deadline_ns = self._clock.mono_ns() + int(AWAY_S * 1e9)
                    if self._supervised():
                        say("\r\nsteelyard: the server is away; the terminal goes on when it is back (~. hangs up)\r")
                if not self._supervised() or self._clock.mono_ns() > deadline_ns:
                    raise
                await asyncio.sleep(RETRY_S)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]
