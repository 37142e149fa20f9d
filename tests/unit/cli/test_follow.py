"""Many logs shown as one: lines stay whole, whatever the pieces in which they come."""

from __future__ import annotations

import io
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.cli.attend import Cursor
from steelyard.cli.follow import LINE_MAX, Followers, Lines, Printer, Stream
from steelyard.wire.api import LogChunk

TEXT = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r", b"\r\n", b"\xff\x00"]), max_size=20).map(b"".join)


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def chunk(stdout: bytes = b"", stderr: bytes = b"", *, ended: bool = False, attempt: int = 1, at: int = 0) -> LogChunk:
    return LogChunk(stdout, stderr, at + len(stdout), len(stderr), ended, 0 if ended else None, "RUNNING", None, "", attempt)


@given(TEXT, st.lists(st.integers(0, 40), max_size=6))
def test_the_pieces_make_no_difference_to_the_lines(text: bytes, cuts: list[int]) -> None:
    whole = re.split(rb"\r\n|\n|\r", text)
    expected = whole if whole[-1] else whole[:-1]
    lines = Lines()
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    seen = [line for begin, end in itertools.pairwise(places) for line in lines.feed(text[begin:end])]
    assert [*seen, *lines.finish()] == expected
    assert lines.finish() == []


def test_a_line_without_an_end_is_shown_in_pieces_before_memory_is_full() -> None:
    lines = Lines()
    assert lines.feed(b"x" * (2 * LINE_MAX + 1)) == [b"x" * LINE_MAX] * 2
    assert lines.finish() == [b"x"]


def test_in_a_pipe_each_line_has_a_plain_prefix_on_its_own_stream() -> None:
    out, err = io.BytesIO(), io.BytesIO()
    printer = Printer(2, out, err)
    printer.write("3", chunk(b"one\ntw", b"oh\n"))
    printer.write("12", chunk(b"other\n"))
    printer.write("3", chunk(b"o\n"))
    assert out.getvalue() == b"[3] one\n[12] other\n[3] two\n"
    assert err.getvalue() == b"[3] oh\n"


def test_a_line_without_an_end_is_shown_when_its_writer_ends_and_when_the_look_is_over() -> None:
    out = io.BytesIO()
    printer = Printer(1, out, io.BytesIO())
    printer.write("0", chunk(b"first"))
    printer.write("1", chunk(b"second"))
    printer.write("0", chunk(b"!", ended=True))
    assert out.getvalue() == b"[0] first!\n"
    printer.finish()
    assert out.getvalue() == b"[0] first!\n[1] second\n"


def test_another_attempt_begins_on_a_line_of_its_own() -> None:
    out = io.BytesIO()
    printer = Printer(1, out, io.BytesIO())
    printer.write("0", chunk(b"cut off", attempt=1))
    printer.write("0", chunk(b"again\n", attempt=2))
    assert out.getvalue() == b"[0] cut off\n[0] again\n"


def test_a_person_sees_colours_by_rank_and_aligned_lines() -> None:
    out = Terminal()
    printer = Printer(2, out, io.BytesIO())
    for rank in (0, 1, 10):
        printer.write(str(rank), chunk(b"x\n"))
    assert out.getvalue() == b"\x1b[36m[0]  \x1b[0mx\n\x1b[32m[1]  \x1b[0mx\n\x1b[33m[10] \x1b[0mx\n"


@pytest.mark.parametrize("workers", [1, 4])
def test_every_log_is_read_to_its_end_in_order_however_few_ask(workers: int) -> None:
    texts = {str(number): [f"{number}.{part}\n".encode() for part in range(5)] for number in range(9)}

    def make(label: str) -> Stream:
        def poll(cursor: Cursor, _wait_s: float) -> LogChunk:
            parts = texts[label]
            part = next((at for at in range(len(parts)) if sum(map(len, parts[:at])) == cursor.stdout), len(parts))
            return chunk(b"", at=cursor.stdout, ended=True) if part == len(parts) else chunk(parts[part], at=cursor.stdout)

        return Stream(label, poll)

    followers, seen = Followers(workers), dict[str, bytes]()
    for label in texts:
        followers.add(make(label))
    while followers.open:
        assert followers.wait(5)
        for stream, came in followers.take():
            seen[stream.label] = seen.get(stream.label, b"") + came.stdout
    assert seen == {label: b"".join(parts) for label, parts in texts.items()}


def test_what_asking_raised_is_raised_where_it_is_taken() -> None:
    def fail(_cursor: Cursor, _wait_s: float) -> LogChunk:
        raise ValueError("gone")

    followers = Followers()
    followers.add(Stream("0", fail))
    assert followers.wait(5)
    with pytest.raises(ValueError, match="gone"):
        followers.take()
