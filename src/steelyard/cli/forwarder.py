"""How do programs on a pilot's machine reach the server? By a port of this machine's loopback, from which every connection is
carried to the server's door in TLS, with the pilot's certificate.

So the agent, and the work, speak to their API here as everywhere else, and one program alone holds the certificate. What is
carried is not looked at: whoever connects has to show a token that the door accepts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading

_log = logging.getLogger("steelyard.forwarder")

CONNECT_S = 10.0
#: what the other side does not acknowledge for so long ends a connection, on both sides: of a network that is cut nobody tells
UNHEARD_MS = 15_000
CHUNK = 1 << 16


class Forwarder(threading.Thread):
    """Runs in a thread of its own until the process ends. `listening` is bound to loopback."""

    def __init__(self, listening: socket.socket, host: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(name="forwarder", daemon=True)
        self._listening, self._host, self._port = listening, host, port
        #: of the connections to come
        self.context = context

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._carry, sock=self._listening)
        async with server:
            await server.serve_forever()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                out_reader, out_writer = await asyncio.open_connection(self._host, self._port, ssl=self.context)
        except (OSError, TimeoutError) as err:
            # the one that asks sees its connection end, and comes again
            _log.info("%s:%d is not reached: %s", self._host, self._port, err)
            writer.close()
            return
        out_writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MS)
        # asyncio sees to it only where a socket was made with its protocol named; without, each answer waits 40 ms for an ACK
        for each in (writer, out_writer):
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(_pump(reader, out_writer), _pump(out_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """TLS has no half-closed connections worth the name: the end of one way is the end of both."""
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.close()
