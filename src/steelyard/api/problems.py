"""Which HTTP answer does an error become? The only place that chooses statuses; every error is application/problem+json.

Callers never see a traceback, a path of ours or the words of a library: what is unexpected is logged and answered as `failed`.
"""

from __future__ import annotations

import errno
import logging
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec

from steelyard.errors import (
    Conflict,
    EdgeFailed,
    NoRoom,
    NotFound,
    Refused,
    SteelyardError,
    StoreDamaged,
    Unauthorized,
    Unreachable,
)
from steelyard.wire.api import Problem

_log = logging.getLogger("steelyard.api")

MEDIA_TYPE = "application/problem+json"

#: first match wins, so leaves stand before their parents
_STATUS: tuple[tuple[type[SteelyardError], int], ...] = (
    (NotFound, 404),
    (Conflict, 409),
    (Unauthorized, 401),
    (NoRoom, 507),
    (Refused, 422),
    (Unreachable, 503),
    (EdgeFailed, 502),
    (StoreDamaged, 500),
    (SteelyardError, 500),
)

#: codes that say more than their class
_STATUS_BY_CODE = {"queue-full": 429, "unsupported-media-type": 415, "body-too-large": 413, "unknown-parameter": 400}

#: codes of what the HTTP layer itself refuses
_CODE_BY_STATUS = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    413: "body-too-large",
    415: "unsupported-media-type",
    422: "invalid",
}


def make_problem(status: int, code: str, detail: str) -> bytes:
    return msgspec.json.encode(
        Problem(type=f"urn:steelyard:problem:{code}", title=HTTPStatus(status).phrase, status=status, detail=detail, code=code)
    )


def status_of(err: SteelyardError) -> int:
    if err.code in _STATUS_BY_CODE:
        return _STATUS_BY_CODE[err.code]
    return next(status for kind, status in _STATUS if isinstance(err, kind))


def _answer(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> Response[bytes]:
    headers = dict(headers or {})
    if status in (429, 503, 507):
        headers["Retry-After"] = "1"
    return Response(make_problem(status, code, detail), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def answer_error(request: Request[Any, Any, Any], err: Exception) -> Response[bytes]:
    """The one exception handler."""
    if isinstance(err, SteelyardError):
        status = status_of(err)
        if status >= 500:
            _log.error("%s %s: %s %s", request.method, request.url.path, err.public, err.detail)
        return _answer(status, err.code, err.public)
    if isinstance(err, ValidationException):
        return _answer(400, "invalid", _validation_text(err))
    if isinstance(err, HTTPException) and err.status_code < 500:
        status = err.status_code
        # a cause means that a library speaks here, about a body it could not read
        detail = err.detail or HTTPStatus(status).phrase
        return _answer(status, _CODE_BY_STATUS.get(status, "bad-request"), detail, _allow(err))
    _log.error("%s %s failed", request.method, request.url.path, exc_info=err)
    return _answer(500, "failed", "Something failed inside Steelyard; the server's log says what.")


def refuse_disk(err: OSError, what: str, path: Path) -> SteelyardError:
    """What an upload that could not be stored is answered: 507 while there is no room."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoRoom(f"The server's disk is full; the {what} was not stored. Try again when there is room.", code="disk-full")
    return EdgeFailed(f"The {what} could not be stored.", code=f"{what}-failed", detail=f"{path}: {err}")


def _allow(err: HTTPException) -> dict[str, str]:
    return {name: value for name, value in (err.headers or {}).items() if name.lower() == "allow"}


def _validation_text(err: ValidationException) -> str:
    """`key: message` for every finding, without the internal words around them."""
    extra: Any = err.extra
    if not isinstance(extra, list) or not extra:
        return err.detail or "the request is not valid"
    parts: list[str] = []
    for item in extra:
        if isinstance(item, dict):
            key = item.get("key")
            parts.append(f"{key}: {item.get('message')}" if key else str(item.get("message")))
        else:
            parts.append(str(item))
    return "; ".join(parts)


def errors(*statuses: int) -> dict[int, ResponseSpec]:
    """OpenAPI: the problems a route may answer with, besides those that every route has."""
    everywhere = (400, 401, 500, 503)
    return {
        status: ResponseSpec(
            data_container=Problem,
            generate_examples=False,
            media_type=MEDIA_TYPE,
            description=HTTPStatus(status).phrase,
        )
        for status in sorted({*everywhere, *statuses})
    }
