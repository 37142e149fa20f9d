"""Who may start at all, and what the others are told."""

from __future__ import annotations

from queues import NOW, SECOND, Busy, make_job, small_machine
from steelyard.model.batch import ArrayPlace, Dependency, DependencyKind
from steelyard.model.ids import JobId
from steelyard.model.reason import Reason
from steelyard.scheduling.eligible import ArrayCount, split_eligible
from steelyard.scheduling.snapshot import Standing

LATER = NOW + 60 * SECOND
OK, ANY = Dependency(JobId("a")), Dependency(JobId("b"), DependencyKind.ANY)


def test_held_jobs_later_ones_and_those_in_backoff_wait_and_the_next_look_is_known() -> None:
    jobs = [
        make_job("held", held=True),
        make_job("begins", begin_at=LATER, not_before=LATER),
        make_job("retries", not_before=LATER - SECOND),
        make_job("was to begin", begin_at=NOW, not_before=NOW),
        make_job("now"),
    ]
    found = split_eligible(jobs, {}, NOW)
    assert [job.id for job in found.jobs] == ["was to begin", "now"]
    assert [(why.job, why.reason) for why in found.waits] == [
        ("held", Reason.HELD),
        ("begins", Reason.BEGINS_LATER),
        ("retries", Reason.BACKOFF),
    ]
    assert "steelyard release held" in found.waits[0].detail and "2027-01-15 08:01:00 UTC" in found.waits[1].detail
    assert found.look_at == LATER - SECOND and not found.never


def test_what_waits_for_a_release_is_not_looked_at_when_its_time_comes() -> None:
    assert split_eligible([make_job("a", held=True, not_before=LATER)], {}, NOW).look_at is None


def test_a_dependency_is_met_waited_for_or_never_met() -> None:
    jobs = [make_job("x", after=(OK, ANY)), make_job("y", after=(OK,)), make_job("z", after=(OK,), held=True)]
    met = split_eligible(jobs, {OK: Standing.MET, ANY: Standing.MET}, NOW)
    assert [job.id for job in met.jobs] == ["x", "y"]
    waits = split_eligible(jobs, {OK: Standing.MET, ANY: Standing.WAITS}, NOW)
    assert [(why.job, why.reason, why.detail) for why in waits.waits[:1]] == [("x", Reason.DEPENDENCY, "b has to end first")]
    never = split_eligible(jobs, {OK: Standing.NEVER, ANY: Standing.WAITS}, NOW)
    assert [(why.job, why.reason) for why in never.never] == [(name, Reason.DEPENDENCY_FAILED) for name in ("x", "y", "z")]
    assert "was to succeed first and can't any more" in never.never[0].detail


def test_a_dependency_that_nobody_tells_of_is_waited_for() -> None:
    assert [why.reason for why in split_eligible([make_job("x", after=(OK,))], {}, NOW).waits] == [Reason.DEPENDENCY]


def test_elements_of_an_array_run_so_many_at_a_time_and_frozen_ones_count() -> None:
    def place(index: int) -> ArrayPlace:
        return ArrayPlace(JobId("arr"), index, 9, 0, 8, at_once=2)

    busy = Busy(small_machine())
    busy.run(make_job("arr_0", array=place(0)))
    count = ArrayCount(busy.holding)
    second, third = make_job("arr_1", array=place(1)), make_job("arr_2", array=place(2))
    assert count.find_block(second) is None
    count.take(second)
    why = count.find_block(third)
    assert why is not None and why.reason is Reason.ARRAY_LIMIT and why.detail == "at most 2 of its array may run at a time"
    assert count.find_block(make_job("alone")) is None
