"""How does a workload start at most once, end, and get found again? (R4-R6)

start: intent fsynced -> cgroup made -> spawner forks -> handle fsynced. The agent may be killed between any two; `adopt()` then
reads everything anew (intents, handles, exits, cgroups, the spawner's children) and says per workload what is true. The
decision itself, `decide_adoption`, is pure. Never retries a start, never guesses an exit, never signals by a bare pid.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from steelyard.clock import Clock
from steelyard.errors import Conflict, EdgeFailed, Refused, Unreachable
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.mount import Mounts
from steelyard.model.reason import Reason
from steelyard.model.timing import FIFO_PRIORITY, Timing
from steelyard.runtime import Wanted, records
from steelyard.runtime.procstat import observe_process, process_runs
from steelyard.runtime.record_lane import RecordLane
from steelyard.runtime.records import Handle, Intent
from steelyard.wire.spawn import Exited, Outputs, Rootfs, Running, Spawn, Spawned

#: set to one of the names below, this process ends on the spot when it gets there, as if killed (tests of R4); with `:3` behind
#: it, when it gets there for the third time
FAILPOINT = "STEELYARD_FAILPOINT"
FAILPOINTS = ("after-intent", "after-cgroup", "after-spawn", "after-handle")
NO_OUTPUTS = Outputs()
_passed: list[str] = []


class Cgroups(Protocol):
    """What is asked of cgroups here; host/cgroup.py has more."""

    @property
    def flavour(self) -> str: ...
    def make(self, workload: WorkloadId, plan: Plan) -> None: ...
    def open_join(self, workload: WorkloadId) -> list[int]: ...
    def track(self, workload: WorkloadId, pid: int, start_time: int) -> None:
        """Without cgroups, `pids` and `kill` go by the sessions they were told of here."""
        ...

    def pids(self, workload: WorkloadId) -> list[int]: ...
    def signal(self, workload: WorkloadId, signum: int) -> None: ...
    def kill(self, workload: WorkloadId) -> None: ...
    def remove(self, workload: WorkloadId) -> bool: ...
    def workloads(self) -> list[WorkloadId]: ...


class Spawner(Protocol):
    """What is asked of spawner_client.py here."""

    @property
    def connected(self) -> bool: ...
    @property
    def instance(self) -> str: ...
    async def spawn(self, request: Spawn, fds: Sequence[int] = (), cgroup_fds: Sequence[int] = ()) -> Spawned: ...
    def claim(self, workload: WorkloadId, pid: int, start_time: int) -> None: ...


class AdoptedState(StrEnum):
    RUNNING = "running"
    #: an exit record exists
    ENDED = "ended"
    NOT_STARTED = "not-started"
    UNKNOWN = "unknown"


class Adopted(msgspec.Struct, frozen=True):
    """What is true of one workload."""

    workload: WorkloadId
    state: AdoptedState
    intent: Intent | None = None
    handle: Handle | None = None
    exited: Exited | None = None
    reason: Reason | None = None
    #: a sentence for people
    detail: str = ""
    #: its exit will be recorded; False for one that runs on after its spawner was killed, or has ended
    watched: bool = False


class Evidence(msgspec.Struct, frozen=True):
    """Everything that the machine shows of one workload at one moment."""

    workload: WorkloadId
    intent: Intent | None
    handle: Handle | None
    exited: Exited | None
    #: (pid, start time) of the spawner's child
    child: tuple[int, int] | None
    #: does the process that the handle names run?
    handle_runs: bool
    #: is there a cgroup of its own? None where this machine has none
    has_cgroup: bool | None
    #: (pid, start time) of what is in it (or in its session), oldest first
    in_cgroup: tuple[tuple[int, int], ...]


def decide_adoption(seen: Evidence, *, boot_id: str, spawner: str, now_us: int) -> Adopted:
    """The adoption table, first match wins. A returned handle that `seen` does not have is to be written. `spawner` is the
    instance that lives now.

    1. an exit record                         -> ended, whatever else is there
    2. records of another boot                -> unknown, node lost: its processes are gone, how they ended nobody knows
    3. a child of the spawner                 -> running
    4. the handle's process runs              -> running, unwatched (its spawner was killed)
    5. a handle, and its process is gone      -> unknown, exit unknown
    6. processes in its cgroup                -> running, unwatched; the oldest one is taken as its first
       (when no intent speaks for them        -> unknown: nobody here started them)
    7. an intent, no cgroup was made, or the spawner that would have started it still lives and has no such child -> not started
    8. an intent, and that spawner is gone    -> unknown: it may have run and ended in between
    """
    base = Adopted(workload=seen.workload, state=AdoptedState.UNKNOWN, intent=seen.intent, handle=seen.handle, exited=seen.exited)

    def answer(state: AdoptedState, reason: Reason | None, detail: str) -> Adopted:
        return msgspec.structs.replace(base, state=state, reason=reason, detail=detail)

    def running(process: tuple[int, int], watched: bool) -> Adopted:
        handle = seen.handle
        if handle is None or (handle.pid, handle.start_time) != process:
            handle = Handle(seen.workload, boot_id, process[0], process[1], now_us)
        return msgspec.structs.replace(base, state=AdoptedState.RUNNING, handle=handle, watched=watched)

    if seen.exited is not None:
        return answer(
            AdoptedState.ENDED,
            Reason.EXIT_UNKNOWN if seen.exited.unseen else None,
            "It ended unseen; its exit code is lost." if seen.exited.unseen else "",
        )
    written_by = seen.handle or seen.intent
    if written_by is not None and written_by.boot_id != boot_id:
        return answer(AdoptedState.UNKNOWN, Reason.NODE_LOST, "The machine was restarted while it ran.")
    if seen.child is not None:
        return running(seen.child, watched=True)
    if seen.handle is not None and seen.handle_runs:
        return running((seen.handle.pid, seen.handle.start_time), watched=False)
    if seen.handle is not None:
        left = f" {len(seen.in_cgroup)} processes that it started are left." if seen.in_cgroup else ""
        return answer(
            AdoptedState.UNKNOWN, Reason.EXIT_UNKNOWN, f"It ended while its spawner was dead; its exit code is lost.{left}"
        )
    if seen.intent is None:
        return answer(
            AdoptedState.UNKNOWN, Reason.EXIT_UNKNOWN, "Processes are in its cgroup, but nothing here says who started them."
        )
    if seen.in_cgroup:
        return running(seen.in_cgroup[0], watched=False)
    if seen.has_cgroup is False or seen.intent.spawner == spawner:
        return answer(AdoptedState.NOT_STARTED, Reason.NOT_STARTED, "The agent was restarted before it could start it.")
    return answer(
        AdoptedState.UNKNOWN,
        Reason.EXIT_UNKNOWN,
        "Agent and spawner were both killed while it was being started; it may have run.",
    )


class ProcessRuntime:
    """Workloads as processes of this machine (see the Runtime protocol for what each method promises)."""

    def __init__(
        self,
        agent_dir: Path,
        workloads_dir: Path,
        cgroups: Cgroups,
        spawner: Spawner,
        clock: Clock,
        boot_id: str,
        lane: RecordLane,
    ) -> None:
        self._agent_dir = agent_dir
        self._workloads_dir = workloads_dir
        self._cgroups = cgroups
        self._spawner = spawner
        self._clock = clock
        self._boot_id = boot_id
        self._lane = lane
        #: prepared and not launched yet: what is on disk, without reading it again
        self._intents: dict[WorkloadId, Intent] = {}
        for folder in records.make_folders(agent_dir):
            lane.find_spares(folder)
        workloads_dir.mkdir(parents=True, exist_ok=True, mode=0o755)

    def log_path(self, workload: WorkloadId, stream: str) -> Path:
        """`stream` is stdout or stderr. The file appears when the workload starts."""
        return self._workloads_dir / workload / stream

    def prepare(
        self,
        workload: WorkloadId,
        *,
        kind: str,
        plan: Plan,
        labels: Mapping[str, str] | None = None,
        inside: WorkloadId | None = None,
    ) -> None:
        intent = self._make_intent(workload, kind, plan, labels, inside)
        try:
            records.write_intent(self._agent_dir, intent)
        except OSError as err:
            raise _not_intended(workload, err) from err
        self._make_group(intent)

    async def prepare_all(self, wanted: Sequence[Wanted], *, kind: str) -> None:
        intents = [self._make_intent(each.workload, kind, each.plan, each.labels) for each in wanted]
        try:
            await self._lane.write([records.render_intent(self._agent_dir, intent) for intent in intents])
        except OSError as err:
            raise _not_intended(wanted[0].workload, err) from err
        for intent in intents:
            self._intents[intent.workload] = intent
            self._make_group(intent)

    async def renew(self, workloads: Sequence[WorkloadId]) -> None:
        if not self._spawner.connected:
            raise Unreachable("The spawner is not connected; nothing was started.", code="spawner-unreachable")
        now_us, spawner = self._clock.now_us(), self._spawner.instance
        intents = [self._intents[workload] for workload in workloads]
        renewed = [msgspec.structs.replace(each, at=now_us, spawner=spawner) for each in intents if each.spawner != spawner]
        if not renewed:
            return
        try:
            await self._lane.write([records.render_intent(self._agent_dir, intent) for intent in renewed])
        except OSError as err:
            raise _not_intended(renewed[0].workload, err) from err
        self._intents |= {intent.workload: intent for intent in renewed}

    def _make_group(self, intent: Intent) -> None:
        failpoint("after-intent")
        if intent.inside is None:
            self._cgroups.make(intent.workload, intent.plan)
        failpoint("after-cgroup")

    def _make_intent(
        self,
        workload: WorkloadId,
        kind: str,
        plan: Plan,
        labels: Mapping[str, str] | None,
        inside: WorkloadId | None = None,
    ) -> Intent:
        check_id(workload)
        if records.intent_path(self._agent_dir, workload).exists() or records.exit_path(self._agent_dir, workload).exists():
            raise Conflict(f"{workload} was started before; every retry is a new attempt with an id of its own.")
        if not self._spawner.connected:
            raise Unreachable("The spawner is not connected; nothing was started.", code="spawner-unreachable")
        return Intent(
            workload=workload,
            boot_id=self._boot_id,
            kind=kind,
            at=self._clock.now_us(),
            plan=plan,
            spawner=self._spawner.instance,
            labels=dict(labels or {}),
            inside=inside,
        )

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
        intent = self._intents.pop(workload, None) or records.load_intent(self._agent_dir, workload)
        if intent is None:
            raise Conflict(f"{workload} was not prepared.")
        if intent.spawner != self._spawner.instance:
            # the spawner refuses a second start of what it has seen; this one may not have seen the first
            raise EdgeFailed(f"{workload} not started: the spawner was restarted since it was prepared.", code="start-failed")
        folder = WorkloadId(logs or workload)
        check_id(folder)
        self._make_log_folder(folder)
        request = Spawn(
            workload=workload,
            argv=tuple(argv),
            env=dict(env),
            cwd=cwd,
            stdout=str(self.log_path(folder, "stdout")),
            stderr=str(self.log_path(folder, "stderr")),
            uid=uid,
            gid=gid,
            fds=tuple(fd_numbers),
            listen_fds=listen_fds,
            cpus=intent.plan.cpus,
            rlimits=tuple(rlimits),
            fifo_priority=FIFO_PRIORITY if intent.plan.timing is Timing.REALTIME else 0,
            memory_nodes=intent.plan.memory_nodes if intent.plan.cpus else (),
            outputs=outputs,
            rootfs=rootfs,
            mounts=mounts,
            sees_as=self._leader_of(intent.inside),
            terminal=terminal is not None,
        )
        if terminal is not None:
            request = msgspec.structs.replace(request, fds=(0, 1, 2))
            fds = (terminal,) * 3
        joins = self._cgroups.open_join(intent.inside or workload)
        try:
            spawned = await self._spawner.spawn(request, fds, joins)
        except EdgeFailed:
            self._cgroups.remove(workload)  # the intent stays until forget(): nobody may start this id again
            raise
        finally:
            for fd in joins:
                os.close(fd)
        failpoint("after-spawn")
        handle = self._make_handle(workload, spawned.pid, spawned.start_time)
        self._cgroups.track(handle.workload, handle.pid, handle.start_time)
        try:
            await self._lane.write([records.render_handle(self._agent_dir, handle)])
        except OSError as err:
            raise _not_noted(handle, err) from err
        failpoint("after-handle")
        return handle

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
        return await self.launch(
            workload,
            argv=argv,
            env=env,
            cwd=cwd,
            uid=uid,
            gid=gid,
            fds=fds,
            fd_numbers=fd_numbers,
            listen_fds=listen_fds,
            rlimits=rlimits,
            logs=logs,
            outputs=outputs,
            rootfs=rootfs,
            mounts=mounts,
            terminal=terminal,
        )

    def claim(self, workload: WorkloadId, pid: int, start_time: int) -> Handle:
        handle = self._commit(self._make_handle(workload, pid, start_time))
        self._spawner.claim(workload, pid, start_time)
        return handle

    def stop(self, workload: WorkloadId, signum: int) -> None:
        self._cgroups.signal(workload, signum)

    def signal_leader(self, workload: WorkloadId, signum: int) -> bool:
        handle = records.load_handle(self._agent_dir, workload)
        if handle is None or handle.boot_id != self._boot_id:
            return False
        try:
            pidfd = os.pidfd_open(handle.pid)
        except ProcessLookupError:
            return False
        try:
            # from here on the descriptor means one process for good; only then is the start time worth comparing
            if not process_runs(handle.pid, handle.start_time):
                return False
            signal.pidfd_send_signal(pidfd, signum)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    def signal_session(self, workload: WorkloadId, inside: WorkloadId, signum: int) -> bool:
        handle = records.load_handle(self._agent_dir, workload)
        if handle is None or handle.boot_id != self._boot_id or not process_runs(handle.pid, handle.start_time):
            return False
        for pid in {handle.pid, *self._cgroups.pids(inside), *self._cgroups.pids(workload)}:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                # looked at after the descriptor was had, which means this process and no later one of the same number
                stat = observe_process(pid)
                if stat is not None and stat.session == handle.pid:
                    signal.pidfd_send_signal(pidfd, signum)
            except ProcessLookupError:
                continue
            finally:
                os.close(pidfd)
        return True

    def kill(self, workload: WorkloadId) -> None:
        self._cgroups.kill(workload)

    def forget(self, workload: WorkloadId) -> bool:
        if not self._cgroups.remove(workload):
            return False
        self._intents.pop(workload, None)
        records.forget(self._agent_dir, workload, self._lane.drop)
        return True

    def adopt(self, running: Running) -> list[Adopted]:
        """`running` must be older than this call: an exit in between is then found as a record. Writes missing handles and
        removes cgroups that are empty and that no record speaks for."""
        children = {workload: (pid, start_time) for workload, pid, start_time in running.children}
        leaves = set(self._cgroups.workloads())
        intents, handles = records.load_intents(self._agent_dir), records.load_handles(self._agent_dir)
        for workload, handle in handles.items():
            if handle.boot_id == self._boot_id and workload not in leaves:
                self._cgroups.track(workload, handle.pid, handle.start_time)
        adopted: list[Adopted] = []
        known = {*intents, *handles, *children, *leaves, *records.load_exits(self._agent_dir)}
        for workload in sorted(known):
            handle = handles.get(workload)
            seen = Evidence(
                workload=workload,
                intent=intents.get(workload),
                handle=handle,
                child=children.get(workload),
                handle_runs=handle is not None and process_runs(handle.pid, handle.start_time),
                has_cgroup=None if self._cgroups.flavour == "none" else workload in leaves,
                in_cgroup=self._observe_cgroup(workload),
                # last: whatever ended while the rest was read has a record now, or is still the spawner's child
                exited=records.load_exit(self._agent_dir, workload),
            )
            if not (seen.intent or seen.handle or seen.exited or seen.child or seen.in_cgroup):
                self._cgroups.remove(workload)
                continue
            decided = decide_adoption(seen, boot_id=self._boot_id, spawner=self._spawner.instance, now_us=self._clock.now_us())
            if decided.handle is not None and decided.handle != seen.handle:
                self._commit(decided.handle)
            if decided.handle is not None and decided.state is AdoptedState.RUNNING and not decided.watched:
                # a template's child whose claim was lost with the old agent; the spawner ignores what is no child of its own
                self._spawner.claim(workload, decided.handle.pid, decided.handle.start_time)
            adopted.append(decided)
        return adopted

    def _observe_cgroup(self, workload: WorkloadId) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        for pid in self._cgroups.pids(workload):
            stat = observe_process(pid)
            if stat is not None and stat.state not in "ZX":
                found.append((pid, stat.start_time))
        return tuple(sorted(found, key=lambda process: (process[1], process[0])))

    def _make_handle(self, workload: WorkloadId, pid: int, start_time: int) -> Handle:
        return Handle(workload=workload, boot_id=self._boot_id, pid=pid, start_time=start_time, at=self._clock.now_us())

    def _commit(self, handle: Handle) -> Handle:
        self._cgroups.track(handle.workload, handle.pid, handle.start_time)
        try:
            records.write_handle(self._agent_dir, handle)
        except OSError as err:
            raise _not_noted(handle, err) from err
        failpoint("after-handle")
        return handle

    def _leader_of(self, workload: WorkloadId | None) -> int | None:
        handle = None if workload is None else records.load_handle(self._agent_dir, workload)
        return None if handle is None else handle.pid

    def _make_log_folder(self, workload: WorkloadId) -> None:
        """Readable by all, writable by us alone: a workload must not swap its log for a link that we would follow."""
        try:
            (self._workloads_dir / workload).mkdir(exist_ok=True, mode=0o755)
        except OSError as err:
            raise EdgeFailed(f"{workload} not started: no folder for its logs: {err.strerror}", code="start-failed") from err


def _not_intended(workload: WorkloadId, err: OSError) -> EdgeFailed:
    return EdgeFailed(f"{workload} not started: its intent could not be written: {err.strerror}", code="start-failed")


def _not_noted(handle: Handle, err: OSError) -> EdgeFailed:
    return EdgeFailed(f"{handle.workload} runs, but its handle could not be written: {err.strerror}", code="handle-not-written")


def check_id(workload: WorkloadId) -> None:
    """It names folders, records and control groups."""
    if not records.WORKLOAD_ID.match(workload):
        raise Refused(f"{workload!r} cannot name a workload: letters, digits, '.', '_' and '-', at most 200.")


def failpoint(name: str) -> None:
    wanted, _, times = os.environ.get(FAILPOINT, "").partition(":")
    if wanted == name:
        _passed.append(name)
        if len(_passed) >= int(times or 1):
            os._exit(137)
