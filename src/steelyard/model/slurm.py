"""What is known of a Slurm cluster that Steelyard is attached to, and how it is reached?"""

from __future__ import annotations

import msgspec

#: what is read and written here was the same in all of these
VERSION_MIN, VERSION_MAX = (22, 5), (26, 5)

#: Slurm's states of a job that has not begun, that runs, and that is over
PENDING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "REQUEUE_FED", "RESV_DEL_HOLD"})
RUNNING = frozenset({"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})


class Attachment(msgspec.Struct, frozen=True):
    """What `cluster attach` was told and found; `slurm.json` in the home."""

    #: host to run Slurm's commands on, as ssh takes it; "" is this machine
    ssh: str = ""
    #: "" leaves it to Slurm
    partition: str = ""
    account: str = ""
    #: on storage that this machine, the login host and the nodes share: outputs and exit records, a folder per user
    folder: str = ""
    #: variables of whoever attached that lead Slurm's commands to their cluster
    env: dict[str, str] = {}
    #: MaxArraySize: indices of Slurm's arrays are below that
    array_size_max: int = 1001
    #: KillWait: seconds from SIGTERM to SIGKILL
    kill_wait_s: int = 30
    #: of the Steelyard that is installed on the nodes, for pilots of pools; "": the server's own path
    python: str = ""


class SlurmNode(msgspec.Struct, frozen=True):
    name: str
    cpus: int
    sockets: int
    cores_per_socket: int
    threads_per_core: int
    memory_bytes: int
    #: `gpu:a100` or `gpu` -> how many
    gres: dict[str, int]
    #: in Slurm's words, such as `IDLE+DRAIN`
    state: str
    #: why it is out of use, with who said so; "" where nobody did
    reason: str = ""
    partitions: tuple[str, ...] = ()


class SlurmPartition(msgspec.Struct, frozen=True):
    name: str
    default: bool
    #: in Slurm's words: `UP`, `DOWN`, `DRAIN`, `INACTIVE`
    state: str
    #: as Slurm writes it: `2-00:00:00`, `UNLIMITED`
    time_max: str
    nodes: int
    cpus: int


class SlurmCluster(msgspec.Struct, frozen=True):
    """All that `cluster attach` reads."""

    name: str
    controller: str
    #: as Slurm writes it: `22.05.8`
    version: str
    partitions: tuple[SlurmPartition, ...]
    nodes: tuple[SlurmNode, ...]
    #: Slurm's settings that decide what can be asked of it, by their own names
    settings: dict[str, str]
    #: leaf switch, or block, -> its nodes in Slurm's notation; {}: Slurm was told of no topology
    topology: dict[str, str] = {}
    #: that the user may charge; (): Slurm keeps no accounts, or does not say
    accounts: tuple[str, ...] = ()


class QueueEntry(msgspec.Struct, frozen=True):
    """What Slurm says of one of our attempts."""

    #: Slurm's own name for it: `12`, or `12_7` of an array
    job: str
    #: in Slurm's words: PENDING, RUNNING, COMPLETED, ...
    state: str
    #: why it is in that state, in Slurm's word
    reason: str = ""
    #: microseconds since the epoch, to the second
    started_at: int | None = None
    #: in Slurm's notation
    nodes: str = ""
    #: when its time limit comes, microseconds since the epoch; None: never, or not known yet
    ends_at: int | None = None


class RankRecord(msgspec.Struct, frozen=True):
    """What a step wrote down of a task."""

    rank: int
    #: microseconds since the epoch; `ended_at` is 0 while it runs
    started_at: int
    ended_at: int = 0
    exit_code: int | None = None
    signal: int | None = None
    host: str = ""
    uid: int | None = None
    #: CPUs and memory nodes that the task might use when it began, and the limit on its memory that was in force
    cpus: tuple[int, ...] = ()
    memory_nodes: tuple[int, ...] = ()
    memory_bytes: int | None = None
    #: by Slurm's numbers for them on the node
    gpus: tuple[str, ...] = ()
    #: by Slurm's account: CPUs of the whole job on that node, and how many tasks share them
    cpus_allotted: int = 0
    tasks_here: int = 1
    peak_memory_bytes: int | None = None
    cpu_ms: int | None = None
    #: why there was no task: the kernel's word for it
    not_started: str = ""


def parse_version(text: str) -> tuple[int, int]:
    """`22.05.8` -> (22, 5); ValueError for what is no version."""
    major, minor = text.strip().split(".")[:2]
    return int(major), int(minor)
