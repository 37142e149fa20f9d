"""Which attempts does one `sbatch` hand over, and how are they told apart afterwards? Pure.

Elements of an array go together: Slurm's array has their indices, so Slurm's own patterns name their files. Slurm bounds indices
(MaxArraySize, 1001 unless a site says otherwise), so each thousand of ours is an array of its own there: of 2007 the files are
named `2%3a`, and Slurm's index is 7.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from steelyard.model.job import Job

#: indices of ours that one of Slurm's arrays holds
CHUNK = 1000
_PATTERN = re.compile(r"(?P<before>.*_)\*(?:\+(?P<base>\d{1,9}))?(?P<after>\.\d+)")
_TASK = re.compile(r"(?P<job>\d+)(?:_(?:(?P<one>\d+)|\[(?P<several>[\d,:%-]*)\]))?")


class Batch(msgspec.Struct, frozen=True):
    """Attempts that one `sbatch` hands over: alike in all but their indices."""

    #: at least one
    jobs: tuple[Job, ...]
    #: of an array: which of our indices Slurm's 0 is; None: a single attempt
    base: int | None = None
    #: files of their own for their output, as Slurm's patterns
    stdout: str | None = None
    stderr: str | None = None

    @property
    def first(self) -> Job:
        return self.jobs[0]

    @property
    def attempts(self) -> str:
        """Its attempts' ids, or for an array what `list_attempts` makes them of."""
        if self.base is None or self.first.array is None:
            return self.first.attempt_id
        return f"{self.first.array.id}_*{f'+{self.base}' if self.base else ''}.{self.first.attempt}"

    @property
    def tasks(self) -> str:
        """Slurm's indices, as `sbatch --array` takes them."""
        base = self.base or 0
        return render_runs(job.array.index - base for job in self.jobs if job.array is not None)

    def pattern(self) -> str:
        """Its attempts' ids, as Slurm's patterns."""
        if self.base is None or self.first.array is None:
            return make_literal(self.first.attempt_id)
        return f"{self.first.array.id}_{index_pattern(self.base)}.{self.first.attempt}"


def make_batches(jobs: Sequence[Job], array_size_max: int) -> list[Batch]:
    """Each of `jobs` in one of them, in their order."""
    together: dict[object, list[Job]] = {}
    for job in jobs:
        key: object = job.id
        if job.array is not None and array_size_max >= CHUNK:
            key = (job.array.id, job.attempt, job.restarts, job.array.index // CHUNK)
        together.setdefault(key, []).append(job)
    return [batch for group in together.values() for batch in _make(tuple(group))]


def _make(jobs: tuple[Job, ...]) -> list[Batch]:
    first = jobs[0]
    if len(jobs) > 1 and first.array is not None:
        base = first.array.index // CHUNK * CHUNK
        stdout = fit_pattern({job.array.index: job.spec.stdout for job in jobs if job.array is not None}, base)
        stderr = fit_pattern({job.array.index: job.spec.stderr for job in jobs if job.array is not None}, base)
        if stdout is not _UNFIT and stderr is not _UNFIT:
            return [Batch(jobs, base, stdout, stderr)]
    paths = ((job, job.spec.stdout, job.spec.stderr) for job in jobs)
    return [Batch((job,), None, out and make_literal(out), err and make_literal(err)) for job, out, err in paths]


_UNFIT = "\0"


def fit_pattern(paths: Mapping[int, str | None], base: int) -> str | None:
    """Slurm's pattern of which index -> path are the values; `_UNFIT` where there is none."""
    index, path = next(iter(paths.items()))
    if path is None or all(each == path for each in paths.values()):
        return None if path is None else make_literal(path)
    # its own index may be written in several places, of which some mean something else: the last ones are likelier to
    parts = re.split(rf"(?<!\d){index}(?!\d)", path)
    for at in range(len(parts) - 1, 0, -1):
        before, after = str(index).join(parts[:at]), str(index).join(parts[at:])
        if all(each == f"{before}{number}{after}" for number, each in paths.items()):
            return make_literal(before) + index_pattern(base) + make_literal(after)
    return _UNFIT


def index_pattern(base: int) -> str:
    return "%a" if base == 0 else f"{base // CHUNK}%3a"


def make_literal(path: str) -> str:
    """A path in which Slurm finds no pattern."""
    return path.replace("%", "%%")


def render_runs(numbers: Iterable[int]) -> str:
    """3,4,5,9 is `3-5,9`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def list_attempts(attempts: str, name: str) -> list[tuple[str, str]]:
    """(attempt, Slurm's name for it) of a job that Slurm calls `name` and that was submitted with `attempts` (`Batch.attempts`).
    A line of squeue may be one for several: `12_[3-5,9%2]`."""
    task, pattern = _TASK.fullmatch(name), _PATTERN.fullmatch(attempts)
    if task is None:
        return []
    if pattern is None:
        return [(attempts, name)]
    base = int(pattern["base"] or 0)
    numbers = read_runs(task["one"] or task["several"] or "")
    return [(f"{pattern['before']}{base + each}{pattern['after']}", f"{task['job']}_{each}") for each in numbers]


def read_runs(text: str) -> list[int]:
    """`3-5,9%2` is 3, 4, 5, 9; what is no such text is nothing."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7})(?::(\d{1,7}))?)?", part)
        if match is not None:
            found += range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1) or 1)
    return found
