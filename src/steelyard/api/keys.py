"""Routes of API keys: what private functions ask their callers for."""

from __future__ import annotations

import contextlib
import secrets
from typing import Annotated, Any

from litestar import Request, Response, delete, get, post
from litestar.params import Parameter

from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.problems import errors
from steelyard.api.requests import require_json
from steelyard.api.services import Services, services_of
from steelyard.api.views import key_view
from steelyard.control import ASSIGNMENT
from steelyard.control.assignment import admitted_keys
from steelyard.errors import Conflict, NotFound, Refused, Unreachable
from steelyard.model.function import ApiKey
from steelyard.model.ids import DEFAULT_PROJECT, NAME
from steelyard.store import Event, Tx
from steelyard.wire.agent import digest_keys
from steelyard.wire.api import KeyCreate, KeyView

KeyPath = Annotated[str, Parameter(min_length=1, max_length=255, description="A key's name.")]


@get("/v1/keys", responses=errors())
async def list_keys(request: Request[Any, Any, Any]) -> list[KeyView]:
    """Without their secrets, which are given once."""
    rows = await services_of(request).store.read(lambda tx: tx.keys())
    return [key_view(row) for row in rows]


@post("/v1/keys", status_code=201, before_request=require_json, responses=errors(409, 413, 415, 422, 507))
async def create_key(request: Request[Any, Any, Any], data: KeyCreate, idempotency_key: IdempotencyKey) -> Response[KeyView]:
    """Make a key. The answer is the only place that ever shows its secret."""
    services = services_of(request)
    now = services.clock.now_us()
    secret = f"sk-{secrets.token_urlsafe(32)}"

    def create(tx: Tx) -> KeyView:
        if not NAME.fullmatch(data.name):
            raise Refused("A key's name has up to 63 of a-z, 0-9 and -, with no - at the ends.", code="bad-name")
        stored = tx.keys()
        if any(key.name == data.name and key.project == DEFAULT_PROJECT for key in stored):
            raise Conflict(f"There is a key {data.name} already. Choose another name, or delete it first.", code="name-taken")
        key = ApiKey(data.name, DEFAULT_PROJECT, services.owner, 1, secret, now)
        tx.put_key(key)
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "key", data.name, "created"))
        return key_view(key, with_secret=True)

    answer = await mutate(request, idempotency_key, 201, create)
    await _told(services)
    return answer


@delete("/v1/keys/{name:str}", status_code=204, responses=errors(404, 422, 507))
async def delete_key(request: Request[Any, Any, Any], name: KeyPath, idempotency_key: IdempotencyKey) -> Response[None]:
    """Functions refuse it from now on."""
    services = services_of(request)
    now = services.clock.now_us()

    def commit(tx: Tx) -> None:
        if not tx.delete_key(DEFAULT_PROJECT, name):
            raise NotFound(f"There is no key {name}. `steelyard keys` lists them.")
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "key", name, "deleted"))

    answer = await mutate(request, idempotency_key, 204, commit)
    await _told(services)
    return answer


async def _told(services: Services) -> None:
    """Until the gateway has heard, so that a new key works and a deleted one is refused when the caller is answered. Without an
    agent the gateway hears when there is one again: the change itself is on disk."""
    services.driver.poke(ASSIGNMENT)
    keys = await services.store.read(lambda tx: admitted_keys(tx.keys(), tx.functions(), services.secrets))
    with contextlib.suppress(Unreachable):
        await services.hub.ask("keys", digest_keys(keys))


KEY_ROUTES = (list_keys, create_key, delete_key)
