"""Who forks for the spawner? Small processes that do nothing else (launch.py), while it records what has ended.

A fork makes every page that its caller touches afterwards be copied. A launcher has few, and stands still until its child has
executed its program; the spawner, which would touch hundreds, never forks for work. The child is the spawner's all the same
(CLONE_PARENT). What becomes of a start is told by its pipe alone, so that a launcher may be killed at any moment:

    nothing, and closed                   no child was made
    <pid> NUL, and open                   it is on its way to exec
    <pid> NUL, and closed                 it was executed
    <pid> NUL <step> NUL <error>          it was not; the pid is "" where there was no fork

A launcher dies with its spawner at once: what it had not forked by then is never started.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import selectors
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from steelyard.model.ids import WorkloadId
from steelyard.runtime import launch
from steelyard.runtime.spawner_peer import Peer
from steelyard.wire import spawn as wire

#: starts that one launcher has at a time; the spawner may be busy syncing while they go on
STARTS_MAX = 8
#: in the command line of each, wherever it is installed
COMMAND = "/steelyard/runtime/launch.py"


def find_launchers(spawner: int) -> list[int]:
    """Pids of a spawner's launchers, and of children of theirs that were not executed yet; none where there is no spawner."""
    try:
        children = Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()
    except OSError:
        return []
    return [int(pid) for pid in children if COMMAND in _read_command(pid)]


def _read_command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:  # gone meanwhile
        return ""


def pack(request: wire.Spawn) -> bytes:
    """For a launcher, which has no msgspec, and the same Python as we."""
    return marshal.dumps(msgspec.to_builtins(request))


class Start(msgspec.Struct, eq=False):
    """What a launcher is to do, and how far it is. `pipe` is -1 once it is known how it went."""

    workload: WorkloadId
    pipe: int
    asked_by: Peer
    packet: bytes
    #: the pipe's other end, and the request's; closed once a launcher has them
    fds: list[int]
    userns: int | None
    #: see `wire.Rootfs`
    leaves: str
    #: 0: nobody knows one yet
    pid: int = 0
    start_time: int = 0
    told: bytes = b""
    #: the selector looks at its pipe
    watched: bool = False

    def look(self) -> bool:
        """Read what its pipe says now; True when nothing more will come."""
        while True:
            try:
                data = os.read(self.pipe, 4096)
            except BlockingIOError:
                return False
            self.told += data
            pid, told, _ = self.told.partition(b"\0")
            self.pid = int(pid) if told and pid else 0
            if not data:
                return True

    def error(self) -> tuple[str, str]:
        """(step, the kernel's words); empty where it was executed."""
        _, told, error = self.told.decode(errors="replace").partition("\0")
        step, _, words = error.partition("\0")
        return (step, words) if told else ("fork", "what was to fork it was killed")

    def let_go(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class Launcher:
    """The spawner's end. `on_ready` is called when starts have gone on, or the launcher is gone."""

    def __init__(self, nofile: tuple[int, int], selector: selectors.BaseSelector, on_ready: Callable[[Launcher], None]) -> None:
        """`nofile` is for its children. Raises OSError when there can't be another process."""
        self.starts: deque[Start] = deque()
        self._selector = selector
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = (sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *map(str, nofile))
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), launch.SOCK)]
        try:
            self.pid = os.posix_spawn(
                sys.executable, command, os.environ, file_actions=actions, setsigmask=signal.valid_signals()
            )
        except OSError:
            self._sock.close()
            raise
        finally:
            theirs.close()
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, launch.PACKET_MAX)
        selector.register(self._sock, selectors.EVENT_READ, lambda _events: on_ready(self))

    def send(self, start: Start) -> bool:
        """False when it takes no more at the moment. Raises OSError when it is gone."""
        if len(self.starts) >= STARTS_MAX:
            return False
        try:
            given = [start.pipe, *start.fds, *([] if start.userns is None else [start.userns])]
            socket.send_fds(self._sock, [start.packet], given)
        except BlockingIOError:
            return False
        start.let_go()
        self.starts.append(start)
        return True

    def take(self) -> list[Start]:
        """Those that have gone on since. Raises EOFError when it is gone."""
        found: list[Start] = []
        with contextlib.suppress(BlockingIOError):
            while self._sock.recv(16):
                found.append(self.starts.popleft())
            raise EOFError
        return found

    def close(self) -> list[Start]:
        """It is gone, or goes now; what it had may have been forked or not."""
        self._selector.unregister(self._sock)
        self._sock.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return list(self.starts)
