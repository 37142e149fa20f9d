"""Which commands run inside jobs and replicas because somebody asked (`steelyard exec`), and how did they end?

A command joins the control group of that work and runs as its user, in its folder, with the variables of its first process. It
has an intent, a handle and an exit record like any workload, so it is found again after a restart, but no group of its own: it
ends with the work at the latest. What has ended is forgotten, its output too, once that was read; or a while after the work.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from steelyard.agent.attempt import Attempt
from steelyard.agent.cleanup import Cleanup
from steelyard.agent.identity import PATH
from steelyard.agent.job_container import JobContainers
from steelyard.agent.reconcile import RUNNING
from steelyard.agent.terminals import TerminalKeeper
from steelyard.clock import Clock
from steelyard.config import Paths
from steelyard.errors import Conflict, NotFound, SteelyardError
from steelyard.host import Cgroups
from steelyard.host.proc import alive, read_environment
from steelyard.model import words
from steelyard.model.ids import AttemptId, WorkloadId
from steelyard.model.job import Plan
from steelyard.runtime.container import Containers
from steelyard.runtime.process import Adopted, AdoptedState, ProcessRuntime
from steelyard.wire.agent import AssignedJob, ExecStart, ExecState
from steelyard.wire.spawn import Exited, Rootfs
from steelyard.wire.streams import CopyStream

KIND = "exec"
#: labels: see `_Exec`
CONTAINER, CALLED = "container", "called"
COPIER = "steelyard.runtime.copy_inside"
#: that run at a time inside one job
RUNNING_MAX = 16
#: ended ones of one job that are kept for whoever asks; the oldest go first
ENDED_MAX = 64
#: from the answer that told the end until it is forgotten: an answer may be lost and asked for again; also how long an end that
#: nobody has asked for yet outlasts the work
READ_KEEP_S = 60.0


class ExecHost(msgspec.Struct, frozen=True):
    """The running workload that a command is to run inside of."""

    workload: WorkloadId
    pid: int
    start_time: int
    plan: Plan
    #: (uid, gid), None for our own
    ids: tuple[int, int] | None
    cwd: str
    #: the container that the command runs inside of: its own, or the one that it was forked in
    container: WorkloadId | None = None
    #: a process that has its network, files and ids: of a container, its own rather than crun
    inner_pid: int = 0
    #: (uid, gid) of the machine that its files are made as, where that is not `ids`
    files_as: tuple[int, int] | None = None
    #: what the command is told; None: what its first process was, or else its container
    env: Mapping[str, str] | None = None


#: the running workload of an attempt (and rank), or a replica. Raises Conflict or NotFound, with what to do
FindHost = Callable[[AttemptId, int | None], Awaitable[ExecHost]]


def find_job_host(
    job: AssignedJob, state: Attempt, rank: int | None, ids: tuple[int, int] | None, containers: JobContainers, cgroups: Cgroups
) -> ExecHost:
    """Of an attempt of this machine. Raises NotFound or Conflict."""
    member = next((each for each in state.members if rank is None or (each.rank or 0) == rank), None)
    if member is None:
        held = f"Steelyard itself started {words.count(len(state.members), 'rank')} of this job, counted from 0"
        raise NotFound(f"There is no rank {rank} to run it in: {held}. Nothing was started.")
    if state.phase != RUNNING or member.phase != RUNNING or member.handle is None:
        phase = state.phase if member.phase == RUNNING else member.phase
        raise Conflict(f"It is {phase}: commands run inside jobs that run. Nothing was started.", code="not-running")
    handle, contained = member.handle, job.spec.contained
    inner = containers.inside(member.workload, tuple(cgroups.pids(member.workload))) if contained else ()
    pid, files_as = min(inner, default=handle.pid), containers.made_as(member.workload)
    return ExecHost(
        member.workload, handle.pid, handle.start_time, member.plan, ids, job.spec.cwd,
        member.workload if contained else None, pid, files_as,
    )  # fmt: skip


@dataclass
class _Exec:
    attempt: AttemptId
    inside: WorkloadId
    number: int
    key: str = ""
    pid: int | None = None
    start_time: int | None = None
    ended: bool = False
    exit_code: int | None = None
    detail: str = ""
    ended_ns: int | None = None
    #: when its end was first told
    read_ns: int | None = None
    #: the container that it runs inside of, and what it is called there
    container: WorkloadId | None = None
    called: str = ""


class ExecKeeper:
    """Of jobs by their attempts, of functions by their replicas: either is called an attempt here."""

    def __init__(
        self,
        paths: Paths,
        runtime: ProcessRuntime,
        cleanup: Cleanup,
        clock: Clock,
        find_host: FindHost,
        containers: Containers,
        terminals: TerminalKeeper,
    ) -> None:
        self._paths, self._runtime, self._cleanup, self._clock, self._find_host = paths, runtime, cleanup, clock, find_host
        self._containers, self._terminals = containers, terminals
        self._execs: dict[WorkloadId, _Exec] = {}
        #: attempt -> the highest number that was given
        self._numbers: dict[AttemptId, int] = {}

    def adopt(self, found: Iterable[Adopted]) -> None:
        """Take over what an earlier agent started."""
        for item in found:
            attempt, _, number = item.workload.rpartition("-x")
            inside = item.intent.inside if item.intent is not None else None
            state = _Exec(AttemptId(attempt), inside or WorkloadId(attempt), int(number) if number.isdigit() else 0)
            labels = item.intent.labels if item.intent is not None else {}
            if CONTAINER in labels:
                state.container, state.called = WorkloadId(labels[CONTAINER]), labels.get(CALLED, "")
            if item.state is AdoptedState.RUNNING and item.handle is not None:
                state.pid, state.start_time = item.handle.pid, item.handle.start_time
            self._execs[item.workload] = state
            if item.exited is not None:
                self.on_exit(item.exited)
            elif state.pid is None:
                state.ended, state.detail = True, item.detail

    async def start(self, attempt: AttemptId, wanted: ExecStart) -> str:
        """Its name within the job. Raises SteelyardError; nothing runs then."""
        for state in self._execs.values():
            if wanted.key and (state.attempt, state.key) == (attempt, wanted.key):
                return f"x{state.number}"
        host = await self._find_host(attempt, wanted.rank)
        env = read_environment(host.pid) if host.env is None else dict(host.env)
        argv, cwd, rootfs, console = wanted.argv, host.cwd, None, None
        if not alive(host.pid, host.start_time):
            raise Conflict("Its first process has just ended. Nothing was started.", code="not-running")
        workload, state = self._number(attempt, host, wanted.key)
        try:
            if state.container is not None:
                console = self._containers.console(state.container, state.called)
                argv, rootfs = self._containers.enter(
                    *(state.container, state.called, wanted.argv, wanted.terminal),
                    pid=host.inner_pid,
                    env=host.env,
                    cwd=host.cwd,
                )
                env, cwd = {"PATH": PATH}, "/"  # crun's own: it is root
            elif wanted.terminal is not None:
                env["TERM"] = wanted.terminal.kind
            with self._terminals.made(workload, wanted.terminal, host.ids, console) as side:
                handle = await self._runtime.start(
                    workload,
                    kind=KIND,
                    argv=argv,
                    env=env,
                    cwd=cwd,
                    uid=host.ids[0] if host.ids else None,
                    gid=host.ids[1] if host.ids else None,
                    # not in the job's realtime class: who looks at a punctual program must not make it late
                    plan=Plan(cpus=host.plan.cpus),
                    rootfs=rootfs,
                    inside=host.workload,
                    terminal=side,
                    labels={CONTAINER: state.container, CALLED: state.called} if state.container is not None else None,
                )
        except SteelyardError:
            self._forget(workload)
            raise
        state.pid, state.start_time = handle.pid, handle.start_time
        return f"x{state.number}"

    async def start_copy(self, asked: CopyStream, fd: int) -> None:
        """A program of ours inside, on `fd`: it copies as the work's user, sees what the work sees, and counts as the work's.
        Raises SteelyardError; nothing runs then."""
        host = await self._find_host(asked.attempt, asked.rank)
        workload, state = self._number(asked.attempt, host, "")
        uid, gid = host.files_as or host.ids or (0, 0)
        what = ("send", asked.path, "") if asked.name is None else ("land", asked.path, asked.name)
        root = os.geteuid() == 0
        try:
            handle = await self._runtime.start(
                workload,
                kind=KIND,
                argv=(sys.executable, "-P", "-m", COPIER, str(host.inner_pid), str(uid), str(gid), host.cwd or "/", *what),
                env={"PATH": PATH, "LANG": "C.UTF-8"},
                cwd="/",
                uid=None,
                gid=None,
                plan=Plan(cpus=host.plan.cpus),
                fds=(fd, fd),
                fd_numbers=(0, 1),
                # as root it is loaded from the machine's files, whatever the work has mounted over them, and enters by itself
                rootfs=Rootfs("", "") if root else None,
                inside=host.workload,
            )
        except SteelyardError:
            self._forget(workload)
            raise
        state.pid, state.start_time = handle.pid, handle.start_time
        state.read_ns = self._clock.mono_ns()  # nobody asks for its end

    def _number(self, attempt: AttemptId, host: ExecHost, key: str) -> tuple[WorkloadId, _Exec]:
        """The next one inside. Raises Conflict when there are too many."""
        if sum(not state.ended for state in self._execs.values() if state.attempt == attempt) >= RUNNING_MAX:
            raise Conflict(f"{RUNNING_MAX} commands run inside it already. Try again when one has ended.", code="busy")
        number = self._numbers[attempt] = 1 + (self._numbers.get(attempt) or self._last_number(attempt))
        workload = WorkloadId(f"{attempt}-x{number}")
        state = self._execs[workload] = _Exec(attempt, host.workload, number, key, container=host.container)
        # of the replicas that were forked in one container, each counts its own
        state.called = str(number) if host.container == host.workload else f"{attempt.rpartition('.')[2]}-{number}"
        return workload, state

    def on_exit(self, exited: Exited) -> bool:
        """True when it was one of these."""
        state = self._execs.get(WorkloadId(exited.workload))
        if state is None:
            return False
        if not state.ended:
            state.ended, state.ended_ns = True, self._clock.mono_ns()
            state.exit_code = exited.exit_code if exited.signal is None else 128 + exited.signal
            if state.exit_code is None:
                state.detail = "It ended while its parent was down, so its exit code is not known."
        return True

    def state(self, workload: WorkloadId) -> ExecState | None:
        state = self._execs.get(workload)
        if state is None:
            return None
        if state.ended and state.read_ns is None:
            state.read_ns = self._clock.mono_ns()
        return ExecState(state.ended, state.exit_code, state.detail)

    def stop(self, workload: WorkloadId, signum: int) -> None:
        """Signal it and what it started, but not the job. Nothing happens when it has ended."""
        state = self._execs.get(workload)
        if state is None:
            raise NotFound("There is no such command, or it was forgotten after its end.")
        if not state.ended:
            self._runtime.signal_session(workload, state.inside, signum)

    @property
    def running(self) -> list[tuple[WorkloadId, int, int]]:
        """(workload, pid, start time)"""
        return [
            (workload, state.pid, state.start_time)
            for workload, state in self._execs.items()
            if not state.ended and state.pid is not None and state.start_time is not None
        ]

    @property
    def inside(self) -> set[WorkloadId]:
        """Workloads that some of them run inside of."""
        return {state.inside for state in self._execs.values() if not state.ended}

    def tidy(self, living: Collection[WorkloadId], known: Collection[AttemptId]) -> None:
        """Once a second. `living`: workloads that run; `known`: attempts and replicas that are not forgotten yet."""
        now = self._clock.mono_ns()
        self._numbers = {attempt: number for attempt, number in self._numbers.items() if attempt in known}
        ended: dict[AttemptId, list[WorkloadId]] = {}
        for workload, state in list(self._execs.items()):
            if not state.ended and state.pid is not None and state.inside not in living:
                # groups have done it already; without groups its session is its own
                self._runtime.kill(workload)
            elif state.ended:
                read = state.read_ns is not None and now - state.read_ns > READ_KEEP_S * 1e9
                late = state.ended_ns is None or now - state.ended_ns > READ_KEEP_S * 1e9
                if read or (late and state.attempt not in known):
                    self._forget(workload)
                else:
                    ended.setdefault(state.attempt, []).append(workload)
        for workloads in ended.values():
            for workload in sorted(workloads, key=lambda each: self._execs[each].number)[:-ENDED_MAX]:
                self._forget(workload)

    def _forget(self, workload: WorkloadId) -> None:
        self._cleanup.remove(workload)
        shutil.rmtree(self._paths.workloads / workload, ignore_errors=True)
        state = self._execs.pop(workload, None)
        if state is not None and state.container is not None:
            self._containers.leave(state.container, state.called)

    def _last_number(self, attempt: AttemptId) -> int:
        """Given by an agent before this one, as far as its output tells."""
        found = (path.name.rpartition("-x")[2] for path in self._paths.workloads.glob(f"{attempt}-x*"))
        return max((int(number) for number in found if number.isdigit()), default=0)
