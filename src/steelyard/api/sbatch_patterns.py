"""Which file does `slurm-%A_%a.out` mean for one job? Slurm's patterns, as `sbatch --output` takes them. Pure.

The parser makes the path absolute while ids are unknown (`make_pattern`); the server fills it once they are (`fill_outputs`). As
in Slurm, %4j pads with zeros, what is no pattern stays as written, and a backslash anywhere turns all of them off.
"""

from __future__ import annotations

import msgspec

from steelyard.errors import Refused
from steelyard.lifecycle.slurm_environment import array_number, job_number
from steelyard.model.job import Job
from steelyard.runtime.slurm.names import fill_pattern

__all__ = ["fill_pattern"]

_PATH_MAX = 4096


def make_pattern(text: str, folder: str, option: str) -> str:
    """An absolute pattern; `folder` is taken as it is, whatever it contains. Raises Refused."""
    if not text or "\0" in text or len(text) > _PATH_MAX:
        raise Refused(f"--{option} names a file; {text[:60]!r} is none", code="bad-path")
    pattern = text.replace("\\", "").replace("%", "%%") if "\\" in text else text
    return pattern if pattern.startswith("/") else f"{folder.replace('%', '%%').rstrip('/')}/{pattern}"


def fill_outputs(job: Job, node: str) -> Job:
    """The job with its output files named, now that it has an id."""

    def fill(pattern: str | None) -> str | None:
        if pattern is None:
            return None
        return fill_pattern(
            pattern,
            job=job_number(job.id),
            array_job=None if job.array is None else array_number(job.id),
            array_index=None if job.array is None else job.array.index,
            name=job.spec.name,
            user=job.owner.user,
            node=node,
        )

    spec = msgspec.structs.replace(job.spec, stdout=fill(job.spec.stdout), stderr=fill(job.spec.stderr))
    return msgspec.structs.replace(job, spec=spec)
