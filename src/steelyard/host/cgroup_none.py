"""How are workloads listed and ended without control groups (no root, nothing mounted, all read-only)?

A workload is then the session its first process leads, and the descendants of that session's members. The agent says who that is
by `track`; a process that both leaves the session and outlives its parent escapes, which `missing` says. Limits other than
affinity are not enforced, and readings are None rather than what was asked.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from steelyard.clock import Clock
from steelyard.host import CgroupReading, UsageReading
from steelyard.host.cgroup_files import CgroupFiles, kill_until_empty, stop_all
from steelyard.host.proc import ProcessStat, observe_cpu, observe_io, observe_processes, rss_bytes
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan


class CgroupsNone:
    """Keeps only what `track` said; a restarted agent says it again from its handles."""

    flavour = "none"
    controllers: frozenset[str] = frozenset()

    def __init__(self, *, missing: tuple[str, ...], files: CgroupFiles, clock: Clock, root: Path = Path("/")) -> None:
        self.missing = missing
        self._files = files
        self._clock = clock
        self._root = root
        self._made: set[WorkloadId] = set()
        #: pid and start time of the first process, and everything seen of the workload since
        self._leaders: dict[WorkloadId, tuple[int, int]] = {}
        self._members: dict[WorkloadId, dict[int, int]] = {}

    def prepare(self, shared_cpus: tuple[int, ...], memory_nodes: tuple[int, ...]) -> None:
        """Nothing to prepare."""

    def make(self, workload: WorkloadId, plan: Plan) -> None:
        self._made.add(workload)

    def path(self, workload: WorkloadId) -> str:
        return ""

    def open_join(self, workload: WorkloadId) -> list[int]:
        return []

    def track(self, workload: WorkloadId, pid: int, start_time: int) -> None:
        self._made.add(workload)
        self._leaders[workload] = (pid, start_time)
        self._members[workload] = {pid: start_time}

    def pids(self, workload: WorkloadId) -> list[int]:
        leader = self._leaders.get(workload)
        if leader is None:
            return []
        seen = self._members[workload]
        found = find_members(observe_processes(self._root), leader, seen, os.getpid())
        self._members[workload] = found
        return sorted(found)

    def signal(self, workload: WorkloadId, signum: int) -> None:
        self._files.send(self.pids(workload), signum)

    def kill(self, workload: WorkloadId) -> None:
        kill_until_empty(self._files, self._clock, lambda: self.pids(workload))

    def freeze(self, workload: WorkloadId, frozen: bool) -> bool:
        """By SIGSTOP and SIGCONT, which a program may notice."""
        if frozen:
            return stop_all(self._files, lambda: self.pids(workload)) and bool(self.pids(workload))
        self.signal(workload, signal.SIGCONT)
        return True

    def frozen(self, workload: WorkloadId) -> bool:
        pids = self.pids(workload)
        return bool(pids) and all(self._files.stopped(pid) for pid in pids)

    def remove(self, workload: WorkloadId) -> bool:
        if self.pids(workload):
            return False
        self._made.discard(workload)
        self._leaders.pop(workload, None)
        self._members.pop(workload, None)
        return True

    def read(self, workload: WorkloadId) -> CgroupReading:
        return CgroupReading(pids=tuple(self.pids(workload)))

    def read_usage(self, workload: WorkloadId) -> UsageReading:
        pids = self.pids(workload)
        resident = [size for pid in pids if (size := rss_bytes(pid)) is not None]
        read, written = observe_io(pids, self._root) or (None, None)
        return UsageReading(
            cpu_s=observe_cpu(pids, self._root),
            memory_bytes=sum(resident) if resident else None,
            read_bytes=read,
            written_bytes=written,
        )

    def workloads(self) -> list[WorkloadId]:
        return sorted(self._made)

    def destroy(self) -> None:
        for workload in self.workloads():
            self.kill(workload)
            self.remove(workload)


def find_members(
    processes: dict[int, ProcessStat], leader: tuple[int, int], seen: dict[int, int], own_pid: int
) -> dict[int, int]:
    """Pid -> start time of every live process of the workload: those of the leader's session that are not older than it, those
    seen before (same start time, so a re-used pid is not taken for one), and all descendants of these. Never our own process."""
    session, since = leader
    found = {
        pid: stat.start_time
        for pid, stat in processes.items()
        if (stat.session == session and stat.start_time >= since) or seen.get(pid) == stat.start_time
    }
    grew = True
    while grew:
        grew = False
        for pid, stat in processes.items():
            if pid not in found and stat.parent in found:
                found[pid] = stat.start_time
                grew = True
    found.pop(own_pid, None)
    return found
