"""What did the other side answer? An incremental HTTP/1.1 response reader: bytes in, body pieces out.

Only what Envoy and our API send: a status line, headers, a body by content-length, in chunks, or up to the end. No I/O, and the
standard library only: the SDK reads by it in users' interpreters, and every command that asks the API.
"""

from __future__ import annotations

HEAD_MAX = 1 << 16


class BadResponse(ValueError):
    """What came is no HTTP/1.1 response."""


class ResponseReader:
    """Of one response. `body` is False for that to a HEAD, which only says how long one would be."""

    __slots__ = ("_body", "_chunked", "_in_chunk", "_left", "_rest", "done", "headers", "keep_alive", "status")

    def __init__(self, *, body: bool = True) -> None:
        self._body = body
        #: 0 until the head is there
        self.status = 0
        #: names in small letters
        self.headers: dict[bytes, bytes] = {}
        self.done = False
        #: afterwards the connection may carry another request
        self.keep_alive = True
        self._rest: bytes = b""
        self._chunked: bool = False
        self._in_chunk: bool = False
        #: bytes of the body, or of the chunk, that are still to come; None: up to the end of the connection
        self._left: int | None = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Pieces of the body. BadResponse."""
        if not self.status:
            data = self._rest + data if self._rest else data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > HEAD_MAX:
                    raise BadResponse("its head has no end")
                self._rest = data
                return []
            self._rest = b""
            self._read_head(data[:end])
            data = data[end + 4 :]
            if not self.status:
                return self.feed(data)  # 100 Continue and the like: the real one follows
        if self._chunked:
            return self._read_chunks(data)
        if self._left is None:
            return [data] if data else []
        if len(data) > self._left:
            raise BadResponse("more came than was announced")
        self._left -= len(data)
        self.done = self._left == 0
        return [data] if data else []

    def end(self) -> bool:
        """The connection ended. True when the response is complete."""
        self.keep_alive = False
        if self.status and self._left is None and not self._chunked:
            self.done = True
        return self.done

    def _read_head(self, head: bytes) -> None:
        first, _, rest = head.partition(b"\r\n")
        if not first.startswith(b"HTTP/1.") or not first[9:12].isdigit():
            raise BadResponse(f"it begins with {first[:40]!r}")
        status = int(first[9:12])
        if 100 <= status < 200:
            return
        headers = self.headers
        for line in rest.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        self.keep_alive = headers.get(b"connection", b"").lower() != b"close" and first[7:8] == b"1"
        if status in (204, 304) or not self._body:
            self._left, self.done = 0, True
        elif b"chunked" in headers.get(b"transfer-encoding", b""):
            self._chunked = True
        elif b"content-length" in headers:
            try:
                self._left = int(headers[b"content-length"])
            except ValueError:
                raise BadResponse("its content-length is no number") from None
            self.done = self._left == 0
        else:
            self._left, self.keep_alive = None, False
        self.status = status

    def _read_chunks(self, data: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while at < end and not self.done:
            left = self._left or 0
            if self._in_chunk:
                if left > 2:
                    take = min(left - 2, end - at)
                    pieces.append(data[at : at + take] if take < end or at else data)
                    at += take
                    self._left = left - take
                    continue
                # the line's end behind the data
                take = min(left, end - at)
                at += take
                self._left = left - take
                self._in_chunk = self._left > 0
                continue
            line = data.find(b"\r\n", at)
            if line < 0:
                if end - at > 1024:
                    raise BadResponse("a chunk's size has no end")
                break
            try:
                size = int(data[at:line].partition(b";")[0], 16) if line > at else -1
            except ValueError:
                raise BadResponse("a chunk's size is no number") from None
            if size > 0:
                self._left, self._in_chunk = size + 2, True
                at = line + 2
                continue
            # the last chunk; trailers are passed over
            stop = data.find(b"\r\n\r\n", at)
            if size < 0:
                raise BadResponse("a chunk has no size")
            if stop < 0:
                break
            at, self.done = stop + 4, True
        self._rest = data[at:]
        return pieces
