"""How does a dependency stand, given the jobs that it names? As sbatch's afterok, afternotok, afterany and after. Pure.

Of an array all elements are meant. `started` counts from the first attempt on, also for what ended without ever running.
"""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.model.batch import DependencyKind
from steelyard.model.job import Job, JobState
from steelyard.scheduling.snapshot import Standing


def judge(kind: DependencyKind, jobs: Sequence[Job]) -> Standing:
    """`jobs` is never empty: whoever depends on nothing that exists was refused at the door."""
    ended = all(job.state.terminal for job in jobs)
    ok = [job.state is JobState.SUCCEEDED for job in jobs]
    match kind:
        case DependencyKind.ANY:
            met, lost = ended, False
        case DependencyKind.STARTED:
            met, lost = all(job.attempt > 0 or job.state.terminal for job in jobs), False
        case DependencyKind.OK:
            met = all(ok)
            lost = any(job.state.terminal and job.state is not JobState.SUCCEEDED for job in jobs)
        case DependencyKind.NOT_OK:
            met, lost = ended and not all(ok), all(ok)
    return Standing.MET if met else Standing.NEVER if lost else Standing.WAITS
