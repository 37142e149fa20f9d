"""What is true of one attempt and of its processes? The state that the keeper holds, and what follows from it.

A job has one process of ours, a gang one per rank (`<attempt>.<rank>`). A gang starts all or none and ends all or none: the first
rank that ends badly says how the whole of it ended. Nothing here touches a process, a file or a clock: times are arguments.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from steelyard.agent.reconcile import ALIVE, RUNNING, SUSPENDED, JobSeen
from steelyard.lifecycle.launch import count_processes
from steelyard.lifecycle.promise import Wakeups
from steelyard.lifecycle.rank_records import make_usage
from steelyard.model import words
from steelyard.model.batch import Launcher, RankEnd
from steelyard.model.ids import AttemptId, WorkloadId
from steelyard.model.image import Image
from steelyard.model.job import JobSpec, Plan
from steelyard.model.proof import Proof
from steelyard.model.reason import Reason
from steelyard.model.slurm import RankRecord
from steelyard.model.usage import Usage
from steelyard.runtime.process import Adopted, AdoptedState
from steelyard.runtime.records import Handle
from steelyard.wire.agent import AssignedJob, AttemptState
from steelyard.wire.spawn import Exited

#: labels of a rank's intent: which attempt, which rank, of how many on this machine, and which is the first of these
ATTEMPT, RANK, RANKS, FIRST = "attempt", "rank", "ranks", "first"
#: label of the intents of a gang on several machines: they are written before all of these are prepared
WAITS = "waits"


class MemberEnd(msgspec.Struct, frozen=True):
    """How one process ended."""

    ended_at: int
    reason: Reason
    detail: str = ""
    exit_code: int | None = None
    signum: int | None = None
    peak_memory_bytes: int | None = None

    @property
    def bad(self) -> bool:
        return self.reason is not Reason.EXITED


@dataclass
class Member:
    """One process of an attempt, with all that it started."""

    workload: WorkloadId
    plan: Plan
    #: None: no gang
    rank: int | None = None
    #: starting, running, ended, not-started, unknown
    phase: str = "starting"
    handle: Handle | None = None
    end: MemberEnd | None = None
    proof: Proof | None = None
    matched_before: bool = False


class Progress(msgspec.Struct, frozen=True):
    """What an agent must know of a running attempt that no process tells. On disk."""

    #: how long it was frozen before now, and since when it is (boot time)
    frozen_ns: int = 0
    frozen_since_boot_ns: int | None = None
    #: the warning before its end was sent
    warned: bool = False
    #: the limit for which it is being ended, or PREEMPTED
    limit: Reason | None = None
    #: with PREEMPTED: the function to which it gives way
    function: str = ""


@dataclass
class Attempt:
    """`phase` is what is reported (see `AttemptState`)."""

    plan: Plan
    members: list[Member]
    phase: str = "starting"
    reason: Reason | None = None
    detail: str = ""
    ended_at: int | None = None
    exit_code: int | None = None
    signum: int | None = None
    #: when and how it was last told to end
    signalled_ns: int | None = None
    signalled: int | None = None
    #: when its newest process was started (monotonic)
    started_ns: int | None = None
    progress: Progress = field(default_factory=Progress)
    #: monotonic twin of `progress.frozen_since_boot_ns`
    frozen_since_ns: int | None = None
    #: its heartbeat file as it was last seen to change, and how long it had run then
    beat_mtime_ns: int | None = None
    beat_ran_ns: int = 0
    #: of a gang: how many others still ran when a rank ended badly before anybody wanted an end
    broke_with: int | None = None
    #: its whole cores are given away while it is suspended, and stay so when it goes on only to end
    lent: bool = False
    #: a function has woken whose devices it was lent: which, and when what is left of it is killed (monotonic)
    gives_way_to: str = ""
    kill_at_ns: int | None = None
    #: its image is being fetched, and nothing else of it is there
    fetching: asyncio.Future[Image] | None = None
    #: of a gang on several machines: all but its programs is there, and it waits for the port at which ranks meet
    going: asyncio.Future[int] | None = None
    #: it has waited, or does
    prepared: bool = False
    #: its first process may have been started
    launched: bool = False
    #: ports that it was given
    ports: range = range(0)
    #: NVIDIA's sharing daemon answered when it was started (or taken over)
    mps: bool = False
    #: its process is Slurm's srun, and its ranks are that one's (`mpi_steps.py`)
    by_step: bool = False
    #: what ranks that Slurm started wrote of their ends
    records: tuple[RankRecord, ...] = ()
    #: the watcher's last counts; of an ended attempt, the final ones
    wakeups: Wakeups = field(default_factory=Wakeups)

    @property
    def gang(self) -> bool:
        return any(member.rank is not None for member in self.members)

    @property
    def running(self) -> list[Member]:
        return [member for member in self.members if member.phase == RUNNING]

    @property
    def workloads(self) -> list[WorkloadId]:
        return [member.workload for member in self.members]

    def find(self, workload: str) -> Member | None:
        return next((member for member in self.members if member.workload == workload), None)

    def hear(self, job: AssignedJob | None) -> None:
        """What was assigned last: it may have waited for that, or need not go on waiting."""
        ends = job is None or job.stop_signal is not None
        if self.fetching is not None and ends:
            self.fetching.cancel()
        if self.going is None or self.going.done():
            return
        if ends or self.kill_at_ns is not None:
            self.going.cancel()
        elif job is not None and job.place is not None and job.place.port:
            self.going.set_result(job.place.port)

    def take_plan(self, plan: Plan) -> None:
        """What goes on after it was suspended may do so on other cores."""
        self.plan = plan
        for place, member in enumerate(self.members):
            member.plan = plan if member.rank is None else plan.tasks[place]

    # -- time

    def ran_ns(self, now_ns: int) -> int:
        """Frozen time left out."""
        if self.started_ns is None:
            return 0
        until_ns = now_ns if self.frozen_since_ns is None else self.frozen_since_ns
        return max(0, until_ns - self.started_ns - self.progress.frozen_ns)

    def note_beat(self, mtime_ns: int | None, now_ns: int) -> None:
        """What its heartbeat file says now. Only a change counts, so that no jump of the wall clock can end a job."""
        if mtime_ns is not None and mtime_ns != self.beat_mtime_ns:
            self.beat_mtime_ns, self.beat_ran_ns = mtime_ns, self.ran_ns(now_ns)

    def note_frozen(self, now_ns: int, boot_ns: int) -> None:
        self.phase, self.frozen_since_ns, self.lent = SUSPENDED, now_ns, True
        self.progress = msgspec.structs.replace(self.progress, frozen_since_boot_ns=boot_ns)

    def note_thawed(self, now_ns: int) -> None:
        stood_ns = 0 if self.frozen_since_ns is None else now_ns - self.frozen_since_ns
        self.phase, self.frozen_since_ns = RUNNING, None
        frozen_ns = self.progress.frozen_ns + stood_ns
        self.progress = msgspec.structs.replace(self.progress, frozen_ns=frozen_ns, frozen_since_boot_ns=None)

    # -- ends

    def note_end(self, member: Member, end: MemberEnd) -> bool:
        """True when nothing of the attempt runs any more, and it was not over before. What ends before its start is noted is
        concluded by whoever starts it, when it is known since when it ran."""
        member.phase, member.end = "ended", end
        left = [each for each in self.members if each.phase in ("starting", RUNNING)]
        if self.gang and end.bad and self.signalled_ns is None and self.progress.limit is None and self.broke_with is None:
            self.broke_with = len(self.running)
        return not left and self.phase in ALIVE

    def note_elsewhere(self) -> None:
        """All that is of it here is begun by another machine's srun, and that machine tells of it."""
        self.phase, self.exit_code, self.reason = "ended", 0, Reason.EXITED

    def conclude(self, spec: JobSpec | None) -> None:
        """All has ended: the rank that ended badly first (in a job, its only process) says how."""
        ends = [(member, member.end) for member in self.members if member.end is not None]
        bad = [(member, end) for member, end in ends if end.bad]
        member, end = min(bad or ends, key=lambda pair: pair[1].ended_at)
        self.phase, self.ended_at = "ended", max(each.ended_at for _, each in ends)
        self.exit_code, self.signum = end.exit_code, end.signum
        self.reason, self.detail = end.reason, end.detail
        if member.rank is not None and end.bad:
            more = f" {end.detail}" if end.detail and end.reason is Reason.EXITED_NONZERO else ""
            self.detail = f"rank {member.rank} {tell_end(end)}{tell_others(self.broke_with)}.{more}"
        limit = self.progress.limit
        # what finished although it was told to give way has succeeded, as where the server tells it
        if limit is not None and (limit is not Reason.PREEMPTED or bad):
            self.reason, self.detail = limit, explain_limit(limit, spec, self.progress.function)

    def note_not_started(self, reason: Reason, detail: str, now_us: int, *, doubt: bool = False) -> None:
        """The start failed and everything of it has been killed: it never ran only if no process of it did. `doubt`: nobody can
        tell whether one did."""
        ran = doubt
        for member in self.members:
            ran = ran or member.phase in (RUNNING, "ended")
            if member.phase == "starting":
                member.phase = "not-started"
        self.phase = "ended" if ran else "not-started"
        self.reason, self.detail, self.ended_at = reason, detail, now_us

    # -- what others see

    def seen(self, now_ns: int) -> JobSeen:
        ran_ns = self.ran_ns(now_ns)
        return JobSeen(
            phase=self.phase,
            signalled_ns=self.signalled_ns,
            signalled=self.signalled,
            ran_ns=ran_ns,
            touched=self.beat_mtime_ns is not None,
            silent_ns=ran_ns - self.beat_ran_ns,
            warned=self.progress.warned,
            limit=self.progress.limit,
            broken=self.broke_with is not None,
            kill_at_ns=self.kill_at_ns,
        )

    def report(self, attempt: AttemptId, proof: Proof | None, usage: Usage | None = None) -> AttemptState:
        first = self.members[0].handle if self.members else None
        starts = [member.handle.at for member in self.members if member.handle is not None]
        # noted when the answer came, which the end of a short one may have overtaken
        started_at = max(starts) if starts and self.phase != "starting" else None
        if started_at is not None and self.ended_at is not None:
            started_at = min(started_at, self.ended_at)
        peaks = [end.peak_memory_bytes for member in self.members if (end := member.end) and end.peak_memory_bytes is not None]
        return AttemptState(
            attempt=attempt,
            phase="prepared" if self.phase == "starting" and self.prepared else self.phase,
            reason=self.reason,
            detail=self.detail,
            pid=first.pid if first is not None else None,
            started_at=started_at,
            ended_at=self.ended_at,
            exit_code=self.exit_code,
            signal=self.signum,
            peak_memory_bytes=sum(peaks) if peaks and self.phase == "ended" else None,
            proof=proof,
            usage=make_usage(self.records) or usage,
            wakeup_breaches=self.wakeups.breaches,
            wakeup_worst_us=self.wakeups.worst_us if self.wakeups.breaches else 0,
            ranks=tuple(
                RankEnd(member.rank, member.end.exit_code, member.end.signum)
                for member in self.members
                if member.rank is not None and member.end is not None
            )
            or tuple(RankEnd(each.rank, each.exit_code, each.signal) for each in self.records),
            broken=self.broke_with is not None,
            port=self.ports.start,
        )


def plan_members(job: AssignedJob) -> list[Member]:
    """The processes that it has on this machine."""
    gang, place = job.spec.gang, job.place
    if gang is None or place is None:
        return make_members(job.attempt, job.plan, count_processes(gang))
    if gang.launcher is Launcher.MPI and place.node:
        return []  # the first machine's srun starts its ranks here as well
    if gang.launcher is not Launcher.NONE:
        return make_members(job.attempt, job.plan, 1)
    return make_members(job.attempt, job.plan, gang.tasks_per_node, place.node * gang.tasks_per_node)


def make_members(attempt: AttemptId, plan: Plan, processes: int, first: int | None = None) -> list[Member]:
    """A process per task of the plan; one alone has the attempt's own name, and all of the plan. `first`: of a gang on several
    machines, the first rank here."""
    if processes == 1 and first is None:
        return [Member(WorkloadId(attempt), plan)]
    return [Member(WorkloadId(f"{attempt}.{rank}"), task, rank) for rank, task in enumerate(plan.tasks, first or 0)]


def find_members(attempt: AttemptId, items: list[Adopted]) -> list[Member]:
    """The processes of an attempt by what its intents say; of ranks that left no trace, too."""
    intents = [item.intent for item in items if item.intent is not None]
    ranks = max((int(intent.labels.get(RANKS, 0)) for intent in intents), default=0)
    if not ranks:
        return [Member(WorkloadId(attempt), intents[0].plan if intents else Plan())]
    plans = {int(intent.labels[RANK]): intent.plan for intent in intents}
    first = max(int(intent.labels.get(FIRST, 0)) for intent in intents)
    return [Member(WorkloadId(f"{attempt}.{rank}"), plans.get(rank, Plan()), rank) for rank in range(first, first + ranks)]


def join_plans(plans: list[Plan]) -> Plan:
    """What they hold together, for an attempt whose own plan nobody knows any more."""
    if len(plans) == 1:
        return plans[0]
    return msgspec.structs.replace(
        plans[0],
        cpus=tuple(sorted({cpu for plan in plans for cpu in plan.cpus})),
        gpus=tuple(dict.fromkeys(gpu for plan in plans for gpu in plan.gpus)),
        nics=tuple(dict.fromkeys(nic for plan in plans for nic in plan.nics)),
        tasks=tuple(plans),
    )


def explain_end(
    exited: Exited | None, oom_kills: int | None, peak_memory_bytes: int | None, plan: Plan, now_us: int
) -> MemberEnd:
    """What an exit record means; None: nobody saw it end."""
    if exited is None:
        detail = "The process ended while its parent was down, so its exit code is not known."
        return MemberEnd(now_us, Reason.EXIT_UNKNOWN, detail, peak_memory_bytes=peak_memory_bytes)
    if exited.unseen:
        reason, detail = Reason.EXIT_UNKNOWN, "It ended unseen; its exit code is lost."
    elif exited.signal is None:
        reason, detail = (Reason.EXITED if exited.exit_code == 0 else Reason.EXITED_NONZERO), ""
    elif oom_kills:
        reason = Reason.OOM_KILLED
        detail = f"The kernel ended it at its memory limit of {plan.memory_bytes} bytes. Ask for more with --memory."
    else:
        reason, detail = Reason.KILLED_BY_SIGNAL, f"Ended by signal {_name(exited.signal)}."
    peak = peak_memory_bytes or exited.peak_rss_bytes
    return MemberEnd(exited.ended_at, reason, detail, exited.exit_code, exited.signal, peak)


def explain_limit(limit: Reason, spec: JobSpec | None, function: str = "") -> str:
    if limit is Reason.PREEMPTED:
        return f"gave way to the function {function}, which woke"
    after = {
        Reason.MAX_DURATION: spec.max_duration_s if spec else None,
        Reason.START_TIMEOUT: spec.start_timeout_s if spec else None,
        Reason.HEARTBEAT_TIMEOUT: spec.heartbeat_timeout_s if spec else None,
    }.get(limit)
    seconds = "" if after is None else f" of {after:g} s"
    match limit:
        case Reason.MAX_DURATION:
            return f"It had run for its maximum duration{seconds} and was ended. Ask for more with --max-duration."
        case Reason.START_TIMEOUT:
            return f"It was ended because it had not touched the file in STEELYARD_HEARTBEAT within its start timeout{seconds}."
        case Reason.SCRATCH_EXCEEDED:
            asked = spec.resources.scratch_bytes if spec else None
            size = "" if asked is None else f" ({words.exact_size(asked)})"
            return f"It had more in its scratch folder than it had asked for{size} and was ended. Ask for more with --scratch."
        case _:
            return f"It was ended because it had not touched the file in STEELYARD_HEARTBEAT for its heartbeat timeout{seconds}."


def judge_members(members: Iterable[Member]) -> tuple[str, Reason | None, str]:
    """Phase, reason and detail of an attempt as a restarted agent finds it. Intents of all are written before the first is
    started, so that a rank without one never ran; when others did, the start was cut short and the rest of it must end."""
    phases = [member.phase for member in members]
    absent = phases.count("not-started")
    if absent == len(phases):
        return "not-started", Reason.NOT_STARTED, "The agent was restarted before it could start it."
    if "unknown" in phases:
        return "unknown", Reason.NODE_LOST, "The machine was restarted while it ran."
    if absent:
        ran = len(phases) - absent
        detail = f"The agent was restarted when {ran} of {len(phases)} ranks had been started; they were ended."
        # no fault of the job's: its rule for lost nodes says whether it is tried again
        return "ended", Reason.NODE_LOST, detail
    return (RUNNING if RUNNING in phases else "ended"), None, ""


def only_waits(found: Iterable[Adopted], job: AssignedJob | None) -> bool:
    """Was it only prepared, as a restarted agent finds it? Then it is prepared once more. Intents of a gang on several machines
    are written while it waits for the others; that it begins is written before any of it does, and was not."""
    if job is None or job.place is None or job.place.port:
        return False
    return all(
        item.intent is not None
        and WAITS in item.intent.labels
        and item.handle is None
        and item.exited is None
        # of another boot, or there: something was told of it that is not written here
        and item.state in (AdoptedState.NOT_STARTED, AdoptedState.UNKNOWN)
        and item.reason is not Reason.NODE_LOST
        for item in found
    )


def adopt_member(member: Member, found: Adopted | None, now_us: int) -> None:
    """What is true of it after a restart; None: there is no trace of it."""
    if found is None or found.state is AdoptedState.NOT_STARTED:
        member.phase = "not-started"
        return
    member.handle = found.handle
    match found.state:
        case AdoptedState.RUNNING:
            member.phase = RUNNING
        case AdoptedState.ENDED:
            # the keeper reads its exit record
            member.phase = "ended"
        case _ if found.reason is Reason.EXIT_UNKNOWN:
            # Its process is gone and its exit code with it: it has ended, and there is nothing more to find out.
            member.phase = "ended"
            member.end = MemberEnd(now_us, Reason.EXIT_UNKNOWN, found.detail)
        case _:
            member.phase = "unknown"


def tell_end(end: MemberEnd) -> str:
    if end.reason is Reason.OOM_KILLED:
        return "was ended by the kernel at its memory limit"
    if end.signum is not None:
        return f"was ended by signal {end.signum}"
    if end.exit_code is not None:
        return f"exited with code {end.exit_code}"
    return "ended unseen"


def tell_others(left: int | None) -> str:
    if not left:
        return ""
    return "; the other rank was ended with it" if left == 1 else f"; the other {left} ranks were ended with it"


def _name(signum: int) -> str:
    try:
        return f"{signum} ({signal.Signals(signum).name})"
    except ValueError:  # a realtime signal
        return str(signum)
