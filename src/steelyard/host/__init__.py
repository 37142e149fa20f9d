"""How do we see and touch this machine? Here stands the interface to its control groups; `cgroup.py` opens the right variant.

A workload is a group of processes that is limited, listed, signalled and ended as one. Variants: `cgroup_v1.py` (also hybrid
machines), `cgroup_v2.py`, `cgroup_none.py` (no root, or nothing mounted: sessions take the groups' place). All are held by
tests/contracts/test_cgroups_contract.py. Nothing here polls by itself or keeps state that a restarted agent would need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan

#: what `memory_bytes` reads where the kernel has no limit set (its own largest page-aligned number)
UNLIMITED_BYTES = 0x7FFF_FFFF_FFFF_F000


class CgroupReading(msgspec.Struct, frozen=True):
    """What the kernel says about one workload now. None: it can't be read here."""

    #: what the workload's cpuset allows (the common one's for best-effort work)
    cpus: tuple[int, ...] | None = None
    memory_nodes: tuple[int, ...] | None = None
    #: it runs only on what all others leave idle
    gives_way: bool = False
    #: 1.0 = one core's worth; rounded by the kernel to 1/1024 (v1) or 1/100 (v2)
    share: float | None = None
    #: the limit, rounded down to a page by the kernel; `UNLIMITED_BYTES` without one
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    oom_kills: int | None = None
    #: the smallest limit of reading and of writing; None without one on every local disk
    io_max_bytes_s: int | None = None
    pids: tuple[int, ...] = ()


class UsageReading(msgspec.Struct, frozen=True):
    """What one workload has used so far. None: it can't be read here."""

    #: by its group; without groups that of its processes and of the children that they waited for
    cpu_s: float | None = None
    #: now; by its group with the file cache that is kept for it, without groups what its processes have resident
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    #: from and to disks, by its processes and the children that they waited for (a write counts when it is made, not when the
    #: cache is flushed)
    read_bytes: int | None = None
    written_bytes: int | None = None


def denied_nodes(gpu_nodes: Mapping[str, tuple[str, ...]], plan: Plan) -> tuple[str, ...]:
    """The device files of the GPUs that this plan does not give, as `c 195:0`."""
    return tuple(node for gpu, nodes in sorted(gpu_nodes.items()) if gpu not in plan.gpus for node in nodes)


class Cgroups(Protocol):
    """The control groups of one home. Calls on a workload that does not exist find nothing and raise nothing; what the kernel
    refuses raises `EdgeFailed`."""

    @property
    def flavour(self) -> str:
        """ "v1", "v2", "hybrid" or "none"."""
        ...

    @property
    def controllers(self) -> frozenset[str]:
        """Which of cpu, cpuset, memory, pids, freezer are enforced."""
        ...

    @property
    def missing(self) -> tuple[str, ...]:
        """Sentences: what can't be isolated here, and what to do about it."""
        ...

    def prepare(self, shared_cpus: tuple[int, ...], memory_nodes: tuple[int, ...]) -> None:
        """Make the home's groups and set the common cpuset. Idempotent; called at start and when the common cpuset changes."""
        ...

    def make(self, workload: WorkloadId, plan: Plan) -> None:
        """Make (or correct) the workload's group with its limits. Exclusive cpus get a cpuset of exactly these. Idempotent."""
        ...

    def path(self, workload: WorkloadId) -> str:
        """The group's name below the mount, as /proc/<pid>/cgroup ends; "" where there is none."""
        ...

    def open_join(self, workload: WorkloadId) -> list[int]:
        """Write-only descriptors; a process joins by writing `0` to each, in order. The caller closes them."""
        ...

    def track(self, workload: WorkloadId, pid: int, start_time: int) -> None:
        """Its first process and session leader. Only the variant without groups needs to be told."""
        ...

    def pids(self, workload: WorkloadId) -> list[int]: ...

    def signal(self, workload: WorkloadId, signum: int) -> None:
        """To every process of it."""
        ...

    def kill(self, workload: WorkloadId) -> None:
        """SIGKILL until it is empty, for at most 2 s (a process stuck in the kernel may outlast that: see `remove`)."""
        ...

    def freeze(self, workload: WorkloadId, frozen: bool) -> bool:
        """Stop all of it where it stands, or let it go on; a frozen workload can be killed, but answers no other signal before it
        goes on. False when the kernel is not done yet after 0.1 s (a process in the middle of I/O): it goes on by itself."""
        ...

    def frozen(self, workload: WorkloadId) -> bool:
        """Was it told to stand still? False for an empty one."""
        ...

    def remove(self, workload: WorkloadId) -> bool:
        """Remove the group. False while something is in it."""
        ...

    def read(self, workload: WorkloadId) -> CgroupReading: ...

    def read_usage(self, workload: WorkloadId) -> UsageReading:
        """Cheaper than `read`, for once a second."""
        ...

    def workloads(self) -> list[WorkloadId]:
        """Every workload that has a group in this home, sorted."""
        ...

    def destroy(self) -> None:
        """Kill and remove everything of this home."""
        ...
