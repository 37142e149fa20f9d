"""Routes of functions: deploy, list, look, delete, logs, cold starts."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, put
from litestar.params import Parameter

from steelyard.api.auth import caller_of
from steelyard.api.bundles import bundle_path
from steelyard.api.door import check_fields, check_function
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.jobs import Limit, Offset, WaitS
from steelyard.api.logs import follow_function
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.schedules import declare_schedule
from steelyard.api.services import Services, services_of
from steelyard.api.views import coldstart_view, function_view
from steelyard.control import ASSIGNMENT, CALLS, JOBS, LEASES, SCHEDULES
from steelyard.control.jobs import forget_borrowed, hold_functions, hold_jobs, make_room
from steelyard.control.live import HOLDING
from steelyard.control.watch import wait_for
from steelyard.errors import Conflict, NoRoom, NotFound, Refused, Unreachable
from steelyard.lifecycle.node import plan_blocked
from steelyard.model.function import Function, FunctionSpec, FunctionState, ReplicaEnd
from steelyard.model.health import NODE
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName
from steelyard.model.job import Plan
from steelyard.model.template import TemplateSeen
from steelyard.placement.refusal import Refusal
from steelyard.store import Event, Tx
from steelyard.wire.api import ColdStartView, FunctionDeploy, FunctionView, LogChunk

FunctionPath = Annotated[str, Parameter(min_length=1, max_length=255, description="A function's name.")]


@put("/v1/functions/{name:str}", before_request=require_json, responses=errors(409, 413, 415, 422, 507))
async def deploy_function(
    request: Request[Any, Any, Any], name: FunctionPath, data: FunctionDeploy, idempotency_key: IdempotencyKey
) -> Response[FunctionView]:
    """Make a new revision. It gets traffic once it answered readiness; until then the one before keeps it."""
    services = services_of(request)
    refuse_findings(check_fields(await request.body(), FunctionSpec))
    now = services.clock.now_us()
    expires_at = None if data.lease_s is None else now + round(data.lease_s * 1e6)
    name_ = FunctionName(name)

    def deploy(tx: Tx) -> FunctionView:
        refuse_findings(check_function(name, data.spec, tx.machine(), services.root))
        _check_bundle(services, data.spec)
        before = tx.function(DEFAULT_PROJECT, name_)
        if before is not None and before.owner != services.owner:
            raise Conflict(f"The name {name} is taken by a function of {before.owner.user}. Choose another.", code="name-taken")
        if before is not None and before.expires_at is None and expires_at is not None:
            raise Conflict(f"{name} is deployed to stay: it can't be made ephemeral. Choose another name.", code="name-taken")
        if data.schedule is not None and expires_at is not None:
            raise Refused(f"{name} is ephemeral, and can't be called by the clock. Deploy it to stay.", code="bad-schedule")
        declare_schedule(tx, services, name_, data.schedule, now)
        plan = _reserve(tx, name_, data.spec, before)
        # revisions are never numbered twice, even when the function was deleted in between: their replicas carry the number
        revision = tx.bump(f"revision/{DEFAULT_PROJECT}/{name}")
        after = Function(
            name=name_,
            project=DEFAULT_PROJECT,
            owner=services.owner,
            generation=1,
            revision=revision,
            spec=data.spec,
            deployed_at=now,
            plan=plan,
            expires_at=expires_at,
        )
        if before is not None:
            after = msgspec.structs.replace(
                before,
                generation=before.generation + 1,
                revision=revision,
                spec=data.spec,
                deployed_at=now,
                state=FunctionState.DEPLOYING,
                reason=None,
                detail="",
                plan=plan,
                lends=False,
                expires_at=expires_at,
            )
        tx.put_function(after)
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "function", name, f"deployed revision {revision}"))
        return function_view(after, services.settings)

    answer = await mutate(request, idempotency_key, 200, deploy)
    services.watch.notify(f"function/{name}")
    services.driver.poke(JOBS, ASSIGNMENT, SCHEDULES, *([] if data.lease_s is None else [LEASES]))
    return answer


@get("/v1/functions", responses=errors())
async def list_functions(request: Request[Any, Any, Any]) -> list[FunctionView]:
    services = services_of(request)
    rows = await services.store.read(lambda tx: tx.functions())
    return [function_view(row, services.settings, services.hub.lost) for row in rows]


@get("/v1/functions/{name:str}", responses=errors(404))
async def get_function(request: Request[Any, Any, Any], name: FunctionPath, wait_s: WaitS = 0.0) -> FunctionView:
    """With `wait_s`: waits until the newest revision gets traffic or has failed."""
    services = services_of(request)
    deadline_ns = services.clock.mono_ns() + int(wait_s * 1e9)
    with services.watch.subscribe(f"function/{name}") as news:
        while True:
            row = await services.store.read(lambda tx: tx.function(DEFAULT_PROJECT, FunctionName(name)))
            if row is None:
                raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
            left_s = (deadline_ns - services.clock.mono_ns()) / 1e9
            settled = row.routed_revision == row.revision or row.state is FunctionState.FAILED
            if settled or left_s <= 0 or services.watch.stopping:
                return msgspec.structs.replace(function_view(row, services.settings, services.hub.lost), spec=row.spec)
            await wait_for(news, left_s)


@get("/v1/functions/{name:str}/template", responses=errors(404, 409, 503))
async def get_template(request: Request[Any, Any, Any], name: FunctionPath) -> list[TemplateSeen]:
    """The templates that its replicas are forked from, from the base to its revision; empty for a command."""
    services = services_of(request)
    if await services.store.read(lambda tx: tx.function(DEFAULT_PROJECT, FunctionName(name))) is None:
        raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
    answer = await services.hub.ask("template", name)
    if answer.error:
        raise Conflict(answer.error, code="not-here-yet")
    return msgspec.json.decode(answer.data, type=list[TemplateSeen])


@get("/v1/functions/{name:str}/ends", responses=errors(404, 503))
async def list_ends(request: Request[Any, Any, Any], name: FunctionPath) -> list[ReplicaEnd]:
    """How replicas ended lately that nobody had told to: crashed, killed, out of memory. As far back as its agent knows."""
    services, caller = services_of(request), caller_of(request)

    def check(tx: Tx) -> None:
        row = tx.function(DEFAULT_PROJECT, FunctionName(name))
        if row is None or (caller is not None and row.owner != caller.owner(tx)):
            raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")

    await services.store.read(check)
    answer = await services.hub.ask("ends", name)
    return [] if answer.error else msgspec.json.decode(answer.data, type=list[ReplicaEnd])


@delete("/v1/functions/{name:str}", status_code=204, responses=errors(404, 422, 507))
async def delete_function(request: Request[Any, Any, Any], name: FunctionPath, idempotency_key: IdempotencyKey) -> Response[None]:
    """Its requests in flight are answered; then its replicas end."""
    services = services_of(request)
    now = services.clock.now_us()

    def commit(tx: Tx) -> None:
        if not tx.delete_function(DEFAULT_PROJECT, FunctionName(name)):
            raise NotFound(f"There is no function {name}. `steelyard functions` lists them.")
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


def _reserve(tx: Tx, name: FunctionName, spec: FunctionSpec, before: Function | None) -> Plan | None:
    """Cores and devices of its own, now or not at all: a promise that only holds later is none."""
    demand, machine = spec.reserved, tx.machine()
    if demand is None:
        return None
    if machine is None:
        raise Unreachable("No agent has told yet what this machine has. Try again.", code="agent-unreachable")
    if NODE in machine.blocked:
        raise NoRoom(f"{name} can't be deployed now: the machine is out of use; `steelyard check` says why.", code="node-drained")
    others = hold_functions(tx.functions(), machine, but=(DEFAULT_PROJECT, name))
    jobs = hold_jobs(tx.jobs(HOLDING))
    if before is not None and before.plan is not None and before.spec.reserved == demand:
        out = plan_blocked(machine.blocked, machine.blocked_pairs, before.plan)
        if not out and not make_room(machine, (*forget_borrowed(jobs), *others)).check(demand, before.plan):
            return before.plan
    answer = make_room(machine, (*jobs, *others)).place(demand)
    if isinstance(answer, Refusal):
        code = answer.reasons[0].value
        older = [plan.function for plan in machine.held]
        wait = f" {', '.join(older)} still answers its last requests on some of it." if older else ""
        raise NoRoom(f"{name} can't have what it asks for now: {answer.detail}.{wait} Nothing was changed.", code=code)
    return answer


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
