"""One request becomes one job or an array's elements, or nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from steelyard.api.submission import find_jobs, insert_jobs, one_job, parse_job_id
from steelyard.errors import NotFound, Refused, SteelyardError
from steelyard.model.batch import Dependency, DependencyKind
from steelyard.model.ids import JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.store.memory import MemoryStore

SPEC = JobSpec("x", ("true",), "/")
OWNER = Owner("ann", 5)


def write(store: MemoryStore, fn: Callable[[Any], Any]) -> Any:
    return asyncio.run(store.write(fn))


def submit(store: MemoryStore, array: str | None = None, project: str = "default", **fields: object) -> list[Job]:
    spec = msgspec.structs.replace(SPEC, **fields)
    return write(store, lambda tx: insert_jobs(tx, spec, OWNER, 7, root=False, array=array, project=project))


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("17", "j-000017"),
        ("j-17", "j-000017"),
        ("j-000017", "j-000017"),
        ("j-1234567", "j-1234567"),
        ("17_3", "j-000017_3"),
        ("j-000017_0", "j-000017_0"),
        ("x", "x"),
        ("1٣", "1٣"),
    ],
)
def test_ids_as_people_write_them(text: str, id_: str) -> None:
    assert parse_job_id(text) == id_


def test_one_job_takes_over_what_its_spec_says_of_the_queue() -> None:
    store = MemoryStore()
    (job,) = submit(store, priority=80, held=True, begin_at=99, account="lab/x", project="blue")
    assert (job.id, job.state, job.priority, job.held, job.not_before) == ("j-000001", JobState.QUEUED, 80, True, 99)
    assert (job.account, job.project, job.owner) == ("lab/x", "blue", OWNER)
    assert [event.text for event in write(store, lambda tx: tx.events("job", job.id))] == ["submitted"]


def test_an_array_is_its_elements() -> None:
    store = MemoryStore()
    jobs = submit(store, "1-5:2%2")
    assert [job.id for job in jobs] == ["j-000001_1", "j-000001_3", "j-000001_5"]
    assert {job.array.at_once for job in jobs if job.array} == {2}
    assert write(store, lambda tx: find_jobs(tx, "1")) == jobs
    assert write(store, lambda tx: one_job(tx, "1_3")) == jobs[1]
    with pytest.raises(Refused, match="name one of its elements"):
        write(store, lambda tx: one_job(tx, "1"))
    assert submit(store)[0].id == "j-000002"


def test_dependencies_are_resolved_and_must_exist() -> None:
    store = MemoryStore()
    submit(store)
    submit(store, "0-1")
    after = (Dependency(JobId("1")), Dependency(JobId("2"), DependencyKind.ANY), Dependency(JobId("2_1")))
    (job,) = submit(store, after=after)
    assert [each.job for each in job.spec.after] == ["j-000001", "j-000002", "j-000002_1"]
    with pytest.raises(Refused, match="There is no job 9"):
        submit(store, after=(Dependency(JobId("9")),))


@pytest.mark.parametrize(
    ("array", "fields"),
    [("0-9999999", {}), (None, {"priority": 101}), (None, {"argv": ()}), (None, {"project": "A B"})],
)
def test_what_is_refused_leaves_nothing(array: str | None, fields: dict[str, Any]) -> None:
    store = MemoryStore()
    with pytest.raises(SteelyardError):
        submit(store, array, **fields)
    assert write(store, lambda tx: (tx.jobs(), tx.events(), tx.counter("job"))) == ([], [], 0)
    with pytest.raises(NotFound):
        write(store, lambda tx: find_jobs(tx, "1"))
