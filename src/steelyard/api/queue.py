"""Routes of the queue: who starts next and when, why a job waits, what would become of one that is not submitted yet.

All three ask the real scheduler about the queue as it is, changed or run forward in time. That may take hundreds of decisions,
so it is done on another thread.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import Parameter

from steelyard.api.door import check_fields
from steelyard.api.jobs import JobPath
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.services import Services, services_of
from steelyard.api.submission import check_submission, one_job
from steelyard.api.views import job_view
from steelyard.clock import rfc3339
from steelyard.control.jobs import decide_now, load_all
from steelyard.control.live import read_standings, refresh
from steelyard.errors import Refused
from steelyard.lifecycle.array import parse_array
from steelyard.lifecycle.job import make_job
from steelyard.model.ids import JobId, ProjectName
from steelyard.model.job import Job, JobSpec, JobState
from steelyard.model.reason import Reason
from steelyard.scheduling.forecast import forecast_starts
from steelyard.scheduling.snapshot import Decision, Snapshot
from steelyard.scheduling.why import Explanation, explain
from steelyard.store import Tx
from steelyard.wire.api import JobForecast, JobSubmit, QueueView, WhyChange, WhyReason, WhyView

Limit = Annotated[int, Parameter(ge=1, le=10_000)]
#: jobs whose start is estimated; the further ahead, the less an estimate is worth
_FORECAST_MAX = 100
#: of a job that nobody has submitted
_PLANNED = JobId("j-planned")


@get("/v1/queue", responses=errors())
async def list_queue(request: Request[Any, Any, Any], limit: Limit = 1000) -> list[QueueView]:
    """Waiting jobs in the order of starting; those that may not start yet come last."""
    services = services_of(request)
    snapshot, now = await _look(services)

    def work() -> list[QueueView]:
        decision = decide_now(snapshot, now)
        starts = forecast_starts(snapshot, now, decide_now, min(limit, _FORECAST_MAX))
        reasons = {why.job: why for why in decision.waits}
        position = {job: place for place, job in enumerate(decision.order, 1)}
        waiting = [*snapshot.queued, *(held.job for held in snapshot.holding if held.job is not None and held.suspended)]
        ordered = sorted(waiting, key=lambda job: (position.get(job.id, len(position) + 1), job.submitted_at, job.id))
        return [
            QueueView(
                position.get(job.id),
                rfc3339(starts.get(job.id)),
                job_view(job, services.hub.lost_any(job.machines), reasons.get(job.id)),
            )
            for job in ordered[:limit]
        ]

    return await asyncio.to_thread(work)


@get("/v1/jobs/{job:str}/why", responses=errors(404, 422))
async def why_job(request: Request[Any, Any, Any], job: JobPath) -> WhyView:
    """Every reason for which it waits, and changes after which it would start now, each tried."""
    services = services_of(request)
    row = await services.store.read(lambda tx: one_job(tx, job))
    snapshot, now = await _look(services)
    known = next((each for each in snapshot.queued if each.id == row.id), None)
    if known is None and row.state is JobState.SUSPENDED:
        known = row
    if known is None:
        reasons = (WhyReason("", row.reason.value, row.detail),) if row.reason is not None else ()
        return WhyView(row.id, row.state.value, None, None, reasons, ())
    found = await asyncio.to_thread(explain, snapshot, known, now, decide_now)
    return _render(known, found)


@post("/v1/plan", status_code=200, before_request=require_json, responses=errors(413, 415, 422))
async def plan_job(request: Request[Any, Any, Any], data: JobSubmit) -> JobForecast:
    """What would become of this job, or of an array's first element, if it were submitted now. Nothing is stored."""
    services = services_of(request)
    refuse_findings(check_fields(await request.body(), JobSpec))
    if data.array is not None:
        parse_array(data.array)
    now = services.clock.now_us()
    root = services.root

    def check(tx: Tx) -> Job:
        spec = check_submission(tx, data.spec, tx.machine(), now, services.owner, root=root, project=data.project)
        return make_job(_PLANNED, spec, services.owner, ProjectName(data.project), now)

    job = await services.store.read(check)
    if job.spec.direct:
        return JobForecast(False, None, Reason.SLURM_QUEUE.value, "Slurm decides when it starts")
    standings = await services.store.read(lambda tx: read_standings(tx, job.spec.after))
    snapshot, now = await _look(services)
    more = msgspec.structs.replace(snapshot, queued=(*snapshot.queued, job), standings={**snapshot.standings, **standings})
    return await asyncio.to_thread(_forecast, more, job, now)


def _forecast(snapshot: Snapshot, job: Job, now: int) -> JobForecast:
    decision: Decision = decide_now(snapshot, now)
    plan = dict(decision.starts).get(job.id)
    if plan is not None:
        node = next((machine.hostname for machine in snapshot.machines if machine.place == plan.machine), None)
        return JobForecast(True, rfc3339(now), None, "", plan.cpus, plan.gpus, node)
    for why in decision.never:
        if why.job == job.id:
            raise Refused(why.detail, code=why.reason.value)
    starts = forecast_starts(snapshot, now, decide_now, len(decision.order) if len(decision.order) <= _FORECAST_MAX else 1)
    found = next((why for why in decision.waits if why.job == job.id), None)
    reason, detail = (None, "") if found is None else (found.reason.value, found.detail)
    return JobForecast(False, rfc3339(starts.get(job.id)), reason, detail)


async def _look(services: Services) -> tuple[Snapshot, int]:
    await refresh(services.live, services.store)
    seen = await load_all(services.store, services.live)
    return seen.snapshot, services.clock.now_us()


def _render(job: Job, found: Explanation) -> WhyView:
    return WhyView(
        id=job.id,
        state=job.state.value,
        position=found.position,
        starts_at=rfc3339(found.estimated_start),
        reasons=tuple(WhyReason(block.node or "", block.reason.value, block.detail) for block in found.blocking),
        changes=tuple(
            WhyChange(change.kind.value, change.text.replace("{at}", _clock(change.at)), rfc3339(change.at))
            for change in found.changes
        ),
    )


def _clock(at: int | None) -> str:
    """Minutes are enough for a person, and UTC is what all of Steelyard speaks."""
    text = rfc3339(at)
    return "" if text is None else text[11:16] + " UTC"


QUEUE_ROUTES = (list_queue, why_job, plan_job)
