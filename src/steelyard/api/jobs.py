"""Routes of jobs: submit, list, look, stop, logs, proof."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.params import Parameter

from steelyard.api.door import check_fields, check_job
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.logs import WAIT_MAX_S, follow_job
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.services import services_of
from steelyard.api.views import job_view
from steelyard.clock import rfc3339
from steelyard.control import ASSIGNMENT, JOBS
from steelyard.control.changes import commit_change, make_event
from steelyard.errors import NoRoom, NotFound, Unreachable
from steelyard.lifecycle.job import stop_job
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState
from steelyard.model.proof import Proof, ProofState
from steelyard.store import Tx
from steelyard.wire.api import EventView, JobStop, JobSubmit, JobView, LogChunk

#: jobs that may wait at a time; more are refused, so that the queue stays bounded (R11)
QUEUE_MAX = 100_000

JobPath = Annotated[str, Parameter(min_length=1, max_length=64, description="A job's id, such as j-000001.")]
Offset = Annotated[int, Parameter(ge=0, le=2**62)]
WaitS = Annotated[float, Parameter(ge=0, le=WAIT_MAX_S)]
Limit = Annotated[int, Parameter(ge=1, le=10_000)]


@post("/v1/jobs", status_code=201, before_request=require_json, responses=errors(413, 415, 422, 429, 507))
async def submit_job(request: Request[Any, Any, Any], data: JobSubmit, idempotency_key: IdempotencyKey) -> Response[JobView]:
    """Queue a job. The answer comes once it is on disk."""
    services = services_of(request)
    refuse_findings(check_fields(await request.body(), JobSpec))
    if services.jobs.queued >= QUEUE_MAX:
        raise NoRoom(f"{QUEUE_MAX} jobs are waiting already. Try again when some have started.", code="queue-full")
    now = services.clock.now_us()

    def submit(tx: Tx) -> JobView:
        refuse_findings(check_job(data.spec, tx.machine(), services.root))
        job = Job(
            id=JobId(f"j-{tx.bump('job'):06d}"),
            project=DEFAULT_PROJECT,
            owner=services.owner,
            generation=1,
            attempt=0,
            spec=data.spec,
            state=JobState.QUEUED,
            submitted_at=now,
        )
        tx.put_job(job)
        tx.add_event(make_event(job, "submitted", now))
        return job_view(job)

    answer = await mutate(request, idempotency_key, 201, submit)
    services.driver.poke(JOBS)
    return answer


@get("/v1/jobs", responses=errors())
async def list_jobs(request: Request[Any, Any, Any], limit: Limit = 1000) -> list[JobView]:
    """The newest jobs, oldest first."""
    services = services_of(request)
    jobs = await services.store.read(lambda tx: tx.jobs(limit=limit))
    return [job_view(job, services.hub.lost) for job in jobs]


@get("/v1/jobs/{job:str}", responses=errors(404))
async def get_job(request: Request[Any, Any, Any], job: JobPath) -> JobView:
    services = services_of(request)
    row = await services.store.read(lambda tx: tx.job(JobId(job)))
    return job_view(_found(row, job), services.hub.lost)


@post("/v1/jobs/{job:str}/stop", status_code=202, before_request=require_json, responses=errors(404, 413, 415, 422, 507))
async def stop(
    request: Request[Any, Any, Any], job: JobPath, data: JobStop, idempotency_key: IdempotencyKey
) -> Response[JobView]:
    """Ask a job to end. Asking a job that has ended changes nothing; a second stop may name a harder signal."""
    services = services_of(request)
    now = services.clock.now_us()

    def commit(tx: Tx) -> JobView:
        row = _found(tx.job(JobId(job)), job)
        change = stop_job(row, data.signal, data.grace_s, now)
        if change is None:
            return job_view(row)
        commit_change(tx, row, change, now)
        return job_view(change.job)

    answer = await mutate(request, idempotency_key, 202, commit)
    services.watch.notify(f"job/{job}")
    services.driver.poke(ASSIGNMENT, JOBS)
    return answer


@get("/v1/jobs/{job:str}/logs", responses=errors(404))
async def job_logs(
    request: Request[Any, Any, Any],
    job: JobPath,
    stdout_offset: Offset = 0,
    stderr_offset: Offset = 0,
    wait_s: WaitS = 0.0,
) -> LogChunk:
    """Output since the given offsets; waits up to `wait_s` for some, or for the end of the job."""
    return await follow_job(services_of(request), job, (stdout_offset, stderr_offset), wait_s)


@get("/v1/jobs/{job:str}/proof", responses=errors(404))
async def job_proof(request: Request[Any, Any, Any], job: JobPath) -> Proof:
    """What the job asked for beside what the kernel says it got."""
    services = services_of(request)
    row = _found(await services.store.read(lambda tx: tx.job(JobId(job))), job)
    if row.attempt == 0:
        return _unknown(row, "it has not started, so there is nothing to read")
    if row.proof is not None:
        return row.proof
    if row.state.terminal:
        return _unknown(row, "it ended before it could be looked at")
    try:
        answer = await services.hub.ask("proof", row.attempt_id)
    except Unreachable as err:
        return _unknown(row, err.public)
    if answer.error:
        return _unknown(row, answer.error)
    try:
        return msgspec.json.decode(answer.data, type=Proof)
    except msgspec.MsgspecError:
        return _unknown(row, "the agent's answer could not be read")


@get("/v1/jobs/{job:str}/events", responses=errors(404))
async def job_events(request: Request[Any, Any, Any], job: JobPath) -> list[EventView]:
    """The job's history, the oldest first: its states, and breaches of `max_wakeup_us`."""

    def read(tx: Tx) -> list[EventView]:
        _found(tx.job(JobId(job)), job)
        return [EventView(rfc3339(event.at) or "", event.text) for event in tx.events(kind="job", subject=job)]

    return await services_of(request).store.read(read)


def _found(row: Job | None, job: str) -> Job:
    if row is None:
        raise NotFound(f"There is no job {job}. `steelyard ps` lists them.")
    return row


def _unknown(job: Job, why: str) -> Proof:
    asked: dict[str, object] = {} if job.plan is None else msgspec.to_builtins(job.plan)
    return Proof(ProofState.UNKNOWN, asked=asked, got={}, differences=(why,))


JOB_ROUTES = (submit_job, list_jobs, get_job, stop, job_logs, job_proof, job_events)
