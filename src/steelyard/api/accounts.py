"""Routes of fair share and quotas: accounts with their standing, what projects may hold and do hold."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, put
from litestar.params import Parameter

from steelyard.api.door_jobs import ACCOUNT
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.problems import errors
from steelyard.api.requests import require_json
from steelyard.api.services import services_of
from steelyard.control import JOBS
from steelyard.control.jobs import hold_jobs
from steelyard.control.live import refresh
from steelyard.errors import NotFound, Refused
from steelyard.model.ids import DEFAULT_PROJECT, PROJECT, ProjectName
from steelyard.model.job import Job
from steelyard.model.site import Account, Quota
from steelyard.scheduling.amounts import count_cores, count_gpus
from steelyard.scheduling.fair_share import Standing, list_standings
from steelyard.store import Event, Tx
from steelyard.wire.api import AccountPut, AccountView, QuotaPut, QuotaView

ProjectPath = Annotated[str, Parameter(min_length=1, max_length=63, description="A project's name.")]


@get("/v1/accounts", responses=errors())
async def list_accounts(request: Request[Any, Any, Any]) -> list[AccountView]:
    """Every account that was set or has jobs, each before those below it."""
    services = services_of(request)
    await refresh(services.live, services.store)
    accounts = await services.store.read(lambda tx: tx.accounts())
    names = {job.account for job in services.live.queued}
    now = services.clock.now_us()
    return [_view(row) for row in list_standings(accounts, hold_jobs(services.live.holding), now, names)]


@put("/v1/accounts", before_request=require_json, responses=errors(413, 415, 422, 507))
async def put_account(
    request: Request[Any, Any, Any], data: AccountPut, idempotency_key: IdempotencyKey
) -> Response[AccountView]:
    """Set an account's shares among its siblings. What it has used stays."""
    services = services_of(request)
    now = services.clock.now_us()
    if not ACCOUNT.fullmatch(data.name):
        raise Refused("An account is named like lab/alice: up to 8 levels of letters, digits and ._@-", code="bad-account")

    def commit(tx: Tx) -> AccountView:
        before = tx.account(data.name) or Account(data.name, DEFAULT_PROJECT, services.owner, 0, usage_at=now)
        tx.put_account(msgspec.structs.replace(before, generation=before.generation + 1, shares=data.shares))
        text = f"shares {before.shares:g} -> {data.shares:g}"
        tx.add_event(Event(now, DEFAULT_PROJECT, services.owner.user, "account", data.name, text))
        rows = list_standings(tx.accounts(), hold_jobs(services.live.holding), now)
        return _view(next(row for row in rows if row.name == data.name))

    answer = await mutate(request, idempotency_key, 200, commit)
    services.driver.poke(JOBS)
    return answer


@get("/v1/quotas", responses=errors())
async def list_quotas(request: Request[Any, Any, Any]) -> list[QuotaView]:
    services = services_of(request)
    await refresh(services.live, services.store)
    rows = await services.store.read(lambda tx: tx.quotas())
    return [_quota_view(row, services.live.holding) for row in rows]


@put("/v1/quotas/{project:str}", before_request=require_json, responses=errors(413, 415, 422, 507))
async def put_quota(
    request: Request[Any, Any, Any], project: ProjectPath, data: QuotaPut, idempotency_key: IdempotencyKey
) -> Response[QuotaView]:
    """Replace a project's quota. What runs goes on; what would exceed it waits."""
    services = services_of(request)
    now = services.clock.now_us()
    if not PROJECT.fullmatch(project):
        raise Refused(f"{project!r} can't be a project's name: up to 63 of a-z, 0-9 and -.", code="bad-project")

    def commit(tx: Tx) -> QuotaView:
        before = next((row for row in tx.quotas() if row.project == project), None)
        after = Quota(
            project=ProjectName(project),
            owner=services.owner,
            generation=1 if before is None else before.generation + 1,
            cores=data.cores,
            gpus=data.gpus,
            memory_bytes=data.memory_bytes,
            running_jobs=data.running_jobs,
        )
        tx.put_quota(after)
        text = f"quota set: {msgspec.json.encode(data).decode()}"
        tx.add_event(Event(now, ProjectName(project), services.owner.user, "quota", project, text))
        return _quota_view(after, services.live.holding)

    answer = await mutate(request, idempotency_key, 200, commit)
    services.driver.poke(JOBS)
    return answer


@delete("/v1/quotas/{project:str}", status_code=204, responses=errors(404, 422, 507))
async def delete_quota(request: Request[Any, Any, Any], project: ProjectPath, idempotency_key: IdempotencyKey) -> Response[None]:
    services = services_of(request)
    now = services.clock.now_us()

    def commit(tx: Tx) -> None:
        if not tx.delete_quota(ProjectName(project)):
            raise NotFound(f"The project {project} has no quota. `steelyard quotas` lists them.")
        tx.add_event(Event(now, ProjectName(project), services.owner.user, "quota", project, "quota deleted"))

    answer = await mutate(request, idempotency_key, 204, commit)
    services.driver.poke(JOBS)
    return answer


def _view(row: Standing) -> AccountView:
    return AccountView(
        name=row.name,
        shares=row.shares,
        norm_shares=row.norm_shares,
        usage=row.usage,
        norm_usage=row.norm_usage,
        # JSON has no infinity: nothing used yet
        level_fs=row.level_fs if math.isfinite(row.level_fs) else None,
        rank=row.rank,
    )


def _quota_view(quota: Quota, holding: tuple[Job, ...]) -> QuotaView:
    mine = [job for job in holding if job.project == quota.project]
    return QuotaView(
        project=quota.project,
        cores=quota.cores,
        gpus=quota.gpus,
        memory_bytes=quota.memory_bytes,
        running_jobs=quota.running_jobs,
        used_cores=sum(count_cores(job.spec.total) for job in mine if job.suspended_at is None),
        used_gpus=sum(count_gpus(job.spec.total) for job in mine),
        used_memory_bytes=sum(job.spec.total.memory_bytes or 0 for job in mine),
        used_jobs=len(mine),
    )


ACCOUNT_ROUTES = (list_accounts, put_account, list_quotas, put_quota, delete_quota)
