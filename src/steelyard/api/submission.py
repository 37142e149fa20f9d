"""How does a request become a job? Checked, numbered and stored, all in the caller's transaction."""

from __future__ import annotations

from steelyard.api.door import check_job
from steelyard.api.requests import refuse_findings
from steelyard.api.sbatch_patterns import fill_outputs
from steelyard.api.services import Services
from steelyard.control.changes import make_event
from steelyard.errors import Refused
from steelyard.model.ids import JobId, ProjectName
from steelyard.model.job import Job, JobSpec, JobState
from steelyard.store import Tx


def insert_jobs(tx: Tx, services: Services, spec: JobSpec, array: str | None, project: ProjectName, now: int) -> list[Job]:
    """The jobs that were made; nothing is stored when one of them is refused."""
    if array is not None:
        raise Refused("arrays can't be submitted yet", code="no-arrays")
    machine = tx.machine()
    refuse_findings(check_job(spec, machine, services.root))
    job = Job(
        id=JobId(f"j-{tx.bump('job'):06d}"),
        project=project,
        owner=services.owner,
        generation=1,
        attempt=0,
        spec=spec,
        state=JobState.QUEUED,
        submitted_at=now,
        priority=spec.priority,
        held=spec.held,
        not_before=spec.begin_at,
    )
    job = fill_outputs(job, machine.hostname if machine else "localhost")
    tx.put_job(job)
    tx.add_event(make_event(job, "submitted", now))
    return [job]
