"""How do programs on machines of pools come in? By a listener of their own: TLS, and nobody without a certificate of the home's
own authority that says who they are.

It serves the same application as the API, behind another gate (`api/peers.py`), on the server's event loop. Its own certificate
is made at each start, and anew while it runs when it is due: connections that exist are not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from steelyard.api.peers import admit
from steelyard.cli.forwarder import UNHEARD_MS
from steelyard.config import Paths, Settings, write_file
from steelyard.model.certificate import Certificate, Role, parse_identity

if TYPE_CHECKING:
    from steelyard.api.auth import Peer
    from steelyard.clock import Clock
    from steelyard.store.authority import Authority

_log = logging.getLogger("steelyard.door")

#: of the door's own certificate, and how often is looked whether it is due
LIFE_S, LOOK_S = 90 * 86400.0, 3600.0


class Door:
    def __init__(self, paths: Paths, settings: Settings, authority: Authority, clock: Clock) -> None:
        self._file, self._settings, self._authority, self._clock = paths.door, settings, authority, clock
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(cadata=authority.certificate_pem(clock.now_us()).decode())
        self._certificate = self._renew()

    @contextlib.asynccontextmanager
    async def serve(self, app: Any, listening: socket.socket, **more: Any) -> AsyncGenerator[None, None]:
        """As long as the caller is inside. `more`: what uvicorn is told besides."""
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MS)  # of each connection, too
        config = uvicorn.Config(
            app,
            loop="none",
            http=cast("Any", _Http),
            ws=cast("Any", _WebSocket),
            lifespan="off",
            ssl_context_factory=lambda config, default: self._context,
            **more,
        )
        server = _Server(config)
        tasks = [asyncio.create_task(server.serve(sockets=[listening])), asyncio.create_task(self._keep_renewed())]
        try:
            yield
        finally:
            server.should_exit = True
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_renewed(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._certificate.due(self._clock.now_us()):
                try:
                    self._certificate = self._renew()
                except Exception:
                    _log.exception("the door's certificate could not be renewed; it is tried again")

    def _renew(self) -> Certificate:
        host = cast("str", self._settings.cluster_host)
        made = self._authority.issue(Role.SERVER, "door", (host,), self._clock.now_us(), LIFE_S)
        write_file(self._file, made.key_pem + made.certificate_pem)
        self._context.load_cert_chain(self._file)
        return made


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # the API's server beside it hears them
        yield


def _let_in(protocol: Any, transport: Any) -> None:
    """As whom it is, by its certificate, which TLS has checked; or not at all."""
    shown: dict[str, Any] = transport.get_extra_info("ssl_object").getpeercert() or {}
    peer = admit(parse_identity(value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"))
    if peer is None:
        transport.abort()
    else:
        protocol.app = _tell(protocol.app, peer)


def _tell(app: Any, peer: Peer) -> Any:
    async def told(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "steelyard.peer": peer}, receive, send)

    return told


class _Http(HttpToolsProtocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        _let_in(self, transport)


class _WebSocket(WebSocketsSansIOProtocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        _let_in(self, transport)
