"""Which file does `slurm-%A_%a.out` mean for one job? Slurm's patterns, as `sbatch --output` takes them. Pure.

The parser makes the path absolute while ids are unknown (`make_pattern`); the server fills it once they are (`fill_outputs`). As
in Slurm, %4j pads with zeros, what is no pattern stays as written, and a backslash anywhere turns all of them off.
"""

from __future__ import annotations

import re

import msgspec

from steelyard.errors import Refused
from steelyard.lifecycle.slurm_environment import array_number, job_number
from steelyard.model.job import Job

#: what Slurm puts for %a outside of arrays (NO_VAL)
_NO_INDEX = 4_294_967_294
_PATTERN = re.compile(r"%(%|(\d{0,9})([AabJjNnstux]))", re.ASCII)
#: Slurm's own bound for the padding of numbers
_PAD_MAX = 10
_PATH_MAX = 4096


def make_pattern(text: str, folder: str, option: str) -> str:
    """An absolute pattern; `folder` is taken as it is, whatever it contains. Raises Refused."""
    if not text or "\0" in text or len(text) > _PATH_MAX:
        raise Refused(f"--{option} names a file; {text[:60]!r} is none", code="bad-path")
    pattern = text.replace("\\", "").replace("%", "%%") if "\\" in text else text
    return pattern if pattern.startswith("/") else f"{folder.replace('%', '%%').rstrip('/')}/{pattern}"


def fill_pattern(
    pattern: str,
    *,
    job: int,
    array_job: int | None,
    array_index: int | None,
    name: str,
    user: str,
    node: str,
    step: str = "batch",
    task: int = 0,
) -> str:
    """`job` is the job's own number, `array_job` its array's. What could lead out of the folder that was named (slashes in the
    job's name) is written as _."""
    index = _NO_INDEX if array_index is None else array_index
    numbers = {
        "A": job if array_job is None else array_job,
        "a": index,
        "b": index % 10,
        "J": job,
        "j": job,
        "n": 0,
        "t": task,
    }
    texts = {"N": node.partition(".")[0], "s": step, "u": user, "x": name}

    def fill(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        if match[3] in numbers:
            return f"{numbers[match[3]]:0{min(int(match[2] or 0), _PAD_MAX)}d}"
        return texts[match[3]].replace("/", "_").replace("\0", "_")

    return _PATTERN.sub(fill, pattern)


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
