"""Quotas of projects: what is used up, for whom, and that nobody is kept out for ever."""

from __future__ import annotations

from queues import Busy, make_job, small_machine
from steelyard.model.batch import Gang
from steelyard.model.gpu_demand import parse_gpu_demand
from steelyard.model.ids import ProjectName
from steelyard.model.job import Job, JobState, Owner, Resources
from steelyard.model.reason import Reason
from steelyard.model.site import Quota
from steelyard.scheduling.quota import QuotaBook

GIB = 1 << 30


def book(*running: Job, suspended: bool = False, **limits: object) -> QuotaBook:
    busy = Busy(small_machine())
    for job in running:
        busy.run(job, state=JobState.SUSPENDED if suspended else JobState.RUNNING)
    return QuotaBook([Quota(ProjectName("default"), Owner("admin", 0), 1, **limits)], busy.holding)  # type: ignore[arg-type]


def said(quotas: QuotaBook, job: Job) -> str:
    why = quotas.find_block(job)
    if why is None:
        return ""
    assert why.reason is Reason.QUOTA and why.job == job.id
    return why.detail


def test_what_would_exceed_the_quota_is_told_in_numbers() -> None:
    quotas = book(make_job("r", 2.5), cores=4.0, running_jobs=5)
    assert said(quotas, make_job("fits", 1.5)) == ""
    assert said(quotas, make_job("not", 2)) == "the quota of project default is used up: 2.5 cores of 4 cores held, 2 cores asked"


def test_every_kind_is_limited() -> None:
    quotas = book(make_job("r", 1, memory_gib=10, resources=Resources(1, 10 * GIB, gpus=parse_gpu_demand("2"))), gpus=2.5)
    assert "2 GPUs of 2.5 GPUs held, 1 GPU asked" in said(quotas, make_job("g", resources=Resources(gpus=parse_gpu_demand("1"))))
    assert said(quotas, make_job("half", resources=Resources(gpus=parse_gpu_demand("0.25:2")), submitted=1)) != "", "kept for g"
    assert said(quotas, make_job("none")) == ""
    quotas = book(make_job("r", memory_gib=10), memory_bytes=12 * GIB)
    assert "10 GiB of memory of 12 GiB of memory held, 3 GiB of memory asked" in said(quotas, make_job("m", memory_gib=3))
    assert "submit it with --memory" in said(quotas, make_job("unbounded"))
    quotas = book(make_job("r"), running_jobs=1)
    assert said(quotas, make_job("second")).endswith("1 running job of 1 running job held, 1 running job asked")


def test_all_ranks_of_a_gang_count_and_whole_cores_are_counted_whole() -> None:
    quotas = book(cores=10.0)
    assert said(quotas, make_job("gang", resources=Resources(1.5, exclusive=True), gang=Gang(1, 5))) == ""
    assert "12 cores asked of 10 cores" in said(
        quotas, make_job("more", resources=Resources(1.5, exclusive=True), gang=Gang(1, 6))
    )


def test_starts_of_this_decision_count() -> None:
    quotas = book(cores=4.0)
    quotas.take(make_job("a", 3))
    assert said(quotas, make_job("b", 2)) != ""


def test_those_behind_do_not_take_what_the_first_one_waits_for() -> None:
    quotas = book(make_job("r", 3), cores=4.0, running_jobs=9)
    assert said(quotas, make_job("large", 4)) != ""
    assert said(quotas, make_job("small", 1)) == "earlier jobs of project default wait for its quota"
    assert said(quotas, make_job("elsewhere", 1, project="other")) == ""


def test_a_job_larger_than_its_quota_waits_and_holds_back_nobody() -> None:
    quotas = book(cores=4.0)
    assert said(quotas, make_job("huge", 5)) == "it can't start under the quota of project default: 5 cores asked of 4 cores"
    assert said(quotas, make_job("small", 4)) == ""


def test_a_suspended_job_holds_its_memory_only_and_takes_the_rest_when_it_goes_on() -> None:
    frozen = make_job("s", 4, memory_gib=8)
    quotas = book(frozen, suspended=True, cores=4.0, memory_bytes=10 * GIB, running_jobs=1)
    frozen = make_job("s", 4, memory_gib=8, state=JobState.SUSPENDED)
    assert said(quotas, frozen) == ""
    quotas.take(frozen)
    assert "4 cores of 4 cores held" in said(quotas, make_job("next", 1, memory_gib=1))
