"""What could be different so that a job starts? One change, how it looks in words, and a snapshot in which it has been made."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from steelyard.model.batch import Dependency
from steelyard.model.ids import JobId
from steelyard.model.job import Job
from steelyard.model.site import Quota
from steelyard.scheduling.snapshot import Snapshot, Standing


class ChangeKind(StrEnum):
    """Values are stable: people filter by them."""

    RELEASE = "release"
    BEGIN = "begin"
    DEPENDENCY = "dependency"
    WAIT = "wait"
    STOP = "stop"
    PRIORITY = "priority"
    MAX_DURATION = "max-duration"
    PREEMPTIBLE = "preemptible"
    GPUS = "gpus"
    GPU_MODEL = "gpu-model"
    CORES = "cores"
    MEMORY = "memory"
    NICS = "nics"
    RANKS = "ranks"
    SHARED_CORES = "shared-cores"
    QUOTA = "quota"
    ARRAY_LIMIT = "array-limit"


class Change(msgspec.Struct, frozen=True):
    kind: ChangeKind
    #: what to do, for people; `{at}` stands for the time `at`
    text: str
    #: the job as it would be
    job: Job
    #: from 0 on: how much less it is than what was asked, or how much it takes of others
    size: float
    #: jobs that are over then, waited for or stopped
    ended: tuple[JobId, ...] = ()
    #: dependencies that are met then
    met: tuple[Dependency, ...] = ()
    #: in the place of its project's quota
    quota: Quota | None = None
    #: for the whole array
    array_at_once: int | None = None
    #: wall time, microseconds, at which what is waited for has happened at the latest; None: nothing is waited for
    at: int | None = None
    #: who has to give way to it then
    preempts: tuple[JobId, ...] = ()
    #: the decision was made on the changed snapshot, and the job starts, or others give way to it
    proven: bool = False


def apply_change(snapshot: Snapshot, change: Change) -> Snapshot:
    """The snapshot as if the change had been made."""
    job = change.job
    queued = tuple(job if each.id == job.id else each for each in snapshot.queued if each.id not in change.ended)
    if change.array_at_once is not None and job.array is not None:
        queued = tuple(_widen(each, job.array.id, change.array_at_once) for each in queued)
    holding = tuple(
        msgspec.structs.replace(held, job=job) if held.job is not None and held.job.id == job.id else held
        for held in snapshot.holding
        if held.job is None or held.job.id not in change.ended
    )
    standings: Mapping[Dependency, Standing] = snapshot.standings
    if change.met:
        standings = {**standings, **dict.fromkeys(change.met, Standing.MET)}
    quotas = snapshot.quotas
    if change.quota is not None:
        quotas = tuple(change.quota if each.project == change.quota.project else each for each in quotas)
    return msgspec.structs.replace(snapshot, queued=queued, holding=holding, standings=standings, quotas=quotas)


def _widen(job: Job, array: JobId, at_once: int) -> Job:
    if job.array is None or job.array.id != array:
        return job
    return msgspec.structs.replace(job, array=msgspec.structs.replace(job.array, at_once=at_once))
