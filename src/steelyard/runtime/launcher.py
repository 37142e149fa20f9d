"""Who forks for the spawner? Copies of it that do nothing else, while it records what has ended.

A fork makes every page that its caller touches afterwards be copied. A launcher touches few, and stands still until its child has
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
import gc
import os
import select
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import NoReturn

import msgspec

from steelyard.model.ids import WorkloadId
from steelyard.runtime.runner.fork import SiblingFork
from steelyard.runtime.spawn_child import ALL_SIGNALS, Inherited, block_signals, prctl, run_child
from steelyard.runtime.spawner_peer import Peer
from steelyard.wire import spawn as wire

#: a start that takes longer (a slow disk under chdir or exec) is not waited for
EXEC_WAIT_MS = 5
#: starts that one launcher has at a time; the spawner may be busy syncing while they go on
STARTS_MAX = 8
_SOCK = 3
_PR_SET_PDEATHSIG = 1


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

    def __init__(self, inherited: Inherited, selector: selectors.BaseSelector, on_ready: Callable[[Launcher], None]) -> None:
        """Raises OSError when there can't be another process."""
        self.starts: deque[Start] = deque()
        self._selector = selector
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        blocked = block_signals(ALL_SIGNALS)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _serve(theirs.fileno(), parent, inherited)
        except OSError:
            self._sock.close()
            raise
        finally:
            theirs.close()
            block_signals(blocked)
        self._sock.setblocking(False)
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


def _serve(sock: int, parent: int, inherited: Inherited) -> NoReturn:
    """All signals stay blocked here: those that a terminal or a group gets are the spawner's."""
    try:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        os.dup2(sock, _SOCK, inheritable=False)
        os.closerange(_SOCK + 1, inherited.open_max)
        gc.disable()
        spawner = socket.socket(fileno=_SOCK)
        fork = SiblingFork().fork
        stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        inherited = msgspec.structs.replace(inherited, stdin=stdin)
        while True:
            packet, fds, _, _ = socket.recv_fds(spawner, wire.PACKET_MAX, wire.FDS_MAX + 3)
            if not packet:
                os._exit(0)
            _launch(packet, fds, fork, inherited)
            spawner.send(b".")
    finally:
        os._exit(1)


def _launch(packet: bytes, fds: list[int], fork: Callable[[], int], inherited: Inherited) -> None:
    request = wire.decode_to_spawner(packet)
    assert isinstance(request, wire.Spawn)
    pipe, error_fd, *more = fds
    os.set_inheritable(error_fd, False)  # Python 3.11 receives them without CLOEXEC
    pid = -1
    try:
        pid = fork()
    except OSError as err:
        os.write(error_fd, f"\0fork\0{err.strerror or err}".encode())
    if pid == 0:
        os.write(error_fd, b"%d\0" % os.getpid())
        passed, joins = more[: len(request.fds)], more[len(request.fds) :][: request.cgroups]
        userns = next(iter(more[len(request.fds) + request.cgroups :]), None)
        run_child(request, passed, joins, error_fd, inherited, userns)
    # nothing else is open above them
    os.closerange(error_fd, fds[-1] + 1)
    # Standing still until exec is a third faster than going on: while both run, each write copies the page for the other.
    poll = select.poll()
    poll.register(pipe, 0)  # that it has been closed is told all the same
    poll.poll(EXEC_WAIT_MS)
    os.close(pipe)
