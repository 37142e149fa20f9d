"""Routes of schedules: put, list, delete, pause, resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, post, put
from litestar.params import Parameter

from steelyard.api.door import Finding, check_fields, check_job
from steelyard.api.door_jobs import check_pool, check_queueing
from steelyard.api.door_volumes import check_volumes
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.image_use import settle_job
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.secrets import find_missing
from steelyard.api.services import Services, services_of
from steelyard.api.views import schedule_view
from steelyard.control import SCHEDULES
from steelyard.control.zones import find_zone
from steelyard.errors import Conflict, NoRoom, NotFound
from steelyard.lifecycle.schedule import check_cron, check_every, next_firing
from steelyard.model.ids import DEFAULT_PROJECT, NAME, FunctionName, JobId
from steelyard.model.job import JobSpec
from steelyard.model.site import Schedule
from steelyard.store import Event, Tx
from steelyard.wire.api import SchedulePut, ScheduleView
from steelyard.wire.function_api import FunctionSchedule

#: more would be somebody's loop that makes them
SCHEDULES_MAX = 10_000

SchedulePath = Annotated[str, Parameter(min_length=1, max_length=255, description="A schedule's name.")]


@put("/v1/schedules/{name:str}", before_request=require_json, responses=errors(409, 413, 415, 422, 507))
async def put_schedule(
    request: Request[Any, Any, Any], name: SchedulePath, data: SchedulePut, idempotency_key: IdempotencyKey
) -> Response[ScheduleView]:
    """Make a schedule, or change the one of that name; a job that it submitted already is not changed. Nothing is submitted for
    times before now."""
    services = services_of(request)
    refuse_findings(check_fields(await request.body(), JobSpec))
    now = services.clock.now_us()

    def commit(tx: Tx) -> ScheduleView:
        refuse_findings(_check(name, data, tx, services, now))
        before = tx.schedule(DEFAULT_PROJECT, name)
        if before is not None and before.declared:
            raise Conflict(
                f"{name} came with the function of that name: change it there, and deploy it again.", code="name-taken"
            )
        asked = _make(name, data, services)
        if asked.spec is not None:
            asked = msgspec.structs.replace(asked, spec=settle_job(tx, asked.spec, asked.owner, now))
        row = _put(tx, services, asked, before, now)
        return _view(tx, row, services)

    return await _answer(request, idempotency_key, 200, commit)


@get("/v1/schedules", responses=errors())
async def list_schedules(request: Request[Any, Any, Any]) -> list[ScheduleView]:
    services = services_of(request)
    return await services.store.read(lambda tx: [_view(tx, row, services) for row in tx.schedules()])


@get("/v1/schedules/{name:str}", responses=errors(404))
async def get_schedule(request: Request[Any, Any, Any], name: SchedulePath) -> ScheduleView:
    services = services_of(request)
    return await services.store.read(lambda tx: _view(tx, _found(tx, name), services))


@delete("/v1/schedules/{name:str}", status_code=204, responses=errors(404, 422, 507))
async def delete_schedule(request: Request[Any, Any, Any], name: SchedulePath, idempotency_key: IdempotencyKey) -> Response[None]:
    """What it started goes on."""
    services = services_of(request)
    now = services.clock.now_us()

    def commit(tx: Tx) -> None:
        _delete(tx, _found(tx, name), services, now)

    return await _answer(request, idempotency_key, 204, commit)


@post("/v1/schedules/{name:str}/pause", status_code=202, responses=errors(404, 422, 507))
async def pause_schedule(
    request: Request[Any, Any, Any], name: SchedulePath, idempotency_key: IdempotencyKey
) -> Response[ScheduleView]:
    """Submit nothing until it is resumed."""
    return await _set_paused(request, name, idempotency_key, True)


@post("/v1/schedules/{name:str}/resume", status_code=202, responses=errors(404, 422, 507))
async def resume_schedule(
    request: Request[Any, Any, Any], name: SchedulePath, idempotency_key: IdempotencyKey
) -> Response[ScheduleView]:
    """Go on with the next time; those that went by while it was paused are not made up for."""
    return await _set_paused(request, name, idempotency_key, False)


async def _set_paused(request: Request[Any, Any, Any], name: str, key: str | None, paused: bool) -> Response[ScheduleView]:
    services = services_of(request)
    now = services.clock.now_us()

    def commit(tx: Tx) -> ScheduleView:
        before = _found(tx, name)
        if before.paused is paused:
            return _view(tx, before, services)
        done_until = before.done_until if paused else max(now, before.done_until)
        after = msgspec.structs.replace(before, generation=before.generation + 1, paused=paused, done_until=done_until)
        _store(tx, after, "paused" if paused else "resumed", now)
        return _view(tx, after, services)

    return await _answer(request, key, 202, commit)


async def _answer(
    request: Request[Any, Any, Any], key: str | None, status: int, commit: Callable[[Tx], ScheduleView | None]
) -> Response[Any]:
    answer = await mutate(request, key, status, commit)
    services_of(request).driver.poke(SCHEDULES)
    return answer


def declare_schedule(tx: Tx, services: Services, function: FunctionName, asked: FunctionSchedule | None, now: int) -> None:
    """What a function was deployed with becomes its schedule; what it was deployed with before goes. Raises Refused."""
    before = tx.schedule(DEFAULT_PROJECT, function)
    if asked is None:
        if before is not None and before.declared:
            _delete(tx, before, services, now)
        return
    refuse_findings(_check_times(asked.cron, asked.timezone, asked.every_s, now))
    if before is not None and not before.declared:
        text = f"There is a schedule {function} already, which was made by itself. Delete it first, or choose another name."
        raise Conflict(text, code="name-taken")
    put = SchedulePut(asked.cron, None, asked.timezone, function, asked.every_s)
    _put(tx, services, msgspec.structs.replace(_make(function, put, services), declared=True), before, now)


def _make(name: str, data: SchedulePut, services: Services) -> Schedule:
    return Schedule(
        name,
        DEFAULT_PROJECT,
        services.owner,
        1,
        data.cron,
        data.spec,
        timezone=data.timezone,
        every_s=data.every_s,
        function=None if data.function is None else FunctionName(data.function),
    )


def _put(tx: Tx, services: Services, asked: Schedule, before: Schedule | None, now: int) -> Schedule:
    """The stored one: `before` where nothing changes."""
    if before is None:
        if len(tx.schedules()) >= SCHEDULES_MAX:
            raise NoRoom(f"There are {SCHEDULES_MAX} schedules already. Delete some first.", code="too-many-schedules")
        after = msgspec.structs.replace(asked, done_until=now)
        _store(tx, after, "created", now)
        return after
    if before.owner != services.owner:
        raise Conflict(
            f"The name {before.name} is taken by a schedule of {before.owner.user}. Choose another.", code="name-taken"
        )
    wanted = {field: getattr(asked, field) for field in ("cron", "timezone", "every_s", "spec", "function")}
    if all(getattr(before, field) == value for field, value in wanted.items()):
        return before
    after = msgspec.structs.replace(before, generation=before.generation + 1, done_until=now, **wanted)
    _store(tx, after, "changed", now)
    return after


def _delete(tx: Tx, schedule: Schedule, services: Services, now: int) -> None:
    tx.delete_schedule(DEFAULT_PROJECT, schedule.name)
    tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "schedule", schedule.name, "deleted"))


def _check(name: str, data: SchedulePut, tx: Tx, services: Services, now: int) -> list[Finding]:
    findings: list[Finding] = []
    if not NAME.fullmatch(name):
        findings.append(Finding("bad-name", "a schedule's name has up to 63 of a-z, 0-9 and -, with no - at the ends"))
    findings += _check_times(data.cron, data.timezone, data.every_s, now)
    if (data.spec is None) is (data.function is None):
        findings.append(Finding("bad-schedule", "a schedule either submits a job (spec) or calls a function: name one of them"))
    if data.function is not None and tx.function(DEFAULT_PROJECT, FunctionName(data.function)) is None:
        findings.append(Finding("no-such-function", f"there is no function {data.function}; `steelyard functions` lists them"))
    if data.spec is None:
        return findings
    if data.spec.after or data.spec.begin_at is not None:
        findings.append(Finding("bad-schedule", "a schedule says when: its job can neither wait for others nor have a begin"))
    here = None if data.spec.pool else tx.machine()
    findings += [*check_queueing(data.spec, now), *check_job(data.spec, here, services.root)]
    if data.spec.pool:
        findings += check_pool(data.spec, tx.pools(), tx.machines(), services.root)
    findings += check_volumes(data.spec.volumes, tx.volumes(), services.owner)
    return [*findings, *find_missing(tx, services.owner, data.spec.secrets)]


def _check_times(cron: str, timezone: str, every_s: float | None, now: int) -> list[Finding]:
    zone = find_zone(timezone)
    if bool(cron) is (every_s is not None):
        return [Finding("bad-schedule", "a schedule has either a cron line or a period (every_s): give one of them")]
    if every_s is not None:
        wrong = check_every(every_s)
        return [] if wrong is None else [Finding("bad-period", wrong)]
    if zone is None:
        text = f"this machine knows no time zone {timezone[:80]!r}; names are such as UTC or Europe/Berlin (package tzdata)"
        return [Finding("bad-timezone", text)]
    wrong = check_cron(cron, zone, now)
    return [] if wrong is None else [Finding("bad-cron", wrong)]


def _store(tx: Tx, schedule: Schedule, text: str, now: int) -> None:
    tx.put_schedule(schedule)
    tx.add_event(Event(now, schedule.project, schedule.owner.user, "schedule", schedule.name, text))


def _found(tx: Tx, name: str) -> Schedule:
    row = tx.schedule(DEFAULT_PROJECT, name)
    if row is None:
        raise NotFound(f"There is no schedule {name}. `steelyard schedules` lists them.")
    return row


def _view(tx: Tx, row: Schedule, services: Services) -> ScheduleView:
    zone = find_zone(row.timezone)
    next_at = None if zone is None else next_firing(row, zone, services.clock.now_us())
    job = None if row.last_job is None else tx.job(JobId(row.last_job))
    call = None if row.last_call is None else tx.call(row.last_call)
    return schedule_view(row, next_at, job or call)


SCHEDULE_ROUTES = (put_schedule, list_schedules, get_schedule, delete_schedule, pause_schedule, resume_schedule)
