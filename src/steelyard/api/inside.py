"""Routes that look into a running job: what it uses, and commands run beside it (`steelyard exec`).

Nothing of this is stored: the machine's agent knows, and answers. What a job used in all is in its row once it has ended.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import Parameter

from steelyard.api.auth import caller_of
from steelyard.api.door import check_exec
from steelyard.api.idempotency import IdempotencyKey
from steelyard.api.jobs import JobPath, Offset, WaitS
from steelyard.api.logs import find_exec, follow_exec
from steelyard.api.problems import errors
from steelyard.api.requests import refuse_findings, require_json
from steelyard.api.services import Services, services_of
from steelyard.api.submission import one_job
from steelyard.errors import Conflict, NotFound, Refused
from steelyard.lifecycle.parts import join_usage
from steelyard.model.ids import MachineId
from steelyard.model.job import Job, JobState
from steelyard.model.usage import Usage
from steelyard.wire.agent import ExecStart
from steelyard.wire.api import ExecSignal, ExecSubmit, ExecView, LogChunk

ExecPath = Annotated[str, Parameter(pattern="^x[0-9]{1,9}(@[0-9]{1,4})?$", description="A command's name, such as x1.")]


@get("/v1/jobs/{job:str}/usage", responses=errors(404, 409))
async def job_usage(request: Request[Any, Any, Any], job: JobPath) -> Usage:
    """What the job has used so far, or in all; over time in at most 120 samples."""
    services = services_of(request)
    row = await _find(services, job)
    if row.state.terminal or row.state is JobState.QUEUED or row.spec.direct:
        # a node of a cluster tells at the end
        return row.usage or Usage()
    answers = await services.hub.ask_each("usage", row.attempt_id, row.machines)
    for answer in answers:
        if answer.error:
            raise Conflict(answer.error, code="not-running")
    found = [msgspec.json.decode(answer.data, type=Usage) for answer in answers]
    return (join_usage(found) if len(found) > 1 else found[0]) or Usage()


@post("/v1/jobs/{job:str}/exec", status_code=201, before_request=require_json, responses=errors(404, 409, 413, 415, 422))
async def start_exec(
    request: Request[Any, Any, Any], job: JobPath, data: ExecSubmit, idempotency_key: IdempotencyKey
) -> ExecView:
    """Run a command inside the running job: in its control group, as its user, with its variables."""
    services = services_of(request)
    check_visitor(request)
    refuse_findings(check_exec(data.argv, data.terminal))
    row = await _find(services, job)
    if row.state not in (JobState.RUNNING, JobState.STOPPING):
        raise Conflict(f"Job {job} is {row.state}: commands run inside jobs that run. Nothing was started.", code="not-running")
    if data.rank is not None and len(row.machines) > 1 and data.rank >= row.spec.log_streams:
        raise Conflict(f"Job {job} has {row.spec.log_streams} ranks, from 0. Nothing was started.", code="exec-refused")
    machine = row.find_machine(data.rank or 0)
    node = row.machines.index(machine)
    data = msgspec.structs.replace(data, rank=row.find_rank(data.rank))
    view = await ask_exec(services, row.attempt_id, machine, data, idempotency_key)
    return msgspec.structs.replace(view, exec=f"{view.exec}@{node}") if node else view


def check_visitor(request: Request[Any, Any, Any]) -> None:
    """Raises Refused."""
    if caller_of(request) is not None:
        # it might be another user's, or root's
        text = "Processes of jobs and functions can't act inside jobs and functions. Do it yourself."
        raise Refused(text, code="not-for-jobs")


async def ask_exec(services: Services, work: str, machine: MachineId, data: ExecSubmit, key: IdempotencyKey) -> ExecView:
    """Inside an attempt or a replica."""
    body = msgspec.json.encode(ExecStart(data.argv, data.rank, key or "", data.terminal))
    answer = await services.hub.ask("exec", work, body=body, machine=machine)
    if answer.error:
        raise Conflict(answer.error, code="exec-refused")
    return ExecView(answer.data.decode())


@get("/v1/jobs/{job:str}/exec/{name:str}/logs", responses=errors(404))
async def exec_logs(
    request: Request[Any, Any, Any],
    job: JobPath,
    name: ExecPath,
    stdout_offset: Offset = 0,
    stderr_offset: Offset = 0,
    wait_s: WaitS = 0.0,
) -> LogChunk:
    """What the command wrote since the given offsets; waits up to `wait_s` for some, or for its end."""
    return await follow_exec(services_of(request), job, name, (stdout_offset, stderr_offset), wait_s)


@post(
    "/v1/jobs/{job:str}/exec/{name:str}/stop", status_code=202, before_request=require_json, responses=errors(404, 413, 415, 422)
)
async def stop_exec(request: Request[Any, Any, Any], job: JobPath, name: ExecPath, data: ExecSignal) -> None:
    """Signal the command and what it started, but not the job. One that has ended is left alone."""
    check_visitor(request)
    services = services_of(request)
    row = await _find(services, job)
    own, machine = find_exec(row, name)
    answer = await services.hub.ask("exec-stop", f"{row.attempt_id}-{own}", offset=data.signal, machine=machine)
    if answer.error:
        raise NotFound(answer.error)


async def _find(services: Services, job: str) -> Job:
    return await services.store.read(lambda tx: one_job(tx, job))


INSIDE_ROUTES = (job_usage, start_exec, exec_logs, stop_exec)
