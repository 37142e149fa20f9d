"""What may a job ask of the queue, beyond a place on a machine? Gangs, arrays, dependencies, retries, preemption, time limits."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from steelyard.model.ids import JobId

#: a queue's highest priority; the lowest is 0
PRIORITY_MAX = 100
PRIORITY_DEFAULT = 50
#: elements of one array
ARRAY_MAX = 10_000


class Launcher(StrEnum):
    """Who starts the ranks of a gang."""

    #: Steelyard: one process per rank, with its place in `RANK`, `WORLD_SIZE` and their like
    NONE = "none"
    #: one `torchrun` per node starts its ranks
    TORCHRUN = "torchrun"
    #: one `mpirun` starts all ranks; in a pool, and with `direct`, one step of Slurm's
    MPI = "mpi"


class Gang(msgspec.Struct, frozen=True):
    """Ranks that start all or none and end all or none. `JobSpec.resources` is what each rank gets."""

    nodes: int = 1
    tasks_per_node: int = 1
    launcher: Launcher = Launcher.NONE

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node


class DependencyKind(StrEnum):
    """How another job must have gone, as in sbatch: afterok, afternotok, afterany, after."""

    OK = "ok"
    NOT_OK = "not-ok"
    ANY = "any"
    STARTED = "started"


class Dependency(msgspec.Struct, frozen=True):
    #: a job, or an array (all of its elements are meant)
    job: JobId
    kind: DependencyKind = DependencyKind.OK


class RetryOn(StrEnum):
    """Why an attempt ended, as far as retries are concerned."""

    ERROR = "error"
    NODE_LOST = "node-lost"
    PREEMPTED = "preempted"
    OOM = "oom"


class RetryRule(msgspec.Struct, frozen=True):
    on: RetryOn
    #: further attempts for this reason, >= 0
    times: int
    #: before the first of them; twice as long before each further one, at most an hour
    backoff_s: float = 10.0


class PreemptMode(StrEnum):
    #: ended, and queued again
    REQUEUE = "requeue"
    #: frozen where it is; keeps its memory, gives back its cores
    SUSPEND = "suspend"
    #: ended for good
    CANCEL = "cancel"


class Preemption(msgspec.Struct, frozen=True):
    """How a preemptible job gives way."""

    mode: PreemptMode = PreemptMode.REQUEUE
    signal: int = 15
    #: from the signal to SIGKILL
    grace_s: float = 30.0
    #: safe from preemption for that long after its start
    min_runtime_s: float = 0.0


class Warn(msgspec.Struct, frozen=True):
    """A signal before `max_duration_s` is over (sbatch --signal)."""

    signal: int
    before_s: float
    #: only to processes that `srun` started (SLURM_STEP_ID in their environment), not to the script (sbatch --signal without B:)
    steps_only: bool = False


class ArrayPlace(msgspec.Struct, frozen=True):
    """Which element of which array a job is."""

    #: the array's own id, which no job has
    id: JobId
    #: what the user numbered it: 0-99:2 has 0, 2, 4, ...
    index: int
    #: all indices of the array
    count: int
    index_min: int
    index_max: int
    index_step: int = 1
    #: elements that may run at a time; None: all
    at_once: int | None = None


class RankEnd(msgspec.Struct, frozen=True):
    """How one rank of a gang ended."""

    rank: int
    exit_code: int | None = None
    signal: int | None = None
