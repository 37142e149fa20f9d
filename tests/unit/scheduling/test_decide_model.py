"""A machine's life under `decide`, against rules that are checked in the plainest way: everything booked anew for each question.

Jobs come, run, end early or at their limit, get frozen and thawed; after each event the queue is decided. What must hold then:
nothing is given twice, quotas and array limits are kept, a gang starts whole, no job passes one of higher order that fits as
well, nobody who could start without harm is left waiting, and a reserved start never moves later.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from queues import NOW, SECOND, make_job, small_machine
from steelyard.model.batch import ArrayPlace, Gang, Launcher
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.ids import JobId, ProjectName
from steelyard.model.job import Job, JobState, Owner, Plan, Resources
from steelyard.model.reason import Reason
from steelyard.model.site import Quota
from steelyard.placement.gang import place_spec
from steelyard.placement.room import Room
from steelyard.scheduling.decide import decide
from steelyard.scheduling.snapshot import Decision, Holding, Snapshot

MACHINE = small_machine()
RANKS = {"a": 1.0, "b": 2.0}
GIB = 1 << 30
QUOTA = Quota(ProjectName("p"), Owner("admin", 0), 1, cores=6.0, gpus=2.0, running_jobs=3)

demands = st.builds(
    Resources,
    cpus=st.sampled_from([0.5, 1.0, 2.0, 3.0, 6.0]),
    memory_bytes=st.none() | st.sampled_from([8 * GIB, 60 * GIB]),
    exclusive=st.sampled_from([False, False, True]),
    gpus=st.none() | st.none() | st.sampled_from(["1", "2", "4", "0.5"]).map(parse_gpu_demand),
)
gangs = st.none() | st.none() | st.builds(Gang, st.just(1), st.integers(1, 3), st.sampled_from(Launcher))
jobs = st.fixed_dictionaries(
    {
        "resources": demands,
        "gang": gangs,
        "hours": st.none() | st.sampled_from([0.5, 1.0, 1.0, 2.0, 5.0]),
        "priority": st.sampled_from([50, 50, 60]),
        "user": st.sampled_from(["a", "b"]),
        "project": st.sampled_from(["default", "default", "p"]),
    }
)


def book(holding: Iterable[Holding]) -> Room:
    room = Room(MACHINE)
    for held in holding:
        room.take(held.demand, held.plan, held.suspended)
    return room


def fits(job: Job, holding: Iterable[Holding]) -> bool:
    room = book(holding)
    if job.state is JobState.SUSPENDED and job.plan is not None:
        room.release(job.spec.demand, job.plan, suspended=True)
        return room.check(job.spec.demand, job.plan) == ()
    return isinstance(place_spec(room, job.spec), Plan)


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.queued: list[Job] = []
        self.holding: list[Holding] = []
        self.number = 0
        #: job -> the earliest time that was promised, and how many jobs had been submitted then
        self.promised: dict[str, tuple[int, int]] = {}
        self.last: Decision | None = None

    @initialize(wanted=st.lists(jobs, min_size=1, max_size=8))
    def begin(self, wanted: list[dict[str, object]]) -> None:
        for each in wanted:
            self._submit(each)
        self._look()

    @rule(each=jobs)
    def submit(self, each: dict[str, object]) -> None:
        self._submit(each)
        self._look()

    @rule(each=jobs, count=st.integers(2, 4), at_once=st.integers(1, 2))
    def submit_array(self, each: dict[str, object], count: int, at_once: int) -> None:
        array = JobId(f"arr{self.number}")
        for index in range(count):
            self._submit({**each, "array": ArrayPlace(array, index, count, 0, count - 1, at_once=at_once)})
        self._look()

    @rule(early=st.booleans(), which=st.integers(0, 20))
    def pass_time(self, early: bool, which: int) -> None:
        """To the next end, or the end of one that needed less time than it might have taken."""
        running = [held for held in self.holding if not held.suspended]
        if early and running:
            self.now += SECOND
            gone = running[which % len(running)]
            self.holding = [held for held in self.holding if held is not gone]
        ends = [held.ends_by for held in running if held.ends_by is not None]
        if not early and ends:
            self.now = max(self.now, min(ends))
        self.holding = [held for held in self.holding if not self._ended(held, self.now)]
        self._look()

    @rule(which=st.integers(0, 20))
    def freeze(self, which: int) -> None:
        """As preemption would; what was promised before counted on its end."""
        able = [held for held in self.holding if not held.suspended and not held.plan.gpus]
        if able:
            held = able[which % len(able)]
            assert held.job is not None
            frozen = msgspec.structs.replace(held.job, state=JobState.SUSPENDED, suspended_at=self.now)
            self.holding = [Holding(held.demand, held.plan, frozen) if each is held else each for each in self.holding]
            self.promised.clear()
            self._look()

    def _submit(self, each: dict[str, object]) -> None:
        self.number += 1
        self.queued.append(make_job(f"j{self.number:03d}", submitted=self.number, **each))  # type: ignore[arg-type]

    def _look(self) -> None:
        snapshot = Snapshot((MACHINE,), tuple(self.queued), tuple(self.holding), quotas=(QUOTA,))
        decision = decide(snapshot, self.now, RANKS)
        assert decision == decide(snapshot, self.now, RANKS)
        self._check_order(snapshot, decision)
        self._check_promise(decision)
        before = list(self.holding)
        self._carry_out(decision)
        self._check_reservation(decision, before)
        self._check_nobody_passed(decision, before)

    def _carry_out(self, decision: Decision) -> None:
        by_id = {job.id: job for job in self.queued}
        for held in list(self.holding):
            if held.job is not None and held.job.id in decision.resumes:
                since = held.job.suspended_s + (self.now - (held.job.suspended_at or 0)) / 1e6
                job = msgspec.structs.replace(held.job, state=JobState.RUNNING, suspended_s=since, suspended_at=None)
                rest = [each for each in self.holding if each is not held]
                assert book(rest).check(held.demand, held.plan) == ()
                self.holding = [*rest, Holding(held.demand, held.plan, job)]
        for name, plan in decision.starts:
            job = by_id[name]
            assert book(self.holding).check(job.spec.demand, plan) == (), "granted never exceeds what there is"
            gang = job.spec.gang
            split = gang is not None and gang.launcher is Launcher.NONE
            assert len(plan.tasks) == (gang.world_size if gang is not None and split else 0)
            running = msgspec.structs.replace(job, state=JobState.RUNNING, plan=plan, started_at=self.now)
            self.holding.append(Holding(job.spec.demand, plan, running))
        gone = {*(name for name, _ in decision.starts), *(why.job for why in decision.never)}
        self.queued = [job for job in self.queued if job.id not in gone]

    def _check_order(self, snapshot: Snapshot, decision: Decision) -> None:
        frozen = [held.job for held in snapshot.holding if held.job is not None and held.suspended]
        competing = [*snapshot.queued, *frozen]
        competing.sort(key=lambda job: (-job.priority, RANKS[job.account], job.submitted_at))
        assert list(decision.order) == [job.id for job in competing]
        told = [*(job for job, _ in decision.starts), *decision.resumes, *(why.job for why in (*decision.waits, *decision.never))]
        assert sorted(told) == sorted(decision.order), "everybody gets exactly one answer"

    def _check_promise(self, decision: Decision) -> None:
        """A reserved start never moves later, but for jobs of higher order that came, or were let go by a quota, since."""
        place = {job: at for at, job in enumerate(decision.order)}
        reserved = decision.reservation
        for job, (at, submitted) in list(self.promised.items()):
            newer = [each for each in decision.order if each.startswith("j") and int(each[1:]) > submitted]
            if job not in place or any(place[each] < place[JobId(job)] for each in newer):
                del self.promised[job]
            elif job in {name for name, _ in decision.starts} or job in decision.resumes:
                assert self.now <= at
                del self.promised[job]
            else:
                assert self.now < at, "its time has come and it did not start"
                assert reserved is not None and (reserved.job != job or (reserved.at is not None and reserved.at <= at))
        waits = {why.job: why.reason for why in decision.waits}
        if reserved is not None and reserved.at is not None:
            first = place[reserved.job]
            limited = any(waits.get(each) in (Reason.QUOTA, Reason.ARRAY_LIMIT) for each in decision.order[:first])
            if not limited:
                known = self.promised.get(reserved.job, (reserved.at, 0))[0]
                self.promised[reserved.job] = (min(known, reserved.at), self.number)

    def _check_reservation(self, decision: Decision, before: list[Holding]) -> None:
        """At its time, after all starts of this decision, the place is free; and no earlier time would have done when it was its
        turn."""
        reserved = decision.reservation
        if reserved is None:
            return
        job = self._find(reserved.job)
        others = [held for held in self.holding if held.job is not None and held.job.id != reserved.job]
        if reserved.at is not None:
            room = book(held for held in others if not self._ended(held, reserved.at))
            assert room.check(job.spec.demand, reserved.plan) == (), "nothing that starts may delay the reserved job"
        place = {name: at for at, name in enumerate(decision.order)}
        behind = {*(name for name, _ in decision.starts), *decision.resumes} - set(decision.order[: place[reserved.job]])
        turn = [held for held in others if held.job is not None and held.job.id not in behind]
        turn += [held for held in before if held.job is not None and held.job.id in behind]
        ends = sorted({self.now, *(held.ends_by for held in turn if held.ends_by is not None and not held.suspended)})
        if job.state is JobState.QUEUED:
            first = next((at for at in ends if fits(job, [held for held in turn if not self._ended(held, at)])), None)
            assert reserved.at == first

    @staticmethod
    def _ended(held: Holding, at: int) -> bool:
        return not held.suspended and held.ends_by is not None and held.ends_by <= at

    def _check_nobody_passed(self, decision: Decision, before: list[Holding]) -> None:
        """Whoever waits for want of room, before the reserved job or without any, did not fit when it was its turn; whoever waits
        behind it would not fit, or not end in time."""
        reserved, waits = decision.reservation, {why.job: why.reason for why in decision.waits}
        seated = {held.job.id: held for held in self.holding if held.job is not None}
        old = {held.job.id: held for held in before if held.job is not None}
        holding, behind = dict(old), False
        for name in decision.order:
            if name in seated and (name not in old or name in decision.resumes):
                holding[name] = seated[name]
            elif name in waits and waits[name] not in (Reason.QUOTA, Reason.ARRAY_LIMIT):
                job = self._find(name)
                if not behind:
                    assert not fits(job, holding.values()), f"{name} fits and waits"
                elif job.spec.max_duration_s is not None and job.state is JobState.QUEUED and reserved is not None:
                    end = self.now + round(job.spec.max_duration_s * 1e6)
                    if reserved.at is None or end <= reserved.at:
                        assert not fits(job, holding.values()), f"{name} fits, ends in time and waits"
                behind = behind or (reserved is not None and reserved.job == name)

    def _find(self, name: str) -> Job:
        held = [held.job for held in self.holding if held.job is not None]
        return next(job for job in (*self.queued, *held) if job.id == name)

    @invariant()
    def nothing_is_given_twice(self) -> None:
        room = Room(MACHINE)
        for held in sorted(self.holding, key=lambda held: held.suspended):
            if not held.suspended:
                assert room.check(held.demand, held.plan) == ()
            room.take(held.demand, held.plan, held.suspended)

    @invariant()
    def quotas_and_array_limits_are_kept(self) -> None:
        running = [held for held in self.holding if held.job is not None and held.job.project == "p" and not held.suspended]
        assert len(running) <= 3
        assert sum(held.demand.cpus for held in running) <= 6
        assert sum(len(held.plan.gpus) * held.plan.gpu_fraction for held in running) <= 2
        begun: dict[JobId, int] = {}
        for held in self.holding:
            if held.job is not None and held.job.array is not None:
                begun[held.job.array.id] = begun.get(held.job.array.id, 0) + 1
                assert begun[held.job.array.id] <= (held.job.array.at_once or 99)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=20)
