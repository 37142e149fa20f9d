"""Routes of jobs: submit, list, look, stop, logs, proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.params import Parameter

from steelyard.api.auth import Caller, caller_of
from steelyard.api.door import check_fields
from steelyard.api.idempotency import IdempotencyKey, mutate
from steelyard.api.listing import Wanted, find_wanted, list_folded, parse_states
from steelyard.api.logs import WAIT_MAX_S, follow_job
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.services import Services, services_of
from steelyard.api.submission import find_jobs, insert_jobs, one_job, parse_job_id
from steelyard.api.views import array_view, event_view, job_view
from steelyard.control import ASSIGNMENT, DIRECT, JOBS
from steelyard.control.changes import commit_change
from steelyard.control.direct_end import make_proof
from steelyard.errors import NoRoom, Refused, Unauthorized, Unreachable
from steelyard.lifecycle.job import Change, hold_job, reprioritise_job, stop_job
from steelyard.lifecycle.parts import join_proofs
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.model.proof import Proof, ProofState
from steelyard.store import Tx
from steelyard.wire.api import EventView, JobPriority, JobStop, JobSubmit, JobView, LogChunk

#: jobs that may wait at a time; more are refused, so that the queue stays bounded (R11)
QUEUE_MAX = 100_000

JobPath = Annotated[str, Parameter(min_length=1, max_length=64, description="A job's id, such as j-000001.")]
Offset = Annotated[int, Parameter(ge=0, le=2**62)]
WaitS = Annotated[float, Parameter(ge=0, le=WAIT_MAX_S)]
Limit = Annotated[int, Parameter(ge=1, le=10_000)]
Rank = Annotated[int | None, Parameter(ge=0, le=100_000)]
AttemptNumber = Annotated[int | None, Parameter(ge=0, le=2**31)]
StatesParameter = Annotated[str | None, Parameter(query="state", min_length=1, max_length=200)]
Words = Annotated[str | None, Parameter(min_length=1, max_length=200)]


@post("/v1/jobs", status_code=201, before_request=require_json, responses=errors(404, 413, 415, 422, 429, 507))
async def submit_job(request: Request[Any, Any, Any], data: JobSubmit, idempotency_key: IdempotencyKey) -> Response[JobView]:
    """Queue a job, or an array of them. The answer comes once it is on disk."""
    services = services_of(request)
    refuse_findings(check_fields(await request.body(), JobSpec))
    check_room(services)
    caller = caller_of(request)
    if caller is not None and data.spec.as_root:
        raise Refused("A job can't submit work that runs as root. Submit it yourself.", code="not-root")
    if data.spec.builds:
        raise Refused("Builds are made by POST /v1/images.", code="builds-images")
    if data.spec.makes is not None:
        raise Refused("Steps upon container images are made by POST /v1/container-steps.", code="builds-images")
    check_attached(services, data.spec)
    now = services.clock.now_us()

    def submit(tx: Tx) -> JobView:
        owner = submitter(tx, services, caller)
        jobs = insert_jobs(tx, data.spec, owner, now, root=services.root, array=data.array, project=data.project)
        return job_view(jobs[0]) if data.array is None else array_view(jobs)

    answer = await mutate(request, idempotency_key, 201, submit)
    services.driver.poke(DIRECT if data.spec.direct else JOBS)
    return answer


def check_attached(services: Services, spec: JobSpec) -> None:
    if spec.direct and services.find_engine() is None:
        raise Refused(
            "No cluster is attached: there is no queue but our own. `steelyard cluster attach` does that; or leave direct away.",
            code="no-cluster",
        )


@get("/v1/jobs", responses=errors(404, 422))
async def list_jobs(
    request: Request[Any, Any, Any],
    limit: Limit = 1000,
    in_states: StatesParameter = None,
    array: Words = None,
    user: Words = None,
    account: Words = None,
    fold: bool = False,
) -> list[JobView]:
    """The newest jobs, oldest first: those in the given states (`RUNNING,QUEUED`), of one array, of one user, of an account or
    one below it. With `fold` an array is one row, with its elements counted; it is listed when one of them would be."""
    services = services_of(request)
    wanted = Wanted(limit, parse_states(JobState, in_states), array, user, account)
    found = await services.store.read(lambda tx: list_folded(tx, wanted) if fold else find_wanted(tx, wanted))
    return [
        array_view(row)
        if isinstance(row, list)
        else job_view(row, services.hub.lost_any(row.machines), services.jobs.why(row.id))
        for row in found
    ]


@get("/v1/jobs/{job:str}", responses=errors(404))
async def get_job(request: Request[Any, Any, Any], job: JobPath) -> JobView:
    """A job, or an array as a whole."""
    services = services_of(request)
    jobs = await services.store.read(lambda tx: find_jobs(tx, job))
    if parse_job_id(job) != jobs[0].id:
        return array_view(jobs)
    return job_view(jobs[0], services.hub.lost_any(jobs[0].machines), services.jobs.why(jobs[0].id))


@post("/v1/jobs/{job:str}/stop", status_code=202, before_request=require_json, responses=errors(404, 413, 415, 422, 507))
async def stop(
    request: Request[Any, Any, Any], job: JobPath, data: JobStop, idempotency_key: IdempotencyKey
) -> Response[JobView]:
    """Ask a job to end, or all elements of an array. Asking a job that has ended changes nothing; a second stop may name a harder
    signal."""
    now = services_of(request).clock.now_us()
    only = parse_states(JobState, ",".join(data.only_states)) if data.only_states else None

    def change(row: Job) -> Change | None:
        return stop_job(row, data.signal, data.grace_s, now) if only is None or row.state in only else None

    return await _change(request, job, idempotency_key, now, change)


@post("/v1/jobs/{job:str}/hold", status_code=202, responses=errors(404, 422, 507))
async def hold(request: Request[Any, Any, Any], job: JobPath, idempotency_key: IdempotencyKey) -> Response[JobView]:
    """Keep a waiting job (or an array's waiting elements) from starting. One that does not wait is left as it is."""
    now = services_of(request).clock.now_us()
    return await _change(request, job, idempotency_key, now, lambda row: hold_job(row, True))


@post("/v1/jobs/{job:str}/release", status_code=202, responses=errors(404, 422, 507))
async def release(request: Request[Any, Any, Any], job: JobPath, idempotency_key: IdempotencyKey) -> Response[JobView]:
    """Let a held job start when its turn comes."""
    now = services_of(request).clock.now_us()
    return await _change(request, job, idempotency_key, now, lambda row: hold_job(row, False))


@post("/v1/jobs/{job:str}/priority", status_code=202, before_request=require_json, responses=errors(404, 413, 415, 422, 507))
async def set_priority(
    request: Request[Any, Any, Any], job: JobPath, data: JobPriority, idempotency_key: IdempotencyKey
) -> Response[JobView]:
    """Another place in the queue."""
    now = services_of(request).clock.now_us()
    return await _change(request, job, idempotency_key, now, lambda row: reprioritise_job(row, data.priority))


@get("/v1/jobs/{job:str}/logs", responses=errors(404))
async def job_logs(
    request: Request[Any, Any, Any],
    job: JobPath,
    stdout_offset: Offset = 0,
    stderr_offset: Offset = 0,
    wait_s: WaitS = 0.0,
    rank: Rank = None,
    attempt: AttemptNumber = None,
) -> LogChunk:
    """Output since the given offsets; waits up to `wait_s` for some, or for the end of the job. Of a gang whose ranks have logs
    of their own, `rank` says which (0 otherwise). `attempt` says whose log the offsets are of, so that nothing is missed when the
    job is started again meanwhile; answers say it too. An offset beyond the end means the end."""
    return await follow_job(services_of(request), job, rank, attempt, (stdout_offset, stderr_offset), wait_s)


@get("/v1/jobs/{job:str}/proof", responses=errors(404))
async def job_proof(request: Request[Any, Any, Any], job: JobPath) -> Proof:
    """What the job asked for beside what the kernel says it got."""
    services = services_of(request)
    row = await services.store.read(lambda tx: one_job(tx, job))
    if row.attempt == 0:
        return _unknown(row, "it has not started, so there is nothing to read")
    if row.proof is not None:
        return row.proof
    if row.state.terminal:
        return _unknown(row, "it ended before it could be looked at")
    if row.spec.direct:
        return await _prove_direct(services, row)
    try:
        answers = await services.hub.ask_each("proof", row.attempt_id, row.machines)
    except Unreachable as err:
        return _unknown(row, err.public)
    errors = [answer.error for answer in answers if answer.error]
    if errors:
        return _unknown(row, errors[0])
    try:
        found = {node: msgspec.json.decode(answer.data, type=Proof) for node, answer in enumerate(answers)}
    except msgspec.MsgspecError:
        return _unknown(row, "the agent's answer could not be read")
    return join_proofs(found) if len(found) > 1 else found[0]


async def _prove_direct(services: Services, row: Job) -> Proof:
    """By what its steps wrote down when they began."""
    engine = services.find_engine()
    try:
        begun = {} if engine is None else await engine.read_records([row], "started")
    except Unreachable as err:
        return _unknown(row, err.public)
    return make_proof(row, begun.get(row.attempt_id, ())) or _unknown(row, "no node has told of it yet")


@get("/v1/jobs/{job:str}/events", responses=errors(404))
async def job_events(request: Request[Any, Any, Any], job: JobPath) -> list[EventView]:
    """The job's history, the oldest first: its states, and breaches of `max_wakeup_us`."""

    def read(tx: Tx) -> list[EventView]:
        id_ = one_job(tx, job).id
        return [event_view(event) for event in tx.events(kind="job", subject=id_)]

    return await services_of(request).store.read(read)


async def _change(
    request: Request[Any, Any, Any], job: str, key: str | None, now: int, change: Callable[[Job], Change | None]
) -> Response[JobView]:
    """Change a job, or every element of an array for which there is something to change."""
    services, caller = services_of(request), caller_of(request)
    touched: list[str] = []

    def commit(tx: Tx) -> JobView:
        rows = find_jobs(tx, job)
        _check_owner(tx, caller, rows)
        after: list[Job] = []
        for row in rows:
            changed = change(row)
            if changed is not None:
                commit_change(tx, row, changed, now)
            after.append(row if changed is None else changed.job)
        touched.extend(row.id for row in rows)
        return job_view(after[0]) if parse_job_id(job) == after[0].id else array_view(after)

    answer = await mutate(request, key, 202, commit)
    for each in touched:
        services.watch.notify(f"job/{each}")
    services.driver.poke(ASSIGNMENT, JOBS)
    return answer


def _check_owner(tx: Tx, caller: Caller | None, rows: Sequence[Job]) -> None:
    """A job's processes may change what its owner's jobs are, and nobody else's."""
    owner = None if caller is None else caller.owner(tx)
    if caller is not None and owner is not None and any(row.owner != owner for row in rows):
        raise Unauthorized(f"{rows[0].id} belongs to {rows[0].owner.user}, and {caller.name} to {owner.user}.")


def check_room(services: Services) -> None:
    if services.jobs.queued >= QUEUE_MAX:
        raise NoRoom(f"{QUEUE_MAX} jobs are waiting already. Try again when some have started.", code="queue-full")


def submitter(tx: Tx, services: Services, caller: Caller | None) -> Owner:
    """Who owns what is submitted: whoever owns the job that asks, else the admin."""
    return services.owner if caller is None else caller.owner(tx)


def _unknown(job: Job, why: str) -> Proof:
    asked: dict[str, object] = {} if job.plan is None else msgspec.to_builtins(job.plan)
    return Proof(ProofState.UNKNOWN, asked=asked, got={}, differences=(why,))


JOB_ROUTES = (submit_job, list_jobs, get_job, stop, hold, release, set_priority, job_logs, job_proof, job_events)
