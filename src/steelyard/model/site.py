"""What does an administrator set for all users of a site? Shares, quotas and schedules."""

from __future__ import annotations

import msgspec

from steelyard.model.ids import CallId, FunctionName, ProjectName
from steelyard.model.job import JobSpec, Owner


class Account(msgspec.Struct, frozen=True):
    """A place in the tree of accounts: `lab/alice` is below `lab`. One that nobody made has one share and its own usage."""

    name: str
    project: ProjectName
    owner: Owner
    generation: int
    #: its part among its siblings, > 0
    shares: float = 1.0
    #: decayed usage of itself alone (not of accounts below it) as of `usage_at`, in core-seconds (a GPU counts as `GPU_CORES`)
    usage: float = 0.0
    usage_at: int = 0


class Quota(msgspec.Struct, frozen=True):
    """What all running jobs of a project together may hold; None: no limit."""

    project: ProjectName
    owner: Owner
    generation: int
    cores: float | None = None
    gpus: float | None = None
    memory_bytes: int | None = None
    running_jobs: int | None = None


class Schedule(msgspec.Struct, frozen=True):
    """A job that is submitted, or a function that is called, by the clock. Either `cron` or `every_s`; `spec` or `function`."""

    name: str
    project: ProjectName
    owner: Owner
    generation: int
    #: five fields of cron, in `timezone`; "" with `every_s`
    cron: str
    #: of the job
    spec: JobSpec | None = None
    timezone: str = "UTC"
    paused: bool = False
    #: wall time up to which it has submitted all it should
    done_until: int = 0
    #: the newest job that it submitted
    last_job: str | None = None
    #: this long after the time before, however long what it started takes
    every_s: float | None = None
    #: called durably, without arguments; a time that comes while the call before goes on is left out
    function: FunctionName | None = None
    #: it came with its function, and goes with it
    declared: bool = False
    last_call: CallId | None = None
