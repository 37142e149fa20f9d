"""How does the agent ask the server for files? With its own token; large ones go to the disk as they come, and count only with
the digest that the server told. Blocks: call from threads."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from steelyard.config import Paths, Settings
from steelyard.errors import EdgeFailed
from steelyard.wire.images import PACKED_DIGEST

ANSWER_S = 60.0
_CHUNK = 1 << 20


@contextlib.contextmanager
def open_answer(
    paths: Paths, settings: Settings, path: str, what: str, code: str, body: bytes | None = None, wait_s: float = ANSWER_S
) -> Iterator[http.client.HTTPResponse]:
    """GET, or POST of `body`. Raises EdgeFailed with that code where the server does not answer, then or while it is read."""
    token = paths.agent_token.read_text().strip()
    if settings.tls_cert:
        context = ssl.create_default_context(cafile=settings.tls_cert)
        connection = http.client.HTTPSConnection(settings.api_host, settings.api_port, timeout=wait_s, context=context)
    else:
        connection = http.client.HTTPConnection(settings.api_host, settings.api_port, timeout=wait_s)
    headers = {"Authorization": f"Bearer {token}"} | ({"Content-Type": "application/json"} if body is not None else {})
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as err:
        raise EdgeFailed(f"{what} could not be fetched from the server: {err}.", code=code) from err
    finally:
        connection.close()


def download(answer: http.client.HTTPResponse, place: Path, what: str, code: str) -> None:
    """`place` has the whole content then, or is not there. Raises EdgeFailed; OSError where it can't be written."""
    digest, wanted = hashlib.sha256(), answer.headers.get(PACKED_DIGEST, "")
    try:
        with open(place, "wb") as file:
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != wanted:
            raise EdgeFailed(f"{what} arrived damaged and was not used. Try again.", code=code)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        raise
