"""What is a job, and in which states may it be?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from steelyard.model.batch import (
    PRIORITY_DEFAULT,
    ArrayPlace,
    Dependency,
    Gang,
    Launcher,
    Preemption,
    RankEnd,
    RetryRule,
    Warn,
)
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import OWN_MACHINE, AttemptId, JobId, MachineId, ProjectName, make_attempt_id
from steelyard.model.image import is_reference
from steelyard.model.mount import VolumeMount
from steelyard.model.owner import Owner
from steelyard.model.part import Parts
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason
from steelyard.model.secret import SecretUse
from steelyard.model.timing import Timing
from steelyard.model.usage import Usage

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
    #: a private folder of that size on the fastest local disk, gone when the job ends
    scratch_bytes: int | None = None
    #: reading and writing of local disks, bytes per second each
    io_max_bytes_s: int | None = None

    @property
    def whole_cores(self) -> bool:
        """Does it take physical cores for itself?"""
        return self.exclusive or self.timing is not Timing.BEST_EFFORT


class Terminal(msgspec.Struct, frozen=True):
    """A terminal that a process is given instead of empty input and logs."""

    rows: int = 24
    columns: int = 80
    #: what it can do, as TERM tells
    kind: str = "xterm"


class ImageStep(msgspec.Struct, frozen=True):
    """What a container's files become when its command ends well: another image of its owner."""

    #: hex, names the image
    id: str
    #: digest of the image that it has to begin with; "": none, it is made with the machine's own programs, and the job names as
    #: its image what it makes
    below: str
    #: what the image says beside that one's variables
    env: dict[str, str] = {}
    #: whom it runs as, and what, in the place of that one's; "" and (): as that one
    user: str = ""
    command: tuple[str, ...] = ()
    #: sha256 of a bundle that is brought in; "" without one
    files: str = ""


class JobSpec(msgspec.Struct, frozen=True):
    """What the user asked for. Never changes after submit."""

    name: str
    #: with `script`: its name for people, and its arguments
    argv: tuple[str, ...]
    #: absolute path on the machine
    #: with `image`: inside it, and "" is the image's own
    cwd: str
    env: dict[str, str] = {}
    #: the image that it builds; the machine puts its own builder in the place of `argv` then
    builds: str = ""
    resources: Resources = Resources()
    #: run with root's uid; only honoured for admins of a Steelyard that runs as root
    as_root: bool = False
    #: text of a program with a first line `#!`, executed instead of argv[0]
    script: str | None = None
    #: 0 to `PRIORITY_MAX`; higher starts first
    priority: int = PRIORITY_DEFAULT
    #: whose fair share it uses, such as `lab/alice`; "" means the owner's name
    account: str = ""
    #: ranks that start and end together, each with `resources`; None: one process
    gang: Gang | None = None
    after: tuple[Dependency, ...] = ()
    #: not started before somebody releases it
    held: bool = False
    #: not started before this wall time, microseconds
    begin_at: int | None = None
    #: ended after that long
    max_duration_s: float | None = None
    warn: Warn | None = None
    #: ended when it has not touched the file `STEELYARD_HEARTBEAT` that long after its start
    start_timeout_s: float | None = None
    #: ended when it has not touched that file for so long
    heartbeat_timeout_s: float | None = None
    #: at most one rule per reason
    retry: tuple[RetryRule, ...] = ()
    preemption: Preemption = Preemption()
    #: absolute paths of files that get its output instead of the logs; %-patterns are already filled in
    stdout: str | None = None
    stderr: str | None = None
    #: output files are emptied at the start rather than continued
    truncate_output: bool = False
    #: its newest entry is told to a restarted job as `STEELYARD_CHECKPOINT`
    checkpoint_dir: str | None = None
    #: how many CPUs `SLURM_CPUS_PER_TASK` and its like tell of, and more of what `sbatch` was told, for the job's eyes alone
    slurm: dict[str, str] = {}
    #: runs in a container of this image (`model/image.py` has the forms); or in one that was built here, by id, name, or the
    #: beginning of an id, and by its id once it is stored; "" means in neither
    image: str = ""
    #: of a container: what is made of it; nothing else is brought into it then
    makes: ImageStep | None = None
    #: of a container: a network of its own with nothing but loopback, instead of the machine's
    own_network: bool = False
    volumes: tuple[VolumeMount, ...] = ()
    #: what it is given beside `env`, each name once
    secrets: tuple[SecretUse, ...] = ()
    #: goes through the queue of the attached cluster and not through ours
    direct: bool = False
    #: of a script that does: options for the cluster's `sbatch`, which say how large it is, as they were written
    sbatch: tuple[str, ...] = ()
    #: on whose machines it runs; "": on the home's own
    pool: str = ""
    #: it runs in one (WebSocket `/v1/jobs/{job}/terminal`), which is hung up when nobody comes to it for a minute; in a container
    #: its command then takes the place of the image's entry point. None: empty input, output to logs
    terminal: Terminal | None = None

    @property
    def contained(self) -> bool:
        """Does it run in a container?"""
        return is_reference(self.image)

    @property
    def each(self) -> Resources:
        """What each process that Steelyard starts gets: a launcher's has all ranks of its node."""
        return self.resources if self.gang is None or self.gang.launcher is Launcher.NONE else self.demand

    @property
    def demand(self) -> Resources:
        """What all its ranks on one node need together."""
        ranks = 1 if self.gang is None else self.gang.tasks_per_node
        return self.resources if ranks == 1 else multiply(self.resources, ranks)

    @property
    def nodes(self) -> int:
        """On so many machines at once; each has `demand`."""
        return 1 if self.gang is None else self.gang.nodes

    @property
    def in_one_allocation(self) -> bool:
        """Do its machines have to be of one allocation? Ranks of MPI reach no further."""
        return self.nodes > 1 and self.gang is not None and self.gang.launcher is Launcher.MPI

    @property
    def total(self) -> Resources:
        """What it needs on all its nodes together."""
        return self.demand if self.gang is None or self.gang.nodes == 1 else multiply(self.resources, self.gang.world_size)

    @property
    def logs_by_rank(self) -> bool:
        """Is each of its ranks a process that we start, with a log of its own?"""
        return self.gang is not None and self.gang.launcher is Launcher.NONE and not self.direct

    @property
    def log_streams(self) -> int:
        if self.gang is None or self.direct:
            return 1
        return {Launcher.NONE: self.gang.world_size, Launcher.TORCHRUN: self.gang.nodes, Launcher.MPI: 1}[self.gang.launcher]


def multiply(each: Resources, ranks: int) -> Resources:
    """What `ranks` workloads that ask for `each` need on one machine. Each has whole cores of its own, where it asks for whole
    ones. Shares of a GPU stay one share: see `placement/gang.py`."""
    gpus = each.gpus
    if gpus is not None and gpus.fraction is None:
        gpus = msgspec.structs.replace(gpus, count=gpus.count * ranks)
    cpus = float(max(1, math.ceil(round(each.cpus, 6)))) if each.whole_cores else each.cpus
    return msgspec.structs.replace(
        each,
        cpus=cpus * ranks,
        memory_bytes=_times(each.memory_bytes, ranks),
        gpus=gpus,
        nics=each.nics * ranks,
        scratch_bytes=_times(each.scratch_bytes, ranks),
        io_max_bytes_s=_times(each.io_max_bytes_s, ranks),
    )


def _times(amount: int | None, ranks: int) -> int | None:
    return None if amount is None else amount * ranks


class JobState(StrEnum):
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    #: frozen by preemption: holds its memory, but no cores
    SUSPENDED = "SUSPENDED"
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
    #: ids in the machine's topology, in the order in which the workload sees them. Of a gang whose ranks have shares of GPUs: one
    #: after the other what each rank has, so that a GPU that several share stands there once for each
    gpus: tuple[str, ...] = ()
    nics: tuple[str, ...] = ()
    #: share of each GPU in `gpus`; 1.0 whole
    gpu_fraction: float = 1.0
    #: uuids of MIG instances; their GPUs are in `gpus`
    mig_instances: tuple[str, ...] = ()
    #: reading and writing of local disks, bytes per second each
    io_max_bytes_s: int | None = None
    #: of a gang: what each process that Steelyard starts gets, in rank order; the rest says what all get together
    tasks: tuple[Plan, ...] = ()
    #: `Machine.place` of the machine
    machine: MachineId = OWN_MACHINE
    #: of a gang on several machines: what it has on the others, in the order of ranks; the rest says what it has on the first
    others: tuple[Plan, ...] = ()

    @property
    def parts(self) -> tuple[Plan, ...]:
        """One for each machine, in the order of ranks."""
        return (msgspec.structs.replace(self, others=()), *self.others) if self.others else (self,)

    def on(self, machine: MachineId) -> Plan | None:
        """Its part on that machine."""
        return next((part for part in self.parts if part.machine == machine), None)


def join_parts(parts: Sequence[Plan]) -> Plan:
    return parts[0] if len(parts) == 1 else msgspec.structs.replace(parts[0], others=tuple(parts[1:]))


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
    #: as submitted, or as changed since
    priority: int = PRIORITY_DEFAULT
    array: ArrayPlace | None = None
    #: somebody has to release it
    held: bool = False
    #: not before this wall time, microseconds: `begin_at`, or the backoff of a retry
    not_before: int | None = None
    #: earlier attempts that ran
    restarts: int = 0
    #: `RetryOn` -> further attempts used for it
    retried: dict[str, int] = {}
    #: why `stop_signal` was asked for: STOPPED_BY_USER, or PREEMPTED
    stop_reason: Reason | None = None
    #: of the last attempt that ended; while one runs the agent knows more
    usage: Usage | None = None
    #: of a gang's last attempt
    ranks: tuple[RankEnd, ...] = ()
    #: seconds that the running attempt has been frozen before now, and since when it is
    suspended_s: float = 0.0
    suspended_at: int | None = None
    #: attempt -> `Machine.place`, of those that ran elsewhere than on the home's own machine; the first of several
    away: dict[int, MachineId] = {}
    #: attempt -> the others, of those that ran on several
    spread: dict[int, tuple[MachineId, ...]] = {}
    #: of an attempt on several machines, while it has not ended: how it stands on each
    parts: Parts | None = None

    @property
    def account(self) -> str:
        """Whose fair share it uses."""
        return self.spec.account or self.owner.user

    @property
    def machine(self) -> MachineId:
        """`Machine.place` of where its newest attempt runs, or ran."""
        return self.away.get(self.attempt, OWN_MACHINE)

    @property
    def machines(self) -> tuple[MachineId, ...]:
        """All of them, in the order of ranks."""
        return (self.machine, *self.spread.get(self.attempt, ()))

    def find_machine(self, stream: int) -> MachineId:
        """Where that one of its `log_streams` is written, by its newest attempt."""
        gang, machines = self.spec.gang, self.machines
        each = gang.tasks_per_node if gang is not None and self.spec.logs_by_rank else 1
        return machines[min(stream // each, len(machines) - 1)]

    def find_rank(self, rank: int | None) -> int | None:
        """What the machine of that stream calls its process; None: its first, or only one."""
        return rank if self.spec.logs_by_rank or len(self.machines) == 1 else None

    @property
    def attempt_id(self) -> AttemptId:
        return make_attempt_id(self.id, self.attempt)
