"""Elements of an array travel in one `sbatch`, and each is found again by its own id."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from steelyard.engine.slurm.arrays import CHUNK, Batch, fit_pattern, list_attempts, make_batches, read_runs, render_runs
from steelyard.engine.slurm.read import QueueReader
from steelyard.engine.slurm.script import make_options, name_comment, render_script
from steelyard.lifecycle.array import make_places, parse_array
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner
from steelyard.model.slurm import Attachment

SIZE = 1001


def elements(text: str, stdout: str | None = None) -> list[Job]:
    """`stdout`: with {} for the index."""
    spec = JobSpec("x", ("true",), "/", direct=True)
    return [
        Job(id_, DEFAULT_PROJECT, Owner("u", 1000), 1, 1, replace(spec, stdout=stdout and stdout.format(place.index)),
            JobState.STARTING, 0, array=place)
        for id_, place in make_places(JobId("j-000012"), parse_array(text))
    ]  # fmt: skip


def only(jobs: list[Job]) -> Batch:
    (batch,) = make_batches(jobs, SIZE)
    return batch


indices = st.lists(st.integers(0, 3500), min_size=1, max_size=20, unique=True).map(sorted)


@given(indices)
def test_every_element_is_found_by_its_id_however_squeue_folds_them(numbers: list[int]) -> None:
    jobs = elements(",".join(map(str, numbers)))
    batches = make_batches(jobs, SIZE)
    assert [job.id for batch in batches for job in batch.jobs] == [job.id for job in jobs]
    found: list[str] = []
    for at, batch in enumerate(batches):
        assert batch.base is not None or len(batch.jobs) == 1
        tasks = read_runs(batch.tasks) if batch.base is not None else []
        assert all(task < SIZE for task in tasks)
        name = f"{at}_[{batch.tasks}%4]" if batch.base is not None else str(at)
        comment = name_comment("t", batch.attempts)
        queue = QueueReader("t").read(f"{name}|PENDING|Priority|N/A||N/A|{comment}\n")
        found += queue
        # and each by itself once it runs
        for job, task in zip(batch.jobs, tasks, strict=False):
            running = QueueReader("t").read(f"{at}_{task}|RUNNING|None|1|n1|2|{comment}\n")
            assert running[job.attempt_id].job == f"{at}_{task}"
    assert sorted(found) == sorted(job.attempt_id for job in jobs)


@given(st.lists(st.integers(0, 300), min_size=1, unique=True))
def test_runs_are_read_as_they_are_written(numbers: list[int]) -> None:
    assert read_runs(render_runs(numbers)) == sorted(numbers)


def test_slurms_patterns_name_each_elements_files() -> None:
    at = Attachment(folder="/nfs/a%b")
    low, high = make_batches(elements("7,1007-1009"), SIZE)
    assert "--output=/nfs/a%%b/1000/j-000012_7.1.out" in make_options(low, at, "t", 1000)
    options = make_options(high, at, "t", 1000)
    assert "--output=/nfs/a%%b/1000/j-000012_1%3a.1.out" in options and "--array=7-9" in options
    assert "--comment=steelyard:t:j-000012_*+1000.1" in options
    assert f"SLURM_ARRAY_TASK_ID=$(({CHUNK} + SLURM_ARRAY_TASK_ID))" in render_script(high, at, 1000)


def test_files_of_the_users_own_go_together_where_the_index_makes_them() -> None:
    assert only(elements("12-14", "/out/slurm-12_{}.out")).stdout == "/out/slurm-12_%a.out"
    assert only(elements("1000-1003", "/o%/{}.out")).stdout == "/o%%/1%3a.out"
    assert only(elements("1-3", "/same")).stdout == "/same"
    # padded by the user: no pattern of Slurm's is that, and each goes by itself
    spelt = [
        replace(job, spec=replace(job.spec, stdout=f"/o/{number:04}x{number}")) for number, job in enumerate(elements("1-3"))
    ]
    assert [batch.base for batch in make_batches(spelt, SIZE)] == [None] * 3


def test_what_cannot_go_together_goes_alone() -> None:
    jobs = elements("1-3")
    again = [jobs[0], replace(jobs[1], attempt=2, restarts=1), jobs[2]]
    assert sorted(len(batch.jobs) for batch in make_batches(again, SIZE)) == [1, 2]
    # a site without arrays
    assert len(make_batches(jobs, 1)) == 3
    single = make_batches([replace(jobs[0], array=None)], SIZE)
    assert single[0].attempts == jobs[0].attempt_id


@given(st.dictionaries(st.integers(0, 30), st.text("a/%_0123", max_size=12), min_size=1, max_size=4))
def test_a_pattern_is_never_a_guess(paths: dict[int, str]) -> None:
    pattern = fit_pattern(dict(paths), 0)
    if pattern is not None and "\0" not in pattern:
        for index, path in paths.items():
            assert pattern.replace("%%", "\1").replace("%a", str(index)).replace("\1", "%") == path


@given(st.text(max_size=40), st.text(max_size=20))
def test_no_comment_and_no_name_upset_the_reader(attempts: str, name: str) -> None:
    list_attempts(attempts, name)
