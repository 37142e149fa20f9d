"""How does a program of ours call the REST API? The one HTTP client: typed answers, errors of `errors.py`, nothing of the
protocol leaks.

A mutation may be repeated with the same `key` (Idempotency-Key) as often as wanted; the server answers the first result again.
Never retries by itself, never reads a proxy from the environment (the API is on this machine or named on purpose). On a plain
socket, because every command begins with it: the standard library's client brings a parser of mails and TLS along, 10 ms before
the first byte is sent, and others 50.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from steelyard.errors import Conflict, EdgeFailed, NoRoom, NotFound, Refused, SteelyardError, Unauthorized, Unreachable
from steelyard.wire.api import Problem
from steelyard.wire.http1 import BadResponse, ResponseReader

if TYPE_CHECKING:
    from steelyard.wire.streams import Stream, Word

T = TypeVar("T")

#: seconds that a call may take beyond the wait it asked for
PATIENCE_S = 30.0
CONNECT_S = 5.0
_UNAVAILABLE = 503
RECV_BYTES = 1 << 18

_BY_STATUS: dict[int, type[SteelyardError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    429: NoRoom,
    507: NoRoom,
}


class ApiClient:
    """Connections to one Steelyard; threads may share it. `ca_file` is the certificate the API serves when it is not a public
    one."""

    def __init__(self, base_url: str, token: str, *, ca_file: Path | None = None) -> None:
        self.base_url = base_url
        self._token = token
        self._ca_file = ca_file
        self._where = urlsplit(base_url)
        #: connections that nobody uses now
        self._idle: list[socket.socket] = []
        self._closed = False

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        while (kept := self._take()) is not None:
            kept.close()

    def fetch(
        self,
        kind: type[T],
        method: str,
        path: str,
        *,
        body: msgspec.Struct | msgspec.Raw | None = None,
        params: Mapping[str, str | int | float] | None = None,
        key: str | None = None,
        wait_s: float = 0.0,
    ) -> T:
        """Call and decode the JSON answer as `kind`. `wait_s` is added to the read timeout (long polls)."""
        raw = self.call(method, path, body=body, params=params, key=key, wait_s=wait_s)
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.MsgspecError as err:
            raise EdgeFailed(
                f"The answer of {self.base_url}{path} is not what this version of Steelyard understands ({err}). "
                "Check that server and command are of the same version.",
                code="bad-answer",
            ) from err

    def call(
        self,
        method: str,
        path: str,
        *,
        body: msgspec.Struct | msgspec.Raw | None = None,
        params: Mapping[str, str | int | float] | None = None,
        key: str | None = None,
        wait_s: float = 0.0,
    ) -> bytes:
        """Call and return the raw body. Raises the error of `errors.py` that the answer means."""
        headers: dict[str, str] = {}
        content: bytes | None = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = msgspec.json.encode(body)
        if key is not None:
            headers["Idempotency-Key"] = key
        return self._send(method, path, headers, content, params, wait_s)

    async def dial(
        self, path: str, params: Mapping[str, str | int] | None = None, on_word: Callable[[Word], None] | None = None
    ) -> Stream:
        """A stream of bytes both ways (`wire/streams.py`). Raises the error of `errors.py` that a refusal means."""
        from steelyard.wire.streams import dial

        def explain(frame: bytes) -> SteelyardError:
            try:
                problem = msgspec.json.decode(frame, type=Problem)
            except msgspec.MsgspecError:
                return _error(502, frame, f"WebSocket {path}")
            if problem.status == _UNAVAILABLE:
                # the agent is on its way back, as the server may be
                return Unreachable(problem.detail, code=problem.code)
            return _error(problem.status, frame, f"WebSocket {path}")

        ca_file = None if self._ca_file is None else str(self._ca_file)
        return await dial(self.base_url, path, self._token, ca_file, params=params, explain=explain, on_word=on_word)

    def has(self, path: str) -> bool:
        """HEAD: is it there?"""
        try:
            self._send("HEAD", path, {}, None, None, 0.0)
        except NotFound:
            return False
        return True

    def upload(self, path: str, file: BinaryIO, size_bytes: int, content_type: str) -> None:
        """PUT the whole file; it is read from its start in pieces, never held in memory."""
        headers = {"Content-Type": content_type, "Content-Length": str(size_bytes)}
        # a large bundle is hashed and fsynced before the answer comes
        self._send("PUT", path, headers, _pieces(file), None, 300.0)

    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        content: bytes | Iterator[bytes] | None,
        params: Mapping[str, str | int | float] | None,
        wait_s: float,
    ) -> bytes:
        target = f"{path}?{urlencode(params)}" if params else path
        try:
            head = self._render_head(method, target, headers, content)
        except ValueError as err:
            raise EdgeFailed(f"Calling {self.base_url}{path} failed ({err}). Nothing was changed.", detail=repr(err)) from err
        connection = self._connect()
        try:
            connection.settimeout(PATIENCE_S + wait_s)
            answer = _exchange(connection, head, content, ResponseReader(body=method != "HEAD"))
        except (OSError, BadResponse) as err:
            connection.close()
            raise Unreachable(
                f"Steelyard at {self.base_url} went away in the middle of a call. Work that runs goes on; the call "
                "may or may not "
                "have been carried out. Look with `steelyard status`, then try again.",
                code="connection-lost",
                detail=repr(err),
            ) from err
        except BaseException:
            # broken off, by Ctrl-C for example: what comes next on it belongs to nobody
            connection.close()
            raise
        if not answer.keep_alive or self._closed:
            connection.close()
        else:
            self._idle.append(connection)
        if answer.status >= 300:
            raise _error(answer.status, answer.body, f"{method} {path}")
        return answer.body

    def _render_head(
        self, method: str, target: str, headers: Mapping[str, str], content: bytes | Iterator[bytes] | None
    ) -> bytes:
        """ValueError when it holds what would end a line."""
        lines = {"Host": self._where.netloc, "Authorization": f"Bearer {self._token}", **headers}
        if not isinstance(content, Iterator) and (content is not None or method != "GET"):
            lines["Content-Length"] = str(len(content or b""))
        text = "\r\n".join([f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items())])
        if not target.isascii() or any(char <= " " for char in target) or text.count("\n") != len(lines):
            raise ValueError("it can't be written as one request")
        return f"{text}\r\n\r\n".encode("latin-1")

    def _connect(self) -> socket.socket:
        """One that is open: kept from an earlier call, or new."""
        while (kept := self._take()) is not None:
            if not _readable(kept):
                return kept
            kept.close()  # the server has closed it meanwhile
        try:
            return self._connect_anew()
        except OSError as err:
            raise Unreachable(
                f"Steelyard does not answer at {self.base_url}. Work that runs goes on. `steelyard status` shows what is down, "
                "`steelyard up` starts it.",
                detail=str(err),
            ) from err

    def _connect_anew(self) -> socket.socket:
        tls = self._where.scheme == "https"
        host = self._where.hostname or ""
        fresh = socket.create_connection((host, self._where.port or (443 if tls else 80)), CONNECT_S)
        fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not tls:
            return fresh
        import ssl

        try:
            context = ssl.create_default_context(cafile=str(self._ca_file) if self._ca_file is not None else None)
            return context.wrap_socket(fresh, server_hostname=host)
        except BaseException:
            fresh.close()
            raise

    def _take(self) -> socket.socket | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None  # another thread may have been faster


class _Answer(NamedTuple):
    status: int
    body: bytes
    keep_alive: bool


def _exchange(connection: socket.socket, head: bytes, content: bytes | Iterator[bytes] | None, reader: ResponseReader) -> _Answer:
    """OSError or BadResponse when the answer is not complete."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        # who is refused before all was sent may find the reason in the answer
        if isinstance(content, Iterator):
            connection.sendall(head)
            for piece in content:
                connection.sendall(piece)
        else:
            connection.sendall(head + (content or b""))
    pieces: list[bytes] = []
    while not reader.done:
        data = connection.recv(RECV_BYTES)
        if data:
            pieces += reader.feed(data)
        elif not reader.end():
            raise ConnectionResetError("the connection ended before the answer was complete")
    return _Answer(reader.status, b"".join(pieces), reader.keep_alive)


def _readable(connection: socket.socket) -> bool:
    """Of a connection without a call on it: its end has come."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(1 << 18):
        yield piece


def _error(status: int, body: bytes, call: str) -> SteelyardError:
    """The error that an answer means: by status, with the server's own sentence and code."""
    kind = _BY_STATUS.get(status) or (Refused if status < 500 else SteelyardError)
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except msgspec.MsgspecError:
        return kind(f"Steelyard answered {status} to {call}.", detail=body[:2000].decode(errors="replace"))
    return kind(problem.detail or problem.title, code=problem.code)
