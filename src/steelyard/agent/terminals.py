"""Which workloads have a terminal, and who is at it? Our side of each: what is typed goes in, what is written comes out.

The program's side is its session's, as on any machine: signals by keys, the window's size, SIGHUP when it is taken away. Whoever
looks may go and come back; output is kept until it was taken, and a program that nobody reads waits. A terminal that nobody comes
back to is taken away. The spawner holds a copy of each, so that it outlives this program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import termios
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from steelyard.clock import Clock
from steelyard.errors import EdgeFailed, NotFound, Unreachable
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Terminal
from steelyard.runtime.spawner_client import SpawnerClient
from steelyard.wire.streams import FRAME_BYTES, WINDOW_BYTES, Stream, StreamLost, Word

Ids = tuple[int, int]
#: of sockets that the spawner holds
HELD = "terminal/"
#: a program may go on without anybody at its terminal
LINGER_S = 60.0
#: who has connected sends at once
RECEIVE_S = 2.0


class OpenTerminal:
    """One of them; our side of it is given once it is there."""

    def __init__(self, now_ns: int) -> None:
        self._master: int | None = None
        #: output from byte `_start` on that was not taken yet
        self._kept = bytearray()
        self._start = 0
        self._changed = asyncio.Event()
        self._stream: Stream | None = None
        self._reading = False
        #: its program has; all that it wrote is here
        self.ended = False
        #: taken away
        self.closed = False
        #: since when nobody is at it; None: somebody is
        self.left_ns: int | None = now_ns
        #: for our side of it
        self.waiting: asyncio.Task[None] | None = None

    def give(self, master: int) -> None:
        """Our side, which is closed with it."""
        if self.closed:
            os.close(master)
            return
        os.set_blocking(master, False)
        self._master = master
        self._read_on()

    @property
    def master(self) -> int | None:
        return self._master

    def on_word(self, word: Word) -> None:
        if word.hang_up:
            self.close()
        elif word.window is not None and self._master is not None:
            with contextlib.suppress(OSError, ValueError):
                termios.tcsetwinsize(self._master, word.window)

    async def serve(self, stream: Stream, offset: int, clock: Clock) -> None:
        """Until its end was told or the stream breaks off. Whoever came before gives way."""
        if self._stream is not None:
            await self._stream.close()
        self._stream, self.left_ns = stream, None
        typing = asyncio.create_task(self._type(stream))
        try:
            await self._show(stream, min(max(offset, self._start), self._start + len(self._kept)))
        finally:
            typing.cancel()
            if self._stream is stream:
                self._stream, self.left_ns = None, clock.mono_ns()

    async def _show(self, stream: Stream, position: int) -> None:
        begin = position
        while True:
            self._changed.clear()
            self._let_go(begin + stream.acknowledged)
            piece = bytes(self._kept[position - self._start : position - self._start + FRAME_BYTES])
            if piece:
                position += len(piece)
                await stream.send(piece)
            elif self.ended:
                await stream.end()
                return  # what is still on its way and gets lost can be asked for again
            else:
                await self._changed.wait()

    async def _type(self, stream: Stream) -> None:
        with contextlib.suppress(StreamLost, OSError):
            while (data := await stream.receive()) is not None:
                await self._write(memoryview(data))

    async def _write(self, data: memoryview) -> None:
        loop = asyncio.get_running_loop()
        while data and self._master is not None:
            try:
                data = data[os.write(self._master, data) :]
            except BlockingIOError:
                writable, master = asyncio.Event(), self._master
                loop.add_writer(master, writable.set)
                try:
                    await writable.wait()
                finally:
                    loop.remove_writer(master)

    def _read(self) -> None:
        if not self._take() or len(self._kept) >= WINDOW_BYTES:
            self._stop_reading()
        self._changed.set()

    def _take(self) -> bool:
        """False when nothing more comes: nobody has the program's side open."""
        if self._master is None:
            return False
        try:
            data = os.read(self._master, FRAME_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._kept += data
        return bool(data)

    def _let_go(self, position: int) -> None:
        """Of what was taken."""
        if position > self._start:
            del self._kept[: position - self._start]
            self._start = position
            self._read_on()

    def _read_on(self) -> None:
        if self._master is not None and not self._reading and not self.ended and len(self._kept) < WINDOW_BYTES:
            self._reading = True
            asyncio.get_running_loop().add_reader(self._master, self._read)

    def _stop_reading(self) -> None:
        if self._reading and self._master is not None:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._master)

    def end(self) -> None:
        """Its program has ended: what it wrote is read to the end, and nothing of those that it left behind."""
        self._stop_reading()
        if self._master is not None:
            before = -1
            while before != len(self._kept):
                before = len(self._kept)
                self._take()
        self.ended = True
        self.close()

    def close(self) -> None:
        """Take it away: programs at it are told by SIGHUP."""
        self._stop_reading()
        self.closed = True
        if self.waiting is not None:
            self.waiting.cancel()
        master, self._master = self._master, None
        if master is not None:
            os.close(master)
        self._changed.set()


class TerminalKeeper:
    def __init__(self, spawner: SpawnerClient, clock: Clock) -> None:
        self._spawner, self._clock = spawner, clock
        self._open: dict[WorkloadId, OpenTerminal] = {}

    @contextlib.contextmanager
    def made(self, workload: WorkloadId, wanted: Terminal | None, ids: Ids | None, console: Path | None) -> Iterator[int | None]:
        """For a workload that is started meanwhile: the program's side of a new one, None when it wants none. `console`: a
        container runtime makes it inside, and sends ours to this socket. It is gone again when the start fails."""
        if wanted is None:
            yield None
            return
        side = self._open_side(workload, wanted, ids) if console is None else None
        if console is not None:
            self._expect(workload, console)
        try:
            yield side
        except BaseException:
            self.hang_up(workload)
            del self._open[workload]
            raise
        finally:
            if side is not None:
                os.close(side)

    def _open_side(self, workload: WorkloadId, wanted: Terminal, ids: Ids | None) -> int:
        try:
            master, side = os.openpty()
        except OSError as err:
            text = f"No terminal could be made: {err.strerror}. Nothing was started."
            raise EdgeFailed(text, code="start-failed") from err
        try:
            termios.tcsetwinsize(side, (wanted.rows, wanted.columns))
            if ids is not None and os.geteuid() == 0:
                os.fchown(side, *ids)
                os.fchmod(side, 0o600)
            self._spawner.hold_socket(HELD + workload, master)
        except BaseException:
            os.close(master)
            os.close(side)
            raise
        self._make(workload).give(master)
        return side

    def _expect(self, workload: WorkloadId, path: Path) -> None:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            listener.bind(str(path))
            listener.listen(1)
        except OSError as err:
            listener.close()
            raise EdgeFailed(f"{path}: {err.strerror}. Nothing was started.", code="start-failed") from err
        terminal = self._make(workload)
        terminal.waiting = asyncio.create_task(self._take(workload, terminal, listener))

    async def _take(self, workload: WorkloadId, terminal: OpenTerminal, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            sender, _ = await loop.sock_accept(listener)
        with sender:
            sender.settimeout(RECEIVE_S)
            _, masters, _, _ = await asyncio.to_thread(socket.recv_fds, sender, FRAME_BYTES, 1)
        for master in masters:
            os.set_inheritable(master, False)
            with contextlib.suppress(Unreachable):
                self._spawner.hold_socket(HELD + workload, master)
            terminal.give(master)

    def _make(self, workload: WorkloadId) -> OpenTerminal:
        terminal = self._open[workload] = OpenTerminal(self._clock.mono_ns())
        return terminal

    def adopt(self, held: Mapping[str, int], running: Collection[WorkloadId]) -> None:
        """Masters that the spawner kept, by name."""
        for name, master in held.items():
            workload = WorkloadId(name.removeprefix(HELD))
            if workload in running:
                self._make(workload).give(master)
            else:
                os.close(master)
                self._drop(workload)

    def on_new_spawner(self) -> None:
        for workload, terminal in self._open.items():
            if terminal.master is not None:
                self._spawner.hold_socket(HELD + workload, terminal.master)

    def find(self, workload: WorkloadId) -> OpenTerminal:
        """Raises NotFound."""
        terminal = self._open.get(workload)
        if terminal is None or (terminal.closed and not terminal.ended):
            raise NotFound("There is no such terminal, or it was taken away.")
        return terminal

    def hang_up(self, workload: WorkloadId) -> None:
        self._drop(workload)
        self._open[workload].close()

    def on_exit(self, workload: WorkloadId) -> None:
        if workload in self._open:
            self._drop(workload)
            self._open[workload].end()

    def tidy(self) -> None:
        """Once a second."""
        now_ns = self._clock.mono_ns()
        for workload, terminal in list(self._open.items()):
            if terminal.left_ns is None or now_ns - terminal.left_ns < LINGER_S * 1e9:
                continue
            if terminal.ended:
                del self._open[workload]
            elif not terminal.closed:
                self.hang_up(workload)

    def _drop(self, workload: WorkloadId) -> None:
        # a spawner that is away has let go of it by itself
        with contextlib.suppress(Unreachable):
            self._spawner.drop_socket(HELD + workload)
