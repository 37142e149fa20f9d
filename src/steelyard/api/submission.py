"""How does what was asked for become jobs? One job, or the elements of an array, in the caller's transaction.

Everything that can be refused is refused before the first row is written. Never commits, never pokes a loop.
"""

from __future__ import annotations

import re

import msgspec

from steelyard.api.door import check_job
from steelyard.api.door_direct import check_direct
from steelyard.api.door_jobs import check_pool, check_queueing
from steelyard.api.door_volumes import check_volumes
from steelyard.api.image_use import settle_job
from steelyard.api.requests import refuse_findings
from steelyard.api.sbatch_patterns import fill_outputs
from steelyard.api.secrets import find_missing
from steelyard.control.changes import make_event
from steelyard.errors import NotFound, Refused
from steelyard.lifecycle.array import make_places, parse_array
from steelyard.lifecycle.job import make_job
from steelyard.model.batch import ArrayPlace, Dependency
from steelyard.model.ids import PROJECT, JobId, ProjectName
from steelyard.model.job import Job, JobSpec, Owner
from steelyard.model.machine import Machine
from steelyard.store import Tx

_NUMBER = re.compile(r"(?:j-)?0*(\d{1,9})(?:_(\d{1,9}))?", re.ASCII)


def parse_job_id(text: str) -> JobId:
    """`17`, `j-17` and `j-000017` are one job, `17_3` is element 3 of array 17. Anything else is an id that no job has."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return JobId(text)
    return JobId(f"j-{int(match[1]):06d}" + (f"_{int(match[2])}" if match[2] else ""))


def find_jobs(tx: Tx, text: str) -> list[Job]:
    """The job of that id, or all elements of the array. Raises NotFound."""
    id_ = parse_job_id(text)
    job = tx.job(id_)
    jobs = [job] if job is not None else tx.jobs_of_array(id_)
    if not jobs:
        raise NotFound(f"There is no job {text}. `steelyard ps` lists them.")
    return jobs


def one_job(tx: Tx, job: str) -> Job:
    """One job, where an array won't do."""
    jobs = find_jobs(tx, job)
    if parse_job_id(job) != jobs[0].id:
        raise Refused(f"{job} is an array: name one of its elements, such as {jobs[0].id}.", code="array-not-element")
    return jobs[0]


def insert_jobs(
    tx: Tx, spec: JobSpec, owner: Owner, now: int, *, root: bool, array: str | None = None, project: str = "default"
) -> list[Job]:
    """The new jobs, in the order of their indices. Raises Refused; nothing is written then."""
    demand = None if array is None else parse_array(array)
    machine = tx.machine()
    spec = check_submission(tx, spec, machine, now, owner, root=root, project=project)
    spec = settle_job(tx, spec, owner, now)
    id_ = JobId(f"j-{tx.bump('job'):06d}")
    places: tuple[tuple[JobId, ArrayPlace | None], ...] = ((id_, None),) if demand is None else make_places(id_, demand)
    node = "localhost" if machine is None else machine.hostname
    jobs = [fill_outputs(make_job(each, spec, owner, ProjectName(project), now, place), node) for each, place in places]
    for job in jobs:
        tx.put_job(job)
        tx.add_event(make_event(job, "submitted", now))
    return jobs


def check_submission(
    tx: Tx, spec: JobSpec, machine: Machine | None, now: int, owner: Owner, *, root: bool, project: str
) -> JobSpec:
    """The spec with its dependencies by their full ids, or Refused with everything that is wrong with it."""
    if not PROJECT.fullmatch(project):
        raise Refused(f"{project[:80]!r} can't be a project's name: up to 63 of a-z, 0-9 and -.", code="bad-project")
    given = [*check_volumes(spec.volumes, tx.volumes() if spec.volumes else (), owner), *find_missing(tx, owner, spec.secrets)]
    if spec.pool:
        given += check_pool(spec, tx.pools(), tx.machines(), root)
    # what goes elsewhere need not fit this machine
    here = None if spec.direct or spec.pool else machine
    refuse_findings([*check_queueing(spec, now), *check_job(spec, here, root), *check_direct(spec), *given])
    return _resolve(tx, spec)


def _resolve(tx: Tx, spec: JobSpec) -> JobSpec:
    """Dependencies by their full ids; each must exist, so that a cycle can't be made."""
    if not spec.after:
        return spec
    found: list[Dependency] = []
    for after in spec.after:
        id_ = parse_job_id(after.job)
        if tx.job(id_) is None and not tx.jobs_of_array(id_):
            raise Refused(
                f"There is no job {after.job} to wait for. Nothing was submitted. `steelyard ps` lists jobs.", code="no-such-job"
            )
        found.append(Dependency(id_, after.kind))
    return msgspec.structs.replace(spec, after=tuple(found))
