"""Nothing but /healthz is reached without the right token, and each token opens only its own door."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from steelyard.api.auth import Caller, TokenGate, WorkloadTokens
from steelyard.errors import Unauthorized
from steelyard.model.function import Function, FunctionSpec
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.store.memory import MemoryStore

ADMIN, AGENT = "admin-token-0123456789", "agent-token-0123456789"
#: only attempt 2 of this job runs
TOKENS = WorkloadTokens(ADMIN, {"j-000001": 2}.get)


def sign_job(job: str, attempt: int) -> str:
    spec = JobSpec("x", ("true",), "/")
    return TOKENS.sign_job(Job(JobId(job), DEFAULT_PROJECT, OWNER, 1, attempt, spec, JobState.RUNNING, 0))


def make_function(name: str = "embed", revision: int = 3, user: str = "ann.lee") -> Function:
    return Function(FunctionName(name), DEFAULT_PROJECT, Owner(user, 1000), 1, revision, FunctionSpec(), 0)


OWNER = Owner("ann.lee", 1000)
JOB = sign_job("j-000001", 2)
FUNCTION = TOKENS.sign_function(make_function())


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
        ("http", "/v1/jobs", [f"Bearer {sign_job('j-000001', 1)}"], False),
        ("http", "/v1/jobs", [f"Bearer {sign_job('j-000002', 2)}"], False),
        ("http", "/v1/jobs", ["Bearer job.j-000001.2"], False),
        ("http", "/v1/jobs", ["Bearer job.j-000001.x.y"], False),
        ("http", "/v1/calls", [f"Bearer {JOB}"], True),
        ("http", "/v1/calls/c-1/result", [f"Bearer {FUNCTION}"], True),
        ("http", "/v1/call-key", [f"Bearer {FUNCTION}"], True),
        ("http", "/v1/calls", [f"Bearer {FUNCTION}x"], False),
        ("http", "/v1/jobs", [f"Bearer {FUNCTION}"], False),
        ("http", "/v1/functions", [f"Bearer {FUNCTION}"], False),
        ("http", "/v1/functions/embed/calls", [f"Bearer {FUNCTION}"], False),
        ("http", "/v1/calls", ["Bearer function.embed"], False),
        ("http", "/v1/calls", ["Bearer key.ann.lee"], False),
        ("http", "/v1/calls", [f"Bearer {TOKENS.call_key(OWNER)}"], False),
        ("websocket", "/v1/agent", [f"Bearer {JOB}"], False),
        ("websocket", "/v1/agent", [f"Bearer {AGENT}"], True),
        ("websocket", "/v1/agent", [f"Bearer {ADMIN}"], False),
        ("websocket", "/v1/agent", [], False),
        ("websocket", "/v1/agent/streams/x", [f"Bearer {AGENT}"], True),
        ("websocket", "/v1/agent/streams/x", [f"Bearer {ADMIN}"], False),
        ("websocket", "/v1/jobs/j-000001/terminal", [f"Bearer {ADMIN}"], True),
        ("websocket", "/v1/jobs/j-000001/terminal", [f"Bearer {JOB}"], False),
        ("websocket", "/v1/jobs/j-000001/terminal", [f"Bearer {AGENT}"], False),
        ("websocket", "/v1/jobs/j-000001/terminal", [], False),
        ("websocket", "/healthz", [], False),
    ],
)
def test_the_gate(kind: str, path: str, values: list[str], expected: bool) -> None:
    assert passes(kind, path, *[value.encode() for value in values]) is expected


@pytest.mark.parametrize("method", ["PUT", "HEAD", "DELETE", "POST"])
def test_an_agent_may_fetch_code_and_nothing_else(method: str) -> None:
    assert not passes("http", "/v1/bundles/x", f"Bearer {AGENT}".encode(), method=method)


def test_a_functions_token_may_make_calls_and_not_deploy() -> None:
    assert passes("http", "/v1/functions/embed/calls", f"Bearer {FUNCTION}".encode(), method="POST")
    assert not passes("http", "/v1/functions/embed", f"Bearer {FUNCTION}".encode(), method="PUT")
    assert not passes("http", "/v1/functions/embed/logs", f"Bearer {FUNCTION}".encode())


def test_a_functions_token_names_its_owner_also_with_dots_and_opens_nothing_once_it_is_gone_or_somebody_elses() -> None:
    caller = TOKENS.check(FUNCTION.encode())
    assert caller == Caller("function", "embed", 3, "ann.lee")

    def owner_with(*functions: Function) -> Owner:
        async def ask() -> Owner:
            store = MemoryStore()
            await store.write(lambda tx: [tx.put_function(function) for function in functions])
            return await store.read(caller.owner)

        return asyncio.run(ask())

    assert owner_with(make_function(revision=4)) == OWNER
    for others in ((), (make_function(revision=2),), (make_function(user="bob"),)):
        with pytest.raises(Unauthorized):
            owner_with(*others)


def test_owners_have_keys_of_their_own() -> None:
    assert TOKENS.call_key(OWNER).startswith("sk-") and TOKENS.call_key(OWNER) != TOKENS.call_key(Owner("bob", 1))
    assert TOKENS.call_key(OWNER) != WorkloadTokens(ADMIN + "x", {}.get).call_key(OWNER)
