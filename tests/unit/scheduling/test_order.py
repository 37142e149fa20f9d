"""The order of the queue: priority, then fair share, then age."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from queues import make_job
from steelyard.model.job import JobState, Resources
from steelyard.scheduling.order import order_jobs


def test_priority_comes_before_fair_share_and_fair_share_before_age() -> None:
    jobs = [
        make_job("old", submitted=0, user="greedy"),
        make_job("modest", submitted=1, user="modest"),
        make_job("new", submitted=2, user="nobody knows"),
        make_job("urgent", submitted=3, user="greedy", priority=51),
    ]
    ordered = order_jobs(jobs, (), {"modest": 1, "greedy": 2})
    assert [job.id for job in ordered] == ["urgent", "new", "modest", "old"]


def test_the_account_that_a_job_names_counts_not_its_owner() -> None:
    jobs = [make_job("a", user="x"), make_job("b", user="x", account="lab")]
    assert [job.id for job in order_jobs(jobs, (), {"x": 2, "lab": 1})] == ["b", "a"]


def test_a_suspended_job_keeps_the_age_it_has() -> None:
    queued = [make_job(f"q{at}", submitted=at) for at in range(4)]
    frozen = [make_job("s2", submitted=2, state=JobState.SUSPENDED), make_job("s9", submitted=9, state=JobState.SUSPENDED)]
    high = make_job("s0", submitted=0, priority=90, state=JobState.SUSPENDED)
    ordered = order_jobs(queued, [*frozen, high], {})
    assert [job.id for job in ordered] == ["s0", "q0", "q1", "s2", "q2", "q3", "s9"]


def test_what_may_be_preempted_comes_after_its_equals() -> None:
    gives_way = Resources(preemptible=True)
    jobs = [make_job("old", submitted=0, resources=gives_way), make_job("new", submitted=1, user="greedy")]
    urgent = make_job("urgent", submitted=2, resources=gives_way, priority=51)
    assert [job.id for job in order_jobs([*jobs, urgent], (), {"greedy": 2})] == ["urgent", "new", "old"]


rows_of_jobs = st.lists(
    st.tuples(st.sampled_from([10, 50]), st.sampled_from(["a", "b", "c"]), st.booleans(), st.booleans()), max_size=30
)


@given(rows_of_jobs)
def test_the_order_is_that_of_a_plain_sort(rows: list[tuple[int, str, bool, bool]]) -> None:
    ranks = {"a": 2.0, "b": 1.0}
    jobs = [
        make_job(
            f"j{at}",
            priority=priority,
            user=user,
            submitted=at,
            resources=Resources(preemptible=gives_way),
            state=JobState.SUSPENDED if frozen else JobState.QUEUED,
        )
        for at, (priority, user, frozen, gives_way) in enumerate(rows)
    ]
    queued = [job for job in jobs if job.state is JobState.QUEUED]
    suspended = [job for job in jobs if job.state is JobState.SUSPENDED]
    plain = sorted(
        jobs, key=lambda job: (-job.priority, job.spec.resources.preemptible, ranks.get(job.account, -1), job.submitted_at)
    )
    assert order_jobs(queued, suspended, ranks) == order_jobs(queued, suspended[::-1], ranks) == plain
