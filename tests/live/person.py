"""A person at a terminal: a command line with a real pty around it, keys that are typed and text that is waited for."""

from __future__ import annotations

import os
import pty
import select
import signal
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from steelyard_cluster import Cluster

WAIT_S = 30.0


class Person:
    def __init__(self, argv: list[str], env: dict[str, str], size: tuple[int, int] = (30, 100)) -> None:
        self.seen = b""
        self._read = 0
        master, side = pty.openpty()
        termios.tcsetwinsize(side, size)
        self.before = termios.tcgetattr(side)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(master)
            os.login_tty(side)
            os.execvpe(argv[0], argv, env)
        # kept open: what the settings are when the command has ended
        self.master, self.side = master, side
        self._code: int | None = None

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.master, (rows, columns))

    def see(self, text: bytes) -> bytes:
        """Wait for it, behind what was waited for last; what came before it."""
        deadline = time.monotonic() + WAIT_S
        while (at := self.seen.find(text, self._read)) < 0:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; seen: {self.seen!r}"
            self.seen += os.read(self.master, 65536)
        before, self._read = self.seen[self._read : at], at + len(text)
        return before

    def answers(self, typed: bytes, text: bytes) -> bool:
        """Type it, and look whether the answer comes within a moment."""
        self.type(typed)
        deadline = time.monotonic() + 1.0
        while (left := deadline - time.monotonic()) > 0:
            if self.seen.find(text, self._read) >= 0:
                self.see(text)
                return True
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 65536)
        return False

    @property
    def restored(self) -> bool:
        return termios.tcgetattr(self.side) == self.before

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait(self) -> int:
        """Its exit code, or minus its signal. What it still writes is read meanwhile."""
        if self._code is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                deadline = time.monotonic() + WAIT_S
                while True:
                    ready, _, _ = select.select([pidfd, self.master], [], [], max(0.0, deadline - time.monotonic()))
                    assert ready, f"it did not end; seen: {self.seen!r}"
                    if self.master in ready:
                        self.seen += os.read(self.master, 65536)
                    elif pidfd in ready:
                        break
            finally:
                os.close(pidfd)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def leave(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.master)
        os.close(self.side)


@contextmanager
def person(cluster: Cluster, *words: str, size: tuple[int, int] = (30, 100)) -> Iterator[Person]:
    """At `steelyard WORDS`. The shell's prompt is `$ `."""
    made = Person(cluster.command(*words), cluster.environ({"TERM": "vt100"}), size)
    try:
        yield made
    finally:
        made.leave()
