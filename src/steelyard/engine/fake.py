"""What would a cluster's queue say, without a cluster? Its in-memory twin, for tests. Programs are played by a `Fate` per argv.

Time passes only when a test says so: jobs are pending until `begin`, and end by their fate with `end`.
"""

from __future__ import annotations

import math
import signal as signals
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from steelyard.errors import EdgeFailed, Refused, Unreachable
from steelyard.model.batch import Launcher
from steelyard.model.ids import MachineId
from steelyard.model.job import Job
from steelyard.model.pool import Pilot, Pool
from steelyard.model.slurm import QueueEntry, RankRecord


class Fate(msgspec.Struct, frozen=True):
    """What a program does."""

    exit_code: int = 0
    output: bytes = b""
    #: signals that it lives on after
    ignores: frozenset[int] = frozenset()
    #: the signal that ends it, instead of `exit_code`
    killed_by: int | None = None
    #: signals that it ends on with `exit_code`
    traps: frozenset[int] = frozenset()
    #: it ends when it is told to
    stays: bool = False
    #: of an array: the exit code of each index; and: good from the second attempt on
    by_index: Callable[[int], int] | None = None
    by_attempt: bool = False
    #: of a gang: the one that ends by itself
    bad_rank: int | None = None

    def code_of(self, job: Job) -> int:
        if self.by_attempt and job.attempt > 1:
            return 0
        return self.exit_code if self.by_index is None or job.array is None else self.by_index(job.array.index)


class FakeEngine:
    def __init__(self, fates: Mapping[tuple[str, ...], Fate] | None = None) -> None:
        self._fates = {} if fates is None else fates
        self._queue: dict[str, QueueEntry] = {}
        self._records: dict[str, list[RankRecord]] = {}
        self._starts: dict[str, list[RankRecord]] = {}
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

    def make_batches(self, jobs: Sequence[Job]) -> list[tuple[Job, ...]]:
        together: dict[object, list[Job]] = {}
        for job in jobs:
            together.setdefault(job.id if job.array is None else (job.array.id, job.attempt), []).append(job)
        return [tuple(some) for some in together.values()]

    async def submit(self, jobs: Sequence[Job]) -> tuple[str, ...]:
        self._take(*(job.attempt_id for job in jobs))
        return tuple(self._queue[job.attempt_id].job for job in jobs)

    async def look(self) -> dict[str, QueueEntry]:
        self.looks += 1
        self._ask()
        return dict(self._queue)

    async def read_records(self, jobs: Sequence[Job], name: str = "exit") -> dict[str, tuple[RankRecord, ...]]:
        records = self._records if name == "exit" else self._starts
        return {job.attempt_id: tuple(records.get(job.attempt_id, ())) for job in jobs}

    async def read_exit_code(self, job: Job, number: str) -> tuple[int | None, int | None]:
        return 0, None

    async def signal(self, job: Job, number: str, signum: int) -> None:
        if signum not in self._fate(job).ignores:
            self.end(job, killed_by=signum)

    async def cancel(self, attempts: Sequence[tuple[Job, str]]) -> None:
        for job, _ in attempts:
            entry = self._queue.get(job.attempt_id)
            if entry is not None and entry.state == "RUNNING":
                self.end(job, killed_by=int(signals.SIGKILL))
            if entry is not None and entry.state in ("PENDING", "RUNNING"):
                self.say(job.attempt_id, "CANCELLED")

    async def read_log(self, job: Job, stream: str, offset: int, limit: int) -> bytes:
        begun = job.attempt_id in self._records or self._queue.get(job.attempt_id, QueueEntry("", "")).state == "RUNNING"
        return self._fate(job).output[offset : offset + limit] if begun and stream == "stdout" else b""

    async def submit_pilots(self, pool: Pool, pilots: Sequence[Pilot], contents: Sequence[bytes]) -> str:
        number = self._take(pilots[0].id)
        self.passes |= {pilot.id: content for pilot, content in zip(pilots, contents, strict=True)}
        return number

    async def cancel_pilot(self, pilot: Pilot, *, force: bool) -> None:
        self._ask()
        entry = self._queue.get(pilot.queue_id)
        if entry is not None and entry.state in ("PENDING", "RUNNING"):
            ended = "CANCELLED" if force or entry.state == "PENDING" else "COMPLETED"
            self._queue[pilot.queue_id] = msgspec.structs.replace(entry, state=ended)

    async def read_pilot_words(self, pilot: Pilot) -> str:
        self._ask()
        return self.words.get(pilot.id, "")

    def find_pilot_outputs(self, pilot: MachineId) -> Path | None:
        del pilot

    async def forget_pilot(self, pilot: Pilot) -> None:
        self._ask()
        self.passes.pop(pilot.id, None)

    # what tests make happen

    def begin(self, job: Job) -> None:
        self.run(job.attempt_id)
        self._starts[job.attempt_id] = [self._got(job, rank) for rank in range(_ranks(job))]

    def run(self, id_: str, duration_s: float | None = None, nodes: str = "n1") -> None:
        """The allocation of that attempt or pilot begins."""
        ends_at = None if duration_s is None else self.now + round(duration_s * 1e6)
        self._queue[id_] = QueueEntry(self._queue[id_].job, "RUNNING", "", self.now, nodes, ends_at)

    def entry(self, id_: str) -> QueueEntry | None:
        """What the queue knows, whoever asks."""
        return self._queue.get(id_)

    def say(self, id_: str, state: str) -> None:
        """The queue tells that state of it from now on."""
        self._queue[id_] = msgspec.structs.replace(self._queue[id_], state=state)

    def end(self, job: Job, killed_by: int | None = None) -> None:
        """All ranks alike, but where its fate is that of `bad_rank` alone: then the others are ended with it, as by srun."""
        fate = self._fate(job)
        killed_by = fate.killed_by if killed_by is None else killed_by
        killed_by = None if killed_by in fate.traps else killed_by
        ends: list[RankRecord] = []
        for rank in range(_ranks(job)):
            code, number = (fate.code_of(job), None) if killed_by is None else (None, killed_by)
            late = killed_by is None and fate.bad_rank not in (None, rank)
            if late:
                code, number = None, int(signals.SIGKILL)
            ended = msgspec.structs.replace(self._got(job, rank), ended_at=self.now + late, exit_code=code, signal=number)
            ends.append(msgspec.structs.replace(ended, peak_memory_bytes=1 << 20, cpu_ms=10))
        self._records[job.attempt_id] = ends
        self.say(job.attempt_id, "COMPLETED" if all(each.exit_code == 0 for each in ends) else "FAILED")

    def forget(self, job: Job) -> None:
        """As a queue does with what ended a while ago, or one that lost its state."""
        del self._queue[job.attempt_id]

    def _got(self, job: Job, rank: int) -> RankRecord:
        """What was asked, to the point."""
        asked, tasks = job.spec.resources, 1 if job.spec.gang is None else job.spec.gang.tasks_per_node
        cpus = math.ceil(asked.cpus)
        return RankRecord(
            rank, self.now, host="n1", uid=job.owner.uid, cpus=tuple(range(cpus)), memory_nodes=(0,),
            memory_bytes=asked.memory_bytes and asked.memory_bytes * tasks, cpus_allotted=cpus * tasks, tasks_here=tasks,
            gpus=() if asked.gpus is None else tuple(str(gpu) for gpu in range(asked.gpus.count * tasks)),
        )  # fmt: skip

    def _ask(self) -> None:
        if self.away:
            raise Unreachable("the queue does not answer")

    def _take(self, *ids: str) -> str:
        what, self.next_submit = self.next_submit, ""
        if self.away or what == "never":
            raise Unreachable("the queue does not answer")
        if what == "no":
            raise Refused("Slurm says: no", code="slurm-refused")
        for id_ in ids:
            self.submitted.append(id_)
            self._queue[id_] = QueueEntry(str(len(self.submitted)), "PENDING", "Priority")
        if what == "lost":
            raise EdgeFailed("the queue did not answer in time")
        return str(len(self.submitted))

    def _fate(self, job: Job) -> Fate:
        return self._fates.get(job.spec.argv, Fate())


def _ranks(job: Job) -> int:
    gang = job.spec.gang
    return 1 if gang is None else gang.nodes if gang.launcher is Launcher.TORCHRUN else gang.world_size
