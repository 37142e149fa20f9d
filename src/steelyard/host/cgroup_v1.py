"""How are workloads limited and ended where each controller has a tree of its own (cgroup v1, and hybrid machines)?

    <mount of cpu, memory, freezer, pids, devices>/steelyard-<tag>/<workload>     limits, freezing, listing
    <mount of cpu>/steelyard-<tag>-idle/<workload>                       instead of the cpu tree, for preemptible work
    <mount of cpuacct>/steelyard-<tag>/<workload>                        counts CPU time, where that is a tree of its own
    <mount of blkio>/steelyard-<tag>/<workload>                          only for work whose traffic to disks is limited
    <mount of cpuset>/steelyard-<tag>/shared                             the common cpuset of all best-effort work
    <mount of cpuset>/steelyard-<tag>/<workload>                         only for work that has whole cores

Best-effort work has no cpuset of its own, since the common one could not be made smaller while a child holds a core. Where the
freezer is not mounted but v2's empty `unified` tree is, that one is joined too and lists and kills.
Realtime work joins no cpu group but the mount's own: where the kernel groups realtime work (RT_GROUP_SCHED) a group without a
budget refuses SCHED_FIFO, and budgets of siblings add up over CPUs that they do not share.
Joining is by writing `0` to `tasks`, which takes no global lock; `cgroup.procs` costs milliseconds. Not a thread's business: a
process joins while it has one thread.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence

from steelyard.clock import Clock
from steelyard.errors import EdgeFailed
from steelyard.host import UNLIMITED_BYTES, CgroupReading, UsageReading, denied_nodes
from steelyard.host.cgroup_files import FREEZE_LOOKS, CgroupFiles, freeze_group, kill_until_empty, stop_all
from steelyard.host.proc import observe_cpu, observe_io
from steelyard.host.resctrl import Resctrl
from steelyard.host.sysfs import format_cpus, parse_cpus
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.timing import Timing

SHARED = "shared"
SHARES_MAX = 262_144


def pids_max(cpus: int) -> int:
    """Processes and threads one workload may have: room for any real program, an end to a fork bomb."""
    return max(4096, 64 * cpus)


class CgroupsV1:
    """`mounts` names the mount point of each usable controller; `unified` that of v2 where it has to do the freezer's work."""

    def __init__(
        self,
        tag: str,
        mounts: Mapping[str, str],
        *,
        flavour: str,
        missing: tuple[str, ...],
        files: CgroupFiles,
        clock: Clock,
        unified: str | None = None,
        gpu_nodes: Mapping[str, tuple[str, ...]] = {},
        resctrl: Resctrl | None = None,
        cpuacct: str | None = None,
        blkio: str | None = None,
        disks: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.flavour = flavour
        self.controllers = frozenset(mounts)
        self.missing = missing
        self._files = files
        self._clock = clock
        self._mounts = dict(mounts)
        self._gpu_nodes = gpu_nodes
        name = f"steelyard-{tag}"
        self._name = name
        self._resctrl = resctrl
        self._cpuset = f"{mounts['cpuset']}/{name}" if "cpuset" in mounts else None
        self._limits = {controller: f"{mount}/{name}" for controller, mount in mounts.items() if controller != "cpuset"}
        self._unified = f"{unified}/{name}" if unified is not None and "freezer" not in mounts else None
        #: trees with a leaf per workload, each once (controllers may share a mount), the one that lists first
        order = [self._limits.get("freezer"), self._unified, *self._limits.values()]
        #: where CPU time is counted; its files may stand in the cpu tree
        self._cpuacct = f"{cpuacct}/{name}" if cpuacct is not None and cpuacct != mounts.get("cpuset") else None
        if cpuacct is not None and cpuacct not in mounts.values():
            order.append(self._cpuacct)
        self._blkio = f"{blkio}/{name}" if blkio is not None and blkio not in mounts.values() else None
        self._disks = disks
        self._trees = list(dict.fromkeys(tree for tree in order if tree is not None))

    def prepare(self, shared_cpus: tuple[int, ...], memory_nodes: tuple[int, ...]) -> None:
        try:
            for tree in self._trees:
                self._files.make(tree)
            if "cpu" in self._limits:
                # Without this all our work together would weigh as much as one process outside.
                self._set(f"{self._limits['cpu']}/cpu.shares", str(min(SHARES_MAX, 1024 * (os.cpu_count() or 1))))
            if self._cpuset is not None:
                self._prepare_cpuset(self._cpuset, shared_cpus, memory_nodes)
        except OSError as err:
            raise EdgeFailed(f"The control groups of this home could not be set up: {err}.", code="cgroup-failed") from err

    def _prepare_cpuset(self, base: str, shared_cpus: tuple[int, ...], memory_nodes: tuple[int, ...]) -> None:
        self._files.make(base)
        parent = self._mounts["cpuset"]
        for kind in ("cpus", "mems"):
            had = self._files.read(f"{parent}/cpuset.effective_{kind}") or self._files.read(f"{parent}/cpuset.{kind}") or ""
            self._set(f"{base}/cpuset.{kind}", had)
        shared = f"{base}/{SHARED}"
        self._files.make(shared)
        self._set(f"{shared}/cpuset.mems", self._mems(base, memory_nodes))
        self._set(f"{shared}/cpuset.cpus", format_cpus(shared_cpus))

    def make(self, workload: WorkloadId, plan: Plan) -> None:
        try:
            fresh = True
            for tree in self._trees:
                if not (plan.timing is Timing.REALTIME and tree == self._grouped_cpu):
                    made = self._files.make(f"{self._prepare_idle() if self._gives_way(tree, plan) else tree}/{workload}")
                    fresh = fresh and made
            self._limit(workload, plan, fresh)
            self._limit_io(workload, plan.io_max_bytes_s, fresh)
            if self._cpuset is not None:
                self._place(f"{self._cpuset}/{workload}", self._cpuset, plan, fresh)
        except OSError as err:
            raise EdgeFailed(f"The control group of {workload} could not be made: {err}.", code="cgroup-failed") from err

    @property
    def _lone_cpu(self) -> str | None:
        """The cpu tree, where no other controller needs the workload to be in it."""
        tree = self._limits.get("cpu")
        alone = tree is not None and list(self._limits.values()).count(tree) == 1 and tree != self._trees[0]
        return tree if alone else None

    @property
    def _grouped_cpu(self) -> str | None:
        """The cpu tree, where realtime work has to stay out of it."""
        return self._lone_cpu if self._files.exists(f"{self._mounts.get('cpu')}/cpu.rt_runtime_us") else None

    def _gives_way(self, tree: str, plan: Plan) -> bool:
        return plan.preemptible and tree == self._lone_cpu

    @property
    def _idle(self) -> str:
        return f"{self._mounts['cpu']}/{self._name}-idle"

    def _prepare_idle(self) -> str:
        """A tree of its own: within ours it would only give way to our work, not to the gateway and to programs of others."""
        self._files.make(self._idle)
        if not self._files.try_write(f"{self._idle}/cpu.idle", "1"):  # Linux 5.15
            self._files.try_write(f"{self._idle}/cpu.shares", "2")
        return self._idle

    def _limit(self, workload: WorkloadId, plan: Plan, fresh: bool) -> None:
        """`fresh`: nothing of it was there before, so what is not written is as the kernel begins: without a limit."""
        realtime = plan.timing is Timing.REALTIME
        if "cpu" in self._limits and self._files.exists(f"{self._limits['cpu']}/{workload}"):
            shares = min(SHARES_MAX, max(2, round(1024 * plan.share)))
            self._files.write(f"{self._limits['cpu']}/{workload}/cpu.shares", str(shares))
        if "devices" in self._limits:
            for node in denied_nodes(self._gpu_nodes, plan):
                self._files.write(f"{self._limits['devices']}/{workload}/devices.deny", f"{node} rwm")
        if "pids" in self._limits:
            self._files.write(f"{self._limits['pids']}/{workload}/pids.max", str(pids_max(os.cpu_count() or 1)))
        if "memory" in self._limits:
            leaf = f"{self._limits['memory']}/{workload}"
            if realtime:
                self._files.try_write(f"{leaf}/memory.swappiness", "0")
            if fresh and plan.memory_bytes is None:
                return
            limit = "-1" if plan.memory_bytes is None else str(plan.memory_bytes)
            # Memory + swap may never be below memory: out of the way first, then down again.
            swap = f"{leaf}/memory.memsw.limit_in_bytes"
            if self._files.exists(swap):
                self._files.write(swap, "-1")
            self._files.write(f"{leaf}/memory.limit_in_bytes", limit)
            if plan.memory_bytes is not None and self._files.exists(swap):
                self._files.write(swap, limit)

    def _limit_io(self, workload: WorkloadId, io_max: int | None, fresh: bool) -> None:
        """A group of its own only where there is a limit: the others would pay for one more at each start."""
        if self._blkio is None:
            return
        leaf = f"{self._blkio}/{workload}"
        if io_max is None:
            if not fresh:
                self._files.remove(leaf)
            return
        self._files.make(self._blkio)
        self._files.make(leaf)
        for disk in self._disks():
            for way in ("read", "write"):
                # A disk that went away meanwhile needs no limit; what is not limited, the reading tells.
                self._files.try_write(f"{leaf}/blkio.throttle.{way}_bps_device", f"{disk} {io_max}")

    def _read_io_max(self, workload: WorkloadId) -> int | None:
        disks = self._disks() if self._blkio is not None and self._files.exists(f"{self._blkio}/{workload}") else ()
        limits: list[int] = []
        for way in ("read", "write"):
            lines = (self._files.read(f"{self._blkio}/{workload}/blkio.throttle.{way}_bps_device") or "").splitlines()
            told = dict(line.split() for line in lines)
            limits += [int(told.get(disk, 0)) for disk in disks]
        return min(limits, default=0) or None

    def _place(self, leaf: str, base: str, plan: Plan, fresh: bool) -> None:
        if not plan.cpus:
            if not fresh:
                self._files.remove(leaf)
            return
        self._files.make(leaf)
        # What was allocated elsewhere before it joined (or before a new plan) moves along.
        self._files.try_write(f"{leaf}/cpuset.memory_migrate", "1")
        self._set(f"{leaf}/cpuset.mems", self._mems(base, plan.memory_nodes))
        self._set(f"{leaf}/cpuset.cpus", format_cpus(plan.cpus))

    def _mems(self, base: str, wanted: tuple[int, ...]) -> str:
        """Of the wanted nodes those that have memory (the kernel refuses the others), or all there are."""
        had = parse_cpus(self._files.read(f"{base}/cpuset.mems") or "")
        return format_cpus(set(wanted) & set(had)) or format_cpus(had)

    def _set(self, path: str, text: str) -> None:
        """Write unless it is so already: writing a cpuset walks all of its tasks."""
        if self._files.read(path) != text:
            self._files.write(path, text)

    def path(self, workload: WorkloadId) -> str:
        return f"{self._name}/{workload}"

    def _cpuset_of(self, workload: WorkloadId) -> str | None:
        """The workload's own cpuset, else the common one."""
        if self._cpuset is None:
            return None
        own = f"{self._cpuset}/{workload}"
        return own if self._files.exists(own) else f"{self._cpuset}/{SHARED}"

    def open_join(self, workload: WorkloadId) -> list[int]:
        files = [f"{tree}/{workload}/{'cgroup.procs' if tree == self._unified else 'tasks'}" for tree in self._trees]
        cpu = self._lone_cpu
        if cpu is not None and not self._files.exists(f"{cpu}/{workload}"):
            idle = f"{self._idle}/{workload}"
            files[self._trees.index(cpu)] = f"{idle if self._files.exists(idle) else self._mounts['cpu']}/tasks"
        cpuset = self._cpuset_of(workload)
        if cpuset is not None:
            files.append(f"{cpuset}/tasks")
        if self._blkio is not None and self._files.exists(f"{self._blkio}/{workload}"):
            files.append(f"{self._blkio}/{workload}/tasks")
        if self._resctrl is not None and cpu is not None and self._files.exists(f"{self._idle}/{workload}"):
            files += self._resctrl.prepare()
        opened: list[int] = []
        try:
            for file in files:
                opened.append(self._files.open(file))
        except OSError as err:
            for fd in opened:
                os.close(fd)
            raise EdgeFailed(f"The control group of {workload} can't be joined: {err}.", code="cgroup-failed") from err
        return opened

    def track(self, workload: WorkloadId, pid: int, start_time: int) -> None:
        """The groups know."""

    def pids(self, workload: WorkloadId) -> list[int]:
        return self._files.pids(f"{self._trees[0]}/{workload}") if self._trees else []

    def _all_pids(self, workload: WorkloadId) -> list[int]:
        """From every tree: a child that died half-way through joining is in some only."""
        found: dict[int, None] = {}
        for tree in self._trees:
            found.update(dict.fromkeys(self._files.pids(f"{tree}/{workload}")))
        for tree in (self._cpuset, self._blkio):
            if tree is not None:
                found.update(dict.fromkeys(self._files.pids(f"{tree}/{workload}")))
        return list(found)

    def signal(self, workload: WorkloadId, signum: int) -> None:
        self._files.send(self.pids(workload), signum)

    def kill(self, workload: WorkloadId) -> None:
        kill_until_empty(
            self._files,
            self._clock,
            lambda: self._all_pids(workload),
            before=lambda: self._freeze(workload),
            after=lambda: self._thaw(workload),
        )

    def _freeze(self, workload: WorkloadId) -> None:
        """Stop it where it stands, forks under way included. Without a freezer v2's own kill does as well, where it is."""
        if "freezer" not in self._limits:
            if self._unified is not None:
                self._files.try_write(f"{self._unified}/{workload}/cgroup.kill", "1")
            return
        state = f"{self._limits['freezer']}/{workload}/freezer.state"
        self._files.try_write(state, "FROZEN")
        for _ in range(FREEZE_LOOKS):
            if self._files.read(state) in ("FROZEN", None):
                return
            self._files.wait()

    def _thaw(self, workload: WorkloadId) -> None:
        if "freezer" in self._limits:
            self._files.try_write(f"{self._limits['freezer']}/{workload}/freezer.state", "THAWED")

    def freeze(self, workload: WorkloadId, frozen: bool) -> bool:
        if "freezer" in self._limits:
            (self._freeze if frozen else self._thaw)(workload)
            wanted = ("FROZEN",) if frozen else ("THAWED", None)
            return self._files.read(f"{self._limits['freezer']}/{workload}/freezer.state") in wanted
        if self._unified is not None:
            return freeze_group(self._files, f"{self._unified}/{workload}", frozen)
        if frozen:
            return stop_all(self._files, lambda: self.pids(workload)) and bool(self.pids(workload))
        self.signal(workload, signal.SIGCONT)
        return True

    def frozen(self, workload: WorkloadId) -> bool:
        if "freezer" in self._limits:
            return self._files.read(f"{self._limits['freezer']}/{workload}/freezer.state") in ("FROZEN", "FREEZING")
        if self._unified is not None:
            return self._files.read(f"{self._unified}/{workload}/cgroup.freeze") == "1"
        pids = self.pids(workload)
        return bool(pids) and all(self._files.stopped(pid) for pid in pids)

    def remove(self, workload: WorkloadId) -> bool:
        idle = [self._idle] if self._lone_cpu is not None else []
        trees = [*self._trees, *idle, *(tree for tree in (self._cpuset, self._blkio) if tree is not None)]
        # The tree that lists is made first and goes last: what is half removed is still found, and without it there is nothing.
        if self._trees and not self._files.exists(f"{self._trees[0]}/{workload}"):
            return True
        return all(self._files.remove_tree(f"{tree}/{workload}") for tree in reversed(trees))

    def read(self, workload: WorkloadId) -> CgroupReading:
        files = self._files
        cpuset = self._cpuset_of(workload)
        cpus = files.read(f"{cpuset}/cpuset.cpus") if cpuset is not None else None
        mems = files.read(f"{cpuset}/cpuset.mems") if cpuset is not None else None
        shares = files.read(f"{self._limits['cpu']}/{workload}/cpu.shares") if "cpu" in self._limits else None
        limit = peak = ooms = None
        if "memory" in self._limits:
            memory = f"{self._limits['memory']}/{workload}"
            limit = files.read(f"{memory}/memory.limit_in_bytes")
            peak = files.read(f"{memory}/memory.max_usage_in_bytes")
            control = (files.read(f"{memory}/memory.oom_control") or "").split()
            ooms = control[control.index("oom_kill") + 1] if "oom_kill" in control else None
        here = self._trees != [] and files.exists(f"{self._trees[0]}/{workload}")
        idle = f"{self._idle}/{workload}" if self._lone_cpu is not None else ""
        return CgroupReading(
            gives_way=bool(idle) and files.exists(idle) and files.read(f"{self._idle}/cpu.idle") == "1",
            cpus=parse_cpus(cpus) if here and cpus is not None else None,
            memory_nodes=parse_cpus(mems) if here and mems is not None else None,
            share=int(shares) / 1024 if shares is not None else None,
            memory_bytes=min(int(limit), UNLIMITED_BYTES) if limit is not None else None,
            memory_peak_bytes=int(peak) if peak is not None else None,
            oom_kills=int(ooms) if ooms is not None else None,
            io_max_bytes_s=self._read_io_max(workload),
            pids=tuple(self.pids(workload)),
        )

    def read_usage(self, workload: WorkloadId) -> UsageReading:
        files, pids = self._files, self.pids(workload)
        counted = None
        if self._cpuacct is not None:
            places = (f"{self._cpuacct}/{workload}", f"{self._cpuacct}-idle/{workload}")
            counted = next((text for place in places if (text := files.read(f"{place}/cpuacct.usage"))), None)
        memory = f"{self._limits['memory']}/{workload}" if "memory" in self._limits else None
        now = files.read(f"{memory}/memory.usage_in_bytes") if memory is not None else None
        peak = files.read(f"{memory}/memory.max_usage_in_bytes") if memory is not None else None
        read, written = observe_io(pids) or (None, None)
        return UsageReading(
            cpu_s=int(counted) / 1e9 if counted is not None else observe_cpu(pids),
            memory_bytes=int(now) if now is not None else None,
            memory_peak_bytes=int(peak) if peak is not None else None,
            read_bytes=read,
            written_bytes=written,
        )

    def workloads(self) -> list[WorkloadId]:
        found = {name for tree in self._trees for name in self._files.groups(tree)}
        if self._cpuset is not None:
            found.update(self._files.groups(self._cpuset))
        return sorted(WorkloadId(name) for name in found - {SHARED})

    def destroy(self) -> None:
        for workload in self.workloads():
            self.kill(workload)
            self.remove(workload)
        if self._cpuset is not None:
            shared = f"{self._cpuset}/{SHARED}"
            # Whoever joined nothing but this died or hung half-way through joining.
            kill_until_empty(self._files, self._clock, lambda: self._files.pids(shared))
            self._files.remove_tree(self._cpuset)
        if self._lone_cpu is not None:
            self._files.remove_tree(self._idle)
        if self._blkio is not None:
            self._files.remove_tree(self._blkio)
        if self._resctrl is not None:
            self._resctrl.remove()
        for tree in self._trees:
            self._files.remove_tree(tree)
