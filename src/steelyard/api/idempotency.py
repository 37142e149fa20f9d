"""How does a mutation become true exactly once? The change, its event and its answer are one transaction (R1, R2).

A retry with the same Idempotency-Key and the same request gets the stored answer, byte for byte; the same key with another
request is refused. Refusals are not stored: nothing changed, so that a retry is judged anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from litestar import Request, Response
from litestar.params import Parameter

from steelyard.api.services import services_of
from steelyard.errors import Refused
from steelyard.model.ids import DEFAULT_PROJECT
from steelyard.store import StoredAnswer, Tx

IdempotencyKey = Annotated[
    str | None,
    Parameter(
        header="Idempotency-Key",
        required=False,
        default=None,
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
        description="Repeating the request with the same key within 24 hours gives the first answer again.",
    ),
]


async def mutate(
    request: Request[Any, Any, Any],
    key: str | None,
    status: int,
    change: Callable[[Tx], msgspec.Struct | None],
    *,
    content: bytes | None = None,
) -> Response[Any]:
    """Run `change` in one transaction, answer its struct as JSON (or nothing, for 204) once it is on disk. `content` stands for
    the body where that was not kept in memory."""
    services = services_of(request)
    now = services.clock.now_us()
    digest = "" if key is None else _hash(request, await request.body() if content is None else content)

    def commit(tx: Tx) -> tuple[int, bytes]:
        if key is not None:
            stored = tx.answer(DEFAULT_PROJECT, key)
            if stored is not None:
                if stored.request_hash != digest:
                    raise Refused(
                        "This Idempotency-Key was used for another request within the last 24 hours. Use a new one.",
                        code="idempotency-key-reused",
                    )
                return stored.status, stored.body
        result = change(tx)
        body = b"" if result is None else msgspec.json.encode(result)
        if key is not None:
            tx.put_answer(StoredAnswer(key, DEFAULT_PROJECT, digest, status, body, now))
        return status, body

    status, body = await services.store.write(commit)
    return answer_json(status, body)


def answer_json(status: int, body: bytes) -> Response[Any]:
    """An answer whose JSON is ready; no body at all for 204."""
    return Response(body or None, status_code=status, media_type="application/json")


def _hash(request: Request[Any, Any, Any], body: bytes) -> str:
    target = f"{request.method} {request.url.path}?{request.url.query}\n"
    return hashlib.sha256(target.encode() + body).hexdigest()
