from __future__ import annotations

import asyncio
from typing import Any

import pytest

from steelyard.api.auth import Peer, WorkloadTokens
from steelyard.api.peers import PeerGate, admit
from steelyard.model.certificate import Identity, Role
from steelyard.model.ids import MachineId

TOKENS = WorkloadTokens("admin-token-of-the-home", lambda job: 1 if job == "j-1" else None)
PEER = Peer(MachineId("train-3"), "train")
AGENT = TOKENS.sign_pilot(PEER.machine)


@pytest.mark.parametrize(
    ("identity", "peer"),
    [
        (Identity(Role.AGENT, "train-3"), PEER),
        (Identity(Role.AGENT, "a-b-12"), Peer(MachineId("a-b-12"), "a-b")),
        (Identity(Role.AGENT, "train"), None),
        (Identity(Role.NODE_GATEWAY, "train-3"), None),
        (Identity(Role.GATEWAY, "home"), None),
        (None, None),
    ],
)
def test_only_agents_of_pilots_are_let_in(identity: Identity | None, peer: Peer | None) -> None:
    assert admit(identity) == peer


def ask(kind: str, method: str, path: str, token: str) -> str:
    """What became of a request: "in", or what it was answered."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append("in")

    async def receive() -> dict[str, object]:
        return {}

    async def send(message: dict[str, Any]) -> None:
        seen.append(str(message.get("status", message["type"])))

    headers = [(b"authorization", f"Bearer {token}".encode())]
    scope = {"type": kind, "method": method, "path": path, "headers": headers, "steelyard.peer": PEER}
    asyncio.run(PeerGate(app, TOKENS)(scope, receive, send))
    return seen[0]


@pytest.mark.parametrize(
    ("kind", "method", "path", "token", "answer"),
    [
        ("websocket", "GET", "/v1/agent", AGENT, "in"),
        ("websocket", "GET", "/v1/agent/streams/x", AGENT, "in"),
        ("http", "GET", "/v1/bundles/abc", AGENT, "in"),
        ("http", "POST", "/v1/pilots/train-3/drain", AGENT, "in"),
        ("http", "POST", "/v1/jobs", AGENT, "401"),
        # another pilot's
        ("websocket", "GET", "/v1/agent", TOKENS.sign_pilot(MachineId("train-4")), "websocket.close"),
        # the admin's and none open nothing
        ("http", "GET", "/v1/jobs", "admin-token-of-the-home", "401"),
        ("http", "GET", "/v1/jobs", "", "401"),
        ("websocket", "GET", "/v1/agent", "", "websocket.close"),
        ("websocket", "GET", "/v1/jobs/j-1/terminal", "", "websocket.close"),
    ],
)
def test_what_a_token_opens_behind_the_door(kind: str, method: str, path: str, token: str, answer: str) -> None:
    assert ask(kind, method, path, token) == answer
