"""What is a job, and in which states may it be?"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import AttemptId, JobId, ProjectName, make_attempt_id
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing


class Owner(msgspec.Struct, frozen=True):
    """Who asked for it; on every object from the first migration on."""

    user: str
    uid: int


#: the smallest share that there is: for functions, whose share of the common cores is taken by what runs and not booked
NO_SHARE = 1e-6


class Resources(msgspec.Struct, frozen=True):
    """What a workload asks of a machine."""

    #: cores' worth of share in the common cpuset, or whole cores when `exclusive`; > 0
    cpus: float = 1.0
    #: hard limit in bytes; None means no limit (and nothing is booked)
    memory_bytes: int | None = None
    #: whole physical cores with their siblings, nobody else on them
    exclusive: bool = False
    timing: Timing = Timing.BEST_EFFORT
    #: gives way: runs only on what everything else on the machine leaves idle
    preemptible: bool = False
    gpus: GpuDemand | None = None
    #: network cards, chosen near the GPUs
    nics: int = 0
    #: a promise that is watched: no wake-up of a probe on its cores later than this, in microseconds
    max_wakeup_us: int | None = None

    @property
    def whole_cores(self) -> bool:
        """Does it take physical cores for itself?"""
        return self.exclusive or self.timing is not Timing.BEST_EFFORT


class JobSpec(msgspec.Struct, frozen=True):
    """What the user asked for. Never changes after submit."""

    name: str
    argv: tuple[str, ...]
    #: absolute path on the machine
    cwd: str
    env: dict[str, str] = {}
    resources: Resources = Resources()
    #: run with root's uid; only honoured for admins of a Steelyard that runs as root
    as_root: bool = False


class JobState(StrEnum):
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    #: work may or may not run; the reason says why we can't tell
    UNKNOWN = "UNKNOWN"

    @property
    def terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED)


class Plan(msgspec.Struct, frozen=True):
    """Where an attempt runs. Leaves no choice to whoever carries it out."""

    #: exclusive logical CPUs; empty means the common cpuset
    cpus: tuple[int, ...] = ()
    #: weight in the common cpuset, 1.0 = one core's worth
    share: float = 1.0
    memory_bytes: int | None = None
    memory_nodes: tuple[int, ...] = ()
    timing: Timing = Timing.BEST_EFFORT
    preemptible: bool = False
    #: ids in the machine's topology, in the order in which the workload sees them
    gpus: tuple[str, ...] = ()
    nics: tuple[str, ...] = ()
    #: share of each GPU in `gpus`; 1.0 whole
    gpu_fraction: float = 1.0
    #: uuids of MIG instances; their GPUs are in `gpus`
    mig_instances: tuple[str, ...] = ()


class Job(msgspec.Struct, frozen=True):
    id: JobId
    project: ProjectName
    owner: Owner
    #: goes up with every change of the row (optimistic concurrency)
    generation: int
    #: number of the current attempt; 0 before the first start
    attempt: int
    spec: JobSpec
    state: JobState
    submitted_at: int
    plan: Plan | None = None
    reason: Reason | None = None
    #: a sentence for people; what happened and what to do next
    detail: str = ""
    #: the command's own code, or 128 + signal
    exit_code: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    peak_memory_bytes: int | None = None
    #: signal asked for by stop, and the seconds until SIGKILL follows
    stop_signal: int | None = None
    stop_grace_s: float = 10.0
    #: the last proof made while it ran
    proof: Proof | None = None
    #: breaches of `max_wakeup_us` by this attempt, as last recorded, and the worst of them
    wakeup_breaches: int = 0
    wakeup_worst_us: int = 0

    @property
    def attempt_id(self) -> AttemptId:
        return make_attempt_id(self.id, self.attempt)
