"""The server's copy of living jobs says what the store says, whatever order readings come back in."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from steelyard.control.live import LiveJobs, read_standings
from steelyard.model.batch import Dependency, DependencyKind
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.scheduling.snapshot import Standing
from steelyard.store.memory import MemoryStore

NAMES = ("a", "b", "c", "d")


def make_job(name: str, *after: Dependency) -> Job:
    spec = JobSpec("x", ("true",), "/", after=after)
    return Job(JobId(name), DEFAULT_PROJECT, Owner("u", 1), 1, 0, spec, JobState.QUEUED, 0)


class Copy(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.live = LiveJobs()
        self.late: list[tuple[int, list[Job]]] = []

    def read(self) -> tuple[int, list[Job]]:
        return asyncio.run(self.store.read(lambda tx: tx.jobs_changed(self.live.change)))

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from(JobState))
    def change(self, name: str, state: JobState) -> None:
        def put(tx: object) -> None:
            job = tx.job(JobId(name))  # type: ignore[attr-defined]
            if job is None:
                tx.put_job(replace(make_job(name), submitted_at=NAMES.index(name)))  # type: ignore[attr-defined]
            elif not job.state.terminal:
                tx.put_job(replace(job, generation=job.generation + 1, state=state))  # type: ignore[attr-defined]

        asyncio.run(self.store.write(put))

    @rule()
    def a_reading_is_on_its_way(self) -> None:
        self.late.append(self.read())

    @rule()
    def it_arrives(self) -> None:
        if self.late:
            self.live.apply(*self.late.pop())

    @invariant()
    def a_fresh_reading_makes_it_true(self) -> None:
        self.live.apply(*self.read())
        stored = asyncio.run(self.store.read(lambda tx: tx.jobs()))
        mine = {job.id: job for job in (*self.live.queued, *self.live.holding)}
        assert mine == {job.id: job for job in stored if not job.state.terminal}
        assert [job.submitted_at for job in self.live.queued] == sorted(job.submitted_at for job in self.live.queued)


TestCopy = Copy.TestCase
TestCopy.settings = settings(max_examples=60, stateful_step_count=25)


def test_a_dependency_is_looked_at_again_only_when_its_job_changed() -> None:
    async def story() -> None:
        store, live = MemoryStore(), LiveJobs()
        after = Dependency(JobId("a"), DependencyKind.OK)
        await store.write(lambda tx: [tx.put_job(make_job("a")), tx.put_job(make_job("b", after)), tx.put_job(make_job("c"))])

        async def look() -> tuple[set[Dependency], dict[Dependency, Standing]]:
            live.apply(*await store.read(lambda tx: tx.jobs_changed(live.change)))
            asked = live.take_open()
            return asked, dict(live.settle(await store.read(lambda tx: read_standings(tx, asked)), live.change))

        assert await look() == ({after}, {after: Standing.WAITS})
        await store.write(lambda tx: tx.put_job(replace(make_job("c"), generation=2)))
        assert await look() == (set(), {after: Standing.WAITS})
        await store.write(lambda tx: tx.put_job(replace(make_job("a"), generation=2, state=JobState.SUCCEEDED)))
        assert await look() == ({after}, {after: Standing.MET})
        assert await look() == (set(), {after: Standing.MET})

    asyncio.run(story())


def test_a_dependency_that_could_not_be_read_is_asked_for_again() -> None:
    async def story() -> None:
        store, live = MemoryStore(), LiveJobs()
        after = Dependency(JobId("a"), DependencyKind.OK)
        await store.write(lambda tx: [tx.put_job(make_job("a")), tx.put_job(make_job("b", after))])
        live.apply(*await store.read(lambda tx: tx.jobs_changed(live.change)))
        live.settle(await store.read(lambda tx: read_standings(tx, live.take_open())), live.change)
        await store.write(lambda tx: tx.put_job(replace(make_job("a"), generation=2, state=JobState.SUCCEEDED)))
        live.apply(*await store.read(lambda tx: tx.jobs_changed(live.change)))
        assert live.take_open() == {after}
        assert live.take_open() == {after}, "the first reading came to nothing"
        late, known = await store.read(lambda tx: read_standings(tx, [after])), live.change
        assert live.settle(late, known) == {after: Standing.MET}
        assert live.settle({after: Standing.WAITS}, known) == {after: Standing.MET}, "an older look that comes later"
        assert live.take_open() == set()

    asyncio.run(story())
