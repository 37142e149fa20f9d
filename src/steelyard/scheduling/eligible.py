"""Which queued jobs may start at all now, whatever is free?

Held ones, those that begin later and those with open dependencies may not; of an array only so many elements at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from steelyard.model.batch import Dependency, DependencyKind
from steelyard.model.ids import JobId
from steelyard.model.job import Job
from steelyard.model.reason import Reason
from steelyard.scheduling.snapshot import Holding, Standing, Why, format_time

_MUST = {
    DependencyKind.OK: "succeed",
    DependencyKind.NOT_OK: "fail",
    DependencyKind.ANY: "end",
    DependencyKind.STARTED: "start",
}


class Eligible(msgspec.Struct, frozen=True):
    #: in the order of their submission
    jobs: tuple[Job, ...]
    waits: tuple[Why, ...]
    never: tuple[Why, ...]
    #: the earliest wall time at which one of those that wait may start; None: time alone lets none of them start
    look_at: int | None


def split_eligible(queued: Sequence[Job], standings: Mapping[Dependency, Standing], now: int) -> Eligible:
    """A dependency that `standings` does not tell of is waited for."""
    jobs: list[Job] = []
    waits: list[Why] = []
    never: list[Why] = []
    look_at: int | None = None
    for job in queued:
        after = job.spec.after
        if after and (failed := _find_dependency(after, standings, Standing.NEVER)) is not None:
            detail = (
                f"{failed.job} was to {_MUST[failed.kind]} first and can't any more; submit it again without that, if you will"
            )
            never.append(Why(job.id, Reason.DEPENDENCY_FAILED, detail))
        elif job.held:
            waits.append(Why(job.id, Reason.HELD, f"it is held; `steelyard release {job.id}` lets it go"))
        elif after and (first := _find_dependency(after, standings, Standing.WAITS)) is not None:
            waits.append(Why(job.id, Reason.DEPENDENCY, f"{first.job} has to {_MUST[first.kind]} first"))
        elif job.not_before is not None and job.not_before > now:
            waits.append(_explain_later(job, job.not_before))
            look_at = job.not_before if look_at is None else min(look_at, job.not_before)
        else:
            jobs.append(job)
    return Eligible(tuple(jobs), tuple(waits), tuple(never), look_at)


class ArrayCount:
    """How many elements of each array have begun, this decision's own starts included."""

    def __init__(self, holding: Iterable[Holding]) -> None:
        self._begun = Counter[JobId](held.job.array.id for held in holding if held.job is not None and held.job.array is not None)

    def find_block(self, job: Job) -> Why | None:
        array = job.array
        if array is None or array.at_once is None or self._begun[array.id] < array.at_once:
            return None
        return Why(job.id, Reason.ARRAY_LIMIT, f"at most {array.at_once} of its array may run at a time")

    def take(self, job: Job) -> None:
        if job.array is not None:
            self._begun[job.array.id] += 1


def _find_dependency(
    after: Iterable[Dependency], standings: Mapping[Dependency, Standing], standing: Standing
) -> Dependency | None:
    return next((each for each in after if standings.get(each, Standing.WAITS) is standing), None)


def _explain_later(job: Job, at: int) -> Why:
    when = format_time(at)
    if at == job.spec.begin_at:
        return Why(job.id, Reason.BEGINS_LATER, f"it was submitted to begin at {when}")
    return Why(job.id, Reason.BACKOFF, f"it is tried again at {when}")
