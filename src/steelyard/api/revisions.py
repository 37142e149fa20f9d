"""Routes of revisions: list them, move traffic and tags between them, go back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from litestar import Request, Response, get, post, put

from steelyard.api.door_traffic import check_tag
from steelyard.api.functions import FunctionPath
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.secrets import find_missing
from steelyard.api.services import Services, services_of
from steelyard.api.views import function_view, revision_view
from steelyard.control import ASSIGNMENT, JOBS
from steelyard.control.places import place_now
from steelyard.control.traffic import move_traffic, previous_good, roll_back
from steelyard.errors import NotFound
from steelyard.model.function import Function, Share
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName
from steelyard.store import Event, Tx
from steelyard.wire.function_api import FunctionView, RevisionView, RollbackRequest, TrafficPut


@get("/v1/functions/{name:str}/revisions", responses=errors(404))
async def list_revisions(request: Request[Any, Any, Any], name: FunctionPath) -> list[RevisionView]:
    """The oldest first; those that were forgotten are left out."""
    services = services_of(request)
    row, rows = await services.store.read(lambda tx: (_find(tx, name), tx.revisions(DEFAULT_PROJECT, FunctionName(name))))
    looks = services.looks.find(row.name)
    return [revision_view(each, row, looks, services.settings) for each in rows]


@put("/v1/functions/{name:str}/traffic", before_request=require_json, responses=errors(404, 409, 413, 415, 422, 507))
async def put_traffic(
    request: Request[Any, Any, Any], name: FunctionPath, data: TrafficPut, idempotency_key: IdempotencyKey
) -> Response[FunctionView]:
    """Say which revision gets which share, and where tags lead. One that is not ready gets its share when it is."""

    def move(tx: Tx, row: Function, services: Services, now: int) -> Function:
        functions = {each.name: each for each in tx.functions()}
        for tag in data.tags or {}:
            refuse_findings(check_tag(name, tag, functions))
        after = place_now(tx, row, move_traffic(tx, row, data.shares, data.tags), services.hub.lost)
        text = ", ".join(f"{share.percent} % to revision {share.revision}" for share in data.shares)
        tx.add_event(Event(now, row.project, services.owner.user, "function", name, f"moved traffic: {text}"))
        return after

    return await _change(request, name, idempotency_key, move)


@post(
    "/v1/functions/{name:str}/rollback",
    status_code=200,
    before_request=require_json,
    responses=errors(404, 409, 413, 415, 422, 507),
)
async def roll_function_back(
    request: Request[Any, Any, Any], name: FunctionPath, data: RollbackRequest, idempotency_key: IdempotencyKey
) -> Response[FunctionView]:
    """All traffic goes back to an earlier revision, by default the newest one before that was ready."""

    def go_back(tx: Tx, row: Function, services: Services, now: int) -> Function:
        revision = previous_good(tx, row) if data.revision is None else data.revision
        user = services.owner.user
        after = roll_back(tx, row, (Share(revision, 100),), None, f"asked for by {user}", now, user)
        after = place_now(tx, row, after, services.hub.lost)
        tx.add_event(Event(now, row.project, user, "function", name, f"all traffic to revision {revision}"))
        return after

    return await _change(request, name, idempotency_key, go_back)


async def _change(
    request: Request[Any, Any, Any],
    name: str,
    idempotency_key: str | None,
    change: Callable[[Tx, Function, Services, int], Function],
) -> Response[FunctionView]:
    services = services_of(request)
    now = services.clock.now_us()

    def commit(tx: Tx) -> FunctionView:
        before = _find(tx, name)
        after = change(tx, before, services, now)
        for revision in after.live.keys() - before.live.keys():
            refuse_findings(find_missing(tx, after.owner, after.live[revision].spec.secrets))
        tx.put_function(after)
        return msgspec.structs.replace(function_view(after, services.settings, services.hub.lost_of(after)), spec=after.spec)

    answer = await mutate(request, idempotency_key, 200, commit)
    services.watch.notify(f"function/{name}")
    services.driver.poke(JOBS, ASSIGNMENT)
    return answer


def _find(tx: Tx, name: str) -> Function:
    row = tx.function(DEFAULT_PROJECT, FunctionName(name))
    if row is None:
        raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
    return row


REVISION_ROUTES = (list_revisions, put_traffic, roll_function_back)
