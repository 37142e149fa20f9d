"""How are workloads limited and ended where all controllers share one tree (cgroup v2)?

    <mount>/steelyard-<tag>/shared/<workload>     best-effort work; `shared` holds the common cpuset
    <mount>/steelyard-<tag>/<workload>            work that has whole cores
    <mount>/steelyard-<tag>-idle/<workload>       preemptible work; the folder's cpu.idle makes it give way to everything

A controller works in a group when it is enabled in `cgroup.subtree_control` of every group above, and such a group may hold no
process itself: ours hold none, but where the mount is a container's own group, its processes may be in the way. What can't be
enabled is named in `missing`; groups still list and kill without any controller.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from steelyard.clock import Clock
from steelyard.errors import EdgeFailed
from steelyard.host import UNLIMITED_BYTES, CgroupReading, UsageReading, denied_nodes
from steelyard.host.cgroup_files import CgroupFiles, freeze_group, kill_until_empty
from steelyard.host.cgroup_v1 import SHARED, pids_max
from steelyard.host.device_filter import deny_devices
from steelyard.host.proc import observe_io
from steelyard.host.resctrl import Resctrl
from steelyard.host.sysfs import format_cpus, parse_cpus
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.timing import Timing

WANTED = ("cpu", "cpuset", "memory", "pids")
WEIGHT_MAX = 10_000


class CgroupsV2:
    """`mount` is where cgroup2 is mounted; its `cgroup.controllers` says what there is."""

    def __init__(
        self,
        tag: str,
        mount: str,
        *,
        missing: tuple[str, ...],
        files: CgroupFiles,
        clock: Clock,
        gpu_nodes: Mapping[str, tuple[str, ...]] = {},
        resctrl: Resctrl | None = None,
        disks: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.flavour = "v2"
        self._files = files
        self._clock = clock
        self._mount = mount
        self._gpu_nodes = gpu_nodes
        self._resctrl = resctrl
        self._name = f"steelyard-{tag}"
        self._base = f"{mount}/{self._name}"
        self._shared = f"{self._base}/{SHARED}"
        self._idle = f"{self._base}-idle"
        self._disks = disks
        self._detected = missing
        self._refused: dict[str, str] = {}
        self._offered = frozenset(WANTED) & frozenset((files.read(f"{mount}/cgroup.controllers") or "").split())

    @property
    def controllers(self) -> frozenset[str]:
        # cgroup.freeze and cgroup.kill belong to every v2 group.
        return (self._offered - self._refused.keys()) | {"freezer"}

    @property
    def missing(self) -> tuple[str, ...]:
        return (*self._detected, *self._refused.values())

    def prepare(self, shared_cpus: tuple[int, ...], memory_nodes: tuple[int, ...]) -> None:
        try:
            self._files.make(self._base)
            self._files.make(self._shared)
            for folder in (self._mount, self._base, self._shared):
                self._enable(folder)
            if "cpu" in self.controllers:
                # Without this all our work together would weigh as much as one service outside.
                weight = str(min(WEIGHT_MAX, 100 * (os.cpu_count() or 1)))
                self._set(f"{self._base}/cpu.weight", weight)
                self._set(f"{self._shared}/cpu.weight", weight)
            if "cpuset" in self.controllers:
                for folder in (self._shared, self._idle):
                    if self._files.exists(folder):
                        self._set(f"{folder}/cpuset.cpus", format_cpus(shared_cpus))
                        self._set(f"{folder}/cpuset.mems", format_cpus(memory_nodes))
        except OSError as err:
            raise EdgeFailed(f"The control groups of this home could not be set up: {err}.", code="cgroup-failed") from err

    def _enable(self, folder: str) -> None:
        """Enable one by one: a single write with several is refused as a whole when one is."""
        for controller in sorted(self.controllers - {"freezer"}):
            self._enable_one(folder, controller)

    def _enable_one(self, folder: str, controller: str) -> None:
        if controller in (self._files.read(f"{folder}/cgroup.subtree_control") or "").split():
            return
        try:
            self._files.write(f"{folder}/cgroup.subtree_control", f"+{controller}")
        except OSError as err:
            self._refused[controller] = (
                f"The {controller} controller can't be enabled below {folder} ({err.strerror}): "
                "run Steelyard outside a container, or move the processes of that group into one below it."
            )

    def _prepare_idle(self) -> None:
        """A tree of its own: within ours it would only give way to our work, not to the gateway and to programs of others."""
        if self._files.exists(self._idle):
            return
        self._files.make(self._idle)
        self._enable(self._idle)
        if not self._files.try_write(f"{self._idle}/cpu.idle", "1"):  # Linux 5.15
            self._files.try_write(f"{self._idle}/cpu.weight", "1")
        if "cpuset" in self.controllers:
            for kind in ("cpus", "mems"):
                self._set(f"{self._idle}/cpuset.{kind}", self._files.read(f"{self._shared}/cpuset.{kind}") or "")

    def make(self, workload: WorkloadId, plan: Plan) -> None:
        folder = self._base if plan.cpus else self._idle if plan.preemptible else self._shared
        leaf = f"{folder}/{workload}"
        try:
            if plan.preemptible:
                self._prepare_idle()
            self._files.make(leaf)
            if "cpu" in self.controllers:
                self._set(f"{leaf}/cpu.weight", str(min(WEIGHT_MAX, max(1, round(100 * plan.share)))))
            if "pids" in self.controllers:
                self._set(f"{leaf}/pids.max", str(pids_max(os.cpu_count() or 1)))
            if "memory" in self.controllers:
                limited = plan.memory_bytes is not None
                self._set(f"{leaf}/memory.max", str(plan.memory_bytes) if limited else "max")
                if self._files.exists(f"{leaf}/memory.swap.max"):
                    swapless = limited or plan.timing is Timing.REALTIME
                    self._set(f"{leaf}/memory.swap.max", "0" if swapless else "max")
            if "cpuset" in self.controllers:
                # An empty list means the parent's: the common cpuset.
                self._set(f"{leaf}/cpuset.cpus", format_cpus(plan.cpus))
                self._set(f"{leaf}/cpuset.mems", format_cpus(plan.memory_nodes))
            self._limit_io(folder, leaf, plan.io_max_bytes_s)
            self._deny(leaf, denied_nodes(self._gpu_nodes, plan))
        except OSError as err:
            raise EdgeFailed(f"The control group of {workload} could not be made: {err}.", code="cgroup-failed") from err

    def _limit_io(self, folder: str, leaf: str, io_max: int | None) -> None:
        """The controller is enabled when the first limit is asked for: until then nobody's traffic is counted for it."""
        if io_max is not None:
            for above in [self._mount, *([self._base] if folder == self._shared else []), folder]:
                self._enable_one(above, "io")
        limit = "max" if io_max is None else str(io_max)
        if io_max is not None or self._files.read(f"{leaf}/io.max"):
            for disk in self._disks():
                # A disk that went away meanwhile needs no limit; what is not limited, the reading tells.
                self._files.try_write(f"{leaf}/io.max", f"{disk} rbps={limit} wbps={limit}")

    def _read_io_max(self, leaf: str) -> int | None:
        text = self._files.read(f"{leaf}/io.max")
        if not text:
            return None
        told = {line.split()[0]: dict(word.split("=") for word in line.split()[1:]) for line in text.splitlines()}
        words = [told.get(disk, {}).get(way, "max") for disk in self._disks() for way in ("rbps", "wbps")]
        return None if "max" in words or not words else min(map(int, words))

    def _deny(self, leaf: str, nodes: Sequence[str]) -> None:
        """A kernel that refuses the filter once is not asked again, and no work fails for it."""
        if not nodes or "devices" in self._refused:
            return
        try:
            deny_devices(leaf, nodes)
        except EdgeFailed as err:
            self._refused["devices"] = f"{err} Work is told which GPUs are its own, but can open all."

    def _set(self, path: str, text: str) -> None:
        if self._files.read(path) != text:
            # The kernel takes a bare newline, not an empty write, as the empty list.
            self._files.write(path, text or "\n")

    def _leaf(self, workload: WorkloadId) -> str | None:
        for folder in (self._shared, self._base, self._idle):
            if workload != SHARED and self._files.exists(f"{folder}/{workload}"):
                return f"{folder}/{workload}"
        return None

    def path(self, workload: WorkloadId) -> str:
        leaf = self._leaf(workload)
        return "" if leaf is None else leaf[len(self._mount) + 1 :]

    def open_join(self, workload: WorkloadId) -> list[int]:
        leaf = self._leaf(workload) or f"{self._shared}/{workload}"
        files = [f"{leaf}/cgroup.procs"]
        if self._resctrl is not None and leaf.startswith(f"{self._idle}/"):
            files += self._resctrl.prepare()
        opened: list[int] = []
        try:
            for file in files:
                opened.append(self._files.open(file))
            return opened
        except OSError as err:
            for fd in opened:
                os.close(fd)
            raise EdgeFailed(f"The control group of {workload} can't be joined: {err}.", code="cgroup-failed") from err

    def track(self, workload: WorkloadId, pid: int, start_time: int) -> None:
        """The groups know."""

    def pids(self, workload: WorkloadId) -> list[int]:
        leaf = self._leaf(workload)
        return self._files.pids(leaf) if leaf is not None else []

    def signal(self, workload: WorkloadId, signum: int) -> None:
        self._files.send(self.pids(workload), signum)

    def kill(self, workload: WorkloadId) -> None:
        leaf = self._leaf(workload)
        if leaf is None:
            return
        # cgroup.kill (Linux 5.14) kills the whole subtree, forks under way included; before that, freezing stops them.
        stop, go = ("cgroup.kill", None) if self._files.exists(f"{leaf}/cgroup.kill") else ("cgroup.freeze", "0")
        kill_until_empty(
            self._files,
            self._clock,
            lambda: self._files.pids(leaf),
            before=lambda: self._files.try_write(f"{leaf}/{stop}", "1"),
            after=lambda: go and self._files.try_write(f"{leaf}/{stop}", go),
        )

    def freeze(self, workload: WorkloadId, frozen: bool) -> bool:
        leaf = self._leaf(workload)
        return not frozen if leaf is None else freeze_group(self._files, leaf, frozen)

    def frozen(self, workload: WorkloadId) -> bool:
        leaf = self._leaf(workload)
        return leaf is not None and self._files.read(f"{leaf}/cgroup.freeze") == "1"

    def remove(self, workload: WorkloadId) -> bool:
        leaf = self._leaf(workload)
        return leaf is None or self._files.remove_tree(leaf)

    def read(self, workload: WorkloadId) -> CgroupReading:
        leaf = self._leaf(workload)
        if leaf is None:
            return CgroupReading()
        files = self._files
        # `effective` is what the kernel enforces: the leaf's own list, or the common one where it has none.
        cpus = files.read(f"{leaf}/cpuset.cpus.effective")
        mems = files.read(f"{leaf}/cpuset.mems.effective")
        weight = files.read(f"{leaf}/cpu.weight")
        limit = files.read(f"{leaf}/memory.max")
        peak = files.read(f"{leaf}/memory.peak")
        events = (files.read(f"{leaf}/memory.events") or "").split()
        return CgroupReading(
            gives_way=leaf.startswith(f"{self._idle}/") and files.read(f"{self._idle}/cpu.idle") == "1",
            cpus=parse_cpus(cpus) if cpus is not None else None,
            memory_nodes=parse_cpus(mems) if mems is not None else None,
            share=int(weight) / 100 if weight is not None else None,
            memory_bytes=None if limit is None else UNLIMITED_BYTES if limit == "max" else int(limit),
            memory_peak_bytes=int(peak) if peak is not None else None,
            oom_kills=int(events[events.index("oom_kill") + 1]) if "oom_kill" in events else None,
            io_max_bytes_s=self._read_io_max(leaf),
            pids=tuple(files.pids(leaf)),
        )

    def read_usage(self, workload: WorkloadId) -> UsageReading:
        leaf = self._leaf(workload)
        if leaf is None:
            return UsageReading()
        # cpu.stat belongs to every group, with or without the controller.
        stat = (self._files.read(f"{leaf}/cpu.stat") or "").split()
        now = self._files.read(f"{leaf}/memory.current")
        peak = self._files.read(f"{leaf}/memory.peak")
        read, written = observe_io(self._files.pids(leaf)) or (None, None)
        return UsageReading(
            cpu_s=int(stat[stat.index("usage_usec") + 1]) / 1e6 if "usage_usec" in stat else None,
            memory_bytes=int(now) if now is not None else None,
            memory_peak_bytes=int(peak) if peak is not None else None,
            read_bytes=read,
            written_bytes=written,
        )

    def workloads(self) -> list[WorkloadId]:
        found = {name for folder in (self._base, self._shared, self._idle) for name in self._files.groups(folder)} - {SHARED}
        return sorted(WorkloadId(name) for name in found)

    def destroy(self) -> None:
        for workload in self.workloads():
            self.kill(workload)
            self.remove(workload)
        self._files.remove_tree(self._idle)
        if self._resctrl is not None:
            self._resctrl.remove()
        self._files.remove_tree(self._base)
