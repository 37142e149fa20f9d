"""How does a program of ours call the REST API? The one HTTP client: typed answers, errors of `errors.py`, nothing of httpx2
leaks.

A mutation may be repeated with the same `key` (Idempotency-Key) as often as wanted; the server answers the first result again.
Never retries by itself, never reads a proxy from the environment (the API is on this machine or named on purpose).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import msgspec

from steelyard.errors import Conflict, EdgeFailed, NoRoom, NotFound, Refused, SteelyardError, Unauthorized, Unreachable
from steelyard.wire.api import Problem

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

#: seconds that a call may take beyond the wait it asked for
PATIENCE_S = 30.0

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
    """One connection pool to one Steelyard. `ca_file` is the certificate the API serves when it is not a public one."""

    def __init__(self, base_url: str, token: str, *, ca_file: Path | None = None) -> None:
        # imported here: it costs 40 ms, which `steelyard --help` and the supervisor need not pay
        import httpx2

        verify: ssl.SSLContext | bool = True
        if ca_file is not None:
            verify = ssl.create_default_context()
            verify.load_verify_locations(ca_file)
        self.base_url = base_url
        self._http = httpx2.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx2.Timeout(PATIENCE_S, connect=5.0),
            verify=verify,
            trust_env=False,
        )

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def fetch(
        self,
        kind: type[T],
        method: str,
        path: str,
        *,
        body: msgspec.Struct | None = None,
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
        body: msgspec.Struct | None = None,
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
        import httpx2

        timeout = httpx2.Timeout(PATIENCE_S + wait_s, connect=5.0)
        try:
            answer = self._http.request(method, path, headers=headers, content=content, params=params, timeout=timeout)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as err:
            raise Unreachable(
                f"Steelyard does not answer at {self.base_url}. Work that runs goes on. `steelyard status` shows what is down, "
                "`steelyard up` starts it.",
                detail=str(err),
            ) from err
        except httpx2.TransportError as err:
            raise Unreachable(
                f"Steelyard at {self.base_url} went away in the middle of a call. Work that runs goes on; the call "
                "may or may not "
                "have been carried out. Look with `steelyard status`, then try again.",
                code="connection-lost",
                detail=str(err),
            ) from err
        except (httpx2.HTTPError, httpx2.InvalidURL) as err:
            raise EdgeFailed(f"Calling {self.base_url}{path} failed ({err}). Nothing was changed.", detail=repr(err)) from err
        if answer.status_code >= 300:
            raise _error(answer)
        return answer.content


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(1 << 18):
        yield piece


def _error(answer: httpx2.Response) -> SteelyardError:
    """The error that an answer means: by status, with the server's own sentence and code."""
    status = answer.status_code
    kind = _BY_STATUS.get(status) or (Refused if status < 500 else SteelyardError)
    try:
        problem = msgspec.json.decode(answer.content, type=Problem)
    except msgspec.MsgspecError:
        return kind(
            f"Steelyard answered {status} to {answer.request.method} {answer.request.url.path}.", detail=answer.text[:2000]
        )
    return kind(problem.detail or problem.title, code=problem.code)
