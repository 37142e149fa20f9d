"""In which order may jobs start? A total order, the same for the same queue.

1. the higher priority (0-100),
2. of the same priority, what is not preemptible: it may preempt the rest. If those came first, they would take the room that
   one of them has just given up, and give way again, for ever.
3. the account that has used less of its share (`fair_share.py` ranks accounts; one that it does not name has used nothing),
4. the earlier submitted.
The queue comes in the order of submission, so that jobs of one rank, elements of one array among them, keep it. Suspended jobs
compete for their own place; of those submitted in the same moment they come first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from steelyard.model.job import Job


def order_jobs(queued: Sequence[Job], suspended: Sequence[Job], ranks: Mapping[str, float]) -> list[Job]:
    """`queued`: in the order of submission. `ranks`: account -> its place, lower ones first."""
    groups: dict[tuple[int, bool, float], list[Job]] = {}
    unused = float("-inf")
    for job in queued:
        key = (-job.priority, job.spec.resources.preemptible, ranks.get(job.spec.account or job.owner.user, unused))
        group = groups.get(key)
        if group is None:
            groups[key] = [job]
        else:
            group.append(job)
    for job in sorted(suspended, key=lambda job: (job.submitted_at, job.id), reverse=True):
        key = (-job.priority, job.spec.resources.preemptible, ranks.get(job.account, unused))
        group = groups.setdefault(key, [])
        group.insert(bisect_left(group, job.submitted_at, key=lambda other: other.submitted_at), job)
    return [job for key in sorted(groups) for job in groups[key]]
