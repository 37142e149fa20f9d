"""What does a replica say when it can't do what a request asks? application/problem+json (RFC 9457), as the API does."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from steelyard.sdk.hide import hide

Send = Callable[[Any], Any]


def make_problem(status: int, code: str, detail: str, **members: Any) -> dict[str, Any]:
    """`code` is stable; `members` are further ones, such as the field that is wrong."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    return {
        "type": f"urn:steelyard:problem:{code}",
        "title": title,
        "status": status,
        "detail": hide(detail),
        "code": code,
        **members,
    }


async def send_problem(send: Send, problem: dict[str, Any], *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps(problem).encode()
    kind = (b"content-type", b"application/problem+json")
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": problem["status"], "headers": [kind, length, *headers]})
    await send({"type": "http.response.body", "body": body})
