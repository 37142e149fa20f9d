"""What would a cluster's queue say, without a cluster? Its in-memory twin, for tests. Programs are played by a `Fate` per argv.

Time passes only when a test says so: jobs are pending until `begin`, and end by their fate with `end`.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping

import msgspec

from steelyard.errors import EdgeFailed, Refused, Unreachable
from steelyard.model.job import Job
from steelyard.model.pool import Pilot, Pool
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
        #: what pilots show the server, and what they said last
        self.passes: dict[str, bytes] = {}
        self.words: dict[str, str] = {}

    async def submit(self, job: Job) -> int:
        return self._take(job.attempt_id)

    async def look(self) -> dict[str, QueueEntry]:
        self.looks += 1
        self._ask()
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
            self.say(job.attempt_id, "CANCELLED")

    async def read_log(self, job: Job, stream: str, offset: int, limit: int) -> bytes:
        begun = job.attempt_id in self._records or self._queue.get(job.attempt_id, QueueEntry(0, "")).state == "RUNNING"
        return self._fate(job).output[offset : offset + limit] if begun and stream == "stdout" else b""

    async def submit_pilot(self, pool: Pool, pilot: Pilot, content: bytes) -> int:
        number = self._take(pilot.id)
        self.passes[pilot.id] = content
        return number

    async def cancel_pilot(self, pilot: Pilot, *, force: bool) -> None:
        self._ask()
        entry = self._queue.get(pilot.id)
        if entry is not None and entry.state in ("PENDING", "RUNNING"):
            ended = "CANCELLED" if force or entry.state == "PENDING" else "COMPLETED"
            self._queue[pilot.id] = msgspec.structs.replace(entry, state=ended)

    async def read_pilot_words(self, pilot: Pilot) -> str:
        self._ask()
        return self.words.get(pilot.id, "")

    async def forget_pilot(self, pilot: Pilot) -> None:
        self._ask()
        self.passes.pop(pilot.id, None)

    # what tests make happen

    def begin(self, job: Job) -> None:
        self.run(job.attempt_id)

    def run(self, id_: str, duration_s: float | None = None) -> None:
        """The allocation of that attempt or pilot begins."""
        ends_at = None if duration_s is None else self.now + round(duration_s * 1e6)
        self._queue[id_] = QueueEntry(self._queue[id_].job, "RUNNING", "", self.now, "n1", ends_at)

    def entry(self, id_: str) -> QueueEntry | None:
        """What the queue knows, whoever asks."""
        return self._queue.get(id_)

    def say(self, id_: str, state: str) -> None:
        """The queue tells that state of it from now on."""
        self._queue[id_] = msgspec.structs.replace(self._queue[id_], state=state)

    def end(self, job: Job, killed_by: int | None = None) -> None:
        code = self._fate(job).exit_code if killed_by is None else None
        ranks = 1 if job.spec.gang is None else job.spec.gang.world_size
        self._records[job.attempt_id] = [RankRecord(rank, self.now, self.now, code, killed_by) for rank in range(ranks)]
        self.say(job.attempt_id, "COMPLETED" if code == 0 else "FAILED")

    def forget(self, job: Job) -> None:
        """As a queue does with what ended a while ago, or one that lost its state."""
        del self._queue[job.attempt_id]

    def _ask(self) -> None:
        if self.away:
            raise Unreachable("the queue does not answer")

    def _take(self, id_: str) -> int:
        what, self.next_submit = self.next_submit, ""
        if self.away or what == "never":
            raise Unreachable("the queue does not answer")
        if what == "no":
            raise Refused("Slurm says: no", code="slurm-refused")
        self.submitted.append(id_)
        self._queue[id_] = QueueEntry(len(self.submitted), "PENDING", "Priority")
        if what == "lost":
            raise EdgeFailed("the queue did not answer in time")
        return len(self.submitted)

    def _fate(self, job: Job) -> Fate:
        return self._fates.get(job.spec.argv, Fate())
