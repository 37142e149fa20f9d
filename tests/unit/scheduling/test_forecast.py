"""Estimated starts: the real decision run forward, so what is told is what happens when everything takes all of its time."""

from __future__ import annotations

from functools import partial

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from queues import NOW, Busy, hours, make_job, small_machine
from steelyard.model.batch import Dependency, DependencyKind, Preemption, PreemptMode
from steelyard.model.ids import JobId
from steelyard.model.job import JobState, Resources
from steelyard.scheduling.decide import decide
from steelyard.scheduling.forecast import forecast_starts
from steelyard.scheduling.preemption import choose_victims
from steelyard.scheduling.snapshot import Holding, Snapshot, Standing

DECIDE = partial(decide, ranks={}, victims=choose_victims)
HOUR = hours(1)


def forecast(snapshot: Snapshot, limit: int = 100) -> dict[str, float | None]:
    """Hours from now."""
    found = forecast_starts(snapshot, NOW, DECIDE, limit)
    return {job: None if at is None else (at - NOW) / HOUR for job, at in found.items()}


def test_each_starts_when_those_before_it_have_had_their_time() -> None:
    busy = Busy(small_machine())
    busy.run(make_job("old", 8, hours=3), since=NOW - HOUR)
    queued = (make_job("a", 8, hours=1), make_job("b", 4, hours=2), make_job("c", 8, hours=1), make_job("d", 4, hours=5))
    assert forecast(Snapshot((busy.machine,), queued, tuple(busy.holding))) == {"a": 2, "b": 3, "c": 5, "d": 6}


def test_a_backfilled_job_is_told_to_start_before_the_one_ahead_of_it() -> None:
    busy = Busy(small_machine())
    busy.run(make_job("old", 4, hours=2))
    queued = (make_job("large", 8, hours=1), make_job("short", 4, hours=1), make_job("long", 4, hours=9))
    assert forecast(Snapshot((busy.machine,), queued, tuple(busy.holding))) == {"large": 2, "short": 0, "long": 3}


def test_nobody_knows_when_work_without_a_limit_ends() -> None:
    busy = Busy(small_machine())
    busy.run(make_job("endless", 4))
    queued = (make_job("fits", 4, hours=1), make_job("waits", 8, hours=1), make_job("next", 4))
    assert forecast(Snapshot((busy.machine,), queued, tuple(busy.holding))) == {"fits": 0, "waits": None, "next": None}


def test_dependencies_begins_and_holds_count() -> None:
    later = make_job("later", not_before=NOW + 5 * HOUR, hours=1)
    after = make_job("after", after=(Dependency(JobId("first")),), hours=1)
    failed = make_job("failed", after=(Dependency(JobId("first"), DependencyKind.NOT_OK),))
    started = make_job("started", after=(Dependency(JobId("after"), DependencyKind.STARTED),))
    held = make_job("held", held=True)
    waits = {each: Standing.WAITS for job in (after, failed, started) for each in job.spec.after}
    snapshot = Snapshot((small_machine(),), (make_job("first", hours=2), later, after, failed, started, held), standings=waits)
    told = {"first": 0, "later": 5, "after": 2, "failed": None, "started": 2, "held": None}
    assert forecast(snapshot) == told


def test_what_is_preempted_comes_back_when_there_is_room() -> None:
    busy = Busy(small_machine())
    soft = Resources(8, preemptible=True)
    busy.run(make_job("soft", resources=soft, hours=2, preemption=Preemption(grace_s=36.0)))
    queued = (make_job("firm", 8, hours=1, priority=60),)
    assert forecast(Snapshot((busy.machine,), queued, tuple(busy.holding))) == {"firm": 0.01}
    busy.change(busy.holding[0].job or queued[0], spec=make_job("soft", resources=soft, preemption=_FREEZE).spec)
    assert forecast(Snapshot((busy.machine,), queued, tuple(busy.holding))) == {"firm": 0}


_FREEZE = Preemption(PreemptMode.SUSPEND)


def test_a_minimum_runtime_is_waited_for() -> None:
    busy = Busy(small_machine())
    busy.run(make_job("soft", resources=Resources(8, preemptible=True), preemption=Preemption(grace_s=0, min_runtime_s=7200)))
    assert forecast(Snapshot((busy.machine,), (make_job("firm", 8, priority=60),), tuple(busy.holding))) == {"firm": 2}


def test_only_the_first_of_a_long_queue_are_looked_at() -> None:
    queued = tuple(make_job(f"q{at:04d}", 8, hours=1, submitted=at) for at in range(2000))
    assert list(forecast(Snapshot((small_machine(),), queued), limit=5).items()) == [(f"q{at:04d}", at) for at in range(5)]


@settings(max_examples=60)
@given(st.data())
def test_what_is_told_comes_true_when_everything_takes_all_of_its_time(data: st.DataObject) -> None:
    """Against a plain clock that ticks every quarter of an hour."""
    shapes = st.tuples(st.sampled_from([1, 3, 4, 8]), st.sampled_from([0.25, 1, 2.5]), st.sampled_from([50, 60]))
    queued = [
        make_job(f"q{at}", cpus, hours=length, priority=priority, submitted=at)
        for at, (cpus, length, priority) in enumerate(data.draw(st.lists(shapes, min_size=1, max_size=8)))
    ]
    machine = small_machine()
    told = forecast(Snapshot((machine,), tuple(queued)))
    waiting, running, began = list(queued), list[Holding](), dict[str, float]()
    for tick in range(200):
        now = NOW + tick * HOUR // 4
        running = [held for held in running if (held.ends_by or 0) > now]
        for name, plan in DECIDE(Snapshot((machine,), tuple(waiting), tuple(running)), now).starts:
            job = next(each for each in waiting if each.id == name)
            waiting.remove(job)
            running.append(
                Holding(job.spec.demand, plan, msgspec.structs.replace(job, state=JobState.RUNNING, started_at=now, plan=plan))
            )
            began[name] = tick / 4
    assert told == began
