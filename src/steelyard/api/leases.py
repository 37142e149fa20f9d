"""Routes of leases: ephemeral functions stay for as long as whoever made them says so every few seconds."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, post

from steelyard.api.problems import errors
from steelyard.api.requests import require_json
from steelyard.api.services import services_of
from steelyard.control import ASSIGNMENT, JOBS
from steelyard.control.places import end_function
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName
from steelyard.store import Event, Tx
from steelyard.wire.function_api import LeaseRenewal, LeaseView


@post("/v1/leases", status_code=200, before_request=require_json, responses=errors(413, 415, 422, 507))
async def renew_leases(request: Request[Any, Any, Any], data: LeaseRenewal) -> LeaseView:
    """Repeating it does no harm, so it needs no Idempotency-Key. Functions that are deployed to stay are none of its business:
    they are left alone, and not named in the answer."""
    services = services_of(request)
    now = services.clock.now_us()
    until = now + round(data.lease_s * 1e6)

    def renew(tx: Tx) -> LeaseView:
        found = [tx.function(DEFAULT_PROJECT, FunctionName(name)) for name in dict.fromkeys(data.names)]
        leased = [row for row in found if row is not None and row.expires_at is not None and row.owner == services.owner]
        for row in leased:
            if data.lease_s > 0:
                tx.put_function(msgspec.structs.replace(row, generation=row.generation + 1, expires_at=until))
                continue
            end_function(tx, row, services.hub.lost)
            tx.add_event(Event(now, row.project, row.owner.user, "function", row.name, "deleted: its lease was given back"))
        return LeaseView(tuple(row.name for row in leased))

    answer = await services.store.write(renew)
    if data.lease_s == 0:
        for name in answer.names:
            services.watch.notify(f"function/{name}")
        services.driver.poke(JOBS, ASSIGNMENT)
    return answer


LEASE_ROUTES = (renew_leases,)
