"""How do objects look to callers? Pure: rows to the shapes of `wire.api`, and what a lost agent makes of them.

While the agent has been silent for long, functions show UNKNOWN; a job keeps the last state that was verified, and its
reason says that nobody can tell more. Both are only shown, never stored, so that nothing flaps when the agent comes back.
"""

from __future__ import annotations

from steelyard.clock import rfc3339
from steelyard.config import Settings
from steelyard.model.coldstart import ColdStart
from steelyard.model.function import ApiKey, Function, FunctionState
from steelyard.model.job import Job, JobState
from steelyard.model.reason import Reason
from steelyard.wire.api import ColdStartView, FunctionView, JobView, KeyView

#: the agent is called lost after this long without a connection
AGENT_LOST_S = 15.0

_SILENT = "the agent has not been heard from for a while; this is the last state it reported, and the work itself goes on"


def job_view(job: Job, agent_lost: bool = False) -> JobView:
    reason, detail = job.reason, job.detail
    if agent_lost and not job.state.terminal and job.state is not JobState.QUEUED:
        reason, detail = Reason.AGENT_UNREACHABLE, _SILENT
    return JobView(
        id=job.id,
        name=job.spec.name,
        project=job.project,
        owner=job.owner.user,
        generation=job.generation,
        state=job.state.value,
        reason=None if reason is None else reason.value,
        detail=detail,
        exit_code=job.exit_code,
        submitted_at=_time(job.submitted_at),
        started_at=rfc3339(job.started_at),
        ended_at=rfc3339(job.ended_at),
        argv=job.spec.argv,
        cpus=() if job.plan is None else job.plan.cpus,
        peak_memory_bytes=job.peak_memory_bytes,
    )


def function_view(function: Function, settings: Settings, agent_lost: bool = False) -> FunctionView:
    state, reason, detail = function.state, function.reason, function.detail
    if agent_lost:
        state, reason, detail = FunctionState.UNKNOWN, Reason.AGENT_UNREACHABLE, _SILENT
    return FunctionView(
        name=function.name,
        project=function.project,
        owner=function.owner.user,
        generation=function.generation,
        revision=function.revision,
        routed_revision=function.routed_revision,
        state=state.value,
        reason=None if reason is None else reason.value,
        detail=detail,
        url=f"{settings.gateway_url}/{function.name}/",
        replicas=function.replicas,
        waking=function.waking,
        queued=function.queued,
        public=function.spec.public,
        deployed_at=_time(function.deployed_at),
    )


def coldstart_view(row: ColdStart) -> ColdStartView:
    return ColdStartView(
        function=row.function,
        revision=row.revision,
        at=_time(row.at),
        road=row.road.value,
        reason=row.reason.value,
        wall_ms=row.wall_ms,
        platform_ms=row.platform_ms,
        user_ms=row.user_ms,
        phases=row.phases,
        user_phases=row.user_phases,
    )


def key_view(key: ApiKey, with_secret: bool = False) -> KeyView:
    return KeyView(
        name=key.name,
        project=key.project,
        owner=key.owner.user,
        created_at=_time(key.created_at),
        secret=key.secret if with_secret else None,
    )


def _time(us: int) -> str:
    text = rfc3339(us)
    assert text is not None
    return text
