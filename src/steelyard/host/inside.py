"""How is what listens in a process's own network reached? A thread enters it, connects, and ends; the connection stays there.

A socket belongs for good to the network that it was made in, so nothing else of this process changes.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import threading

from steelyard.errors import EdgeFailed

CONNECT_S = 3.0
_NEWNET = 0x4000_0000
_LOOPBACK = ("127.0.0.1", "::1")
_libc = ctypes.CDLL(None, use_errno=True)


async def connect_inside(pid: int, port: int) -> socket.socket:
    """A connection to a port of loopback as `pid` sees it, not blocking. EdgeFailed when nobody answers there."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[socket.socket] = loop.create_future()

    def run() -> None:
        try:
            _enter(pid)
            connected = _connect(port)
        except OSError as err:
            loop.call_soon_threadsafe(_fail, answer, port, err)
        else:
            loop.call_soon_threadsafe(_give, answer, connected)

    # not one of a pool: it would carry the other network to whoever has it next
    threading.Thread(target=run, daemon=True).start()
    return await answer


def _enter(pid: int) -> None:
    path = f"/proc/{pid}/ns/net"
    if os.stat(path).st_ino == os.stat("/proc/self/ns/net").st_ino:
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, _NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)


def _connect(port: int) -> socket.socket:
    refused: OSError | None = None
    for address in _LOOPBACK:
        try:
            connected = socket.create_connection((address, port), CONNECT_S / len(_LOOPBACK))
        except OSError as err:
            refused = refused or err
        else:
            connected.setblocking(False)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
    assert refused is not None
    raise refused


def _give(answer: asyncio.Future[socket.socket], connected: socket.socket) -> None:
    if answer.done():
        connected.close()
    else:
        answer.set_result(connected)


def _fail(answer: asyncio.Future[socket.socket], port: int, err: OSError) -> None:
    if not answer.done():
        words = err.strerror or "it did not answer in time"
        answer.set_exception(EdgeFailed(f"Nothing answers on port {port} inside: {words}.", code="port-closed"))
