"""An assignment says everything; jobs that were told before are neither encoded nor decoded again."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.model.ids import DEFAULT_PROJECT, AttemptId, JobId
from steelyard.model.job import JobSpec, Owner, Plan
from steelyard.wire.agent import AssignedJob, Assignment, ReportAck, encode
from steelyard.wire.assignments import AssignmentReader, AssignmentWriter


def job(number: int, signal: int | None = None) -> AssignedJob:
    name = f"j-{number:06d}"
    owner, spec = Owner("ada", 1000), JobSpec(name="true", argv=("/bin/true",), cwd="/")
    return AssignedJob(AttemptId(f"{name}.1"), JobId(name), DEFAULT_PROJECT, owner, spec, Plan(), stop_signal=signal)


def told(*jobs: AssignedJob, generation: int = 1) -> Assignment:
    return Assignment(epoch=2, generation=generation, jobs=jobs, keys=("sk-a",))


def test_what_is_told_in_the_same_words_is_the_same_object() -> None:
    writer, reader = AssignmentWriter(), AssignmentReader()
    same = job(1)
    first = reader.decode(writer.encode(told(same, job(2))))
    second = reader.decode(writer.encode(told(same, job(2, 15), generation=2)))
    assert isinstance(first, Assignment) and isinstance(second, Assignment)
    assert second.jobs[0] is first.jobs[0] and second.jobs[0] == same
    assert second.jobs[1].stop_signal == 15


def test_other_frames_are_read_too_and_damaged_ones_raise() -> None:
    assert AssignmentReader().decode(encode(ReportAck(4))) == ReportAck(4)
    whole = AssignmentWriter().encode(told(job(1)))
    with pytest.raises(msgspec.MsgspecError):
        AssignmentReader().decode(whole.replace(b"argv", b"argw").replace(b"spec", b"sqec"))


@given(st.lists(st.dictionaries(st.integers(1, 5), st.none() | st.integers(1, 3)), max_size=8))
def test_whatever_changes_from_one_to_the_next_each_says_everything(story: list[dict[int, int | None]]) -> None:
    writer, reader = AssignmentWriter(), AssignmentReader()
    kept: dict[tuple[int, int | None], AssignedJob] = {}
    for generation, signals in enumerate(story):
        jobs = [kept.setdefault((number, signal), job(number, signal)) for number, signal in signals.items()]
        found = reader.decode(writer.encode(told(*jobs, generation=generation)))
        assert isinstance(found, Assignment)
        assert (found.generation, found.jobs, found.keys) == (generation, tuple(jobs), ("sk-a",))
