"""First in, first out: nobody overtakes, and everybody who waits knows why."""

from __future__ import annotations

from steelyard.model.ids import DEFAULT_PROJECT, JobId, MachineId
from steelyard.model.job import Job, JobSpec, JobState, Owner, Resources
from steelyard.model.machine import Core, Isolation, Machine
from steelyard.model.reason import Reason
from steelyard.scheduling.fifo import decide_starts

MACHINE = Machine(
    id=MachineId("m"),
    boot_id="b",
    hostname="h",
    kernel="k",
    cpu_model="c",
    cores=(Core((0,)), Core((1,))),
    caches=(),
    numa_nodes=(),
    memory_bytes=1 << 30,
    devices=(),
    virtualisation="unknown",
    virtualisation_detail="",
    isolation=Isolation("v2", True, True, True, True),
)


def queue(*demands: Resources) -> list[Job]:
    return [
        Job(
            id=JobId(f"j-{number}"),
            project=DEFAULT_PROJECT,
            owner=Owner("u", 1),
            generation=1,
            attempt=0,
            spec=JobSpec("x", ("true",), "/", resources=demand),
            state=JobState.QUEUED,
            submitted_at=number,
        )
        for number, demand in enumerate(demands)
    ]


def test_what_fits_starts_together() -> None:
    decision = decide_starts(queue(Resources(0.5), Resources(1), Resources(0.5)), (), MACHINE)
    assert [job for job, _ in decision.starts] == ["j-0", "j-1", "j-2"]
    assert not decision.waits and not decision.never


def test_a_small_job_does_not_overtake_a_large_one() -> None:
    decision = decide_starts(queue(Resources(1.5), Resources(1), Resources(0.1)), (), MACHINE)
    assert [job for job, _ in decision.starts] == ["j-0"]
    assert [(why.job, why.reason) for why in decision.waits] == [
        ("j-1", Reason.NO_CORES_LEFT),
        ("j-2", Reason.BEHIND_EARLIER_JOB),
    ]


def test_a_job_that_can_never_fit_holds_back_nobody() -> None:
    decision = decide_starts(queue(Resources(3), Resources(1)), (), MACHINE)
    assert [job for job, _ in decision.starts] == ["j-1"]
    assert [(why.job, why.reason) for why in decision.never] == [("j-0", Reason.CORES_BEYOND_MACHINE)]


def test_starts_of_one_decision_are_booked_against_each_other() -> None:
    decision = decide_starts(queue(Resources(1, exclusive=True), Resources(1, exclusive=True)), (), MACHINE)
    assert len(decision.starts) == 1 and decision.waits[0].reason is Reason.NO_CORES_LEFT


def test_without_a_machine_everybody_waits_for_one() -> None:
    decision = decide_starts(queue(Resources(1), Resources(99)), (), None)
    assert [why.reason for why in decision.waits] == [Reason.NO_MACHINE, Reason.NO_MACHINE]
    assert not decision.starts and not decision.never


def test_those_behind_are_told_the_same_as_the_queue_moves() -> None:
    long = decide_starts(queue(*[Resources(2)] * 5), (), MACHINE)
    assert len({why.detail for why in long.waits[1:]}) == 1
