"""What does the REST API take and give? Shapes that others script against; times are RFC 3339 strings.

Requests refuse unknown fields, so that a misspelt option is named instead of silently dropped.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from steelyard.model.batch import PRIORITY_MAX, RankEnd
from steelyard.model.image import REFERENCE_MAX
from steelyard.model.job import JobSpec, Terminal
from steelyard.model.mount import VolumeMount
from steelyard.model.secret import SecretUse
from steelyard.model.usage import Usage


class JobSubmit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    spec: JobSpec
    #: indices of an array, such as 0-99%8; None: one job
    array: Annotated[str, Meta(min_length=1, max_length=10_000)] | None = None
    project: Annotated[str, Meta(min_length=1, max_length=63)] = "default"


class JobStop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signal: Annotated[int, Meta(ge=1, le=64)] = 15
    grace_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    #: jobs (or elements of the array) in other states than these are left alone; none named: any state
    only_states: tuple[str, ...] = ()


class ExecSubmit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command to run inside a running job or replica."""

    argv: tuple[str, ...]
    #: of a gang; None: its first
    rank: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    #: it runs in one (WebSocket `.../exec/{name}/terminal`), instead of with empty input and logs
    terminal: Terminal | None = None


class ExecSignal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signal: Annotated[int, Meta(ge=1, le=64)] = 15


class ExecView(msgspec.Struct, frozen=True):
    #: its name within the job or replica, such as `x1`
    exec: str


class ReplicaHeld(msgspec.Struct, frozen=True):
    #: its id; "" while none serves yet
    replica: str


class JobPriority(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    priority: Annotated[int, Meta(ge=0, le=PRIORITY_MAX)]


class ScriptSubmit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A script as `sbatch` would be given it."""

    #: its text; empty with --wrap among `options`
    script: str
    #: where it was submitted, an absolute path
    cwd: str
    arguments: tuple[str, ...] = ()
    #: of sbatch's command line, as written; they win over #SBATCH lines
    options: tuple[str, ...] = ()
    #: the caller's environment; --export says what of it the job gets
    env: dict[str, str] = {}
    #: the script's file name, which names the job unless --job-name does
    name: Annotated[str, Meta(min_length=1)] = "sbatch"
    #: that the job runs in: an environment by name or id, or a container image; "" without one
    image: Annotated[str, Meta(max_length=REFERENCE_MAX)] = ""
    #: sbatch knows nothing of these
    volumes: tuple[VolumeMount, ...] = ()
    secrets: tuple[SecretUse, ...] = ()
    #: into the queue of the attached cluster
    direct: bool = False
    #: of machines that it is to run on one of; "": on the home's own
    pool: str = ""


class ScriptSubmitted(msgspec.Struct, frozen=True):
    #: of the job, or of the array
    id: str
    #: sentences: what was understood but is not acted on
    ignored: tuple[str, ...] = ()
    #: the array's indices, such as 0-99%8
    array: str | None = None


class JobView(msgspec.Struct, frozen=True):
    """A job; or an array as a whole, with `elements` set."""

    id: str
    name: str
    project: str
    owner: str
    generation: int
    state: str
    reason: str | None
    detail: str
    exit_code: int | None
    submitted_at: str
    started_at: str | None
    ended_at: str | None
    argv: tuple[str, ...]
    cpus: tuple[int, ...]
    peak_memory_bytes: int | None
    priority: int = 0
    account: str = ""
    #: number of the newest attempt, and how many before it ran
    attempt: int = 0
    restarts: int = 0
    #: what it asked for, all its ranks together
    cores: float = 0.0
    memory_bytes: int | None = None
    gpus: int = 0
    nodes: int = 1
    ranks: int = 1
    #: logs that it has: one per rank where ranks are started one by one
    log_streams: int = 1
    array: str | None = None
    array_index: int | None = None
    #: of an array: state -> elements in it
    elements: dict[str, int] | None = None
    max_duration_s: float | None = None
    not_before: str | None = None
    after: tuple[str, ...] = ()
    gpu_ids: tuple[str, ...] = ()
    cwd: str = ""
    #: that its container is made of; "" for a job on the machine itself
    image: str = ""
    #: in the queue of the attached cluster, which decides where it runs
    direct: bool = False
    #: on whose machines it runs; "" for the home's own
    pool: str = ""
    #: of a pool, where it runs or ran; "" for the home's own, and while it waits
    machine: str = ""
    #: where its output goes instead of the logs
    stdout: str | None = None
    stderr: str | None = None
    usage: Usage | None = None
    rank_ends: tuple[RankEnd, ...] = ()
    #: its cores are whole ones, nobody else's
    whole_cores: bool = False
    timing: str = "best-effort"
    preemptible: bool = False
    scratch_bytes: int | None = None
    #: of its placement
    memory_nodes: tuple[int, ...] = ()
    nic_ids: tuple[str, ...] = ()
    #: frozen so long in all, by preemption
    suspended_s: float = 0.0


class QueueView(msgspec.Struct, frozen=True):
    """A waiting job. `position` counts from 1 in the order of starting; None: it may not start yet, whatever is free."""

    position: int | None
    #: an estimate, from the limits of what runs; None: nobody can tell
    starts_at: str | None
    job: JobView


class JobForecast(msgspec.Struct, frozen=True):
    """What would become of a job if it were submitted now."""

    fits_now: bool
    starts_at: str | None
    reason: str | None
    detail: str
    #: of its own; none: it would run in the common cores
    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    node: str | None = None


class WhyReason(msgspec.Struct, frozen=True):
    node: str
    reason: str
    detail: str


class WhyChange(msgspec.Struct, frozen=True):
    """A change after which the scheduler, asked again, would start it now."""

    kind: str
    text: str
    #: where the change is to wait: until then
    at: str | None = None


class WhyView(msgspec.Struct, frozen=True):
    id: str
    state: str
    position: int | None
    starts_at: str | None
    reasons: tuple[WhyReason, ...]
    changes: tuple[WhyChange, ...]


class AccountPut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=520)]
    shares: Annotated[float, Meta(gt=0, le=1e6)]


class AccountView(msgspec.Struct, frozen=True):
    """`usage` in core-seconds, decayed; `level_fs` above 1 means: less used than its shares allow, among its siblings."""

    name: str
    shares: float
    norm_shares: float
    usage: float
    norm_usage: float
    level_fs: float | None
    #: 0 comes first; None: no job runs under it, only under accounts below it
    rank: int | None


class QuotaPut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """null: no limit."""

    cores: Annotated[float, Meta(ge=0)] | None = None
    gpus: Annotated[float, Meta(ge=0)] | None = None
    memory_bytes: Annotated[int, Meta(ge=0)] | None = None
    running_jobs: Annotated[int, Meta(ge=0)] | None = None


class QuotaView(msgspec.Struct, frozen=True):
    project: str
    cores: float | None
    gpus: float | None
    memory_bytes: int | None
    running_jobs: int | None
    used_cores: float
    used_gpus: float
    used_memory_bytes: int
    used_jobs: int


class SchedulePut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Either `cron` or `every_s`; either `spec` or `function`."""

    #: five fields, in `timezone`
    cron: Annotated[str, Meta(max_length=1000)] = ""
    #: a job to submit
    spec: JobSpec | None = None
    timezone: Annotated[str, Meta(min_length=1, max_length=255)] = "UTC"
    #: a function to call, without arguments
    function: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    every_s: float | None = None


class ScheduleView(msgspec.Struct, frozen=True):
    name: str
    project: str
    owner: str
    generation: int
    cron: str
    timezone: str
    paused: bool
    #: when it is due next; None: paused, or it never comes true again
    next_at: str | None
    #: the newest job that it submitted, and its state
    last_job: str | None
    last_state: str | None
    spec: JobSpec | None
    function: str | None = None
    every_s: float | None = None
    last_call: str | None = None


class VolumeCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=255)]
    #: a folder that is there, such as one on a shared file system; None: a new one on the machine
    path: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None


class VolumeView(msgspec.Struct, frozen=True):
    name: str
    project: str
    owner: str
    generation: int
    path: str
    created_at: str
    #: it is a name for somebody's own folder, which stays when the volume is deleted
    external: bool
    deleting: bool
    #: of all that is in it, as of `measured_at`; None: not measured yet
    size_bytes: int | None
    #: False: there is more in it than is looked at
    complete: bool
    measured_at: str | None
    #: of its file system
    free_bytes: int | None
    #: what mounts it, such as "function embed"
    used_by: tuple[str, ...]
    #: why it can't be mounted now, or nobody can tell
    error: str = ""


class EventView(msgspec.Struct, frozen=True):
    """One line of a job's history."""

    at: str
    text: str
    #: that it was in from then on; None: its state stayed as it was
    state: str | None = None
    #: what is said beside the state
    why: str = ""


class LogChunk(msgspec.Struct, frozen=True):
    """Bytes of both streams since the given offsets, base64. `ended` says that no more will come."""

    stdout: bytes
    stderr: bytes
    stdout_offset: int
    stderr_offset: int
    ended: bool
    exit_code: int | None
    state: str
    reason: str | None
    detail: str
    #: whose log it is: offsets count from the start of that attempt's. 0: there is no attempt yet, or it is no job's
    attempt: int = 0


class KeyCreate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class KeyView(msgspec.Struct, frozen=True):
    """`secret` is given once, when the key is made."""

    name: str
    project: str
    owner: str
    created_at: str
    secret: str | None = None


class SecretPut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    #: key -> value
    values: dict[str, str]
    #: one of that name that is there is replaced: all of it
    replace: bool = False


class SecretView(msgspec.Struct, frozen=True):
    """A secret, without its values: nothing shows those again."""

    name: str
    project: str
    owner: str
    generation: int
    keys: tuple[str, ...]
    created_at: str
    changed_at: str
    #: such as `function web` and `job j-000001`
    used_by: tuple[str, ...] = ()


class SecretValues(msgspec.Struct, frozen=True):
    """For the agent alone."""

    version: str
    values: dict[str, str]


class HealthRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Either an active check of `subject`, which is put back into use when it passes; or, with `keep_hardware`, drift is measured
    from the hardware as it is now."""

    subject: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    keep_hardware: bool = False


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457 problem details. `code` is stable."""

    type: str
    title: str
    status: int
    detail: str
    code: str
