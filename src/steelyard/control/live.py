"""Which jobs are alive? The server's copy of all that have not ended, brought up to date by reading what changed since.

Reading a queue of ten thousand anew at every look would cost more than deciding on it. A copy that has missed something would be
wrong for ever, so it never goes by messages: it asks the store for everything after the last change that it has seen, and the
store counts changes itself. One copy serves all loops of a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from steelyard.model.batch import Dependency
from steelyard.model.ids import JobId
from steelyard.model.job import Job, JobState
from steelyard.scheduling.snapshot import Standing
from steelyard.scheduling.standing import judge
from steelyard.store import Store, Tx

#: states in which an attempt holds, or may hold, its resources
HOLDING = frozenset({JobState.STARTING, JobState.RUNNING, JobState.STOPPING, JobState.SUSPENDED, JobState.UNKNOWN})


class LiveJobs:
    """Used from one event loop: every look is `read` (inside a transaction, on the store's thread) and then `apply`."""

    def __init__(self) -> None:
        #: the newest change that is in here; 0: nothing was read yet
        self.change = 0
        self._queued: dict[JobId, Job] = {}
        self._holding: dict[JobId, Job] = {}
        #: that go through another queue, waiting or held; they are in neither of the above
        self._direct: dict[JobId, Job] = {}
        self._standings: dict[Dependency, Standing] = {}
        #: jobs and arrays that changed since the dependencies on them were looked at -> the change up to which that is known
        self._touched: dict[JobId, int] = {}

    @property
    def queued(self) -> tuple[Job, ...]:
        """In the order of submission; nearly sorted already, but for what was queued again."""
        return tuple(sorted(self._queued.values(), key=lambda job: job.submitted_at))

    @property
    def holding(self) -> tuple[Job, ...]:
        return tuple(self._holding.values())

    @property
    def direct(self) -> tuple[Job, ...]:
        return tuple(self._direct.values())

    @property
    def waiting(self) -> int:
        return len(self._queued)

    def job(self, job: JobId) -> Job | None:
        return self._holding.get(job) or self._queued.get(job)

    def attempt(self, job: str) -> int | None:
        """Number of the attempt that holds a place now."""
        found = self._holding.get(JobId(job))
        return None if found is None else found.attempt

    def apply(self, change: int, jobs: Iterable[Job]) -> None:
        """What `Tx.jobs_changed(self.change)` answered. An answer that is older than what is here is dropped whole."""
        if change <= self.change:
            return
        self.change = change
        for job in jobs:
            self._touched[job.id] = change
            if job.array is not None:
                self._touched[job.array.id] = change
            if job.spec.direct:
                self._direct.pop(job.id, None)
                if not job.state.terminal:
                    self._direct[job.id] = job
                continue
            if job.state is not JobState.QUEUED:
                self._queued.pop(job.id, None)
            if job.state not in HOLDING:
                self._holding.pop(job.id, None)
            if job.state is JobState.QUEUED:
                self._queued[job.id] = job
            elif job.state in HOLDING:
                self._holding[job.id] = job

    def take_open(self) -> set[Dependency]:
        """Dependencies of queued jobs that have to be looked at: new ones, and those on jobs that changed. To be followed by
        `settle` with what was found; where that fails, the next look asks for the same again."""
        asked = {after for job in self._queued.values() for after in job.spec.after}
        self._standings = {after: standing for after, standing in self._standings.items() if after in asked}
        return {
            after
            for after in asked
            if (standing := self._standings.get(after)) is None or (standing is Standing.WAITS and after.job in self._touched)
        }

    def settle(self, standings: Mapping[Dependency, Standing], change: int) -> dict[Dependency, Standing]:
        """Take over what was found by a reading that began when `change` was the newest; how every dependency of a queued job
        stands. What was met, or can't be any more, stays so: another look may have found that meanwhile."""
        for after, standing in standings.items():
            if self._standings.get(after, Standing.WAITS) is Standing.WAITS:
                self._standings[after] = standing
        self._touched = {job: at for job, at in self._touched.items() if at > change}
        return self._standings


async def refresh(live: LiveJobs, store: Store) -> None:
    live.apply(*await store.read(lambda tx: tx.jobs_changed(live.change)))


def read_standings(tx: Tx, dependencies: Iterable[Dependency]) -> dict[Dependency, Standing]:
    """How each stands in the store."""
    found: dict[Dependency, Standing] = {}
    for after in dependencies:
        job = tx.job(after.job)
        jobs = [job] if job is not None else tx.jobs_of_array(after.job)
        found[after] = judge(after.kind, jobs) if jobs else Standing.NEVER
    return found
