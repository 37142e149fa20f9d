"""A sleeping function's cores and devices are free to work that gives way in time, and held against everybody else."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queues import NOW, make_job, small_machine
from steelyard.model.batch import Preemption, PreemptMode
from steelyard.model.gpu_demand import GpuDemand
from steelyard.model.job import NO_SHARE, Job, JobState, Plan, Resources
from steelyard.model.reason import Reason
from steelyard.model.timing import Timing
from steelyard.placement.room import Room
from steelyard.scheduling.decide import decide
from steelyard.scheduling.preemption import choose_victims
from steelyard.scheduling.seat import fill_room, find_seat, see_room
from steelyard.scheduling.snapshot import Decision, Holding, Snapshot

MACHINE = small_machine(cores_per_node=2, gpus=1)
GPU = MACHINE.topology.gpus[0].id if MACHINE.topology else ""
ON_GPU = Resources(cpus=NO_SHARE, gpus=GpuDemand())
WANTS_GPU = Resources(1.0, gpus=GpuDemand(), preemptible=True)
SOON = Preemption(grace_s=2.0)


def on_gpu(lent_s: float | None = 2.0) -> Holding:
    return Holding(ON_GPU, Plan(share=NO_SHARE, gpus=(GPU,)), lent_s=lent_s)


def on_cores(lent_s: float | None = 2.0, memory_bytes: int | None = None) -> Holding:
    demand = Resources(3.0, memory_bytes, timing=Timing.DEDICATED)
    return Holding(demand, Plan(cpus=(1, 2, 3), share=3.0, memory_bytes=memory_bytes), lent_s=lent_s)


def run(job: Job, *holding: Holding) -> Decision:
    return decide(Snapshot((MACHINE,), (job,), holding), NOW, {}, choose_victims)


def starts(job: Job, *holding: Holding) -> bool:
    return bool(run(job, *holding).starts)


def test_only_what_gives_way_starts_on_a_gpu_that_is_lent() -> None:
    assert starts(make_job("a", resources=WANTS_GPU, preemption=SOON), on_gpu())
    assert not starts(make_job("a", resources=WANTS_GPU, preemption=SOON), on_gpu(lent_s=None)), "the function is awake"
    firm = msgspec.structs.replace(WANTS_GPU, preemptible=False)
    assert not starts(make_job("a", resources=firm, preemption=SOON), on_gpu())


@pytest.mark.parametrize(
    "preemption",
    [Preemption(grace_s=2.5), Preemption(PreemptMode.SUSPEND, grace_s=1.0), Preemption(grace_s=1.0, min_runtime_s=60.0)],
)
def test_what_may_hold_the_gpu_for_longer_than_the_bound_waits_and_is_told_why(preemption: Preemption) -> None:
    [why] = run(make_job("a", resources=WANTS_GPU, preemption=preemption), on_gpu()).waits
    assert why.reason is Reason.NO_GPUS_LEFT
    assert "--preempt-grace 2s" in why.detail and "sleeping function lends" in why.detail


def test_nothing_is_told_of_lent_gpus_to_what_they_would_not_help() -> None:
    [why] = run(make_job("a", resources=WANTS_GPU, preemption=SOON), on_gpu(None)).waits
    assert "lends" not in why.detail
    [why] = run(make_job("a", resources=msgspec.structs.replace(WANTS_GPU, preemptible=False)), on_gpu()).waits
    assert "lends" not in why.detail


def test_lent_cores_are_shared_by_what_gives_way_however_long_it_takes_to_end() -> None:
    soft, firm = Resources(4.0, preemptible=True), Resources(4.0)
    assert starts(make_job("a", resources=soft, preemption=Preemption(PreemptMode.SUSPEND, grace_s=900.0)), on_cores())
    assert not starts(make_job("a", resources=soft), on_cores(lent_s=None))
    assert not starts(make_job("a", resources=firm), on_cores())


def test_memory_is_not_lent() -> None:
    half = MACHINE.memory_bytes // 2
    soft = Resources(4.0, half, preemptible=True)
    assert starts(make_job("a", resources=soft), on_cores(memory_bytes=half))
    assert not starts(make_job("a", resources=soft), on_cores(memory_bytes=half + 1))


def test_a_lent_gpu_is_lent_once() -> None:
    jobs = tuple(make_job(name, resources=WANTS_GPU, preemption=SOON, submitted=at) for at, name in enumerate("ab"))
    decision = decide(Snapshot((MACHINE,), jobs, (on_gpu(),)), NOW, {}, choose_victims)
    assert [job for job, _ in decision.starts] == ["a"]


def test_nobody_is_ended_in_vain_for_a_gpu_that_would_still_be_the_functions() -> None:
    guest = make_job("guest", resources=WANTS_GPU, preemption=SOON, state=JobState.RUNNING, started_at=NOW - 10)
    plan = Plan(share=1.0, gpus=(GPU,))
    held = Holding(guest.spec.demand, plan, msgspec.structs.replace(guest, plan=plan))
    firm = make_job("firm", resources=msgspec.structs.replace(WANTS_GPU, preemptible=False), priority=90)
    assert run(firm, on_gpu(), held).preempts == ()
    higher = make_job("higher", resources=WANTS_GPU, preemption=SOON, priority=90)
    assert run(higher, on_gpu(), held).preempts == (("guest", "higher"),)


def test_no_more_have_to_end_than_it_takes_with_the_lent_cores() -> None:
    guests: list[Holding] = []
    for name in ("a", "b", "c"):
        job = make_job(name, resources=Resources(1.0, preemptible=True), state=JobState.RUNNING, started_at=NOW - 10)
        guests.append(Holding(job.spec.demand, Plan(share=1.0, preemptible=True), job))
    higher = make_job("higher", resources=Resources(2.0, preemptible=True), priority=90)
    assert len(run(higher, on_cores(), *guests).preempts) == 1


def test_what_was_placed_while_it_was_lent_is_found_out_once_the_function_has_woken() -> None:
    job = make_job("a", resources=WANTS_GPU, preemption=SOON)
    plan = find_seat(job, fill_room(Room(MACHINE), [on_gpu()]))
    assert isinstance(plan, Plan) and plan.preemptible
    awake = fill_room(Room(MACHINE), [on_gpu(lent_s=None)])
    assert see_room(job.spec, awake).check(job.spec.demand, plan) == (f"GPU {GPU} is not free",)


@given(st.lists(st.tuples(st.sampled_from(["share", "gpu", "memory"]), st.booleans()), max_size=8))
def test_the_room_that_lends_is_seen_the_same_whether_it_is_looked_at_early_or_late(steps: list[tuple[str, bool]]) -> None:
    what = {
        "share": (Resources(0.5), Plan(share=0.5)),
        "gpu": (ON_GPU, Plan(share=NO_SHARE, gpus=(GPU,))),
        "memory": (Resources(0.1, 1 << 30), Plan(share=0.1, memory_bytes=1 << 30)),
    }
    early, late = (fill_room(Room(MACHINE), [on_gpu(), on_cores(1.0, 1 << 30)]) for _ in range(2))
    views = [early.seen_by(gone_s) for gone_s in (None, 1.0, 2.0)]
    taken: list[str] = []
    for name, back in steps:
        if back and name in taken:
            taken.remove(name)
            for room in (early, late):
                room.release(*what[name])
        else:
            taken.append(name)
            for room in (early, late):
                room.take(*what[name])
    for view, gone_s in zip(views, (None, 1.0, 2.0), strict=True):
        fresh = late.copy().seen_by(gone_s)
        for demand, plan in (*what.values(), (Resources(4.0), Plan(share=4.0))):
            assert view.check(demand, plan) == fresh.check(demand, plan)
            assert view.fits_quickly(demand) == fresh.fits_quickly(demand)
