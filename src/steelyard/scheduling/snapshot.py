"""What does a scheduling decision look at, and what does it answer? The facts and the answers that all of `scheduling/` shares.

A snapshot is complete: whoever decides on it needs nothing else but the time. So a changed snapshot answers "what if".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from steelyard.model.batch import Dependency
from steelyard.model.health import NODE
from steelyard.model.ids import JobId, MachineId
from steelyard.model.job import Job, JobState, Plan, Resources
from steelyard.model.machine import Machine
from steelyard.model.reason import Reason
from steelyard.model.site import Account, Quota


class Standing(StrEnum):
    """How a dependency stands."""

    MET = "met"
    WAITS = "waits"
    #: it can't be met any more
    NEVER = "never"


class Holding(msgspec.Struct, frozen=True):
    """What holds resources of a machine (`plan.machine`), or of several, now."""

    demand: Resources
    plan: Plan
    #: None: a function, or an older revision of one
    job: Job | None = None
    #: of a function that sleeps and lends its cores and devices: how soon a wake has them back; None: it lends nothing now
    lent_s: float | None = None

    @property
    def parts(self) -> tuple[Holding, ...]:
        """One for each machine that it is on."""
        if not self.plan.others:
            return (self,)
        return tuple(msgspec.structs.replace(self, plan=part) for part in self.plan.parts)

    @property
    def suspended(self) -> bool:
        """Frozen: only its memory is held."""
        return self.job is not None and self.job.state is JobState.SUSPENDED

    @property
    def ends_by(self) -> int | None:
        """Wall time, microseconds, at which it will have been ended; None: nobody knows."""
        if self.job is None or self.job.spec.max_duration_s is None:
            return None
        begin = self.job.started_at
        return None if begin is None else begin + round((self.job.spec.max_duration_s + self.job.suspended_s) * 1e6)


class Snapshot(msgspec.Struct, frozen=True):
    """Everything a decision depends on, but the time."""

    #: whose agents have told of them
    machines: tuple[Machine, ...]
    #: all jobs in state QUEUED, in the order of their submission
    queued: tuple[Job, ...] = ()
    #: jobs in STARTING, RUNNING, STOPPING, UNKNOWN or SUSPENDED, functions and older revisions
    holding: tuple[Holding, ...] = ()
    accounts: tuple[Account, ...] = ()
    quotas: tuple[Quota, ...] = ()
    #: of every dependency of a queued job
    standings: Mapping[Dependency, Standing] = {}
    #: pool -> what is on its way to it
    coming: Mapping[str, str] = {}
    #: machine -> wall time at which it is taken back; those without an end are not in it
    ends: Mapping[MachineId, int] = {}

    def usable(self, pool: str) -> tuple[Machine, ...]:
        """The machines of a pool ("": the home's own) that take work."""
        return tuple(each for each in self.machines if each.pool == pool and NODE not in each.blocked and not each.draining)

    def say_without(self, pool: str) -> tuple[Reason, str]:
        """Why a job waits where no machine takes work."""
        there = [each for each in self.machines if each.pool == pool]
        if not pool:
            if not there:
                return Reason.NO_MACHINE, "no agent has reported a machine yet"
            detail = "the machine is out of use; `steelyard check` says why, `steelyard check --readmit node` puts it back"
            return Reason.NODE_DRAINED, detail
        if not there:
            unknown = f"pool {pool} has no machine now; `steelyard pool status {pool}` says what it waits for"
            return Reason.NO_MACHINE, self.coming.get(pool) or unknown
        return Reason.NODE_DRAINED, f"no machine of pool {pool} takes new work: {_say_why(there)}"


def _say_why(machines: Sequence[Machine]) -> str:
    return "; ".join(f"{each.hostname}: {each.draining or 'out of use'}" for each in machines[:3])


def explain_end(machine: Machine, pool: str, ends_at: int) -> str:
    """Why a job with a `max_duration` goes to none of a pool's machines, of which this one stays longest."""
    text = f"its --max-duration would be over only after the machines of pool {pool} are taken back"
    return f"{text} ({machine.hostname} the last, at {format_time(ends_at)}); with a shorter one, or without, it may start"


def format_time(at: int) -> str:
    return datetime.fromtimestamp(at // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class Why(msgspec.Struct, frozen=True):
    job: JobId
    reason: Reason
    #: a sentence for people; the same for every job that merely waits behind another, so that a moving queue rewrites no rows
    detail: str


class Reservation(msgspec.Struct, frozen=True):
    """The first job that does not fit keeps this place: nothing that starts before it may delay it."""

    job: JobId
    #: wall time, microseconds; None: some of what runs has no `max_duration`, so nobody knows
    at: int | None
    plan: Plan


class Decision(msgspec.Struct, frozen=True):
    #: in the order of the queue
    starts: tuple[tuple[JobId, Plan], ...] = ()
    #: suspended jobs that go on where they were
    resumes: tuple[JobId, ...] = ()
    #: (victim, for whom)
    preempts: tuple[tuple[JobId, JobId], ...] = ()
    waits: tuple[Why, ...] = ()
    #: can never start
    never: tuple[Why, ...] = ()
    #: by pool; "": on the home's own machine
    reservations: Mapping[str, Reservation] = {}
    #: everything that may start, in the order of the queue: what `queue` shows as position
    order: tuple[JobId, ...] = ()
    #: wall time at which something changes by itself (a backoff or `begin_at` is over); None: nothing will
    look_at: int | None = None

    @property
    def reservation(self) -> Reservation | None:
        """On the home's own machine."""
        return self.reservations.get("")
