"""May this project hold more? What running jobs and this decision's own starts hold, against the quotas of their projects.

A job that finds its project's quota used up waits, and nothing else waits for it but jobs of the same project that need more of
what it lacks: so that its own project's small jobs don't keep a large one out for ever. A job that is larger than the quota
itself holds back nobody. A suspended job holds its memory only. A share of a GPU counts as that share, a MIG instance as one
GPU. Amounts are whole: millionths of cores and GPUs, bytes, jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from steelyard.model import words
from steelyard.model.ids import ProjectName
from steelyard.model.job import Job, JobState
from steelyard.model.reason import Reason
from steelyard.model.site import Quota
from steelyard.scheduling.snapshot import Holding, Why

_MICRO = 1_000_000
#: cores, GPUs, memory, running jobs
_Amounts: TypeAlias = list[int]
_CORES, _GPUS, _MEMORY, _JOBS = range(4)


class QuotaBook:
    def __init__(self, quotas: Iterable[Quota], holding: Iterable[Holding]) -> None:
        self._limits = {quota.project: _limits(quota) for quota in quotas}
        self._held: dict[ProjectName, _Amounts] = {project: [0] * 4 for project in self._limits}
        #: per project what an earlier job waits for
        self._awaited: dict[ProjectName, set[int]] = {project: set() for project in self._limits}
        for held in holding:
            if held.job is not None and held.job.project in self._limits:
                self._add(held.job, _amounts(held.job, suspended=held.suspended))

    def find_block(self, job: Job) -> Why | None:
        """Why the job's quota keeps it waiting. Asked in the order of the queue: what it lacks, those behind it don't get."""
        limits = self._limits.get(job.project)
        if limits is None:
            return None
        asked, held, awaited = self._further(job), self._held[job.project], self._awaited[job.project]
        if limits[_MEMORY] is not None and job.spec.resources.memory_bytes is None:
            detail = f"project {job.project} has a quota of memory and the job names no memory: submit it with --memory"
            return Why(job.id, Reason.QUOTA, detail)
        whole = _amounts(job)
        beyond = [kind for kind, limit in enumerate(limits) if limit is not None and whole[kind] > limit]
        if beyond:
            said = "; ".join(f"{_say(kind, whole[kind])} asked of {_say(kind, limits[kind] or 0)}" for kind in beyond)
            return Why(job.id, Reason.QUOTA, f"it can't start under the quota of project {job.project}: {said}")
        if any(asked[kind] for kind in awaited):
            return Why(job.id, Reason.QUOTA, f"earlier jobs of project {job.project} wait for its quota")
        lacks = [kind for kind, limit in enumerate(limits) if limit is not None and 0 < asked[kind] > limit - held[kind]]
        if not lacks:
            return None
        awaited.update(lacks)
        said = "; ".join(
            f"{_say(kind, held[kind])} of {_say(kind, limits[kind] or 0)} held, {_say(kind, asked[kind])} asked" for kind in lacks
        )
        return Why(job.id, Reason.QUOTA, f"the quota of project {job.project} is used up: {said}")

    def take(self, job: Job) -> None:
        if job.project in self._limits:
            self._add(job, self._further(job))

    def _further(self, job: Job) -> _Amounts:
        """What it would hold beyond what it holds already."""
        asked = _amounts(job)
        if job.state is JobState.SUSPENDED:
            asked[_MEMORY] = 0
        return asked

    def _add(self, job: Job, amounts: _Amounts) -> None:
        self._held[job.project] = [a + b for a, b in zip(self._held[job.project], amounts, strict=True)]


def _limits(quota: Quota) -> list[int | None]:
    cores, gpus = (None if each is None else round(each * _MICRO) for each in (quota.cores, quota.gpus))
    return [cores, gpus, quota.memory_bytes, quota.running_jobs]


def _amounts(job: Job, suspended: bool = False) -> _Amounts:
    spec = job.spec
    ranks = 1 if spec.gang is None else spec.gang.world_size
    memory = (spec.resources.memory_bytes or 0) * ranks
    if suspended:
        return [0, 0, memory, 0]
    each = spec.resources
    cpus = max(1, round(each.cpus * _MICRO))
    cores = -(-cpus // _MICRO) * _MICRO if each.whole_cores else cpus
    gpus = 0 if each.gpus is None else each.gpus.count * round((each.gpus.fraction or 1.0) * _MICRO)
    return [cores * ranks, gpus * ranks, memory, 1]


def _say(kind: int, amount: int) -> str:
    if kind == _MEMORY:
        return f"{words.exact_size(amount)} of memory"
    if kind == _JOBS:
        return words.count(amount, "running job")
    number = f"{amount / _MICRO:g}"
    noun = "core" if kind == _CORES else "GPU"
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"
