"""What do this machine's jobs do right now, and what has to be done about it?

Holds one `_Attempt` per attempt known here; `reconcile` asks the pure `decide_jobs` and carries its actions out. Reports and
proofs are read from what it holds. Never decides where a job runs: the plan in the assignment leaves no choice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from steelyard.agent.cleanup import Cleanup
from steelyard.agent.device_proof import asked_devices, explain_share, got_devices, shares_by_mps
from steelyard.agent.devices import DeviceKeeper, devices_of
from steelyard.agent.execs import ExecHost
from steelyard.agent.holdings import Holdings
from steelyard.agent.identity import choose_ids, explain_start, make_env
from steelyard.agent.presence import GONE, Presence
from steelyard.agent.reconcile import (
    Forget,
    JobAction,
    JobSeen,
    Kill,
    NotStarted,
    Signal,
    Start,
    decide_jobs,
    decide_shared_cpus,
)
from steelyard.agent.timing import TimingKeeper
from steelyard.clock import Clock
from steelyard.config import Paths, Settings
from steelyard.errors import Conflict, NotFound, SteelyardError
from steelyard.host import Cgroups
from steelyard.host.proc import read_got
from steelyard.lifecycle.environment import make_environment
from steelyard.lifecycle.promise import Wakeups
from steelyard.lifecycle.proof import check_proof
from steelyard.model.ids import AttemptId, WorkloadId
from steelyard.model.job import Plan
from steelyard.model.machine import Machine
from steelyard.model.proof import Proof, ProofState
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing
from steelyard.runtime.process import Adopted, ProcessRuntime
from steelyard.runtime.records import Handle
from steelyard.wire.agent import AssignedJob, AttemptState
from steelyard.wire.spawn import Exited

log = logging.getLogger(__name__)

KIND = "job"


@dataclass
class _Attempt:
    phase: str
    plan: Plan = field(default_factory=Plan)
    reason: Reason | None = None
    detail: str = ""
    pid: int | None = None
    start_time: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    exit_code: int | None = None
    signum: int | None = None
    peak_memory_bytes: int | None = None
    signalled_ns: int | None = None
    proof: Proof | None = None
    matched_before: bool = False
    #: NVIDIA's sharing daemon answered when it was started (or taken over)
    mps: bool = False
    #: the watcher's last counts; of an ended job, the final ones
    wakeups: Wakeups = field(default_factory=Wakeups)
    #: why it is being ended, once it has more in its scratch folder than it asked for
    over: str = ""


class JobKeeper:
    """All job workloads of one machine."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        machine: Machine,
        runtime: ProcessRuntime,
        cleanup: Cleanup,
        cgroups: Cgroups,
        clock: Clock,
        timing: TimingKeeper,
        changed: Callable[[], None],
        devices: DeviceKeeper,
        presence: Presence,
        holdings: Holdings,
    ) -> None:
        self._holdings = holdings
        self._timing, self._devices, self._presence = timing, devices, presence
        self._paths, self._settings, self._machine = paths, settings, machine
        self._runtime, self._cleanup, self._cgroups, self._clock = runtime, cleanup, cgroups, clock
        self._changed = changed
        self._attempts: dict[AttemptId, _Attempt] = {}
        self._assigned: dict[AttemptId, AssignedJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        #: cores of dedicated functions
        self._reserved: list[tuple[int, ...]] = []

    def attempts_in(self, *phases: str) -> set[str]:
        return {attempt for attempt, state in self._attempts.items() if state.phase in phases}

    # -- truth from the machine

    def adopt(self, found: Iterable[Adopted], assigned: Iterable[AssignedJob], probes: Iterable[Adopted] = ()) -> None:
        """Take over what an earlier agent started. `found` is the joined truth of records, cgroups and the spawner."""
        plans = {job.attempt: job.plan for job in assigned}
        for item in found:
            attempt = AttemptId(item.workload)
            plan = item.intent.plan if item.intent else plans.get(attempt, Plan())
            # Its process is gone and its exit code with it: it has ended, and there is nothing more to find out.
            phase = "ended" if item.reason is Reason.EXIT_UNKNOWN else str(item.state)
            state = _Attempt(phase=phase, plan=plan, reason=item.reason, detail=item.detail, mps=shares_by_mps(plan))
            if item.handle is not None:
                state.pid, state.start_time, state.started_at = item.handle.pid, item.handle.start_time, item.handle.at
            self._attempts[attempt] = state
            if state.phase == "running" and state.started_at is not None:
                self._holdings.note_start(attempt, item.workload, plan, state.started_at)
            if item.exited is not None:
                self._end(attempt, state, item.exited)
            elif phase == "ended":
                # Nobody saw its end: what it left behind ends now, and its devices wait as after any other.
                self._cgroups.kill(item.workload)
                self._devices.note_end([attempt], plan)
        living = [(attempt, state.plan) for attempt, state in self._attempts.items() if state.phase == "running"]
        self._timing.adopt(living, probes)

    def on_exit(self, exited: Exited) -> bool:
        """An exit record is on disk. True when it was a job's."""
        state = self._attempts.get(AttemptId(exited.workload))
        if state is None:
            return False
        self._end(AttemptId(exited.workload), state, exited)
        self._changed()
        return True

    def _end(self, attempt: AttemptId, state: _Attempt, exited: Exited) -> None:
        reading = self._cgroups.read(WorkloadId(attempt))
        self._holdings.note_end(WorkloadId(attempt), exited)
        # What the main process left behind ends with it, before its cores are given to somebody else.
        self._cgroups.kill(WorkloadId(attempt))
        self._holdings.drop(WorkloadId(attempt))
        state.wakeups = self._timing.observe_wakeups(attempt) or state.wakeups
        self._timing.release(attempt)
        state.phase, state.ended_at = "ended", exited.ended_at
        self._devices.note_end([attempt], state.plan)
        state.exit_code, state.signum = exited.exit_code, exited.signal
        state.peak_memory_bytes = reading.memory_peak_bytes or exited.peak_rss_bytes
        if state.over:
            state.reason, state.detail = Reason.SCRATCH_EXCEEDED, state.over
        elif exited.signal is None and exited.exit_code is None:
            state.reason, state.detail = Reason.EXIT_UNKNOWN, "It ended unseen; its exit code is lost."
        elif exited.signal is None:
            state.reason = Reason.EXITED if exited.exit_code == 0 else Reason.EXITED_NONZERO
        elif reading.oom_kills:
            limit = state.plan.memory_bytes
            state.reason = Reason.OOM_KILLED
            state.detail = f"The kernel ended it at its memory limit of {limit} bytes. Ask for more with --memory."
        else:
            state.reason = Reason.KILLED_BY_SIGNAL
            state.detail = f"Ended by signal {exited.signal} ({signal.Signals(exited.signal).name})."

    def on_lost(self, workload: WorkloadId) -> None:
        """Its process is gone and nobody saw how (the spawner had been killed)."""
        state = self._attempts.get(AttemptId(workload))
        if state is None or state.phase != "running":
            return
        self._holdings.note_end(workload, None)
        self._cgroups.kill(workload)
        self._holdings.drop(workload)
        self._timing.release(AttemptId(workload))
        state.phase, state.reason = "ended", Reason.EXIT_UNKNOWN
        self._devices.note_end([workload], state.plan)
        state.detail = "The process ended while its parent was down, so its exit code is not known."
        state.ended_at = self._clock.now_us()
        self._changed()

    # -- bringing it in line

    def reconcile(self, assigned: Iterable[AssignedJob]) -> None:
        """Level-triggered: may be called at any time, with the same assignment or another."""
        self._assigned = {job.attempt: job for job in assigned}
        self._step()

    def _step(self) -> None:
        seen = {attempt: JobSeen(state.phase, state.signalled_ns) for attempt, state in self._attempts.items()}
        actions, next_ns = decide_jobs(self._assigned, seen, self._clock.mono_ns())
        for action in actions:
            self._carry_out(action)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if next_ns is not None:
            delay_s = max(0.0, (next_ns - self._clock.mono_ns()) / 1e9)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._step)

    def _carry_out(self, action: JobAction) -> None:
        match action:
            case Start(job):
                self._attempts[job.attempt] = _Attempt(phase="starting", plan=job.plan)
                task = asyncio.get_running_loop().create_task(self._start(job))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case NotStarted(attempt):
                self._attempts[attempt] = _Attempt(
                    phase="not-started", reason=Reason.STOPPED_BY_USER, detail="Stopped before it was started."
                )
                self._changed()
            case Signal(attempt, signum):
                self._attempts[attempt].signalled_ns = self._clock.mono_ns()
                self._runtime.stop(WorkloadId(attempt), signum)
                self._step()
            case Kill(attempt):
                self._runtime.kill(WorkloadId(attempt))
            case Forget(attempt):
                self._cleanup.remove(WorkloadId(attempt))
                self._timing.release(attempt)
                self._holdings.forget(attempt)
                was_exclusive = bool(self._attempts.pop(attempt).plan.cpus)
                if was_exclusive:
                    self._share_cpus()

    async def _start(self, job: AssignedJob) -> None:
        state = self._attempts[job.attempt]
        ids = choose_ids(job.owner, job.spec.as_root, self._settings, os.geteuid())
        try:
            handle = await self._launch(job, state, ids)
        except SteelyardError as err:
            reason = Reason.DEVICE_GONE if err.code == GONE else Reason.START_FAILED
            self._note_not_started(job, state, reason, explain_start(err.public, ids, job.owner))
        except Exception as err:
            # A defect of ours: the user must not wait for ever, and the log must name it.
            log.exception("start of %s", job.attempt)
            self._runtime.kill(WorkloadId(job.attempt))
            detail = f"Steelyard itself failed ({err!r}); the agent's log has more."
            self._note_not_started(job, state, Reason.START_FAILED, detail)
        else:
            state.pid, state.start_time, state.started_at = handle.pid, handle.start_time, handle.at
            self._holdings.note_start(job.attempt, WorkloadId(job.attempt), job.plan, handle.at)
            if state.phase == "starting":  # a short one may have ended already
                state.phase = "running"
                self._observe_proof(job.attempt, state)
                await self._timing.start_probe(job)
        self._changed()
        self._step()

    async def _launch(self, job: AssignedJob, state: _Attempt, ids: tuple[int, int] | None) -> Handle:
        state.mps = shares_by_mps(job.plan)
        env = make_env(job.spec.env, str(self._paths.workloads / job.attempt), ids, job.owner)
        env |= {"STEELYARD_JOB_ID": job.job, "STEELYARD_ATTEMPT_ID": job.attempt}
        env = make_environment(job.plan, self._machine.topology, env, mps=state.mps)
        env |= await self._holdings.prepare(WorkloadId(job.attempt), job.spec.resources, ids)
        self._presence.check(job.plan)
        if job.plan.cpus:
            self._share_cpus()
        self._timing.hold(job.attempt, job.plan)
        if devices_of(job.plan):
            await self._devices.note_start(job.plan)
        return await self._runtime.start(
            WorkloadId(job.attempt),
            kind=KIND,
            argv=job.spec.argv,
            env=env,
            cwd=job.spec.cwd,
            uid=ids[0] if ids else None,
            gid=ids[1] if ids else None,
            plan=job.plan,
        )

    def _note_not_started(self, job: AssignedJob, state: _Attempt, reason: Reason, detail: str) -> None:
        state.phase, state.reason, state.detail = "not-started", reason, detail
        state.ended_at = self._clock.now_us()
        self._holdings.drop(WorkloadId(job.attempt))
        self._timing.release(job.attempt)

    def reserve(self, plans: Iterable[Plan]) -> None:
        """Keep jobs off the cores of dedicated functions, older revisions that still serve among them."""
        reserved = sorted({plan.cpus for plan in plans if plan.cpus})
        if reserved != self._reserved:
            self._reserved = reserved
            self._share_cpus()

    def _shared_cpus(self) -> tuple[int, ...]:
        """What is left for all; an ended job's cores come back when the server has taken note of its end."""
        exclusive = [state.plan.cpus for state in self._attempts.values() if state.plan.cpus]
        return decide_shared_cpus(self._machine.cpus, [*exclusive, *self._reserved])

    def _share_cpus(self) -> None:
        shared = self._shared_cpus()
        self._cgroups.prepare(shared, tuple(node.id for node in self._machine.numa_nodes) or (0,))

    # -- what others ask

    @property
    def running(self) -> list[tuple[WorkloadId, int, int]]:
        """(workload, pid, start time) of every running job."""
        return [
            (WorkloadId(attempt), state.pid, state.start_time)
            for attempt, state in self._attempts.items()
            if state.phase == "running" and state.pid is not None and state.start_time is not None
        ]

    @property
    def devices_in_use(self) -> set[str]:
        held = (state.plan for state in self._attempts.values() if state.phase in ("starting", "running"))
        return {device for plan in held for device in devices_of(plan)}

    @property
    def known(self) -> set[AttemptId]:
        """Attempts that the server has not let go of."""
        return set(self._attempts)

    def find_host(self, attempt: AttemptId, rank: int | None) -> ExecHost:
        """Where a command that is to run inside the attempt goes. Raises NotFound or Conflict."""
        state, job = self._attempts.get(attempt), self._assigned.get(attempt)
        if state is None or job is None:
            raise NotFound("This machine has no such attempt.")
        if rank:
            raise NotFound(f"The job has no rank {rank}.")
        if state.phase != "running" or state.pid is None or state.start_time is None:
            raise Conflict(f"The job is {state.phase}: commands run inside jobs that run.", code="not-running")
        ids = choose_ids(job.owner, job.spec.as_root, self._settings, os.geteuid())
        return ExecHost(WorkloadId(attempt), state.pid, state.start_time, job.plan, ids, job.spec.cwd)

    def end_over_scratch(self, over: Mapping[WorkloadId, str]) -> None:
        """End those that have more in a folder whose size is only watched than they asked for."""
        for workload, sentence in over.items():
            state = self._attempts.get(AttemptId(workload))
            if state is not None and state.phase == "running" and not state.over:
                state.over = sentence
                self._runtime.kill(workload)

    def attempts(self) -> tuple[AttemptState, ...]:
        """For the report: everything known, terminal attempts included until they leave the assignment."""
        for attempt, state in self._attempts.items():
            if state.phase == "running":
                state.wakeups = self._timing.report_wakeups(attempt)
        return tuple(
            AttemptState(
                attempt=attempt,
                phase=state.phase,
                reason=state.reason,
                detail=state.detail,
                pid=state.pid,
                started_at=state.started_at,
                ended_at=state.ended_at,
                exit_code=state.exit_code,
                signal=state.signum,
                peak_memory_bytes=state.peak_memory_bytes,
                proof=state.proof if state.phase == "ended" else None,
                wakeup_breaches=state.wakeups.breaches,
                wakeup_worst_us=state.wakeups.worst_us if state.wakeups.breaches else 0,
                usage=self._holdings.used(attempt) if state.phase == "ended" else None,
            )
            for attempt, state in sorted(self._attempts.items())
        )

    def observe_proofs(self) -> None:
        """Read back what every running job really got. Called once a second while any runs, and before a proof is shown."""
        for attempt, state in self._attempts.items():
            if state.phase == "running":
                self._observe_proof(attempt, state)
                if self._timing.report_wakeups(attempt) != state.wakeups:
                    self._changed()

    def _observe_proof(self, attempt: AttemptId, state: _Attempt) -> None:
        job = self._assigned.get(attempt)
        if job is None:
            return
        reading = self._cgroups.read(WorkloadId(attempt))
        pids = reading.pids or ((state.pid,) if state.pid else ())
        got = read_got(pids, reading, realtime=job.plan.timing is Timing.REALTIME)
        if got.get("cpus") is None:
            return  # it ended while we looked: the last reading stands
        got |= self._timing.got(job, pids, "cpuset" in self._cgroups.controllers)
        got |= got_devices(job.plan, pids, self._machine.topology)
        got |= self._holdings.got(WorkloadId(attempt), reading.io_max_bytes_s)
        shared, said = explain_share(job.plan, state.mps)
        forbidden, notes = self._timing.explain(job)
        held = self._holdings.explain(WorkloadId(attempt), job.spec.resources)
        forbidden, notes = (*forbidden, *shared, *held), (*notes, *said)
        proof = check_proof(self._asked(job), got, state.matched_before, self._clock.now_us(), forbidden, notes)
        state.matched_before = state.matched_before or set(proof.differences) <= set(forbidden)
        if proof.state is ProofState.DRIFTED and (state.proof is None or state.proof.state is not ProofState.DRIFTED):
            log.warning("%s drifted: %s", attempt, "; ".join(proof.differences))
        state.proof = proof

    def _asked(self, job: AssignedJob) -> dict[str, object]:
        ids = choose_ids(job.owner, job.spec.as_root, self._settings, os.geteuid())
        cpus = sorted(job.plan.cpus or self._shared_cpus())
        enforced = self._cgroups.controllers
        return {
            "cpus": cpus,
            "cgroup_cpus": cpus if "cpuset" in enforced else None,
            "share": None if job.plan.cpus or job.plan.preemptible else job.plan.share,
            "memory_bytes": job.plan.memory_bytes,
            "memory_nodes": sorted(job.plan.memory_nodes) or None,
            "uid": ids[0] if ids else os.geteuid(),
            "no_new_privs": True,
            "gives_way": True if job.plan.preemptible else None,
            "cgroup": self._cgroups.path(WorkloadId(job.attempt)) if enforced else None,
            **self._timing.asked(job),
            **asked_devices(job.plan, self._machine.topology),
            **self._holdings.asked(job.spec.resources),
        }

    def proof(self, attempt: AttemptId) -> Proof | None:
        """The newest proof; of an ended job, the last one made while it ran."""
        state = self._attempts.get(attempt)
        if state is None:
            return None
        if state.phase == "running":
            self._observe_proof(attempt, state)
        return state.proof
