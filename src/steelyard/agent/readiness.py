"""Does a new revision answer? One trial replica on a private socket that no client knows, asked over HTTP, ended again.

The runner answers `/.steelyard/ready` itself, without calling the user's app; a program behind the relay is asked for `/` and
any HTTP answer will do.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

#: between two looks at a replica that is still starting
POLL_S = 0.005


def make_listener(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening, non-blocking Unix socket, in place of whatever stood there before."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(str(path))
    path.chmod(mode)
    listener.listen(4096)
    return listener


async def ask_ready(path: Path, target: str) -> int | None:
    """The HTTP status of one GET over a Unix socket; None when the answer is not HTTP or the connection ends."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return None
    try:
        writer.write(f"GET {target} HTTP/1.1\r\nhost: steelyard\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        words = (await reader.readline()).split()
        return int(words[1]) if len(words) >= 2 and words[0].startswith(b"HTTP/") else None
    except (OSError, ValueError):
        return None
    finally:
        writer.close()
