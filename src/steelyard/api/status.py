"""Routes about the platform itself: is it up, who is its agent, what is its machine."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, WebSocket, get, websocket
from litestar.exceptions import WebSocketDisconnect

from steelyard import __version__
from steelyard.api.auth import AGENT_PATH, HEALTH_PATH
from steelyard.api.problems import errors
from steelyard.api.services import services_of
from steelyard.errors import NotFound
from steelyard.model.machine import Machine


class Health(msgspec.Struct, frozen=True):
    status: str


class Status(msgspec.Struct, frozen=True):
    version: str
    machine_id: str | None
    #: "connected" or "lost"
    agent: str
    epoch: int


@get(HEALTH_PATH, security=[{}])
async def healthz() -> Health:
    """The only route without a token. Says nothing but that the server answers."""
    return Health("ok")


@get("/v1/status", responses=errors())
async def get_status(request: Request[Any, Any, Any]) -> Status:
    services = services_of(request)
    machine = await services.store.read(lambda tx: tx.machine())
    return Status(
        version=__version__,
        machine_id=None if machine is None else machine.id,
        agent="connected" if services.hub.connected else "lost",
        epoch=services.epoch,
    )


@get("/v1/machine", responses=errors(404))
async def get_machine(request: Request[Any, Any, Any]) -> Machine:
    """What the agent observed of its machine when it said hello."""
    machine = await services_of(request).store.read(lambda tx: tx.machine())
    if machine is None:
        raise NotFound("No agent has reported its machine yet.", code="no-machine")
    return machine


@websocket(AGENT_PATH)
async def agent_socket(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await services_of(socket).hub.serve(_Frames(socket))


class _Frames:
    """Litestar's WebSocket as `api.agents.Socket`."""

    def __init__(self, socket: WebSocket[Any, Any, Any]) -> None:
        self._socket = socket

    async def receive_bytes(self) -> bytes:
        try:
            return await self._socket.receive_bytes()
        except WebSocketDisconnect as err:
            raise ConnectionError(f"closed with code {err.code}") from err

    async def send_bytes(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except RuntimeError as err:
            raise ConnectionError("closed") from err

    async def close(self, code: int) -> None:
        await self._socket.close(code)


STATUS_ROUTES = (healthz, get_status, get_machine, agent_socket)
