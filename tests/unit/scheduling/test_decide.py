"""What starts now, what waits and why: the cases that a reader would ask about."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from queues import NOW, Busy, hours, make_job, small_machine
from steelyard.model.batch import ArrayPlace, Gang, Preemption, PreemptMode
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.ids import JobId, ProjectName
from steelyard.model.job import Job, JobState, Owner, Plan, Resources
from steelyard.model.reason import Reason
from steelyard.model.site import Quota
from steelyard.model.timing import Timing
from steelyard.placement.room import Room
from steelyard.scheduling import lane as module
from steelyard.scheduling.decide import decide
from steelyard.scheduling.snapshot import Decision, Holding, Snapshot

#: eight cores, four GPUs
MACHINE = small_machine()


def look(busy: Busy | None, *queued: Job, **fields: object) -> Decision:
    holding = tuple(busy.holding) if busy is not None else ()
    victims = fields.pop("victims", module.spare_all)
    snapshot = msgspec.structs.replace(Snapshot((MACHINE,), queued, holding), **fields)
    return decide(snapshot, NOW, {}, victims)  # type: ignore[arg-type]


def started(decision: Decision) -> list[str]:
    return [job for job, _ in decision.starts]


def waits(decision: Decision) -> dict[str, Reason]:
    return {why.job: why.reason for why in decision.waits}


def whole(cores: float) -> Resources:
    return Resources(cores, exclusive=True)


def test_what_fits_starts_together_in_the_order_of_the_queue() -> None:
    decision = look(None, make_job("a", 5), make_job("b", 2, priority=60), make_job("c", 1))
    assert started(decision) == ["b", "a", "c"] and not decision.waits and decision.reservation is None
    assert decision.order == ("b", "a", "c")


def test_the_first_that_does_not_fit_keeps_the_earliest_place_by_the_limits_of_what_runs() -> None:
    busy = Busy(MACHINE)
    busy.run(make_job("r1", 3, hours=1))
    busy.run(make_job("r2", 3, hours=3))
    busy.run(make_job("r3", 1, hours=2), since=NOW - hours(1))
    decision = look(busy, make_job("large", 5))
    assert decision.reservation is not None and decision.reservation.job == "large"
    assert decision.reservation.at == NOW + hours(1), "r1 and r3 end then"
    assert [(why.job, why.reason, why.detail) for why in decision.waits] == [
        ("large", Reason.NO_CORES_LEFT, "5 cores asked, 1 of 8 shared cores free now")
    ]


def test_a_job_behind_it_starts_when_it_ends_before_or_fits_beside() -> None:
    busy = Busy(MACHINE)
    busy.run(make_job("r", 5, hours=1))
    queue = [
        make_job("large", 7),
        make_job("too long", 2, hours=1.01),
        make_job("short", 2, hours=1),
        make_job("beside", 1),
        make_job("no limit", 1),
    ]
    decision = look(busy, *queue)
    assert started(decision) == ["short", "beside"]
    assert waits(decision) == {
        "large": Reason.NO_CORES_LEFT,
        "too long": Reason.RESERVED,
        "no limit": Reason.BEHIND_EARLIER_JOB,
    }


def test_a_long_job_beside_the_reserved_gpus_gets_others() -> None:
    busy = Busy(MACHINE)
    busy.run(make_job("r", hours=1, resources=Resources(1, gpus=parse_gpu_demand("1"))))
    large = make_job("large", resources=Resources(8, gpus=parse_gpu_demand("2")))
    decision = look(busy, large, make_job("long", resources=Resources(0.5, gpus=parse_gpu_demand("2"))), make_job("c", 0.5))
    assert started(decision) == [] and decision.reservation is not None, "8 cores are reserved: nothing fits beside"
    large = make_job("large", resources=Resources(7.5, gpus=parse_gpu_demand("2")))
    decision = look(busy, large, make_job("long", resources=Resources(0.5, gpus=parse_gpu_demand("2"))))
    assert started(decision) == ["long"] and decision.reservation is not None
    assert not set(decision.starts[0][1].gpus) & set(decision.reservation.plan.gpus)


def test_no_limit_of_what_runs_means_no_time_and_any_limit_may_start() -> None:
    busy = Busy(MACHINE)
    busy.run(make_job("endless", 4))
    decision = look(busy, make_job("large", 8), make_job("limited", 1, hours=1000), make_job("unlimited", 1))
    assert started(decision) == ["limited"] and waits(decision)["unlimited"] is Reason.RESERVED
    assert decision.reservation is not None and decision.reservation.at is None and decision.reservation.plan.share == 8


def test_what_has_just_been_started_counts_with_its_limit() -> None:
    busy = Busy(MACHINE)
    job = busy.run(make_job("starting", 8, hours=2))
    busy.change(job, state=JobState.STARTING, started_at=None)
    reservation = look(busy, make_job("next", 8)).reservation
    assert reservation is not None and reservation.at == NOW + hours(2)


def test_a_job_that_can_never_fit_holds_back_nobody() -> None:
    decision = look(None, make_job("huge", 9), make_job("nodes", gang=Gang(2, 1)), make_job("a", 8))
    assert started(decision) == ["a"]
    assert {why.job: why.reason for why in decision.never} == {
        "huge": Reason.CORES_BEYOND_MACHINE,
        "nodes": Reason.GANG_BEYOND_FABRIC,
    }


def test_a_job_that_waits_for_a_sick_device_holds_back_nobody() -> None:
    assert MACHINE.topology is not None
    sick = msgspec.structs.replace(MACHINE, blocked=(MACHINE.topology.gpus[0].id,))
    four = make_job("four", resources=Resources(1, gpus=parse_gpu_demand("4")))
    decision = look(None, four, make_job("a", 8), machines=(sick,))
    assert started(decision) == ["a"] and decision.reservation is None and waits(decision) == {"four": Reason.NO_GPUS_LEFT}


def test_a_job_that_waits_for_a_function_to_go_holds_back_nobody() -> None:
    held = Holding(whole(6), Plan(cpus=tuple(cpu for core in MACHINE.cores[2:] for cpu in core.cpus)))
    decision = look(None, make_job("large", 5), make_job("a", 2), holding=(held,))
    assert started(decision) == ["a"] and decision.reservation is None


def test_a_gang_starts_whole_or_not_at_all() -> None:
    decision = look(None, make_job("gang", 1.5, gang=Gang(1, 4)), make_job("more", 1, gang=Gang(1, 4)), make_job("a", 2))
    assert started(decision) == ["gang", "a"] and len(decision.starts[0][1].tasks) == 4
    assert waits(decision) == {"more": Reason.NO_CORES_LEFT}


def test_of_an_array_only_so_many_start_and_others_pass_by() -> None:
    def element(index: int) -> Job:
        return make_job(f"arr_{index}", 1, array=ArrayPlace(JobId("arr"), index, 4, 0, 3, at_once=2))

    decision = look(None, *(element(at) for at in range(4)), make_job("other", 1))
    assert started(decision) == ["arr_0", "arr_1", "other"]
    assert waits(decision) == {"arr_2": Reason.ARRAY_LIMIT, "arr_3": Reason.ARRAY_LIMIT}


def test_a_project_over_its_quota_holds_back_nobody_else() -> None:
    quotas = (Quota(ProjectName("p"), Owner("admin", 0), 1, cores=2.0),)
    decision = look(None, make_job("p1", 2, project="p"), make_job("p2", 1, project="p"), make_job("d", 6), quotas=quotas)
    assert started(decision) == ["p1", "d"] and waits(decision) == {"p2": Reason.QUOTA} and decision.reservation is None


def test_the_quota_of_the_reserved_job_is_kept_for_it() -> None:
    quotas = (Quota(ProjectName("p"), Owner("admin", 0), 1, cores=8.0),)
    busy = Busy(MACHINE)
    busy.run(make_job("r", 3, hours=2, project="other"))
    decision = look(busy, make_job("large", 7, project="p"), make_job("small", 2, hours=1, project="p"), quotas=quotas)
    assert started(decision) == [] and waits(decision) == {"large": Reason.NO_CORES_LEFT, "small": Reason.QUOTA}


def test_without_a_machine_or_with_one_out_of_use_all_wait() -> None:
    jobs = (make_job("a", 99), make_job("held", held=True))
    assert waits(look(None, *jobs, machines=())) == {"a": Reason.NO_MACHINE, "held": Reason.HELD}
    out = msgspec.structs.replace(MACHINE, blocked=("node",))
    decision = look(None, *jobs, machines=(out,))
    assert waits(decision) == {"a": Reason.NODE_DRAINED, "held": Reason.HELD} and not decision.never


def test_those_behind_are_told_the_same_as_the_queue_moves() -> None:
    decision = look(None, *(make_job(f"j{at}", 8) for at in range(6)))
    assert len({why.detail for why in decision.waits[1:]}) == 1


def test_backfill_ends_after_so_many_vain_looks_and_strict_order_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKFILL_REFUSALS", 2)

    def far(at: int) -> Job:
        """Its memory fits the machine, but must be local: only an exact look tells that it can't be."""
        return make_job(f"far{at}", resources=Resources(1, (100 << 30) + at, timing=Timing.DEDICATED), hours=1)

    assert started(look(None, *(far(at) for at in range(5)), make_job("a", 1))) == ["a"]
    busy = Busy(MACHINE)
    busy.run(make_job("r", 2, hours=1))
    large, small = make_job("large", 8), make_job("small", 1, hours=1)
    assert started(look(busy, large, far(0), small, far(1), make_job("late", 1, hours=1))) == ["small"]
    assert started(look(busy, large, far(0), far(0), small)) == ["small"], "the same question is asked once"


# preemption


def end_lowest(room: Room, holding: Sequence[Holding], job: Job, now: int) -> Sequence[JobId] | None:
    """Preemptible jobs of lower priority, the lowest first, until it fits."""
    room, chosen = room.copy(), list[JobId]()
    candidates = [held.job for held in holding if held.job is not None and held.job.spec.resources.preemptible]
    for victim in sorted(candidates, key=lambda other: (other.priority, other.id)):
        if victim.priority < job.priority and victim.plan is not None:
            room.release(victim.spec.demand, victim.plan)
            chosen.append(victim.id)
            if room.fits_quickly(job.spec.demand):
                return chosen
    return None


def preemptible(name: str, cpus: float, mode: PreemptMode = PreemptMode.REQUEUE, memory_gib: int | None = None) -> Job:
    memory = None if memory_gib is None else memory_gib << 30
    return make_job(name, resources=Resources(cpus, memory, preemptible=True), priority=10, preemption=Preemption(mode))


def test_victims_make_room_for_the_job_that_then_keeps_its_place() -> None:
    busy = Busy(MACHINE)
    victim = busy.run(preemptible("low", 6))
    urgent, small = make_job("urgent", 5), make_job("small", 2)
    decision = look(busy, urgent, small, make_job("tail", 1), victims=end_lowest)
    assert decision.preempts == (("low", "urgent"),) and decision.reservation is not None
    assert decision.reservation.at == NOW and waits(decision)["urgent"] is Reason.PREEMPTING
    assert started(decision) == ["small"], "beside what urgent will have, and on what is free now"
    busy.change(victim, state=JobState.STOPPING, stop_reason=Reason.PREEMPTED)
    again = look(busy, urgent, make_job("quick", 4, hours=0.01), victims=end_lowest)
    assert again.preempts == () and started(again) == [], "what is being freed is nobody else's"
    assert waits(again)["urgent"] is Reason.PREEMPTING


def test_several_jobs_may_wait_for_victims_at_once() -> None:
    busy = Busy(MACHINE)
    for name in ("low1", "low2", "low3"):
        busy.run(preemptible(name, 2.5))
    decision = look(busy, make_job("a", 3), make_job("b", 2.5), make_job("c", 8), victims=end_lowest)
    assert decision.preempts == (("low1", "a"), ("low2", "b")) and not decision.starts
    assert decision.reservation is not None and decision.reservation.job == "a"
    assert waits(decision) == {"a": Reason.PREEMPTING, "b": Reason.PREEMPTING, "c": Reason.NO_CORES_LEFT}


def test_victims_that_are_frozen_keep_their_memory() -> None:
    busy = Busy(MACHINE)
    busy.run(preemptible("low", 6, PreemptMode.SUSPEND, memory_gib=100))
    fits = look(busy, make_job("urgent", 5, memory_gib=20), victims=end_lowest)
    assert fits.preempts == (("low", "urgent"),)
    lacks = look(busy, make_job("urgent", 5, memory_gib=40), victims=end_lowest)
    assert lacks.preempts == () and waits(lacks)["urgent"] is Reason.NO_CORES_LEFT


def test_a_suspended_job_goes_on_where_it_was_when_its_turn_comes() -> None:
    busy = Busy(MACHINE)
    job = busy.run(make_job("frozen", resources=whole(4), hours=2), since=NOW - hours(1))
    busy.change(job, state=JobState.SUSPENDED, suspended_at=NOW)
    decision = look(busy, make_job("low", 6, priority=10))
    assert decision.resumes == ("frozen",) and started(decision) == []
    assert decision.reservation is not None and decision.reservation.at == NOW + hours(1), "it has one hour left"
    high = make_job("high", 6, priority=90)
    decision = look(busy, high)
    assert decision.resumes == () and started(decision) == ["high"] and waits(decision) == {"frozen": Reason.SUSPENDED}
    assert decision.reservation is not None and decision.reservation.job == "frozen"


def test_a_job_that_waits_for_the_memory_of_a_frozen_one_lets_it_go_on() -> None:
    busy = Busy(MACHINE)
    job = busy.run(make_job("frozen", 4, memory_gib=100, priority=40))
    busy.change(job, state=JobState.SUSPENDED, suspended_at=NOW)
    decision = look(busy, make_job("large", 6, memory_gib=100))
    assert decision.resumes == ("frozen",) and decision.reservation is not None and decision.reservation.job == "large"


def test_what_a_frozen_job_is_refused_is_not_refused_to_others_of_its_shape() -> None:
    busy = Busy(MACHINE)
    taken = busy.run(make_job("frozen", resources=whole(1), hours=1))
    busy.change(taken, state=JobState.SUSPENDED, suspended_at=NOW)
    busy.run(make_job("on its core", resources=whole(1)))
    busy.run(make_job("r", 4))
    decision = look(busy, make_job("large", 8, priority=60), make_job("same shape", resources=whole(1), hours=1))
    assert waits(decision)["frozen"] is not None and started(decision) == ["same shape"]


def test_the_same_snapshot_gives_the_same_decision_whatever_order_it_lists_what_runs_in() -> None:
    busy = Busy(MACHINE)
    for at in range(3):
        busy.run(make_job(f"r{at}", resources=Resources(1.5, gpus=parse_gpu_demand("0.5")), hours=1 + at % 2))
    queue = [make_job(f"q{at}", resources=Resources(1 + at, gpus=parse_gpu_demand("1"))) for at in range(5)]
    first = look(busy, *queue)
    assert first == look(busy, *queue) == look(None, *queue, holding=tuple(busy.holding[::-1]))
