"""What would the process runtime say, without a process? Its in-memory twin on a virtual clock, for the simulator and for tests.

It plays machine, spawner and runtime in one: it survives the agent that uses it, as they do. Programs are played by a `Fate` per
argv. Decides adoption with the same pure table as the real one. Never touches disk, processes or real time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence

import msgspec

from steelyard.clock import Clock
from steelyard.errors import Conflict, EdgeFailed, Refused
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.mount import Mounts
from steelyard.runtime import Wanted
from steelyard.runtime.process import NO_OUTPUTS, Adopted, AdoptedState, Evidence, decide_adoption
from steelyard.runtime.records import WORKLOAD_ID, Handle, Intent
from steelyard.wire.spawn import Exited, Outputs, Rootfs, Running

#: what start times are counted in, as the kernel's
TICK_NS = 10_000_000


class Fate(msgspec.Struct, frozen=True):
    """What a program does: ends by itself after so long (None: never) with this code, and which signals it ignores."""

    after_s: float | None = None
    exit_code: int = 0
    ignores: frozenset[int] = frozenset()
    #: does not start: (step, error)
    fails: tuple[str, str] | None = None


class Process(msgspec.Struct):
    handle: Handle
    fate: Fate
    ends_at: int | None
    #: a child of the spawner that lives now
    watched: bool = True


class FakeRuntime:
    def __init__(
        self,
        clock: Clock,
        *,
        boot_id: str = "boot-1",
        choose_fate: Callable[[Sequence[str]], Fate] = lambda argv: Fate(),
        on_exit: Callable[[Exited], None] = lambda exited: None,
    ) -> None:
        self._clock = clock
        self._boot_id = boot_id
        self._choose_fate = choose_fate
        self.on_exit = on_exit
        self._pids = 1000
        self._lives = 1
        self._intents: dict[WorkloadId, Intent] = {}
        self._handles: dict[WorkloadId, Handle] = {}
        self._exits: dict[WorkloadId, Exited] = {}
        self._cgroups: set[WorkloadId] = set()
        self._processes: dict[WorkloadId, Process] = {}
        #: every start that really happened, for "never twice"
        self.started: list[WorkloadId] = []

    # what the agent calls

    def prepare(
        self,
        workload: WorkloadId,
        *,
        kind: str,
        plan: Plan,
        labels: Mapping[str, str] | None = None,
        inside: WorkloadId | None = None,
    ) -> None:
        if not WORKLOAD_ID.match(workload):
            raise Refused(f"{workload!r} cannot name a workload.")
        if workload in self._intents or workload in self._exits:
            raise Conflict(f"{workload} was started before.")
        self._intents[workload] = Intent(
            workload, self._boot_id, kind, self._clock.now_us(), plan, self._spawner, dict(labels or {}), inside
        )
        if inside is None:
            self._cgroups.add(workload)

    async def prepare_all(self, wanted: Sequence[Wanted], *, kind: str) -> None:
        for each in wanted:
            self.prepare(each.workload, kind=kind, plan=each.plan, labels=each.labels)

    async def renew(self, workloads: Sequence[WorkloadId]) -> None:
        for workload in workloads:
            self._intents[workload] = msgspec.structs.replace(self._intents[workload], spawner=self._spawner)

    async def launch(
        self,
        workload: WorkloadId,
        *,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        uid: int | None,
        gid: int | None,
        fds: Sequence[int] = (),
        fd_numbers: Sequence[int] = (),
        listen_fds: int = 0,
        rlimits: Sequence[tuple[str, int, int]] = (),
        logs: str | None = None,
        outputs: Outputs = NO_OUTPUTS,
        rootfs: Rootfs | None = None,
        mounts: Mounts | None = None,
        terminal: int | None = None,
    ) -> Handle:
        intent = self._intents.get(workload)
        if intent is None:
            raise Conflict(f"{workload} was not prepared.")
        if intent.spawner != self._spawner:
            raise EdgeFailed(f"{workload} not started: the spawner was restarted since it was prepared.", code="start-failed")
        if workload in self._processes or workload in self._exits:
            raise EdgeFailed(f"{workload} not started: start: it ran already", code="start-failed", detail="start")
        fate = self._choose_fate(argv)
        if fate.fails:
            self._cgroups.discard(workload)
            raise EdgeFailed(
                f"{workload} not started: {fate.fails[0]}: {fate.fails[1]}", code="start-failed", detail=fate.fails[0]
            )
        self._pids += 1
        return self._run(workload, self._pids, self._clock.boot_ns() // TICK_NS, fate)

    async def start(
        self,
        workload: WorkloadId,
        *,
        kind: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        uid: int | None,
        gid: int | None,
        plan: Plan,
        fds: Sequence[int] = (),
        fd_numbers: Sequence[int] = (),
        listen_fds: int = 0,
        rlimits: Sequence[tuple[str, int, int]] = (),
        logs: str | None = None,
        outputs: Outputs = NO_OUTPUTS,
        rootfs: Rootfs | None = None,
        mounts: Mounts | None = None,
        terminal: int | None = None,
        labels: Mapping[str, str] | None = None,
        inside: WorkloadId | None = None,
    ) -> Handle:
        self.prepare(workload, kind=kind, plan=plan, labels=labels, inside=inside)
        return await self.launch(workload, argv=argv, env=env, cwd=cwd, uid=uid, gid=gid)

    def claim(self, workload: WorkloadId, pid: int, start_time: int) -> Handle:
        process = self._processes.get(workload)
        if process is not None:
            process.watched = True
            return process.handle
        return self._run(workload, pid, start_time, Fate())

    def stop(self, workload: WorkloadId, signum: int) -> None:
        self.signal_leader(workload, signum)

    def signal_leader(self, workload: WorkloadId, signum: int) -> bool:
        process = self._processes.get(workload)
        if process is None:
            return False
        if signum == signal.SIGKILL or signum not in process.fate.ignores:
            self.end(workload, signum=signum)
        return True

    def signal_session(self, workload: WorkloadId, inside: WorkloadId, signum: int) -> bool:
        return self.signal_leader(workload, signum)

    def kill(self, workload: WorkloadId) -> None:
        self.signal_leader(workload, signal.SIGKILL)
        for other, intent in self._intents.items():
            if intent.inside == workload:
                self.signal_leader(other, signal.SIGKILL)

    def forget(self, workload: WorkloadId) -> bool:
        if workload in self._processes:
            return False
        self._cgroups.discard(workload)
        for records in (self._intents, self._handles, self._exits):
            records.pop(workload, None)
        return True

    def adopt(self, running: Running) -> list[Adopted]:
        children = {workload: (pid, start_time) for workload, pid, start_time in running.children}
        adopted: list[Adopted] = []
        for workload in sorted({*self._intents, *self._handles, *self._exits, *children, *self._processes}):
            process = self._processes.get(workload)
            decided = decide_adoption(
                Evidence(
                    workload=workload,
                    intent=self._intents.get(workload),
                    handle=self._handles.get(workload),
                    exited=self._exits.get(workload),
                    child=children.get(workload),
                    handle_runs=process is not None,
                    has_cgroup=workload in self._cgroups,
                    in_cgroup=((process.handle.pid, process.handle.start_time),) if process else (),
                ),
                boot_id=self._boot_id,
                spawner=self._spawner,
                now_us=self._clock.now_us(),
            )
            if decided.handle is not None and decided.state is AdoptedState.RUNNING:
                self._handles[workload] = decided.handle
            adopted.append(decided)
        return adopted

    # what the world does

    def running(self) -> Running:
        """What a connecting agent is told by the spawner."""
        return Running(
            tuple(
                (name, process.handle.pid, process.handle.start_time)
                for name, process in self._processes.items()
                if process.watched
            )
        )

    def next_end_us(self) -> int | None:
        """When the next program ends by itself."""
        return min((process.ends_at for process in self._processes.values() if process.ends_at is not None), default=None)

    def tick(self) -> None:
        """End every program whose time has come by the clock."""
        now_us = self._clock.now_us()
        for workload, process in list(self._processes.items()):
            if process.ends_at is not None and process.ends_at <= now_us:
                self.end(workload, exit_code=process.fate.exit_code)

    def end(self, workload: WorkloadId, *, exit_code: int | None = None, signum: int | None = None) -> None:
        process = self._processes.pop(workload)
        if not process.watched:
            return
        exited = Exited(
            workload, process.handle.pid, process.handle.start_time, self._clock.now_us(), exit_code, signum, 0.0, 0.0, 0
        )
        self._exits[workload] = exited
        self.on_exit(exited)

    def lose_handle(self, workload: WorkloadId) -> None:
        """The agent was killed after the spawn and before the handle was written."""
        del self._handles[workload]

    def lose_spawner(self) -> None:
        """The spawner was killed and started again: everything runs on, unwatched."""
        self._lives += 1
        for process in self._processes.values():
            process.watched = False

    def reboot(self, boot_id: str) -> None:
        """Nothing runs, no cgroup is left; records stay."""
        self._boot_id = boot_id
        self._lives += 1
        self._processes.clear()
        self._cgroups.clear()

    @property
    def _spawner(self) -> str:
        return f"{self._lives}:{self._lives}"

    def _run(self, workload: WorkloadId, pid: int, start_time: int, fate: Fate) -> Handle:
        now_us = self._clock.now_us()
        handle = Handle(workload, self._boot_id, pid, start_time, now_us)
        ends_at = None if fate.after_s is None else now_us + round(fate.after_s * 1_000_000)
        self._processes[workload] = Process(handle, fate, ends_at)
        self._handles[workload] = handle
        self.started.append(workload)
        return handle
