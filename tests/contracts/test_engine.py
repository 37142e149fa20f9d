"""What every queue of others answers: Slurm's own, on a real cluster, and the one that tests play."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from slurm_bed import USER, USER_UID, SlurmBed, slurm, wait_until
from steelyard.engine import Engine
from steelyard.engine.fake import FakeEngine, Fate
from steelyard.engine.slurm.client import SlurmClient
from steelyard.engine.slurm.direct import DirectSlurm
from steelyard.errors import Refused
from steelyard.lifecycle.array import make_places, parse_array
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Resources
from steelyard.model.pool import NodeShape, Pilot, PilotState, Pool, PoolSpec, make_pilot_id
from steelyard.model.slurm import Attachment, QueueEntry, RankRecord

T = TypeVar("T")
ENDS = ("sh", "-c", "echo said; exit 7")
STAYS = ("sh", "-c", "echo said; exec sleep 1000")
FATES = {ENDS: Fate(7, b"said\n"), STAYS: Fate(0, b"said\n")}

POOL = Pool(PoolSpec("train", 0, 1, NodeShape(cpus=1)), DEFAULT_PROJECT, Owner(USER, USER_UID), 1, 0)


class Bench:
    """An engine, and how a test has a job begin and end on it."""

    def __init__(self, engine: Engine, cwd: str, bed: SlurmBed | None = None) -> None:
        self.engine, self._cwd, self._bed = engine, cwd, bed

    def closed(self) -> AbstractContextManager[None]:
        """Nothing begins meanwhile: what is submitted waits."""
        return self._bed.closed() if self._bed is not None else nullcontext()

    def ask(self, question: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(question)

    def job(self, argv: tuple[str, ...], **more: object) -> Job:
        spec = replace(JobSpec("x", argv, self._cwd, env={"PATH": "/usr/bin:/bin"}, direct=True), **more)
        id_ = JobId(f"j-{uuid.uuid4().int % 10**9:09d}")
        return Job(id_, DEFAULT_PROJECT, Owner(USER, USER_UID), 2, 1, spec, JobState.STARTING, 0)

    def pilot(self) -> Pilot:
        id_ = make_pilot_id("train", uuid.uuid4().int % 10**9)
        return Pilot(id_, "train", DEFAULT_PROJECT, POOL.owner, 1, PilotState.SUBMITTED, 0)

    def look(self, id_: str) -> QueueEntry | None:
        return self.ask(self.engine.look()).get(id_)

    def seen(self, job: Job) -> QueueEntry | None:
        return self.look(job.attempt_id)

    def records(self, job: Job, name: str = "exit") -> Sequence[RankRecord]:
        return self.ask(self.engine.read_records([job], name))[job.attempt_id]

    def until(self, job: Job, what: Callable[[QueueEntry], bool]) -> QueueEntry:
        def look() -> QueueEntry | None:
            entry = self.seen(job)
            return entry if entry is not None and what(entry) else None

        return wait_until(look, f"{job.attempt_id} to get on")

    def begin(self, job: Job) -> None:
        if isinstance(self.engine, FakeEngine):
            self.engine.begin(job)

    def begin_pilot(self, pilot: Pilot) -> None:
        if isinstance(self.engine, FakeEngine):
            self.engine.run(pilot.id, 3600.0)
            self.engine.words[pilot.id] = "said"

    def end(self, job: Job) -> None:
        if isinstance(self.engine, FakeEngine):
            self.engine.end(job)


@pytest.fixture(scope="module")
def bed() -> Iterator[SlurmBed]:
    with slurm(nodes=1) as made:
        yield made


@pytest.fixture(params=["fake", "slurm"])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param == "fake":
        return Bench(FakeEngine(FATES), "/")
    bed: SlurmBed = request.getfixturevalue("bed")
    python = bed.shared / "python"
    if not python.exists():
        # in the place of the program: says something, and ends when it is told to
        python.write_text("#!/bin/sh\necho said\ntrap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n")
        python.chmod(0o755)
    attachment = Attachment(folder=str(bed.shared), env={"SLURM_CONF": bed.environ["SLURM_CONF"]}, python=str(python))
    return Bench(DirectSlurm(SlurmClient(attachment, bed.environ), attachment, "0123abcd", USER_UID), str(bed.shared), bed)


def over(entry: QueueEntry) -> bool:
    return entry.state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")


def test_an_attempt_is_found_by_its_id_runs_and_leaves_a_record(bench: Bench) -> None:
    job = bench.job(ENDS)
    assert bench.seen(job) is None
    (number,) = bench.ask(bench.engine.submit([job]))
    entry = bench.seen(job)
    assert entry is not None and entry.job == number
    bench.begin(job)
    bench.end(job)
    assert bench.until(job, over).state == "FAILED"
    (record,) = bench.records(job)
    assert (record.rank, record.exit_code, record.signal) == (0, 7, None)
    assert 0 < record.started_at <= record.ended_at


def test_output_is_read_from_any_byte_on(bench: Bench) -> None:
    job = bench.job(STAYS)
    assert bench.ask(bench.engine.read_log(job, "stdout", 0, 100)) == b""
    (number,) = bench.ask(bench.engine.submit([job]))
    bench.begin(job)
    wait_until(lambda: bench.ask(bench.engine.read_log(job, "stdout", 0, 100)), "output")
    assert bench.ask(bench.engine.read_log(job, "stdout", 1, 3)) == b"aid"
    assert bench.ask(bench.engine.read_log(job, "stdout", 5, 3)) == b""
    assert bench.ask(bench.engine.read_log(job, "stderr", 0, 100)) == b""
    bench.ask(bench.engine.cancel([(job, number)]))


def test_a_signal_reaches_the_task_and_is_in_the_record(bench: Bench) -> None:
    job = bench.job(STAYS)
    (number,) = bench.ask(bench.engine.submit([job]))
    bench.begin(job)
    wait_until(lambda: bench.ask(bench.engine.read_log(job, "stdout", 0, 100)), "output")
    bench.ask(bench.engine.signal(job, number, 10))
    bench.until(job, over)
    assert [record.signal for record in bench.records(job)] == [10]
    # where it has ended, nothing happens
    bench.ask(bench.engine.signal(job, number, 10))
    bench.ask(bench.engine.cancel([(job, number)]))


def test_one_that_waits_leaves_the_queue(bench: Bench) -> None:
    job = bench.job(ENDS)
    with bench.closed():
        (number,) = bench.ask(bench.engine.submit([job]))
        assert bench.until(job, lambda entry: entry.state == "PENDING").nodes == ""
        bench.ask(bench.engine.cancel([(job, number)]))
        assert bench.until(job, over).state == "CANCELLED"
    assert bench.records(job) == ()


def test_what_is_refused_is_not_there(bench: Bench) -> None:
    job = bench.job(ENDS, resources=Resources(gpus=GpuDemand(count=2)))  # of which there are none
    if isinstance(bench.engine, FakeEngine):
        bench.engine.next_submit = "no"
    with pytest.raises(Refused) as refused:
        bench.ask(bench.engine.submit([job]))
    assert refused.value.code == "slurm-refused" and refused.value.public.startswith("Slurm says: ")
    assert bench.seen(job) is None


def test_a_pilot_is_found_by_its_id_and_ends_gently(bench: Bench) -> None:
    pilot = bench.pilot()
    assert bench.look(pilot.id) is None
    number = bench.ask(bench.engine.submit_pilots(POOL, [pilot], [b"{}"]))
    bench.begin_pilot(pilot)

    def running() -> QueueEntry | None:
        entry = bench.look(pilot.id)
        return entry if entry is not None and entry.state == "RUNNING" else None

    entry = wait_until(running, "it to run")
    assert entry.job == number and entry.ends_at is not None and entry.started_at is not None
    # the partition's limit
    assert entry.ends_at - entry.started_at == 3600 * 1_000_000
    wait_until(lambda: bench.ask(bench.engine.read_pilot_words(pilot)) == "said", "its words")
    known = replace(pilot, number=str(number), started_at=entry.started_at)
    bench.ask(bench.engine.cancel_pilot(known, force=False))
    wait_until(lambda: (seen := bench.look(pilot.id)) is not None and over(seen), "it to end")
    seen = bench.look(pilot.id)
    assert seen is not None and seen.state == "COMPLETED"
    # where it has ended, nothing happens
    for force in (False, True):
        bench.ask(bench.engine.cancel_pilot(known, force=force))
    bench.ask(bench.engine.forget_pilot(known))
    bench.ask(bench.engine.forget_pilot(known))


def test_a_pilot_that_waits_leaves_the_queue(bench: Bench) -> None:
    pilot = bench.pilot()
    with bench.closed():
        number = bench.ask(bench.engine.submit_pilots(POOL, [pilot], [b"{}"]))
        bench.ask(bench.engine.cancel_pilot(replace(pilot, number=str(number)), force=False))
        wait_until(lambda: (seen := bench.look(pilot.id)) is not None and seen.state == "CANCELLED", "it to leave")


def test_a_pilot_that_is_refused_is_not_there(bench: Bench) -> None:
    pilot = bench.pilot()
    if isinstance(bench.engine, FakeEngine):
        bench.engine.next_submit = "no"
    with pytest.raises(Refused, match="Slurm says: "):
        bench.ask(bench.engine.submit_pilots(replace(POOL, spec=replace(POOL.spec, node=NodeShape(gpus=2))), [pilot], [b"{}"]))
    assert bench.look(pilot.id) is None


def test_elements_of_an_array_go_together_and_are_told_apart(bench: Bench) -> None:
    places = make_places(JobId(f"j-{uuid.uuid4().int % 10**9:09d}"), parse_array("3,1000-1001"))
    jobs = [replace(bench.job(ENDS), id=id_, array=place) for id_, place in places]
    batches = bench.engine.make_batches(jobs)
    assert sorted(job.id for batch in batches for job in batch) == sorted(job.id for job in jobs)
    names = [name for batch in batches for name in bench.ask(bench.engine.submit(batch))]
    assert len(set(names)) == 3
    for job in jobs:
        bench.begin(job)
        bench.end(job)
    for job in jobs:
        bench.until(job, over)
    assert {job.attempt_id for job in jobs} <= bench.ask(bench.engine.look()).keys()
    for job in jobs:
        assert [record.exit_code for record in bench.records(job)] == [7]
        assert bench.ask(bench.engine.read_log(job, "stdout", 0, 100)) == b"said\n"


def test_what_a_task_got_is_told_while_it_runs_and_afterwards(bench: Bench) -> None:
    job = bench.job(STAYS, resources=Resources(cpus=1.0, memory_bytes=64 << 20))
    (number,) = bench.ask(bench.engine.submit([job]))
    bench.begin(job)
    (begun,) = wait_until(lambda: bench.records(job, "started"), "the task to begin")
    assert (begun.ended_at, begun.uid, begun.memory_bytes, len(begun.cpus)) == (0, USER_UID, 64 << 20, 1)
    assert begun.memory_nodes and bench.records(job) == ()
    bench.ask(bench.engine.signal(job, number, 10))
    bench.until(job, over)
    (record,) = bench.records(job)
    assert (record.cpus, record.memory_bytes) == (begun.cpus, begun.memory_bytes)
    assert record.cpu_ms is not None and record.peak_memory_bytes is not None


def test_a_signal_reaches_the_task_once(bench: Bench) -> None:
    if isinstance(bench.engine, FakeEngine):
        pytest.skip("its programs are played")
    job = bench.job(("sh", "-c", "trap 'echo got' USR1; trap 'exit 3' USR2; echo ready; while :; do sleep 0.05; done"))
    (number,) = bench.ask(bench.engine.submit([job]))

    def said(text: bytes) -> None:
        wait_until(lambda: bench.ask(bench.engine.read_log(job, "stdout", 0, 100)) == text, repr(text))

    said(b"ready\n")
    bench.ask(bench.engine.signal(job, number, 10))
    said(b"ready\ngot\n")
    bench.ask(bench.engine.signal(job, number, 12))
    bench.until(job, over)
    assert bench.ask(bench.engine.read_log(job, "stdout", 0, 100)) == b"ready\ngot\n"
    assert [record.exit_code for record in bench.records(job)] == [3]
