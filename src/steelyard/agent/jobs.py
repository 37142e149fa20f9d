"""What do this machine's jobs do right now, and what has to be done about it?

Holds one `Attempt` per attempt known here; `reconcile` asks the pure `decide_jobs` and carries its actions out. Reports and
proofs are read from what it holds. Never decides where a job runs: the plan in the assignment leaves no choice.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable

import msgspec

from steelyard.agent.attempt import (
    ATTEMPT,
    Attempt,
    Member,
    MemberEnd,
    Progress,
    adopt_member,
    explain_end,
    find_members,
    join_plans,
    judge_members,
    only_waits,
    plan_members,
)
from steelyard.agent.cleanup import Cleanup
from steelyard.agent.device_proof import shares_by_mps
from steelyard.agent.devices import DeviceKeeper, devices_of
from steelyard.agent.execs import ExecHost, find_job_host
from steelyard.agent.holdings import Holdings
from steelyard.agent.job_container import JobContainers
from steelyard.agent.job_files import JobFiles
from steelyard.agent.job_proofs import JobProofs
from steelyard.agent.job_signals import JobSignals
from steelyard.agent.job_start import KIND, JobStarter, explain_failure
from steelyard.agent.lending import meets
from steelyard.agent.mpi_steps import MpiSteps
from steelyard.agent.presence import Presence
from steelyard.agent.reconcile import (
    ALIVE,
    RUNNING,
    SUSPENDED,
    Forget,
    Freeze,
    JobAction,
    Kill,
    NotStarted,
    Signal,
    Start,
    Thaw,
    Warn,
    decide_ahead,
    decide_jobs,
    decide_shared_cpus,
    watches_beats,
)
from steelyard.agent.timing import TimingKeeper
from steelyard.clock import Clock
from steelyard.config import Paths, Settings
from steelyard.errors import NotFound, SteelyardError, Unreachable
from steelyard.host import Cgroups
from steelyard.host.affinity import keep_within
from steelyard.model.ids import AttemptId, WorkloadId
from steelyard.model.job import Plan
from steelyard.model.machine import Machine
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason
from steelyard.runtime.process import Adopted, ProcessRuntime
from steelyard.wire.agent import AssignedJob, AttemptState
from steelyard.wire.spawn import Exited

__all__ = ["KIND", "JobKeeper"]

log = logging.getLogger(__name__)

#: what has just been started has no limit that is sooner over
STEP_SOON_S = 0.02
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


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
        slurm_bin: str,
        containers: JobContainers,
        may_have: Callable[[Plan], bool] = lambda plan: True,
    ) -> None:
        """`may_have`: does every function that has these devices lend them at this moment?"""
        self._holdings, self._containers = holdings, containers
        self._timing, self._devices, self._machine = timing, devices, machine
        self._runtime, self._cleanup, self._cgroups, self._clock = runtime, cleanup, cgroups, clock
        self._changed, self._may_have = changed, may_have
        #: an attempt has ended, or was not started after all
        self._left = asyncio.Event()
        self.files = JobFiles(paths.workloads.resolve())
        self._steps = MpiSteps(settings, self.files, os.environ)
        self._signals = JobSignals(runtime, containers, cgroups, self._steps)
        self._proofs = JobProofs(settings, machine, cgroups, timing, clock, holdings, containers, self._steps, self.shared_cpus)
        self._starter = JobStarter(
            settings,
            machine,
            runtime,
            self.files,
            timing,
            devices,
            presence,
            holdings,
            self._share_cpus,
            self._kept_cpus,
            lambda: [each.ports for each in self._attempts.values()],
            self._step_soon,
            changed,
            slurm_bin,
            containers,
            paths,
            self._steps,
        )
        self._attempts: dict[AttemptId, Attempt] = {}
        self._of: dict[str, AttemptId] = {}
        self._assigned: dict[AttemptId, AssignedJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        #: cores of dedicated functions, and of those that sleep and lend them
        self._reserved: list[tuple[int, ...]] = []
        self._lent: list[tuple[int, ...]] = []

    def workloads_in(self, *phases: str) -> set[str]:
        """Of attempts in one of these phases."""
        return {workload for each in self._attempts.values() if each.phase in phases for workload in each.workloads}

    # -- truth from the machine

    def adopt(self, found: Iterable[Adopted], assigned: Iterable[AssignedJob], probes: Iterable[Adopted] = ()) -> None:
        """Take over what an earlier agent started. `found` is the joined truth of records, cgroups and the spawner."""
        self._assigned = {job.attempt: job for job in assigned}
        groups: dict[AttemptId, list[Adopted]] = {}
        for item in found:
            labels = item.intent.labels if item.intent else {}
            groups.setdefault(AttemptId(labels.get(ATTEMPT, item.workload)), []).append(item)
        for attempt, items in groups.items():
            # else it is started as one that this machine has never heard of
            waits = only_waits(items, self._assigned.get(attempt))
            if not waits or not all(self._cleanup.forget(item.workload) for item in items):
                self._adopt(attempt, items)
        living = [(attempt, state.plan) for attempt, state in self._attempts.items() if state.phase in ALIVE]
        self._timing.adopt(living, probes)
        if any(state.phase == SUSPENDED for state in self._attempts.values()):
            self._share_cpus()

    def _adopt(self, attempt: AttemptId, items: list[Adopted]) -> None:
        job, now_us = self._assigned.get(attempt), self._clock.now_us()
        members = find_members(attempt, items)
        plan = job.plan if job is not None else join_plans([member.plan for member in members])
        state = Attempt(plan, members, mps=shares_by_mps(plan), progress=self.files.load_progress(attempt))
        state.by_step = job is not None and self._steps.covers(job.spec)
        by_name = {item.workload: item for item in items}
        for member in members:
            item = by_name.get(member.workload)
            adopt_member(member, item, now_us)
            if item is not None and item.exited is not None:
                member.end = self._explain(job, state, member, item.exited)
        state.phase, state.reason, state.detail = judge_members(members)
        self._add(attempt, state)
        for member in members:
            if member.phase == "ended" or (member.phase == RUNNING and state.phase not in ALIVE):
                # What it left behind ends now; so do the ranks that run of a gang that was started in part.
                self._cgroups.kill(member.workload)
        if state.phase in ALIVE:
            self._adopt_alive(attempt, state)
        elif state.phase == "ended":
            if state.reason is None:
                state.conclude(job.spec if job is not None else None)
            else:
                state.ended_at = now_us
            self._finish(attempt, state)

    def _adopt_alive(self, attempt: AttemptId, state: Attempt) -> None:
        for member in state.running:
            if member.handle is not None:
                self._holdings.note_start(attempt, member.workload, member.plan, member.handle.at)
        now_ns, boot_ns = self._clock.mono_ns(), self._clock.boot_ns()
        ticks = [member.handle.start_time for member in state.members if member.handle is not None]
        state.started_ns = now_ns - (boot_ns - max(ticks) * 1_000_000_000 // TICKS_PER_S) if ticks else now_ns
        frozen = [self._cgroups.frozen(member.workload) for member in state.running]
        since = state.progress.frozen_since_boot_ns
        if all(frozen):
            state.note_frozen(now_ns, since if since is not None else boot_ns)
            state.frozen_since_ns = now_ns - (boot_ns - since) if since is not None else now_ns
        elif any(frozen) or since is not None:
            # Stopped in the middle of freezing or thawing: all of it goes on, and is frozen anew if it should be.
            state.frozen_since_ns = now_ns - (boot_ns - since) if since is not None else None
            self._thaw(attempt, state)
        job = self._assigned.get(attempt)
        wanted = job is not None and job.stop_signal is not None
        if any(member.end is not None and member.end.bad for member in state.members) and not wanted:
            state.broke_with = len(state.running)
        if job is not None and watches_beats(job.spec):
            state.note_beat(self.files.observe_beat(attempt), now_ns)
            # Nobody looked while there was no agent: it gets the whole time once more.
            state.beat_ran_ns = state.ran_ns(now_ns)

    def _add(self, attempt: AttemptId, state: Attempt) -> None:
        self._attempts[attempt] = state
        self._of |= dict.fromkeys(state.workloads, attempt)

    def _find(self, workload: str) -> tuple[AttemptId, Attempt, Member] | None:
        attempt = self._of.get(workload)
        state = self._attempts.get(attempt) if attempt is not None else None
        member = state.find(workload) if state is not None else None
        return (attempt, state, member) if attempt is not None and state is not None and member is not None else None

    def on_exit(self, exited: Exited) -> bool:
        """An exit record is on disk. True when it was a job's."""
        found = self._find(exited.workload)
        if found is None:
            return False
        self._end(*found, exited)
        return True

    def builds(self, workload: WorkloadId) -> bool:
        """Does it build an image?"""
        found = self._find(workload)
        job = self._assigned.get(found[0]) if found is not None else None
        return job is not None and bool(job.spec.builds)

    def on_lost(self, workload: WorkloadId) -> None:
        """Its process is gone and nobody saw how (the spawner had been killed)."""
        found = self._find(workload)
        if found is not None and found[2].phase == RUNNING:
            self._end(*found, None)

    def _end(self, attempt: AttemptId, state: Attempt, member: Member, exited: Exited | None) -> None:
        if member.end is not None:
            return
        job = self._assigned.get(attempt)
        end = self._explain(job, state, member, exited, self._holdings.note_end(member.workload, exited))
        if state.by_step and (exited is None or exited.signal is not None):
            self._steps.kill(attempt, lambda: None)
        # What the main process left behind ends with it, before its cores are given to somebody else. The kernel removes no group
        # in which anything lives, so that is the cheapest look; without an exit record the group is what tells of it.
        if exited is None or not self._cgroups.remove(member.workload):
            self._cgroups.kill(member.workload)
        if state.note_end(member, end):
            state.conclude(job.spec if job is not None else None)
            self._finish(attempt, state)
        elif state.broke_with is not None and state.phase in ALIVE:
            self._step()
        self._changed()

    def _explain(
        self, job: AssignedJob | None, state: Attempt, member: Member, exited: Exited | None, peak: int | None = None
    ) -> MemberEnd:
        """`peak`: the most memory that it had, where that was read already."""
        exited, oom_kills = self._containers.read_exit(member.workload, exited), None
        if peak is None or exited is None or exited.signal is not None:
            reading = self._cgroups.read(member.workload)
            peak, oom_kills = reading.memory_peak_bytes, reading.oom_kills
        # else it ended by itself, and not at its memory limit: nothing is asked of the group
        end = explain_end(exited, oom_kills, peak, member.plan, self._clock.now_us())
        if job is not None and state.by_step:
            state.records = self._steps.read(job.attempt, "exit")
            member.proof = self._steps.prove(member.plan, job.spec, state.records) or member.proof
            return self._steps.explain(job.attempt, job.spec, end, state.records)
        return self._containers.explain_exit(job, member.workload, end, self.files, self._holdings.secrets)

    def _finish(self, attempt: AttemptId, state: Attempt) -> None:
        """The attempt has just ended, and none of its processes is left. The one place that every attempt that ran passes."""
        state.wakeups = self._timing.observe_wakeups(attempt) or state.wakeups
        self._timing.release(attempt)
        self._devices.note_end(state.workloads, state.plan)
        for workload in state.workloads:
            self._holdings.drop(workload)
        self._left.set()

    # -- bringing it in line

    def reconcile(self, assigned: Iterable[AssignedJob]) -> None:
        """Level-triggered: may be called at any time, with the same assignment or another."""
        self._assigned = {job.attempt: job for job in assigned}
        self._step()

    def go_ahead(self, assigned: Iterable[AssignedJob], note: Callable[[], None]) -> None:
        """With what need not wait until the assignment is on disk: parts of gangs that are only prepared for now, and those that
        begin, once `note` has put it where the next agent finds it (intents tell of a loss of power). Raises OSError.
        """
        waiting = {attempt for attempt, state in self._attempts.items() if state.going is not None}
        begins, prepares = decide_ahead(assigned, self._attempts, waiting)
        if begins:
            note()
        self._assigned |= {job.attempt: job for job in (*begins, *prepares)}
        for job in begins:
            self._attempts[job.attempt].hear(job)
        for job in prepares:
            self._carry_out(Start(job))

    def _step_soon(self) -> None:
        """One look for all starts that are done within a moment: each look is at every attempt."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(STEP_SOON_S, self._step)

    def _step(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        for attempt, state in self._attempts.items():
            state.hear(self._assigned.get(attempt))
        while True:
            now_ns = self._clock.mono_ns()
            self._look_at_beats(now_ns)
            seen = {attempt: state.seen(now_ns) for attempt, state in self._attempts.items()}
            actions, next_ns = decide_jobs(self._assigned, seen, now_ns)
            for action in actions:
                self._carry_out(action)
            # These begin a deadline or let another follow at once; what they change, no second look repeats.
            if not any(isinstance(action, Signal | Warn | Freeze | Thaw) for action in actions):
                break
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if next_ns is not None:
            delay_s = max(0.0, (next_ns - self._clock.mono_ns()) / 1e9)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._step)

    def _look_at_beats(self, now_ns: int) -> None:
        for attempt, state in self._attempts.items():
            job = self._assigned.get(attempt)
            if job is not None and state.phase == RUNNING and watches_beats(job.spec):
                state.note_beat(self.files.observe_beat(attempt), now_ns)

    def _carry_out(self, action: JobAction) -> None:
        match action:
            case Start(job) if not self._may_have(job.plan):
                detail = "the function whose place it was lent has woken"
                self._add(job.attempt, Attempt(Plan(), [], "not-started", Reason.PREEMPTED, detail))
                self._changed()
            case Start(job):
                state = Attempt(job.plan, plan_members(job))
                state.by_step = self._steps.covers(job.spec)
                self._add(job.attempt, state)
                task = asyncio.get_running_loop().create_task(self._start(job, state))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case NotStarted(attempt):
                state = Attempt(Plan(), [], "not-started", Reason.STOPPED_BY_USER, "Stopped before it was started.")
                self._add(attempt, state)
                self._changed()
            case Signal(attempt, signum, limit):
                state = self._attempts[attempt]
                state.signalled_ns, state.signalled = self._clock.mono_ns(), signum
                if limit is not None and state.progress.limit is None:
                    function = state.gives_way_to
                    self._save(attempt, state, msgspec.structs.replace(state.progress, limit=limit, function=function))
                self._signals.send(state, signum)
            case Warn(attempt, signum, steps_only):
                state = self._attempts[attempt]
                self._save(attempt, state, msgspec.structs.replace(state.progress, warned=True))
                if steps_only:
                    self._signals.send_to_steps(state, signum)
                else:
                    self._signals.send(state, signum)
            case Freeze(attempt):
                self._freeze(attempt, self._attempts[attempt])
            case Thaw(attempt, to_end):
                self._thaw(attempt, self._attempts[attempt], to_end)
            case Kill(attempt):
                self._signals.kill(self._attempts[attempt])
            case Forget(attempt):
                self._forget(attempt)

    def _save(self, attempt: AttemptId, state: Attempt, progress: Progress) -> None:
        state.progress = progress
        self.files.save_progress(attempt, state.progress)

    def _forget(self, attempt: AttemptId) -> None:
        state = self._attempts.pop(attempt)
        for workload in state.workloads or [WorkloadId(attempt)]:
            # what has ended was killed to the last process then: as a rule only the empty group is left
            if not self._cleanup.forget(workload):
                self._cleanup.remove(workload)
            self._of.pop(workload, None)
        self._holdings.forget(attempt)
        self._timing.release(attempt)
        if state.plan.cpus:
            self._share_cpus()

    # -- starting

    async def _start(self, job: AssignedJob, state: Attempt) -> None:
        try:
            await self._starter.start(job, state)
        except SteelyardError as err:
            reason, detail = explain_failure(err, job, self._starter.ids(job))
            away = isinstance(err, Unreachable)
            if away:
                reason = Reason.NODE_LOST if state.launched else Reason.NOT_STARTED
            self._note_not_started(job, state, reason, detail, doubt=away and state.launched)
        except Exception as err:
            # A defect of ours: the user must not wait for ever, and the log must name it.
            log.exception("start of %s", job.attempt)
            detail = f"Steelyard itself failed ({err!r}); the agent's log has more."
            self._note_not_started(job, state, Reason.START_FAILED, detail)
        else:
            state.started_ns = self._clock.mono_ns()
            if state.phase == "starting" and not state.running:  # short ones, or a rank ended badly and the rest was not started
                state.conclude(job.spec)
                self._finish(job.attempt, state)
            elif state.phase == "starting":
                state.phase = RUNNING
        self._changed()
        # It is told before it is looked at; what has ended by then can't be.
        await asyncio.sleep(0)
        if state.phase == RUNNING:
            self._proofs.observe_first(job, state)
            await self._timing.start_probe(job)
        if state.kill_at_ns is not None:
            self._step()  # a function waits for its place
        else:
            self._step_soon()

    def _note_not_started(self, job: AssignedJob, state: Attempt, reason: Reason, detail: str, *, doubt: bool = False) -> None:
        detail = self._holdings.secrets.clean(job.owner, job.spec.secrets, detail)
        for member in state.members:
            self._runtime.kill(member.workload)
            self._holdings.drop(member.workload)
        if state.phase == "starting":
            if state.members and all(member.end is not None for member in state.members):  # it did run: only the answer was lost
                state.conclude(job.spec)
            else:
                state.note_not_started(reason, detail, self._clock.now_us(), doubt=doubt)
            if state.phase == "ended":
                self._finish(job.attempt, state)
        self._timing.release(job.attempt)
        self._left.set()

    # -- giving way to functions

    async def make_way(self, place: Plan, function: str, kill_at_ns: int) -> None:
        """`function` wakes: until no job has any of the devices of `place`, on which none is started meanwhile."""
        while guests := [each for each in self._attempts.values() if _is_there(each) and meets(each.plan, place)]:
            for each in guests:
                if each.kill_at_ns is None:
                    each.kill_at_ns, each.gives_way_to = kill_at_ns, function
            self._left.clear()
            self._step()
            await self._left.wait()

    # -- suspending

    def _freeze(self, attempt: AttemptId, state: Attempt) -> None:
        """Its whole cores go back to the common ones. Its cpuset stays: nothing runs in it, and threads keep their bindings."""
        state.note_frozen(self._clock.mono_ns(), self._clock.boot_ns())
        self._save(attempt, state, state.progress)
        for member in state.running:
            if not self._cgroups.freeze(member.workload, True):
                log.warning("%s does not stand still yet; the kernel finishes it", member.workload)
        if state.plan.cpus:
            self._share_cpus()
        self._changed()

    def _thaw(self, attempt: AttemptId, state: Attempt, to_end: bool = False) -> None:
        """First its cores are its own again (others, where it was given others meanwhile), then it goes on. To end it needs none
        of its own, and they may be somebody else's by now."""
        job = self._assigned.get(attempt)
        state.note_thawed(self._clock.mono_ns())
        if to_end:
            self._place(state, self.shared_cpus())
        else:
            state.lent = False
            if job is not None:
                state.take_plan(job.plan)
            if state.plan.cpus:
                self._share_cpus()
            self._place(state, None)
        for member in state.running:
            self._cgroups.freeze(member.workload, False)
        self._save(attempt, state, state.progress)
        self._changed()

    def _place(self, state: Attempt, cpus: tuple[int, ...] | None) -> None:
        """Processes that have whole cores: onto these, or onto their own."""
        for member in state.running:
            if member.plan.cpus:
                plan = member.plan if cpus is None else msgspec.structs.replace(member.plan, cpus=cpus)
                self._cgroups.make(member.workload, plan)
                keep_within(self._cgroups.pids(member.workload), plan.cpus)

    def reserve(self, plans: Iterable[Plan], lent: Iterable[Plan] = ()) -> None:
        """Keep jobs off the cores of dedicated functions, older revisions that still serve among them, but for those `lent`."""
        self._lent = sorted({plan.cpus for plan in lent if plan.cpus})
        reserved = sorted({plan.cpus for plan in plans if plan.cpus} - set(self._lent))
        if reserved != self._reserved:
            self._reserved = reserved
            self._share_cpus()

    def shared_cpus(self) -> tuple[int, ...]:
        """What is left for all; an ended job's cores come back when the server has taken note of its end."""
        exclusive = [state.plan.cpus for state in self._attempts.values() if state.plan.cpus and not state.lent]
        return decide_shared_cpus(self._machine.cpus, [*exclusive, *self._reserved])

    def _kept_cpus(self) -> tuple[int, ...]:
        """Of those, what no function takes back when it wakes."""
        return decide_shared_cpus(self.shared_cpus(), self._lent)

    def _share_cpus(self) -> None:
        shared = self.shared_cpus()
        self._cgroups.prepare(shared, tuple(node.id for node in self._machine.numa_nodes) or (0,))

    # -- what others ask

    @property
    def running(self) -> list[tuple[WorkloadId, int, int]]:
        """(workload, pid, start time) of every job's processes, frozen ones among them."""
        return [
            (member.workload, member.handle.pid, member.handle.start_time)
            for state in self._attempts.values()
            if _is_there(state)
            for member in state.running
            if member.handle is not None
        ]

    @property
    def devices_in_use(self) -> set[str]:
        held = (state.plan for state in self._attempts.values() if _is_there(state))
        return {device for plan in held for device in devices_of(plan)}

    def attempts(self) -> tuple[AttemptState, ...]:
        """For the report: everything known, terminal attempts included until they leave the assignment."""
        for attempt, state in self._attempts.items():
            if state.phase in ALIVE:
                state.wakeups = self._timing.report_wakeups(attempt)
        return tuple(
            state.report(attempt, self._proofs.of(state), self._holdings.used(attempt))
            if state.phase == "ended"
            else state.report(attempt, None)
            for attempt, state in sorted(self._attempts.items())
        )

    @property
    def known(self) -> set[AttemptId]:
        """Attempts that the server has not let go of."""
        return set(self._attempts)

    def find_host(self, attempt: AttemptId, rank: int | None) -> ExecHost:
        """Where a command that is to run inside the attempt goes. Raises NotFound or Conflict."""
        state, job = self._attempts.get(attempt), self._assigned.get(attempt)
        if state is None or job is None:
            raise NotFound("This machine has no such attempt.")
        return find_job_host(job, state, rank, self._starter.ids(job), self._containers, self._cgroups)

    def end_over_scratch(self, over: Iterable[WorkloadId]) -> None:
        """End those that have more in a folder whose size is only watched than they asked for; at once, before it is all full."""
        for workload in over:
            found = self._find(workload)
            if found is not None and found[1].phase in ALIVE and found[1].progress.limit is None:
                attempt, state, _ = found
                self._save(attempt, state, msgspec.structs.replace(state.progress, limit=Reason.SCRATCH_EXCEEDED))
                self._signals.kill(state)

    def observe_proofs(self) -> None:
        """Read back what every running job really got. Called once a second while any runs, and before a proof is shown."""
        for attempt, state in self._attempts.items():
            job = self._assigned.get(attempt)
            if state.phase == RUNNING and job is not None:
                self._proofs.observe(job, state)
                if self._timing.report_wakeups(attempt) != state.wakeups:
                    self._changed()

    def proof(self, attempt: AttemptId) -> Proof | None:
        """The newest proof; of an ended job, the last one made while it ran."""
        state, job = self._attempts.get(attempt), self._assigned.get(attempt)
        if state is None:
            return None
        if state.phase == RUNNING and job is not None:
            self._proofs.observe(job, state)
        return self._proofs.of(state)


def _is_there(attempt: Attempt) -> bool:
    """Processes of it may be on its devices."""
    return attempt.phase in ("starting", *ALIVE)
