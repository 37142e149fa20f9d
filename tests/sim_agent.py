"""A machine and its agent on the virtual clock: real decisions and records of attempts, over processes that are only counted.

What a crash leaves is apart from what it takes: `Kernel` and `Disk` outlive the agent, a reboot takes the kernel's processes. The
agent may end between any two steps of a start. A spawner that dies is followed by
another at once. What is not simulated: cores, files of jobs, the time without a spawner.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import msgspec
from msgspec.structs import replace

from steelyard.agent.attempt import (
    ATTEMPT,
    FIRST,
    RANK,
    RANKS,
    WAITS,
    Attempt,
    Member,
    Progress,
    adopt_member,
    explain_end,
    find_members,
    join_plans,
    judge_members,
    only_waits,
    plan_members,
)
from steelyard.agent.reconcile import (
    ALIVE,
    RUNNING,
    Forget,
    Freeze,
    Kill,
    NotStarted,
    Signal,
    Start,
    Thaw,
    Warn,
    decide_jobs,
)
from steelyard.clock import VirtualClock
from steelyard.model.ids import AttemptId, MachineId, WorkloadId
from steelyard.model.job import Plan
from steelyard.model.reason import Reason
from steelyard.runtime.process import Adopted, AdoptedState, Evidence, decide_adoption
from steelyard.runtime.records import Handle, Intent
from steelyard.wire.agent import AssignedJob, Assignment, Report
from steelyard.wire.spawn import Exited


@dataclass
class Process:
    workload: WorkloadId
    attempt: AttemptId
    job: AssignedJob
    plan: Plan
    pid: int
    started_at: int
    #: how much longer it runs, as of `since`
    left_us: int
    since: int
    frozen: bool = False
    #: SIGTERM came while it was frozen
    pending: int | None = None
    #: its end will be recorded; False once its spawner has died
    watched: bool = True

    @property
    def ends_at(self) -> int | None:
        return None if self.frozen else self.since + self.left_us


@dataclass
class Disk:
    assignment: Assignment = field(default_factory=lambda: Assignment(epoch=0, generation=0))
    intents: dict[WorkloadId, Intent] = field(default_factory=dict)
    groups: set[WorkloadId] = field(default_factory=set)
    handles: dict[WorkloadId, Handle] = field(default_factory=dict)
    exits: dict[WorkloadId, Exited] = field(default_factory=dict)
    progress: dict[AttemptId, Progress] = field(default_factory=dict)


class Kernel:
    """Processes, and the spawner that records how each ended."""

    def __init__(self, clock: VirtualClock, disk: Disk, *, has_groups: bool = True) -> None:
        """`has_groups`: work has control groups of our making (in pilots it has none)."""
        self.clock, self.disk, self.has_groups = clock, disk, has_groups
        self.boot_id = "boot-1"
        self.processes: dict[WorkloadId, Process] = {}
        #: how often each was ever started
        self.starts: Counter[WorkloadId] = Counter()
        #: ends that no agent has been told of
        self.news: list[Exited] = []
        #: attempt -> what it was, when its first process began and when its last one ended
        self.lives: dict[AttemptId, tuple[AssignedJob, int, int]] = {}
        #: attempts whose end was not recorded: it is known later than it was
        self.lost: set[AttemptId] = set()
        self._spawners = 1

    @property
    def spawner(self) -> str:
        return f"{self._spawners}:1"

    def kill_spawner(self) -> None:
        """Another takes its place; what runs goes on, and nobody will record how it ends."""
        self._spawners += 1
        for each in self.processes.values():
            each.watched = False

    def spawn(self, workload: WorkloadId, attempt: AttemptId, job: AssignedJob, plan: Plan) -> Process:
        now = self.clock.now_us()
        self.starts[workload] += 1
        run_us = round(float(job.spec.env["RUN"]) * 1e6)
        process = Process(workload, attempt, job, plan, sum(self.starts.values()), now, run_us, now)
        self.processes[workload] = process
        self.run_out()
        return process

    def next_end(self) -> int | None:
        return min((at for each in self.processes.values() if (at := each.ends_at) is not None), default=None)

    def run_out(self) -> None:
        """End what has run for its time."""
        now = self.clock.now_us()
        for each in list(self.processes.values()):
            if each.ends_at is not None and each.ends_at <= now:
                self._end(each, int(each.job.spec.env["CODE"]), None)

    def signal(self, workload: WorkloadId, signum: int) -> None:
        each = self.processes.get(workload)
        if each is None:
            return
        if signum == signal.SIGKILL:
            self._end(each, None, signum)
        elif each.frozen:
            each.pending = signum
        elif each.job.spec.env["TERM"] == "obeys":
            self._end(each, None, signum)

    def freeze(self, workload: WorkloadId, frozen: bool) -> None:
        each, now = self.processes.get(workload), self.clock.now_us()
        if each is None or each.frozen is frozen:
            return
        if frozen:
            each.left_us -= now - each.since
        each.frozen, each.since = frozen, now
        if not frozen and each.pending is not None:
            signum, each.pending = each.pending, None
            self.signal(workload, signum)

    def reboot(self) -> None:
        for each in list(self.processes.values()):
            self.lost.add(each.attempt)
            self._stop(each)
        self.disk.groups.clear()
        self.news.clear()
        self._spawners += 1
        self.boot_id = f"boot-{int(self.boot_id[5:]) + 1}"

    def _stop(self, each: Process) -> None:
        del self.processes[each.workload]
        begin = self.lives[each.attempt][1] if each.attempt in self.lives else each.started_at
        self.lives[each.attempt] = (each.job, begin, self.clock.now_us())

    def _end(self, each: Process, code: int | None, signum: int | None) -> None:
        self._stop(each)
        if not each.watched:
            self.lost.add(each.attempt)
            code = signum = None
        exited = Exited(each.workload, each.pid, each.started_at, self.clock.now_us(), code, signum, 0.0, 0.0, 0)
        if each.watched:
            self.disk.exits[each.workload] = exited
        self.news.append(exited)


class Going:
    """In the place of the future that a part of a gang waits for."""

    def __init__(self) -> None:
        self.port: int | None = None
        self.off = False
        #: intents are being written meanwhile
        self.writing = True

    def done(self) -> bool:
        return self.off or self.port is not None

    def set_result(self, port: int) -> None:
        self.port = port

    def cancel(self) -> None:
        self.off = True


class ModelAgent:
    """One life of an agent. Its memory begins with what the machine shows."""

    def __init__(self, kernel: Kernel, machine: MachineId) -> None:
        self._kernel, self._disk, self._machine = kernel, kernel.disk, machine
        self._clock = kernel.clock
        self.attempts: dict[AttemptId, Attempt] = {}
        self._starting: dict[AttemptId, Iterator[None]] = {}
        self._assigned: dict[AttemptId, AssignedJob] = {}
        self._seq = 0
        #: monotonic ns at which it looks again by itself
        self.next_ns: int | None = None
        #: it has something to report
        self.changed = True
        self._adopt()

    # -- what others ask

    @property
    def busy(self) -> bool:
        return bool(self._able()) or bool(self._kernel.news)

    def _able(self) -> list[AttemptId]:
        """Whose start has something to do now."""
        going = {attempt: self.attempts[attempt].going for attempt in self._starting}
        return [attempt for attempt, each in going.items() if each is None or each.done() or cast(Going, each).writing]

    def report(self) -> Report:
        self._seq += 1
        self.changed = False
        for state in self.attempts.values():
            ran = [workload for workload in state.workloads if self._kernel.starts[workload]]
            assert state.phase != "not-started" or not ran, f"told as not started: {ran}"
        attempts = tuple(state.report(attempt, None) for attempt, state in sorted(self.attempts.items()))
        return Report(self._seq, self._machine, self._kernel.boot_id, self._disk.assignment.generation, attempts)

    def accept(self, assignment: Assignment) -> None:
        mine = self._disk.assignment
        if (assignment.epoch, assignment.generation) < (mine.epoch, mine.generation):
            return
        self._disk.assignment = assignment
        self._assigned = {job.attempt: job for job in assignment.jobs}
        self.step()
        self.changed = True

    def work(self, steps: int = 10_000) -> None:
        """Take note of ends, then so many small steps of starts."""
        while self._kernel.news:
            self._on_exit(self._kernel.news.pop(0))
        for _ in range(steps):
            if not (able := self._able()):
                break
            attempt = min(able)
            if next(self._starting[attempt], "done") == "done":
                self._starting.pop(attempt, None)
            while self._kernel.news:
                self._on_exit(self._kernel.news.pop(0))

    # -- adoption, as JobKeeper.adopt

    def _adopt(self) -> None:
        disk, kernel = self._disk, self._kernel
        kernel.news.clear()
        self._assigned = {job.attempt: job for job in disk.assignment.jobs}
        groups: dict[AttemptId, list[Adopted]] = {}
        for workload in sorted({*disk.intents, *disk.exits}):
            seen = self._observe(workload)
            found = decide_adoption(seen, boot_id=kernel.boot_id, spawner=kernel.spawner, now_us=self._clock.now_us())
            if found.handle is not None and found.state is AdoptedState.RUNNING:
                disk.handles[workload] = found.handle
            labels = found.intent.labels if found.intent else {}
            groups.setdefault(AttemptId(labels.get(ATTEMPT, workload)), []).append(found)
        for attempt, items in groups.items():
            if only_waits(items, self._assigned.get(attempt)):
                for item in items:
                    self._forget_records(item.workload)
            else:
                self._adopt_attempt(attempt, items)
        if disk.assignment.generation:
            self.step()

    def _observe(self, workload: WorkloadId) -> Evidence:
        process, handle = self._kernel.processes.get(workload), self._disk.handles.get(workload)
        lives = None if process is None else (process.pid, process.started_at)
        return Evidence(
            workload=workload,
            intent=self._disk.intents.get(workload),
            handle=handle,
            exited=self._disk.exits.get(workload),
            child=lives if process is not None and process.watched else None,
            handle_runs=handle is not None and (handle.pid, handle.start_time) == lives,
            has_cgroup=workload in self._disk.groups if self._kernel.has_groups else None,
            in_cgroup=() if lives is None else (lives,),
        )

    def _adopt_attempt(self, attempt: AttemptId, items: list[Adopted]) -> None:
        job, now = self._assigned.get(attempt), self._clock.now_us()
        members = find_members(attempt, items)
        plan = job.plan if job is not None else join_plans([member.plan for member in members])
        state = Attempt(plan, members, progress=self._disk.progress.get(attempt, Progress()))
        by_name = {item.workload: item for item in items}
        for member in members:
            item = by_name.get(member.workload)
            adopt_member(member, item, now)
            if item is not None and item.exited is not None:
                member.end = explain_end(item.exited, None, None, member.plan, now)
        state.phase, state.reason, state.detail = judge_members(members)
        self.attempts[attempt] = state
        for member in members:
            assert member.phase != "ended" or member.workload not in self._kernel.processes, f"I3: {member.workload} runs"
            if member.phase == "ended" or (member.phase == RUNNING and state.phase not in ALIVE):
                self._kernel.signal(member.workload, signal.SIGKILL)
        if state.phase in ALIVE:
            self._adopt_alive(attempt, state)
        elif state.phase == "ended":
            if state.reason is None:
                state.conclude(job.spec if job is not None else None)
            else:
                state.ended_at = now

    def _adopt_alive(self, attempt: AttemptId, state: Attempt) -> None:
        now_ns = self._clock.mono_ns()
        state.started_ns = max(member.handle.start_time for member in state.members if member.handle is not None) * 1000
        frozen = [self._kernel.processes[member.workload].frozen for member in state.running]
        since = state.progress.frozen_since_boot_ns
        if all(frozen):
            state.note_frozen(now_ns, since if since is not None else now_ns)
            state.frozen_since_ns = since if since is not None else now_ns
        elif any(frozen) or since is not None:
            state.frozen_since_ns = since
            self._thaw(attempt, state)
        job = self._assigned.get(attempt)
        wanted = job is not None and job.stop_signal is not None
        if any(member.end is not None and member.end.bad for member in state.members) and not wanted:
            state.broke_with = len(state.running)

    # -- as JobKeeper._step and what it carries out

    def step(self) -> None:
        while True:
            now_ns = self._clock.mono_ns()
            for attempt, state in self.attempts.items():
                state.hear(self._assigned.get(attempt))
            seen = {attempt: state.seen(now_ns) for attempt, state in self.attempts.items()}
            actions, self.next_ns = decide_jobs(self._assigned, seen, now_ns)
            for action in actions:
                self._carry_out(action)
            if not any(isinstance(action, Signal | Warn | Freeze | Thaw) for action in actions):
                break

    def _carry_out(self, action: object) -> None:
        match action:
            case Start(job):
                assert job.attempt not in self.attempts
                state = Attempt(job.plan, plan_members(job))
                self.attempts[job.attempt] = state
                self._starting[job.attempt] = self._start(job, state)
            case NotStarted(attempt):
                self.attempts[attempt] = Attempt(Plan(), [], "not-started", Reason.STOPPED_BY_USER, "Stopped before it started.")
                self.changed = True
            case Signal(attempt, signum, limit):
                state = self.attempts[attempt]
                state.signalled_ns, state.signalled = self._clock.mono_ns(), signum
                if limit is not None and state.progress.limit is None:
                    self._save(attempt, state, msgspec.structs.replace(state.progress, limit=limit))
                self._signal(state, signum)
            case Warn(attempt):
                state = self.attempts[attempt]
                self._save(attempt, state, msgspec.structs.replace(state.progress, warned=True))
            case Freeze(attempt):
                self._freeze(attempt, self.attempts[attempt])
            case Thaw(attempt, to_end):
                self._thaw(attempt, self.attempts[attempt], to_end)
            case Kill(attempt):
                self._signal(self.attempts[attempt], signal.SIGKILL)
            case Forget(attempt):
                self._forget(attempt)
            case _:
                raise AssertionError(action)

    def _start(self, job: AssignedJob, state: Attempt) -> Iterator[None]:
        disk, boot = self._disk, self._kernel.boot_id
        going = Going() if job.place is not None and not job.place.port else None
        if job.place is not None and going is not None:
            state.going, state.prepared = going, True  # type: ignore[assignment]
            state.ports = range(7000 * (not job.place.node), 7001)
            self.changed = True
            state.hear(self._assigned.get(job.attempt))
        for member in state.members:
            assert member.workload not in disk.intents, f"{member.workload} was started before"
            disk.intents[member.workload] = Intent(
                member.workload, boot, "job", self._clock.now_us(), member.plan, self._kernel.spawner, _labels(job, member, state)
            )
            yield
        for member in state.members:
            disk.groups.add(member.workload)
            yield
        if going is not None:
            going.writing = False
            yield
            state.going = None
            if going.off:
                self._note_not_started(job, state, Reason.STOPPED_BY_USER, doubt=False)
                return
            for member in state.members:
                disk.intents[member.workload] = replace(disk.intents[member.workload], spawner=self._kernel.spawner)
                yield
        for member in state.members:
            if state.broke_with is not None:
                member.phase = "not-started"
                continue
            state.launched = True
            spawner = disk.intents[member.workload].spawner
            if self._kernel.spawner != spawner:
                self._note_not_started(job, state, Reason.START_FAILED, doubt=False)
                return
            process = self._kernel.spawn(member.workload, job.attempt, job, member.plan)
            yield
            if self._kernel.spawner != spawner:
                self._note_not_started(job, state, Reason.NODE_LOST, doubt=True)
                return
            handle = Handle(member.workload, boot, process.pid, process.started_at, self._clock.now_us())
            disk.handles[member.workload] = member.handle = handle
            if member.phase == "starting":
                member.phase = RUNNING
            yield
        state.started_ns = self._clock.mono_ns()
        if state.phase == "starting" and not state.running:
            state.conclude(job.spec)
        elif state.phase == "starting":
            state.phase = RUNNING
        self.changed = True
        self.step()

    def _note_not_started(self, job: AssignedJob, state: Attempt, reason: Reason, *, doubt: bool) -> None:
        for member in state.members:
            self._kernel.signal(member.workload, signal.SIGKILL)
        if state.phase == "starting":
            if all(member.end is not None for member in state.members):
                state.conclude(job.spec)
            else:
                state.note_not_started(reason, "The spawner went.", self._clock.now_us(), doubt=doubt)
        self.changed = True
        self.step()

    def _on_exit(self, exited: Exited) -> None:
        for attempt, state in self.attempts.items():
            member = state.find(exited.workload)
            if member is None or member.end is not None:
                continue
            if exited.unseen and member.phase != RUNNING:
                return
            job = self._assigned.get(attempt)
            if state.note_end(member, explain_end(exited, None, None, member.plan, self._clock.now_us())):
                state.conclude(job.spec if job is not None else None)
            elif state.broke_with is not None and state.phase in ALIVE:
                self.step()
            self.changed = True
            return

    def _signal(self, state: Attempt, signum: int) -> None:
        for member in state.running:
            self._kernel.signal(member.workload, signum)

    def _save(self, attempt: AttemptId, state: Attempt, progress: Progress) -> None:
        state.progress = self._disk.progress[attempt] = progress

    def _freeze(self, attempt: AttemptId, state: Attempt) -> None:
        state.note_frozen(self._clock.mono_ns(), self._clock.boot_ns())
        self._save(attempt, state, state.progress)
        for member in state.running:
            self._kernel.freeze(member.workload, True)
        self.changed = True

    def _thaw(self, attempt: AttemptId, state: Attempt, to_end: bool = False) -> None:
        job = self._assigned.get(attempt)
        state.note_thawed(self._clock.mono_ns())
        if not to_end:
            state.lent = False
            if job is not None:
                state.take_plan(job.plan)
        for member in state.running:
            self._kernel.freeze(member.workload, False)
        self._save(attempt, state, state.progress)
        self.changed = True

    def _forget(self, attempt: AttemptId) -> None:
        state = self.attempts.pop(attempt)
        self._disk.progress.pop(attempt, None)
        for workload in state.workloads or [WorkloadId(attempt)]:
            self._kernel.signal(workload, signal.SIGKILL)
            self._forget_records(workload)

    def _forget_records(self, workload: WorkloadId) -> None:
        self._disk.groups.discard(workload)
        for table in (self._disk.intents, self._disk.handles, self._disk.exits):
            table.pop(workload, None)


def _labels(job: AssignedJob, member: Member, state: Attempt) -> dict[str, str]:
    waits = {} if job.place is None else {WAITS: "yes"}
    if member.rank is None:
        return waits
    first = state.members[0].rank
    return {ATTEMPT: job.attempt, RANK: str(member.rank), RANKS: str(len(state.members)), FIRST: str(first), **waits}


def is_frozen(kernel: Kernel, attempt: AttemptId) -> bool:
    mine = [each for each in kernel.processes.values() if each.attempt == attempt]
    return bool(mine) and all(each.frozen for each in mine)
