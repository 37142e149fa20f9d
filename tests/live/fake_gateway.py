"""What stands behind the gateway, as a test wants it: an HTTP server whose answers are the test's, and what it was asked."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Asked(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


class Answered(NamedTuple):
    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain"


class FakeGateway:
    """`answer` is called on a thread per request; it may wait. Use as a context manager."""

    def __init__(self, port: int, answer: Callable[[Asked], Answered | None]) -> None:
        """`answer`: None closes the connection without a word."""
        self.asked: list[Asked] = []
        #: a connection ended before it was answered
        self.broken = threading.Event()
        self.busy = 0
        self.busiest = 0
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with gateway._lock:
                    gateway._connections.add(self.connection)

            def finish(self) -> None:
                with gateway._lock:
                    gateway._connections.discard(self.connection)
                super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                with gateway._lock:
                    gateway.asked.append(asked)
                    gateway.busy += 1
                    gateway.busiest = max(gateway.busiest, gateway.busy)
                try:
                    answered = answer(asked)
                finally:
                    with gateway._lock:
                        gateway.busy -= 1
                if answered is None:
                    self.close_connection = True
                    return
                try:
                    self.send_response(answered.status)
                    self.send_header("content-type", answered.content_type)
                    self.send_header("content-length", str(len(answered.body)))
                    self.end_headers()
                    self.wfile.write(answered.body)
                except OSError:
                    gateway.broken.set()

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

        self._server = Listener(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> FakeGateway:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Connections that are kept end too: the next test's gateway would not be asked over them."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
