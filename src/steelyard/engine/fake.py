"""What would a cluster's queue say, without a cluster? Its in-memory twin, for tests. Programs are played by a `Fate` per argv.

Time passes only when a test says so: jobs are pending until `begin`, and end by their fate with `end`.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping

import msgspec

from steelyard.errors import EdgeFailed, Refused, Unreachable
from steelyard.model.job import Job
from steelyard.model.slurm import QueueEntry, RankRecord


class Fate(msgspec.Struct, frozen=True):
    """What a program does."""

    exit_code: int = 0
    output: bytes = b""
    #: signals that it lives on after
    ignores: frozenset[int] = frozenset()


class FakeEngine:
    def __init__(self, fates: Mapping[tuple[str, ...], Fate] | None = None) -> None:
        self._fates = fates or {}
        self._queue: dict[str, QueueEntry] = {}
        self._records: dict[str, list[RankRecord]] = {}
        #: attempts, once for each time that they were handed over
        self.submitted: list[str] = []
        self.looks = 0
        #: nobody answers
        self.away = False
        #: what becomes of the next submission: "" all is well, "lost" it is taken and the answer is lost, "never" it does not
        #: arrive, "no" it is refused
        self.next_submit = ""
        self.now = 1_700_000_000_000_000

    async def submit(self, job: Job) -> int:
        what, self.next_submit = self.next_submit, ""
        if self.away or what == "never":
            raise Unreachable("the queue does not answer")
        if what == "no":
            raise Refused("Slurm says: no", code="slurm-refused")
        self.submitted.append(job.attempt_id)
        self._queue[job.attempt_id] = QueueEntry(len(self.submitted), "PENDING", "Priority")
        if what == "lost":
            raise EdgeFailed("the queue did not answer in time")
        return len(self.submitted)

    async def look(self) -> dict[str, QueueEntry]:
        self.looks += 1
        if self.away:
            raise Unreachable("the queue does not answer")
        return dict(self._queue)

    async def read_records(self, job: Job) -> tuple[RankRecord, ...]:
        return tuple(self._records.get(job.attempt_id, ()))

    async def read_exit_code(self, job: Job, number: int) -> tuple[int | None, int | None]:
        return 0, None

    async def signal(self, job: Job, number: int, signum: int) -> None:
        if signum not in self._fate(job).ignores:
            self.end(job, killed_by=signum)

    async def cancel(self, job: Job, number: int) -> None:
        entry = self._queue.get(job.attempt_id)
        if entry is not None and entry.state == "RUNNING":
            self.end(job, killed_by=int(signals.SIGKILL))
        if entry is not None and entry.state in ("PENDING", "RUNNING"):
            self._say(job, "CANCELLED")

    async def read_log(self, job: Job, stream: str, offset: int, limit: int) -> bytes:
        begun = job.attempt_id in self._records or self._queue.get(job.attempt_id, QueueEntry(0, "")).state == "RUNNING"
        return self._fate(job).output[offset : offset + limit] if begun and stream == "stdout" else b""

    # what tests make happen

    def begin(self, job: Job) -> None:
        self._queue[job.attempt_id] = QueueEntry(self._queue[job.attempt_id].job, "RUNNING", "", self.now, "n1")

    def end(self, job: Job, killed_by: int | None = None) -> None:
        code = self._fate(job).exit_code if killed_by is None else None
        ranks = 1 if job.spec.gang is None else job.spec.gang.world_size
        self._records[job.attempt_id] = [RankRecord(rank, self.now, self.now, code, killed_by) for rank in range(ranks)]
        self._say(job, "COMPLETED" if code == 0 else "FAILED")

    def forget(self, job: Job) -> None:
        """As a queue does with what ended a while ago, or one that lost its state."""
        del self._queue[job.attempt_id]

    def _say(self, job: Job, state: str) -> None:
        entry = self._queue[job.attempt_id]
        self._queue[job.attempt_id] = msgspec.structs.replace(entry, state=state)

    def _fate(self, job: Job) -> Fate:
        return self._fates.get(job.spec.argv, Fate())
