"""Why a job waits, and what would start it: nothing is told that does not come true."""

from __future__ import annotations

from functools import partial

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from queues import NOW, SECOND, Busy, hours, make_job, small_machine
from steelyard.model.batch import ArrayPlace, Dependency, Gang, Preemption
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobState, Owner, Plan, Resources
from steelyard.model.reason import Reason
from steelyard.model.site import Quota
from steelyard.model.timing import Timing
from steelyard.placement.gang import place_spec
from steelyard.placement.room import Room
from steelyard.scheduling.change import Change, ChangeKind, apply_change
from steelyard.scheduling.decide import decide
from steelyard.scheduling.preemption import choose_victims
from steelyard.scheduling.snapshot import Holding, Snapshot, Standing
from steelyard.scheduling.what_if import format_duration
from steelyard.scheduling.why import Explanation, explain

DECIDE = partial(decide, ranks={}, victims=choose_victims)
HOUR = hours(1)


def ask(busy: Busy, *queued: Job, job: int = -1, **fields: object) -> Explanation:
    snapshot = msgspec.structs.replace(Snapshot((busy.machine,), queued, tuple(busy.holding)), **fields)
    explanation = explain(snapshot, queued[job], NOW, DECIDE)
    for change in explanation.changes:
        assert starts(snapshot, change), change.text
    return explanation


def starts(snapshot: Snapshot, change: Change) -> bool:
    decision = DECIDE(apply_change(snapshot, change), NOW)
    preempts = tuple(victim for victim, winner in decision.preempts if winner == change.job.id)
    begun = change.job.id in (*(job for job, _ in decision.starts), *decision.resumes)
    assert change.proven and preempts == change.preempts
    return begun or bool(preempts)


def texts(explanation: Explanation) -> dict[str, str]:
    return {change.kind.value: change.text for change in explanation.changes}


def test_seven_gpus_instead_of_eight() -> None:
    busy = Busy(small_machine(gpus=8))
    busy.run(make_job("other", resources=Resources(0.5, gpus=GpuDemand(count=1)), hours=2))
    told = ask(busy, make_job("mine", resources=Resources(1, gpus=GpuDemand(count=8))))
    assert texts(told) == {
        "gpus": "7 GPUs instead of 8",
        "wait": "wait for other to end, at {at} at the latest",
        "stop": "stop other",
    }
    assert [change.kind for change in told.changes] == ["gpus", "wait", "stop"], "the smallest first"
    assert (told.position, told.estimated_start, told.starts_now) == (1, NOW + 2 * HOUR, False)
    assert [(block.reason, block.node) for block in told.blocking] == [(Reason.NO_GPUS_LEFT, "h")]
    assert next(change.at for change in told.changes if change.kind is ChangeKind.WAIT) == NOW + 2 * HOUR


def test_every_reason_is_named() -> None:
    busy = Busy(small_machine())
    busy.run(make_job("other", 7, memory_gib=120))
    after = Dependency(JobId("first"))
    mine = make_job("mine", 4, memory_gib=64, held=True, begin_at=NOW + HOUR, not_before=NOW + HOUR, after=(after,))
    quota = Quota(DEFAULT_PROJECT, Owner("root", 0), 1, cores=8)
    told = ask(busy, mine, standings={after: Standing.WAITS}, quotas=(quota,))
    assert [block.reason for block in told.blocking] == [
        Reason.HELD,
        Reason.BEGINS_LATER,
        Reason.DEPENDENCY,
        Reason.QUOTA,
        Reason.NO_CORES_LEFT,
        Reason.NO_MEMORY_LEFT,
    ]
    assert told.position is None and "of memory asked" in told.blocking[-1].detail and "cores" not in told.blocking[-1].detail
    stop = next(change for change in told.changes if change.kind is ChangeKind.STOP)
    assert (
        stop.text == ("release it (`steelyard release mine`), and wait for first, and wait until {at}, and stop other")
        and stop.at == NOW + HOUR
    )


def test_what_only_has_to_be_let_go_is_told_nothing_else() -> None:
    told = ask(Busy(small_machine()), make_job("mine", 4, held=True))
    assert texts(told) == {"release": "release it (`steelyard release mine`)"}


def test_a_priority_above_those_before_it() -> None:
    busy = Busy(small_machine())
    told = ask(busy, make_job("a", 6, priority=60), make_job("b", 2, priority=55), make_job("mine", 2, priority=50))
    assert texts(told)["priority"] == "raise its priority above 55"
    busy.run(make_job("soft", priority=70, resources=Resources(8, preemptible=True)))
    alone = ask(busy, make_job("mine", 2, priority=50))
    assert texts(alone)["priority"] == "raise its priority above 69: then soft gives way to it"
    assert next(change.preempts for change in alone.changes if change.kind is ChangeKind.PRIORITY) == ("soft",)


def test_a_limit_short_enough_to_be_backfilled() -> None:
    busy = Busy(small_machine())
    busy.run(make_job("other", 6, hours=1.5))
    told = ask(busy, make_job("large", 8, hours=1), make_job("mine", 2))
    change = next(change for change in told.changes if change.kind is ChangeKind.MAX_DURATION)
    assert change.text == "--max-duration 1h30m: then it is over before large starts"
    longer = msgspec.structs.replace(change.job, spec=msgspec.structs.replace(change.job.spec, max_duration_s=5401.0))
    assert ask(busy, make_job("large", 8, hours=1), longer).starts_now is False
    assert ask(busy, make_job("large", 8, hours=1), change.job).starts_now


def test_smaller_demands_of_every_kind() -> None:
    busy = Busy(small_machine())
    busy.run(make_job("other", resources=Resources(5, 100 << 30, exclusive=True, nics=1, gpus=GpuDemand(count=2))))
    shapes = {
        "cores": (Resources(4), "3 cores instead of 4"),
        "memory": (Resources(1, 64 << 30), "28 GiB of memory instead of 64 GiB"),
        "nics": (Resources(1, nics=2), "1 network card instead of 2"),
        "shared-cores": (Resources(3, exclusive=True), "shared cores instead of whole ones"),
        "gpu-model": (
            Resources(1, gpus=GpuDemand("A100", 2)),
            "GPUs of model NVIDIA H100 80GB HBM3 instead of A100",
        ),
    }
    for kind, (demand, text) in shapes.items():
        assert texts(ask(busy, make_job("mine", resources=demand)))[kind] == text
    told = ask(busy, make_job("mine", resources=Resources(2.5, timing=Timing.DEDICATED)))
    assert texts(told)["shared-cores"] == "best-effort timing on shared cores instead of dedicated"
    gang = ask(busy, make_job("mine", 1, gang=Gang(tasks_per_node=4)))
    assert texts(gang)["ranks"] == "3 ranks on one node instead of 4"
    nodes = ask(Busy(small_machine()), make_job("mine", 1, gang=Gang(nodes=2, tasks_per_node=4)))
    assert texts(nodes)["ranks"] == "4 ranks on one node instead of 8"


def test_quotas_and_array_limits_are_raised_by_as_little_as_will_do() -> None:
    busy = Busy(small_machine())
    busy.run(make_job("other", 3))
    quota = Quota(DEFAULT_PROJECT, Owner("root", 0), 1, cores=4, gpus=9, running_jobs=1)
    told = ask(busy, make_job("mine", 3), quotas=(quota,))
    assert texts(told)["quota"] == "raise the quota of project default to 6 cores and 2 running jobs"
    places = [ArrayPlace(JobId("a"), at, 4, 0, 3, at_once=1) for at in range(4)]
    array = [make_job(f"a{at}", 1, array=place, submitted=at) for at, place in enumerate(places)]
    told = ask(Busy(small_machine()), *array)
    assert texts(told)["array-limit"] == "let 4 elements of its array run at a time instead of 1"


def test_the_fewest_and_first_ends_are_named() -> None:
    busy = Busy(small_machine())
    for name, cpus, length in (("a", 1, 1), ("b", 4, 2), ("c", 1, 3), ("d", 2, 4)):
        busy.run(make_job(name, cpus, hours=length))
    told = {change.kind: change for change in ask(busy, make_job("mine", 4)).changes}
    assert (told[ChangeKind.WAIT].ended, told[ChangeKind.WAIT].at) == (("b",), NOW + 2 * HOUR)
    assert told[ChangeKind.STOP].ended == ("b",)


def test_a_preemptible_job_that_could_preempt() -> None:
    busy = Busy(small_machine())
    busy.run(make_job("soft", resources=Resources(8, preemptible=True)))
    told = ask(busy, make_job("mine", resources=Resources(2, preemptible=True)))
    assert texts(told)["preemptible"] == "without --preemptible: then soft may have to give way to it"


def test_suspended_jobs_are_told_what_they_wait_for() -> None:
    busy = Busy(small_machine())
    mine = busy.run(make_job("mine", resources=Resources(8, preemptible=True)))
    frozen = msgspec.structs.replace(mine, state=JobState.SUSPENDED, suspended_at=NOW)
    busy.change(mine, state=JobState.SUSPENDED, suspended_at=NOW)
    other = msgspec.structs.replace(make_job("other", 4, hours=1), state=JobState.RUNNING, started_at=NOW, plan=Plan(share=4.0))
    busy.holding.append(Holding(other.spec.demand, Plan(share=4.0), other))
    snapshot = Snapshot((busy.machine,), (), tuple(busy.holding))
    told = explain(snapshot, frozen, NOW, DECIDE)
    assert [block.reason for block in told.blocking] == [Reason.SUSPENDED] and told.estimated_start == NOW + HOUR
    assert texts(told) == {"wait": "wait for other to end, at {at} at the latest", "stop": "stop other"}


def test_nothing_helps_without_a_machine() -> None:
    told = explain(Snapshot((), (make_job("mine"),)), make_job("mine"), NOW, DECIDE)
    assert [block.reason for block in told.blocking] == [Reason.NO_MACHINE] and not told.changes


def test_durations_are_said_as_the_command_line_takes_them() -> None:
    assert [format_duration(seconds) for seconds in (1, 60, 3600, 5400, 90061)] == ["1s", "1m", "1h", "1h30m", "25h1m1s"]


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    machine = small_machine(gpus=draw(st.sampled_from([2, 4])))
    gpus = st.sampled_from([None, None, GpuDemand(count=1), GpuDemand(count=3), GpuDemand(fraction=0.5), GpuDemand("A100")])

    def job(name: str) -> Job:
        demand = Resources(
            cpus=draw(st.sampled_from([0.5, 1, 3, 6])),
            memory_bytes=draw(st.sampled_from([None, 1 << 30, 60 << 30])),
            exclusive=draw(st.booleans()),
            preemptible=draw(st.booleans()),
            gpus=draw(gpus),
        )
        return make_job(
            name,
            resources=demand,
            hours=draw(st.sampled_from([None, 1, 3])),
            priority=draw(st.sampled_from([40, 50, 60])),
            submitted=len(name),
            gang=draw(st.sampled_from([None, None, None, Gang(tasks_per_node=2)])),
            held=draw(st.sampled_from([False, False, False, True])),
            not_before=draw(st.sampled_from([None, None, None, NOW + HOUR])),
            preemption=Preemption(min_runtime_s=draw(st.sampled_from([0, 3600]))),
        )

    holding: list[Holding] = []
    room = Room(machine)
    for at in range(draw(st.integers(0, 5))):
        running = job(f"r{at}")
        plan = place_spec(room, running.spec)
        if isinstance(plan, Plan):
            room.take(running.spec.demand, plan)
            since = NOW - draw(st.integers(0, 2 * 3600)) * SECOND // 2
            running = msgspec.structs.replace(running, state=JobState.RUNNING, plan=plan, started_at=since)
            holding.append(Holding(running.spec.demand, plan, running))
    queued = tuple(job("q" * (at + 1)) for at in range(draw(st.integers(1, 5))))
    cores = draw(st.sampled_from([None, None, 4.0]))
    quotas = () if cores is None else (Quota(DEFAULT_PROJECT, Owner("root", 0), 1, cores=cores, running_jobs=3),)
    return Snapshot((machine,), queued, tuple(holding), quotas=quotas)


@settings(max_examples=100)
@given(snapshots())
def test_every_change_that_is_told_starts_the_job(snapshot: Snapshot) -> None:
    decision = DECIDE(snapshot, NOW)
    begun = {job for job, _ in decision.starts} | {winner for _, winner in decision.preempts}
    for job in snapshot.queued:
        told = explain(snapshot, job, NOW, DECIDE)
        assert told.starts_now is (job.id in begun)
        assert told.starts_now or told.blocking
        assert len(told.changes) <= 8 and [change.size for change in told.changes] == sorted(each.size for each in told.changes)
        for change in told.changes:
            assert starts(snapshot, change), change.text
            if change.kind is ChangeKind.PRIORITY and change.job.priority > job.priority + 1:
                less = msgspec.structs.replace(change.job, priority=change.job.priority - 1)
                assert not told_to_start(snapshot, msgspec.structs.replace(change, job=less))


def told_to_start(snapshot: Snapshot, change: Change) -> bool:
    decision = DECIDE(apply_change(snapshot, change), NOW)
    return any(job == change.job.id for job, _ in decision.starts) or any(job == change.job.id for _, job in decision.preempts)
