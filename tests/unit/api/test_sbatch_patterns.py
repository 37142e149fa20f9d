"""File names with Slurm's patterns, before and after ids are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.api.sbatch_patterns import fill_outputs, fill_pattern, make_pattern
from steelyard.errors import Refused
from steelyard.model.batch import ArrayPlace
from steelyard.model.ids import DEFAULT_PROJECT, JobId
from steelyard.model.job import Job, JobSpec, JobState, Owner

ELEMENT = 12_000_000_091


def fill(pattern: str) -> str:
    return fill_pattern(pattern, job=ELEMENT, array_job=12, array_index=7, name="a/b", user="eve", node="n1.example")


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("%A_%a", "12_7"),
        ("%A_%4a", "12_0007"),
        ("%j", str(ELEMENT)),
        ("%J", str(ELEMENT)),
        ("%b", "7"),
        ("%x.%u.%N.%n.%t.%s", "a_b.eve.n1.0.0.batch"),
        ("100%%", "100%"),
        ("%%j", "%j"),
        ("%99a", "0000000007"),
        ("%q %", "%q %"),
    ],
)
def test_patterns_are_filled(pattern: str, path: str) -> None:
    assert fill(pattern) == path


def test_outside_of_arrays_the_array_is_the_job() -> None:
    filled = fill_pattern("%A_%a", job=5, array_job=None, array_index=None, name="", user="", node="")
    assert filled == "5_4294967294"


def test_a_relative_path_is_below_the_folder_whatever_the_folder_is_called() -> None:
    assert fill(make_pattern("out-%A", "/data/50%j", "output")) == "/data/50%j/out-12"
    assert fill(make_pattern("/tmp/%A", "/x", "output")) == "/tmp/12"
    assert fill(make_pattern("a", "/", "output")) == "/a"


def test_a_backslash_turns_patterns_off() -> None:
    assert fill(make_pattern(r"\out-%j", "/x", "output")) == "/x/out-%j"


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 5000])
def test_what_is_no_file_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="--error"):
        make_pattern(text, "/x", "error")


@given(st.text(max_size=30))
def test_any_pattern_can_be_filled(pattern: str) -> None:
    fill(pattern)


def test_a_jobs_files_are_named_once_it_has_an_id() -> None:
    spec = JobSpec("x", ("x",), "/w", stdout="/w/slurm-%A_%a.out", stderr="/w/%x-%u.err")
    place = ArrayPlace(JobId("j-000012"), 7, 10, 0, 9)
    job = Job(JobId("j-000012_7"), DEFAULT_PROJECT, Owner("eve", 1), 1, 0, spec, JobState.QUEUED, 0, array=place)
    filled = fill_outputs(job, "n1").spec
    assert (filled.stdout, filled.stderr) == ("/w/slurm-12_7.out", "/w/x-eve.err")
    assert fill_outputs(Job(JobId("j-000003"), DEFAULT_PROJECT, Owner("eve", 1), 1, 0, JobSpec("x", ("x",), "/"), JobState.QUEUED, 0), "n1").spec.stdout is None  # fmt: skip  # noqa: E501
