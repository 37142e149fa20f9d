"""Listening sockets of functions and trials."""

from __future__ import annotations

import socket
from pathlib import Path

#: between two looks at a replica that is still starting; the first ones follow sooner, since a fork serves within milliseconds
POLL_S, POLL_FIRST_S = 0.005, 0.001


def make_listener(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening, non-blocking Unix socket, in place of whatever stood there before."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(str(path))
    path.chmod(mode)
    listener.listen(4096)
    return listener
