"""Routes about the platform itself: is it up, who is its agent, what is its machine."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, WebSocket, get, post, websocket
from litestar.exceptions import WebSocketDisconnect

from steelyard import __version__
from steelyard.api.auth import AGENT_PATH, HEALTH_PATH, peer_of
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.problems import errors
from steelyard.api.requests import require_json
from steelyard.api.services import services_of
from steelyard.errors import Conflict, NotFound, Refused
from steelyard.model.ids import DEFAULT_PROJECT
from steelyard.model.machine import Machine
from steelyard.store import Event, Tx
from steelyard.wire.agent import MachineHealth
from steelyard.wire.api import HealthRequest


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
        agent="connected" if services.hub.connected() else "lost",
        epoch=services.epoch,
    )


@get("/v1/machine", responses=errors(404))
async def get_machine(request: Request[Any, Any, Any]) -> Machine:
    """What the agent observed of its machine when it said hello."""
    machine = await services_of(request).store.read(lambda tx: tx.machine())
    if machine is None:
        raise NotFound("No agent has reported its machine yet.", code="no-machine")
    return machine


@get("/v1/machine/health", responses=errors(409))
async def get_health(request: Request[Any, Any, Any]) -> MachineHealth:
    """What the agent found in its newest look, and what it holds out of use."""
    return await _ask_health(request, "health", "")


@post("/v1/machine/health", status_code=202, before_request=require_json, responses=errors(409, 413, 415, 422, 507))
async def change_health(
    request: Request[Any, Any, Any], data: HealthRequest, idempotency_key: IdempotencyKey
) -> Response[MachineHealth]:
    """Begin an active check, or keep the hardware as it is now. Level-triggered: asking again changes nothing."""
    if (data.subject is None) is not data.keep_hardware:
        raise Refused("Give either a subject to check, or keep_hardware.", code="bad-request")
    services = services_of(request)
    what = "keep-hardware" if data.subject is None else "readmit"
    shown = await _ask_health(request, what, data.subject or "")
    now = services.clock.now_us()

    def note(tx: Tx) -> MachineHealth:
        machine = tx.machine()
        text = (
            "the hardware is to be kept as it is" if data.subject is None else f"an active check of {data.subject} is asked for"
        )
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "machine", "" if machine is None else machine.id, text))
        return shown

    return await mutate(request, idempotency_key, 202, note)


async def _ask_health(request: Request[Any, Any, Any], what: str, subject: str) -> MachineHealth:
    answer = await services_of(request).hub.ask(what, subject)
    if answer.error:
        raise Conflict(answer.error, code="no-check")
    return msgspec.json.decode(answer.data, type=MachineHealth)


@websocket(AGENT_PATH)
async def agent_socket(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await services_of(socket).hub.serve(_Frames(socket), peer_of(socket))


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


STATUS_ROUTES = (healthz, get_status, get_machine, get_health, change_health, agent_socket)
