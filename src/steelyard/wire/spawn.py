"""What do agent and spawner say to each other? (msgpack over a Unix SOCK_SEQPACKET, descriptors by SCM_RIGHTS)

The spawner is the parent of every workload. It forks on request, reaps, fsyncs an exit record per workload, and keeps a copy of
every listening socket so that an agent that was killed gets them back.
"""

from __future__ import annotations

import msgspec

from steelyard.model.ids import WorkloadId
from steelyard.model.mount import DeviceNode, Mounts

#: a packet never carries more; the kernel's default SO_SNDBUF takes it
PACKET_MAX = 200_000
#: descriptors in one packet (the kernel allows 253)
FDS_MAX = 64
#: children in one `Running`
RUNNING_MAX = 500


class Outputs(msgspec.Struct, frozen=True):
    """Files of the user's own that get a workload's output instead of its logs; None: the log. They are opened once the workload
    has its uid, because the user may have put a link there."""

    stdout: str | None = None
    #: the same path as `stdout`: one file, opened once
    stderr: str | None = None
    #: emptied first, rather than continued
    truncate: bool = False


class Rootfs(msgspec.Struct, frozen=True):
    """The workload's program is a container runtime: it runs as root, in a mount namespace of its own in which this was mounted,
    and it is what gives up root's rights. Logs belong to the request's uid all the same."""

    #: the files of an image on the machine; "" mounts none (to enter a container that runs)
    lower: str
    #: an empty folder; below it appear `rootfs` (the files, writable in memory), `sys` (the machine's alone) and `dev`
    folder: str
    #: a folder on disk with `upper` and `work`, where what is written stays, instead of memory
    disk: str = ""
    #: (first id on disk, first on the machine, how many)
    uids: tuple[tuple[int, int, int], ...] = ()
    gids: tuple[tuple[int, int, int], ...] = ()
    #: (uid, gid) with whose rights `outputs` are opened
    owner: tuple[int, int] = (0, 0)
    #: made below `folder`/dev, named by their place here
    devices: tuple[DeviceNode, ...] = ()
    #: any amount of memory may be locked
    lock_memory: bool = False
    #: the runtime starts the workload, writes the pid of its first process into this file, and ends with 0: that process is our
    #: child then, and what `Spawned` tells of. "": the runtime is the workload, for as long as it lives
    leaves: str = ""
    #: a process whose network it is in; 0: ours
    network: int = 0


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """Fork and exec one workload in its own session. Descriptors in the packet, in order: one per `fds` entry, then
    one open cgroup `tasks`/`cgroup.procs` file per `cgroups` count, which the child joins by writing 0."""

    workload: WorkloadId
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    stdout: str
    stderr: str
    #: None leaves the spawner's own (not root, or root's work as root)
    uid: int | None = None
    gid: int | None = None
    #: child descriptor number of each passed descriptor, e.g. (3,) for LISTEN_FDS
    fds: tuple[int, ...] = ()
    cgroups: int = 0
    #: set LISTEN_FDS/LISTEN_PID for that many descriptors from 3 on
    listen_fds: int = 0
    #: pin by sched_setaffinity as well (the only means without cgroups)
    cpus: tuple[int, ...] = ()
    #: (resource name such as "RLIMIT_NOFILE", soft, hard)
    rlimits: tuple[tuple[str, int, int], ...] = ()
    #: SCHED_FIFO at this priority, where the kernel allows it (the proof tells); 0 leaves the scheduler as it is
    fifo_priority: int = 0
    #: bind its memory to these NUMA nodes, where the kernel allows it
    memory_nodes: tuple[int, ...] = ()
    outputs: Outputs = Outputs()
    rootfs: Rootfs | None = None
    #: what it sees that others don't; None: what we see
    mounts: Mounts | None = None
    #: it sees what this process sees
    sees_as: int | None = None
    #: descriptor 0 is a terminal, which becomes its session's
    terminal: bool = False


class Spawned(msgspec.Struct, frozen=True, tag=True):
    """It runs (exec succeeded). `start_time` is field 22 of /proc/pid/stat, in clock ticks since boot."""

    workload: WorkloadId
    pid: int
    start_time: int
    mono_ns: int


class SpawnFailed(msgspec.Struct, frozen=True, tag=True):
    """Nothing runs; `step` is what was attempted (chdir, setuid, exec, ...), `error` the kernel's words."""

    workload: WorkloadId
    step: str
    error: str


class Claim(msgspec.Struct, frozen=True, tag=True):
    """A template forked this child (CLONE_PARENT made it the spawner's): its exit belongs to this workload."""

    workload: WorkloadId
    pid: int
    start_time: int


class HoldSocket(msgspec.Struct, frozen=True, tag=True):
    """Keep a copy of the passed listening socket under this name (replaces the old one)."""

    name: str


class DropSocket(msgspec.Struct, frozen=True, tag=True):
    name: str


class ListHeld(msgspec.Struct, frozen=True, tag=True):
    """Answered by one `Held` per socket (descriptor attached), then `Running` packets; the first one that carries fewer than
    RUNNING_MAX children is the last."""


class Held(msgspec.Struct, frozen=True, tag=True):
    name: str


class Running(msgspec.Struct, frozen=True, tag=True):
    """Every child that belongs to a workload and has no exit record yet: (workload, pid, start time)."""

    children: tuple[tuple[WorkloadId, int, int], ...]


class Exited(msgspec.Struct, frozen=True, tag=True):
    """An exit record; also the content of agent/exits/<workload>.json, fsynced before this is sent."""

    workload: WorkloadId
    pid: int
    start_time: int
    #: wall clock, microseconds
    ended_at: int
    exit_code: int | None
    signal: int | None
    user_s: float
    system_s: float
    peak_rss_bytes: int
    #: from and to disks; None in a record of an older spawner
    read_bytes: int | None = None
    written_bytes: int | None = None

    @property
    def unseen(self) -> bool:
        """Nobody was there to see how it ended."""
        return self.exit_code is None and self.signal is None


ToSpawner = Spawn | Claim | HoldSocket | DropSocket | ListHeld
FromSpawner = Spawned | SpawnFailed | Held | Running | Exited

encode = msgspec.msgpack.Encoder().encode
decode_to_spawner = msgspec.msgpack.Decoder(ToSpawner).decode
decode_from_spawner = msgspec.msgpack.Decoder(FromSpawner).decode
