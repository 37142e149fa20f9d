"""Routes of functions: deploy, list, look, delete, logs, cold starts."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, put
from litestar.params import Parameter

from steelyard.api.auth import caller_of
from steelyard.api.bundles import bundle_path
from steelyard.api.door import check_fields, check_function, check_function_pool
from steelyard.api.door_traffic import check_traffic
from steelyard.api.door_volumes import check_volumes
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.image_use import settle_function
from steelyard.api.jobs import Limit, Offset, WaitS
from steelyard.api.logs import follow_function
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.schedules import declare_schedule
from steelyard.api.secrets import find_missing
from steelyard.api.services import Services, services_of
from steelyard.api.views import asked_machine, coldstart_view, function_view
from steelyard.control import ASSIGNMENT, CALLS, JOBS, LEASES, PLACES, SCHEDULES
from steelyard.control.places import end_function, place_now
from steelyard.control.traffic import deploy_revision
from steelyard.control.watch import wait_for
from steelyard.errors import Conflict, NotFound, Refused
from steelyard.model.function import Function, FunctionSpec, FunctionState, ReplicaEnd, Revision
from steelyard.model.ids import DEFAULT_PROJECT, OWN_MACHINE, FunctionName
from steelyard.model.template import TemplateSeen
from steelyard.store import Event, Tx
from steelyard.wire.api import LogChunk
from steelyard.wire.function_api import ColdStartView, FunctionDeploy, FunctionView

FunctionPath = Annotated[str, Parameter(min_length=1, max_length=255, description="A function's name.")]


@put("/v1/functions/{name:str}", before_request=require_json, responses=errors(409, 413, 415, 422, 507))
async def deploy_function(
    request: Request[Any, Any, Any], name: FunctionPath, data: FunctionDeploy, idempotency_key: IdempotencyKey
) -> Response[FunctionView]:
    """Make a new revision. It gets its share of the traffic once it answered readiness; until then those before keep it."""
    services = services_of(request)
    refuse_findings(check_fields(await request.body(), FunctionSpec))
    now = services.clock.now_us()
    expires_at = None if data.lease_s is None else now + round(data.lease_s * 1e6)
    name_ = FunctionName(name)

    def deploy(tx: Tx) -> FunctionView:
        before = tx.function(DEFAULT_PROJECT, name_)
        # whatever a machine of a pool has will do; one that has it may be still to come
        findings = check_function(name, data.spec, None if data.spec.pool else tx.machine(), services.root)
        pools = {pool.name for pool in tx.pools() if not pool.deleting} if data.spec.pool else set[str]()
        was = None if before is None else before.spec
        findings += check_function_pool(name, data.spec, was, pools, services.root)
        findings += check_volumes(data.spec.volumes, tx.volumes(), services.owner)
        refuse_findings([*findings, *find_missing(tx, services.owner, data.spec.secrets)])
        taken = {row.name: row for row in tx.functions()}
        spec = settle_function(tx, data.spec, services.owner, now)
        refuse_findings(check_traffic(name, data.percent, data.tag, taken))
        _check_bundle(services, data.spec)
        if before is not None and before.owner != services.owner:
            raise Conflict(f"The name {name} is taken by a function of {before.owner.user}. Choose another.", code="name-taken")
        if before is not None and before.expires_at is None and expires_at is not None:
            raise Conflict(f"{name} is deployed to stay: it can't be made ephemeral. Choose another name.", code="name-taken")
        if data.schedule is not None and expires_at is not None:
            raise Refused(f"{name} is ephemeral, and can't be called by the clock. Deploy it to stay.", code="bad-schedule")
        declare_schedule(tx, services, name_, data.schedule, now)
        # revisions are never numbered twice, even when the function was deleted in between: their replicas carry the number
        revision = tx.bump(f"revision/{DEFAULT_PROJECT}/{name}")
        new = Revision(
            function=name_,
            project=DEFAULT_PROJECT,
            owner=services.owner,
            generation=1,
            revision=revision,
            spec=spec,
            deployed_at=now,
            by=services.owner.user,
            errors_max=data.errors_max,
        )
        row = before or Function(name_, DEFAULT_PROJECT, services.owner, 0, revision, spec, now)
        after = place_now(tx, row, deploy_revision(tx, row, new, data.percent, data.tag), services.hub.lost)
        after = msgspec.structs.replace(after, deployed_at=now, expires_at=expires_at)
        tx.put_function(after)
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "function", name, f"deployed revision {revision}"))
        return function_view(after, services.settings)

    answer = await mutate(request, idempotency_key, 200, deploy)
    services.watch.notify(f"function/{name}")
    services.driver.poke(JOBS, ASSIGNMENT, SCHEDULES, PLACES, *([] if data.lease_s is None else [LEASES]))
    return answer


@get("/v1/functions", responses=errors())
async def list_functions(request: Request[Any, Any, Any]) -> list[FunctionView]:
    services = services_of(request)
    rows = await services.store.read(lambda tx: tx.functions())
    return [function_view(row, services.settings, services.hub.lost_of(row)) for row in rows]


@get("/v1/functions/{name:str}", responses=errors(404))
async def get_function(request: Request[Any, Any, Any], name: FunctionPath, wait_s: WaitS = 0.0) -> FunctionView:
    """With `wait_s`: waits until the newest revision is reached or has failed."""
    services = services_of(request)
    deadline_ns = services.clock.mono_ns() + int(wait_s * 1e9)
    with services.watch.subscribe(f"function/{name}") as news:
        while True:
            row = await services.store.read(lambda tx: tx.function(DEFAULT_PROJECT, FunctionName(name)))
            if row is None:
                raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
            left_s = (deadline_ns - services.clock.mono_ns()) / 1e9
            reached = row.revision == row.routed_revision or row.revision in row.routes.revisions
            settled = reached or row.state is FunctionState.FAILED
            if settled or left_s <= 0 or services.watch.stopping:
                return msgspec.structs.replace(function_view(row, services.settings, services.hub.lost_of(row)), spec=row.spec)
            await wait_for(news, left_s)


@get("/v1/functions/{name:str}/template", responses=errors(404, 409, 503))
async def get_template(request: Request[Any, Any, Any], name: FunctionPath) -> list[TemplateSeen]:
    """The templates that its replicas are forked from, from the base to its revision; empty for a command."""
    services = services_of(request)
    row = await services.store.read(lambda tx: tx.function(DEFAULT_PROJECT, FunctionName(name)))
    if row is None:
        raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
    answer = await services.hub.ask("template", name, machine=asked_machine(row))
    if answer.error:
        raise Conflict(answer.error, code="not-here-yet")
    return msgspec.json.decode(answer.data, type=list[TemplateSeen])


@get("/v1/functions/{name:str}/ends", responses=errors(404, 503))
async def list_ends(request: Request[Any, Any, Any], name: FunctionPath) -> list[ReplicaEnd]:
    """How replicas ended lately that nobody had told to: crashed, killed, out of memory. As far back as its agent knows."""
    services, caller = services_of(request), caller_of(request)

    def check(tx: Tx) -> Function:
        row = tx.function(DEFAULT_PROJECT, FunctionName(name))
        if row is None or (caller is not None and row.owner != caller.owner(tx)):
            raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
        return row

    row = await services.store.read(check)
    found: list[ReplicaEnd] = []
    for machine in [place.machine for place in row.places] if row.spec.pool else [OWN_MACHINE]:
        answer = await services.hub.ask("ends", name, machine=machine)
        found += [] if answer.error else msgspec.json.decode(answer.data, type=list[ReplicaEnd])
    return sorted(found, key=lambda end: end.ended_at)


@delete("/v1/functions/{name:str}", status_code=204, responses=errors(404, 422, 507))
async def delete_function(request: Request[Any, Any, Any], name: FunctionPath, idempotency_key: IdempotencyKey) -> Response[None]:
    """Its requests in flight are answered; then its replicas end."""
    services = services_of(request)
    now = services.clock.now_us()

    def commit(tx: Tx) -> None:
        if (row := tx.function(DEFAULT_PROJECT, FunctionName(name))) is None:
            raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
        end_function(tx, row, services.hub.lost)
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "function", name, "deleted"))
        declare_schedule(tx, services, FunctionName(name), None, now)

    answer = await mutate(request, idempotency_key, 204, commit)
    services.watch.notify(f"function/{name}")
    services.driver.poke(JOBS, ASSIGNMENT, CALLS)
    return answer


@get("/v1/functions/{name:str}/logs", responses=errors(404))
async def function_logs(
    request: Request[Any, Any, Any],
    name: FunctionPath,
    stdout_offset: Offset = 0,
    stderr_offset: Offset = 0,
    wait_s: WaitS = 0.0,
) -> LogChunk:
    return await follow_function(services_of(request), name, (stdout_offset, stderr_offset), wait_s)


@get("/v1/coldstarts", responses=errors())
async def list_coldstarts(
    request: Request[Any, Any, Any],
    function: Annotated[str | None, Parameter(max_length=255)] = None,
    limit: Limit = 1000,
) -> list[ColdStartView]:
    """The newest wakes, oldest first."""
    name = None if function is None else FunctionName(function)
    rows = await services_of(request).store.read(lambda tx: tx.coldstarts(name, limit))
    return [coldstart_view(row) for row in rows]


def _check_bundle(services: Services, spec: FunctionSpec) -> None:
    if spec.bundle is not None and not bundle_path(services.bundles, spec.bundle).exists():
        raise Refused(f"The bundle {spec.bundle} is not here. Upload it first: PUT /v1/bundles/<sha256>.", code="no-bundle")


FUNCTION_ROUTES = (
    deploy_function,
    list_functions,
    get_function,
    get_template,
    list_ends,
    delete_function,
    function_logs,
    list_coldstarts,
)
