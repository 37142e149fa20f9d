"""Routes of durable calls: make, look, wait, result, cancel; and how a caller's own processes call functions at the gateway.

An input is streamed to disk before the row that names it is committed, so that an acknowledged call is never without one. Neither
inputs nor results are looked into here.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Parameter
from litestar.response import File

from steelyard.api.auth import Caller, caller_of, peer_of
from steelyard.api.functions import FunctionPath
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.jobs import Limit, StatesParameter, WaitS
from steelyard.api.listing import parse_states
from steelyard.api.problems import errors, refuse_disk
from steelyard.api.services import Services, services_of
from steelyard.api.views import call_view, event_view
from steelyard.control import CALLS
from steelyard.control.calls import commit_call, make_call_event
from steelyard.control.watch import wait_for
from steelyard.errors import Conflict, NoRoom, NotFound, Refused, SteelyardError, Unauthorized
from steelyard.lifecycle import call as lifecycle
from steelyard.model.call import Call, CallState
from steelyard.model.function import Function
from steelyard.model.ids import DEFAULT_PROJECT, CallId, FunctionName
from steelyard.store import Tx
from steelyard.wire.api import EventView
from steelyard.wire.function_api import CallKey, CallView
from steelyard.wire.landing import Landing

#: calls that may wait at a time; more are refused, so that the queue stays bounded (R11)
CALLS_MAX = 100_000
TYPE_MAX = 200
#: an input up to this size is received before anything is looked up
SMALL_BYTES = 1 << 16

_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)

CallPath = Annotated[str, Parameter(min_length=1, max_length=64, description="A call's id, such as c-5f1d0a92c3e4.")]
Method = Annotated[str | None, Parameter(max_length=100, description="Of a class.")]
FunctionParameter = Annotated[str | None, Parameter(max_length=255)]
_BYTES = {
    200: ResponseSpec(
        data_container=bytes,
        generate_examples=False,
        media_type="application/octet-stream",
        description="What the function answered",
    )
}


@post(
    "/v1/functions/{name:str}/calls",
    status_code=201,
    request_max_body_size=None,
    responses=errors(404, 413, 415, 422, 429, 502, 507),
)
async def make_call(
    request: Request[Any, Any, Any], name: FunctionPath, idempotency_key: IdempotencyKey, method: Method = None
) -> Response[CallView]:
    """Call a function, to be carried out at least once whatever happens meanwhile. The body is its input, of any type and size;
    the answer comes once it is on disk."""
    services = services_of(request)
    now, caller = services.clock.now_us(), caller_of(request)
    content_type = request.headers.get("content-type", "")
    if method is not None and not _METHOD.fullmatch(method):
        raise Refused(f"{method!r} can't be a method's name.", code="bad-method")
    if len(content_type) > TYPE_MAX or not content_type.isprintable():
        raise Refused(f"A content type has at most {TYPE_MAX} characters.", code="bad-content-type")
    if services.calls.waiting >= CALLS_MAX:
        raise NoRoom(f"{CALLS_MAX} calls are waiting already. Try again when some have ended.", code="queue-full")
    if not 0 <= int(request.headers.get("content-length") or -1) <= SMALL_BYTES:
        # before gigabytes are received in vain
        await services.store.read(lambda tx: _callable(tx, name, caller))
    id_ = new_call_id()
    size_bytes, digest = await _receive(request, services, id_)
    made: list[CallId] = []

    def create(tx: Tx) -> CallView:
        function = _callable(tx, name, caller)
        call = lifecycle.make_call(id_, function, now, method or "", content_type, size_bytes)
        tx.put_call(call)
        tx.add_event(make_call_event(call, "submitted", now))
        made.append(id_)
        return call_view(call)

    try:
        answer = await mutate(request, idempotency_key, 201, create, content=digest)
    except SteelyardError:
        made.clear()
        raise
    finally:
        # cancelled while it was committed: the row may be there, and at the next start the input goes if it is not
        if not made:
            await asyncio.to_thread(services.call_files.forget_input, id_)
    services.driver.poke(CALLS)
    return answer


@get("/v1/calls", responses=errors(422))
async def list_calls(
    request: Request[Any, Any, Any], limit: Limit = 1000, in_states: StatesParameter = None, function: FunctionParameter = None
) -> list[CallView]:
    """The newest calls, oldest first: of one function, in the given states (`RUNNING,QUEUED`)."""
    services, caller = services_of(request), caller_of(request)
    states, name = parse_states(CallState, in_states, "call"), None if function is None else FunctionName(function)

    def read(tx: Tx) -> list[Call]:
        owner = None if caller is None else caller.owner(tx)
        return [call for call in tx.calls(name, states, limit) if owner is None or call.owner == owner]

    return [call_view(call) for call in await services.store.read(read)]


@get("/v1/calls/{call:str}", responses=errors(404))
async def get_call(request: Request[Any, Any, Any], call: CallPath, wait_s: WaitS = 0.0) -> CallView:
    """With `wait_s`: waits until it has ended."""
    return call_view(await _wait(request, call, wait_s))


@get("/v1/calls/{call:str}/result", media_type="application/octet-stream", responses={**errors(404, 409), **_BYTES})
async def get_result(request: Request[Any, Any, Any], call: CallPath, wait_s: WaitS = 0.0) -> File:
    """What the function answered, as it did, also when it raised. With `wait_s`: waits until it has ended."""
    row = await _wait(request, call, wait_s)
    if row.result_bytes is None:
        if row.state.terminal:
            raise Conflict(f"{row.id} is {row.state} and has no result: {row.detail or 'nothing was answered'}", code="no-result")
        raise Conflict(f"{row.id} has not ended: it is {row.state}. Ask again, or wait with `wait_s`.", code="not-ended")
    path = services_of(request).call_files.result(row.id)
    if not path.exists():
        raise NotFound(f"The result of {row.id} is not kept any more.")
    return File(path, filename=path.name, media_type=row.result_type or "application/octet-stream")


@get("/v1/calls/{call:str}/events", responses=errors(404))
async def call_events(request: Request[Any, Any, Any], call: CallPath) -> list[EventView]:
    """The call's history, the oldest first."""
    caller = caller_of(request)

    def read(tx: Tx) -> list[EventView]:
        return [event_view(event) for event in tx.events(kind="call", subject=_found(tx, call, caller).id)]

    return await services_of(request).store.read(read)


@post("/v1/calls/{call:str}/cancel", status_code=202, responses=errors(404, 422, 507))
async def cancel(request: Request[Any, Any, Any], call: CallPath, idempotency_key: IdempotencyKey) -> Response[CallView]:
    """Waiting, it is not carried out any more; running, its connection is closed. One that has ended is left as it is."""
    services, caller = services_of(request), caller_of(request)
    now = services.clock.now_us()
    cancelled: list[CallId] = []

    def commit(tx: Tx) -> CallView:
        row = _found(tx, call, caller)
        change = lifecycle.cancel_call(row, now)
        if change is None:
            return call_view(row)
        commit_call(tx, change, now)
        cancelled.append(row.id)
        return call_view(change.call)

    answer = await mutate(request, idempotency_key, 202, commit)
    if CallId(call) in cancelled:
        await asyncio.to_thread(services.call_files.forget_input, CallId(call))
    services.watch.notify(f"call/{call}")
    services.driver.poke(CALLS)
    return answer


@get("/v1/call-key", responses=errors(409))
async def get_call_key(request: Request[Any, Any, Any]) -> CallKey:
    """How this caller's processes call private functions."""
    services, caller = services_of(request), caller_of(request)
    owner = services.owner if caller is None else await services.store.read(caller.owner)
    url, peer = services.settings.gateway_url, peer_of(request)
    if peer is not None:
        # on a machine of a pool the home's gateway is behind that machine's own
        machine = await services.store.read(lambda tx: tx.machine(peer.machine))
        if machine is None:
            raise Conflict(f"{peer.machine} has ended, and nobody is heard there any more.", code="machine-gone")
        url = machine.home_gateway
    return CallKey(url, services.secrets.call_key(owner))


def new_call_id() -> CallId:
    return CallId(f"c-{secrets.token_hex(6)}")


async def _receive(request: Request[Any, Any, Any], services: Services, call: CallId) -> tuple[int, bytes]:
    """Put the body on disk; its size and sha256."""
    path = services.call_files.input(call)
    digest = hashlib.sha256()
    try:
        async with Landing(path) as file:
            async for chunk in request.stream():
                digest.update(chunk)
                await file.write(chunk)
            await file.land()
            return file.size_bytes, digest.digest()
    except OSError as err:
        raise refuse_disk(err, "input", path) from err


async def _wait(request: Request[Any, Any, Any], call: str, wait_s: float) -> Call:
    """The row once it has ended, or when the time is over."""
    services, caller = services_of(request), caller_of(request)
    deadline_ns = services.clock.mono_ns() + int(wait_s * 1e9)
    with services.watch.subscribe(f"call/{call}") as news:
        while True:
            row = await services.store.read(lambda tx: _found(tx, call, caller))
            left_s = (deadline_ns - services.clock.mono_ns()) / 1e9
            if row.state.terminal or left_s <= 0 or services.watch.stopping:
                return row
            await wait_for(news, left_s)


def _callable(tx: Tx, name: str, caller: Caller | None) -> Function:
    function = tx.function(DEFAULT_PROJECT, FunctionName(name))
    if function is None:
        raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
    if caller is not None and function.owner != caller.owner(tx):
        raise Unauthorized(f"{name} belongs to {function.owner.user}.")
    return function


def _found(tx: Tx, call: str, caller: Caller | None) -> Call:
    row = tx.call(CallId(call))
    if row is None or (caller is not None and row.owner != caller.owner(tx)):
        raise NotFound(f"There is no call {call}. `steelyard calls` lists them; they are kept for seven days.")
    return row


CALL_ROUTES = (make_call, list_calls, get_call, get_result, call_events, cancel, get_call_key)
