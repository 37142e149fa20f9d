"""A report says everything; what was said before is neither encoded nor decoded again."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.model.function import FunctionState
from steelyard.model.ids import FunctionName, MachineId
from steelyard.wire.agent import Answer, FunctionSeen, Hello, Report, encode
from steelyard.wire.reports import FrameReader, ReportWriter


def report(*functions: FunctionSeen, seq: int = 1) -> Report:
    return Report(seq, MachineId("m"), "b", 3, functions=functions, blocked=("numa:0",))


def seen(name: str, replicas: int = 0) -> FunctionSeen:
    return FunctionSeen(name=FunctionName(name), revision=1, state=FunctionState.SLEEPING, replicas=replicas)


def as_told(found: Hello | Report | Answer) -> bytes:
    return encode(found)


def test_a_report_is_read_as_it_was_written() -> None:
    told = report(seen("a"), seen("b", 2))
    found = FrameReader().decode(ReportWriter().encode(told))
    assert isinstance(found, Report) and as_told(found) == as_told(told)
    assert isinstance(found.functions[1], FunctionSeen) and found.functions == told.functions


def test_what_is_told_in_the_same_words_is_the_same_object() -> None:
    writer, reader = ReportWriter(), FrameReader()
    same = seen("a")
    first = reader.decode(writer.encode(report(same, seen("b"))))
    second = reader.decode(writer.encode(report(same, seen("b", 1), seq=2)))
    assert isinstance(first, Report) and isinstance(second, Report)
    assert second.functions[0] is first.functions[0]
    assert second.functions[1] is not first.functions[1] and second.functions[1].replicas == 1


def test_other_frames_are_read_too_and_damaged_ones_raise() -> None:
    assert FrameReader().decode(encode(Answer(4, b"x"))) == Answer(4, b"x")
    with pytest.raises(msgspec.MsgspecError):
        FrameReader().decode(b"\x81\xa4type\xa3Hey")


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3)), max_size=8))
def test_whatever_changes_from_report_to_report_each_says_everything(story: list[dict[str, int]]) -> None:
    writer, reader = ReportWriter(), FrameReader()
    kept: dict[tuple[str, int], FunctionSeen] = {}
    for seq, counts in enumerate(story):
        functions = [kept.setdefault((name, count), seen(name, count)) for name, count in counts.items()]
        found = reader.decode(writer.encode(report(*functions, seq=seq)))
        assert isinstance(found, Report)
        assert (found.seq, found.functions) == (seq, tuple(functions))
