"""Nothing but /healthz is reached without the right token, and each token opens only its own door."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from steelyard.api.auth import JobTokens, TokenGate

ADMIN, AGENT = "admin-token-0123456789", "agent-token-0123456789"
#: only attempt 2 of this job runs
TOKENS = JobTokens(ADMIN, {"j-000001": 2}.get)
JOB = TOKENS.sign("j-000001", 2)


def passes(kind: str, path: str, *values: bytes, method: str = "GET") -> bool:
    """Whether the application behind the gate was reached; if not, the gate must have answered."""
    reached: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": [(b"authorization", value) for value in values]}
    asyncio.run(TokenGate(app, ADMIN, AGENT, TOKENS)(scope, receive, send))
    assert bool(reached) != bool(sent)
    if sent and kind == "http":
        assert sent[0]["status"] == 401 and (b"www-authenticate", b"Bearer") in sent[0]["headers"]
    if sent and kind == "websocket":
        assert sent[0]["type"] == "websocket.close"
    return bool(reached)


@pytest.mark.parametrize(
    ("kind", "path", "values", "expected"),
    [
        ("http", "/healthz", [], True),
        ("http", "/healthz/", [], False),
        ("http", "/v1/status", [], False),
        ("http", "/nothing", [], False),
        ("http", "/v1/openapi.json", [], False),
        ("http", "/v1/status", [f"Bearer {ADMIN}"], True),
        ("http", "/v1/status", [f"bearer {ADMIN}"], True),
        ("http", "/v1/status", [f"Basic {ADMIN}"], False),
        ("http", "/v1/status", [ADMIN], False),
        ("http", "/v1/status", [f"Bearer {ADMIN}x"], False),
        ("http", "/v1/status", ["Bearer "], False),
        ("http", "/v1/status", [f"Bearer {AGENT}"], False),
        ("http", "/v1/status", [f"Bearer {ADMIN}", f"Bearer {ADMIN}"], False),
        ("http", "/v1/agent", [f"Bearer {AGENT}"], False),
        ("http", "/v1/bundles/x", [f"Bearer {AGENT}"], True),
        ("http", "/v1/bundles", [f"Bearer {AGENT}"], False),
        ("http", "/v1/jobs", [f"Bearer {JOB}"], True),
        ("http", "/v1/jobs/j-000001/stop", [f"Bearer {JOB}"], True),
        ("http", "/v1/scripts", [f"Bearer {JOB}"], True),
        ("http", "/v1/jobsx", [f"Bearer {JOB}"], False),
        ("http", "/v1/keys", [f"Bearer {JOB}"], False),
        ("http", "/v1/functions", [f"Bearer {JOB}"], False),
        ("http", "/v1/jobs", [f"Bearer {JOB}x"], False),
        ("http", "/v1/jobs", [f"Bearer {TOKENS.sign('j-000001', 1)}"], False),
        ("http", "/v1/jobs", [f"Bearer {TOKENS.sign('j-000002', 2)}"], False),
        ("http", "/v1/jobs", ["Bearer job.j-000001.2"], False),
        ("http", "/v1/jobs", ["Bearer job.j-000001.x.y"], False),
        ("websocket", "/v1/agent", [f"Bearer {JOB}"], False),
        ("websocket", "/v1/agent", [f"Bearer {AGENT}"], True),
        ("websocket", "/v1/agent", [f"Bearer {ADMIN}"], False),
        ("websocket", "/v1/agent", [], False),
        ("websocket", "/v1/jobs", [f"Bearer {AGENT}"], False),
        ("websocket", "/healthz", [], False),
    ],
)
def test_the_gate(kind: str, path: str, values: list[str], expected: bool) -> None:
    assert passes(kind, path, *[value.encode() for value in values]) is expected


@pytest.mark.parametrize("method", ["PUT", "HEAD", "DELETE", "POST"])
def test_an_agent_may_fetch_code_and_nothing_else(method: str) -> None:
    assert not passes("http", "/v1/bundles/x", f"Bearer {AGENT}".encode(), method=method)
