"""How do objects look to callers? Pure: rows to the shapes of `wire.api`, and what a lost agent makes of them.

While the agent has been silent for long, functions show UNKNOWN; a job keeps the last state that was verified, and its
reason says that nobody can tell more. Both are only shown, never stored, so that nothing flaps when the agent comes back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from steelyard.clock import rfc3339
from steelyard.config import Settings
from steelyard.control.rollouts import Look, apply_look
from steelyard.errors import Unreachable
from steelyard.lifecycle.call import KEPT_US
from steelyard.lifecycle.history import read_event
from steelyard.lifecycle.image import describe_part, name_layers
from steelyard.model.built_image import Image
from steelyard.model.call import Call
from steelyard.model.coldstart import ColdStart
from steelyard.model.function import ApiKey, Function, FunctionState, Revision, RevisionState
from steelyard.model.ids import OWN_MACHINE, MachineId
from steelyard.model.job import Job, JobState
from steelyard.model.pool import Pilot, Pool
from steelyard.model.reason import Reason
from steelyard.model.site import Schedule
from steelyard.model.volume import Volume, VolumeSeen
from steelyard.scheduling.snapshot import Why
from steelyard.store import Event
from steelyard.wire.agent import ContainerImageSeen
from steelyard.wire.api import EventView, JobView, KeyView, ScheduleView, VolumeView
from steelyard.wire.function_api import CallView, ColdStartView, FunctionView, RevisionView
from steelyard.wire.images import ContainerImageView, ImageLayer, ImageView
from steelyard.wire.pools import PilotView, PoolView

#: the agent is called lost after this long without a connection
AGENT_LOST_S = 15.0

#: the first of these that an element is in is the array's
_ARRAY_STATES = (
    JobState.RUNNING,
    JobState.STARTING,
    JobState.STOPPING,
    JobState.SUSPENDED,
    JobState.UNKNOWN,
    JobState.QUEUED,
    JobState.FAILED,
    JobState.STOPPED,
    JobState.SUCCEEDED,
)

_SILENT = "the agent has not been heard from for a while; this is the last state it reported, and the work itself goes on"


def job_view(job: Job, agent_lost: bool = False, why: Why | None = None) -> JobView:
    """`why`: the newest reason for which a queued job waits."""
    reason, detail = job.reason, job.detail
    if agent_lost and not (job.state.terminal or job.state is JobState.QUEUED or job.spec.direct):
        reason, detail = Reason.AGENT_UNREACHABLE, _SILENT
    elif why is not None and job.state is JobState.QUEUED:
        reason, detail = why.reason, why.detail
    spec, plan, demand = job.spec, job.plan, job.spec.demand
    return JobView(
        id=job.id,
        name=spec.name,
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
        argv=spec.argv,
        cpus=() if plan is None else plan.cpus,
        peak_memory_bytes=job.peak_memory_bytes,
        priority=job.priority,
        account=job.account,
        attempt=job.attempt,
        restarts=job.restarts,
        cores=demand.cpus,
        memory_bytes=demand.memory_bytes,
        gpus=0 if demand.gpus is None else demand.gpus.count,
        nodes=1 if spec.gang is None else spec.gang.nodes,
        ranks=1 if spec.gang is None else spec.gang.world_size,
        log_streams=spec.log_streams,
        array=None if job.array is None else job.array.id,
        array_index=None if job.array is None else job.array.index,
        max_duration_s=spec.max_duration_s,
        not_before=rfc3339(job.not_before),
        after=tuple(f"{after.kind.value}:{after.job}" for after in spec.after),
        gpu_ids=() if plan is None else plan.gpus,
        cwd=spec.cwd,
        image=spec.image,
        direct=spec.direct,
        pool=spec.pool,
        machine="" if job.state is JobState.QUEUED else ",".join(job.machines),
        stdout=spec.stdout,
        stderr=spec.stderr,
        usage=job.usage,
        rank_ends=job.ranks,
        whole_cores=demand.whole_cores,
        timing=demand.timing.value,
        preemptible=demand.preemptible,
        scratch_bytes=demand.scratch_bytes,
        memory_nodes=() if plan is None else plan.memory_nodes,
        nic_ids=() if plan is None else plan.nics,
        suspended_s=job.suspended_s,
    )


def array_view(jobs: Sequence[Job]) -> JobView:
    """An array as one thing: its state is that of its elements as a whole, its times span theirs."""
    first = jobs[0]
    assert first.array is not None
    counts = Counter(job.state for job in jobs)
    state = next((state for state in _ARRAY_STATES if counts[state]), JobState.QUEUED)
    started = [job.started_at for job in jobs if job.started_at is not None]
    ended = [job.ended_at for job in jobs if job.ended_at is not None]
    codes = [job.exit_code for job in jobs if job.exit_code is not None]
    return msgspec.structs.replace(
        job_view(first),
        id=first.array.id,
        state=state.value,
        reason=None,
        detail="",
        array=None,
        array_index=None,
        exit_code=max(codes, default=None) if state.terminal else None,
        started_at=rfc3339(min(started, default=None)),
        ended_at=rfc3339(max(ended, default=None)) if state.terminal else None,
        cpus=(),
        gpu_ids=(),
        nic_ids=(),
        memory_nodes=(),
        peak_memory_bytes=None,
        usage=None,
        rank_ends=(),
        elements={state.value: count for state, count in sorted(counts.items())},
    )


def event_view(event: Event) -> EventView:
    state, why = read_event(event.text)
    return EventView(_time(event.at), event.text, None if state is None else state.value, why)


def asked_machine(function: Function) -> MachineId:
    """Who is asked about it: of a function in a pool the first machine that its requests go to. Raises Unreachable where there is
    none."""
    if not function.spec.pool:
        return OWN_MACHINE
    machines = function.targets or tuple(place.machine for place in function.places)
    if not machines:
        raise Unreachable(f"{function.name} is on no machine: {function.detail or 'it is new'}.", code="no-machine")
    return machines[0]


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
        lends=function.lends and not agent_lost,
        app=function.spec.app,
        origin=function.spec.origin,
        interface=function.spec.interface,
        expires_at=rfc3339(function.expires_at),
        deployed_at=_time(function.deployed_at),
        routes=function.routes,
        pool=function.spec.pool,
        machines=tuple(place.machine for place in function.places if not place.leaving),
    )


def revision_view(row: Revision, function: Function, looks: Sequence[Look], settings: Settings) -> RevisionView:
    """`looks`: what the newest reports counted of the function's revisions, which may not be stored yet."""
    for place, look in looks:
        row = apply_look(row, place, look) if look.revision == row.revision else row
    live = function.live.get(row.revision)
    percent = next((share.percent for share in function.routes.shares if share.revision == row.revision), 0)
    state = row.state
    if live is None and row.revision not in function.routes.revisions and state in (RevisionState.READY, RevisionState.DEPLOYING):
        state = RevisionState.RETIRED
    tags = () if live is None else live.tags
    return RevisionView(
        revision=row.revision,
        state=state.value,
        percent=percent,
        percent_wanted=0 if live is None else live.percent,
        tags=tags,
        urls=tuple(f"{settings.gateway_url}/{row.function}@{tag}/" for tag in tags),
        deployed_at=_time(row.deployed_at),
        by=row.by,
        requests=row.requests,
        errors=row.errors,
        reason=None if row.reason is None else row.reason.value,
        detail=row.detail,
    )


def call_view(call: Call) -> CallView:
    return CallView(
        id=call.id,
        function=call.function,
        method=call.method,
        project=call.project,
        owner=call.owner.user,
        generation=call.generation,
        state=call.state.value,
        reason=None if call.reason is None else call.reason.value,
        detail=call.detail,
        attempt=call.attempt,
        submitted_at=_time(call.submitted_at),
        started_at=rfc3339(call.started_at),
        ended_at=rfc3339(call.ended_at),
        kept_until=None if call.ended_at is None else rfc3339(call.ended_at + KEPT_US),
        input_bytes=call.input_bytes,
        result_bytes=call.result_bytes,
        result_type=call.result_type,
        schedule=call.schedule,
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


def volume_view(volume: Volume, seen: VolumeSeen | None, used_by: Sequence[str]) -> VolumeView:
    return VolumeView(
        name=volume.name,
        project=volume.project,
        owner=volume.owner.user,
        generation=volume.generation,
        path=volume.path,
        created_at=_time(volume.created_at),
        external=volume.external,
        deleting=volume.deleting,
        size_bytes=None if seen is None else seen.size_bytes,
        complete=seen is None or seen.complete,
        measured_at=None if seen is None else rfc3339(seen.measured_at),
        free_bytes=None if seen is None else seen.free_bytes,
        used_by=tuple(used_by),
        error="" if seen is None else seen.error,
    )


def pool_view(pool: Pool, pilots: Iterable[Pilot], silent: str) -> PoolView:
    """`pilots`: of that pool. `silent`: why nothing is known of the cluster's queue."""
    return PoolView(
        spec=pool.spec,
        owner=pool.owner.user,
        generation=pool.generation,
        created_at=_time(pool.created_at),
        deleting=pool.deleting,
        pilots=dict(Counter(str(pilot.state) for pilot in pilots if pilot.living)),
        complaint=silent or pool.complaint,
    )


def pilot_view(pilot: Pilot) -> PilotView:
    return PilotView(
        id=pilot.id,
        state=pilot.state,
        slurm_job=pilot.number,
        node=pilot.node,
        detail=pilot.detail,
        submitted_at=_time(pilot.submitted_at),
        started_at=rfc3339(pilot.started_at),
        ends_at=rfc3339(pilot.ends_at),
        ended_at=rfc3339(pilot.ended_at),
    )


def schedule_view(row: Schedule, next_at: int | None, last: Job | Call | None) -> ScheduleView:
    return ScheduleView(
        name=row.name,
        project=row.project,
        owner=row.owner.user,
        generation=row.generation,
        cron=row.cron,
        timezone=row.timezone,
        paused=row.paused,
        next_at=rfc3339(next_at),
        last_job=row.last_job,
        last_state=None if last is None else last.state.value,
        spec=row.spec,
        function=row.function,
        every_s=row.every_s,
        last_call=row.last_call,
    )


def _time(us: int) -> str:
    text = rfc3339(us)
    assert text is not None
    return text


def image_view(image: Image, used_by: tuple[str, ...] = (), *, whole: bool = False) -> ImageView:
    """`whole`: with its steps."""
    view = ImageView(
        id=image.id,
        owner=image.owner.user,
        state=image.state.value,
        job=image.job,
        created_at=_time(image.created_at),
        used_at=_time(image.used_at),
        name=image.name,
        detail=image.detail,
        python=image.python,
        size_bytes=image.size_bytes,
        added_bytes=image.added_bytes,
        built_at=rfc3339(image.built_at),
        used_by=used_by,
    )
    if not whole:
        return view
    parts = zip(name_layers(image.spec), (image.spec.base, *image.spec.steps), strict=True)
    layers = tuple(ImageLayer(name, describe_part(part)) for name, part in parts)
    return msgspec.structs.replace(view, spec=image.spec, layers=layers)


def container_image_view(seen: ContainerImageSeen, used_by: tuple[str, ...]) -> ContainerImageView:
    image = seen.image
    return ContainerImageView(
        id=image.digest,
        references=seen.references,
        size_bytes=image.bytes_on_disk,
        files=image.files,
        used_at=_time(seen.used_at),
        used_by=used_by,
        entrypoint=image.entrypoint,
        command=image.command,
        env=image.env,
        cwd=image.cwd,
        user=image.user,
        ports=image.ports,
    )
