"""How is the user's program started behind the relay, and how does it end? Forked before any event loop or thread exists,
given the listening socket by the systemd convention (fd 3, LISTEN_FDS, LISTEN_PID), and killed by the kernel should the relay
die first. Of one in a container the runtime is started, which has its variables elsewhere.

Only the relay uses it; workloads at large are started by the spawner.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import socket
from collections.abc import Mapping, Sequence

from steelyard.runtime.relay_container import end_deaf_child

_PR_SET_PDEATHSIG = 1


def choose_port(seed: int) -> int:
    """A port of 127.0.0.1 that nobody has, below those that outgoing connections take. `seed`: those who look at the same time
    should not find the same. OSError when there is none."""
    from steelyard.lifecycle.launch import PORT_FIRST, PORT_LAST  # most programs have a port of their own

    count = PORT_LAST - PORT_FIRST
    for step in range(count):
        port = PORT_FIRST + (seed * 7919 + step) % count
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(errno.EADDRINUSE, "no port is free")


def name_port(argv: Sequence[str], port: int) -> list[str]:
    """Its port, where the command says `$PORT` or `${PORT}`."""
    return [re.sub(r"\$(PORT\b|\{PORT\})", str(port), word) for word in argv]


class Program:
    """The user's program as a child process. Its death kills nothing else; ours kills it."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], listener: socket.socket | None, *, contained: bool = False
    ) -> None:
        self.pid = os.fork()  # before the event loop and with one thread
        if self.pid == 0:
            _become(argv, dict(env), listener, told=not contained)
        self._contained = contained
        self.pidfd = os.pidfd_open(self.pid)
        self.exit_code: int | None = None

    def reap(self) -> int:
        """The exit code as a shell would say it: 128 + signal for a killed program."""
        if self.exit_code is None:
            _, status = os.waitpid(self.pid, 0)
            os.close(self.pidfd)
            code = os.waitstatus_to_exitcode(status)
            self.exit_code = code if code >= 0 else 128 - code
        return self.exit_code

    def signal(self, signum: int) -> None:
        if self.exit_code is None:
            signal.pidfd_send_signal(self.pidfd, signum)
            if self._contained:
                end_deaf_child(self.pid, signum)


def _become(argv: Sequence[str], env: dict[str, str], listener: socket.socket | None, *, told: bool) -> None:
    """In the child: the descriptors and variables of the systemd convention, then exec. Never returns."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if listener is not None:
            os.dup2(listener.fileno(), 3)  # dup2 makes it inheritable; if it is 3 already, say so
            os.set_inheritable(3, True)
        if listener is not None and told:
            env |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "http"}
        os.execvpe(argv[0], list(argv), env)
    except OSError as err:
        os.write(2, f"{argv[0]} could not be started: {err.strerror}\n".encode())
    finally:
        os._exit(127)
