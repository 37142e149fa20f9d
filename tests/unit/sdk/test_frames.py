"""Frames and HTTP answers survive being cut anywhere; what is no frame is refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.sdk.frames import CALL, DONE, JOIN_BYTES, RESULT, Frame, FrameReader, FramingError, encode, join
from steelyard.sdk.http1 import BadResponse, ResponseReader

FRAMES = st.lists(
    st.tuples(
        st.integers(CALL, DONE),
        st.integers(0, 2**32 - 1),
        st.lists(st.binary(max_size=40) | st.integers(1, 3).map(lambda n: bytes(n * JOIN_BYTES)), max_size=4),
    ),
    max_size=6,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


@given(FRAMES, st.lists(st.integers(0, 10**6), max_size=8))
def test_frames_come_back_however_they_were_cut(sent: list[tuple[int, int, list[bytes]]], places: list[int]) -> None:
    data = b"".join(b"".join(encode(kind, number, segments)) for kind, number, segments in sent)
    reader = FrameReader()
    came = [frame for piece in cut(data, places) for frame in reader.feed(piece)]
    assert [(kind, number, [bytes(each) for each in segments]) for kind, number, segments in came] == sent
    assert reader.empty


def test_large_segments_are_not_copied_on_their_way_out() -> None:
    large = bytearray(JOIN_BYTES + 1)
    assert any(buffer is large for buffer in encode(RESULT, 1, [b"small", large]))
    assert encode(RESULT, 1, [large])[1] is large
    assert join([b"a", b"b", large, b"c"]) == [b"ab", large, b"c"]
    assert join([]) == []


def test_what_begins_like_no_frame_is_refused_and_half_a_frame_waits() -> None:
    with pytest.raises(FramingError):
        FrameReader().feed(b"GET / HTTP/1.1\r\n")
    reader = FrameReader()
    assert reader.feed(b"".join(encode(RESULT, 1, [b"value"]))[:-1]) == []
    assert not reader.empty
    assert reader.feed(b"e") == [Frame(RESULT, 1, [b"value"])]


def test_memory_follows_what_came_and_not_what_was_announced() -> None:
    reader = FrameReader()
    head = b"".join(encode(RESULT, 1, [b"x"]))[:8] + (1 << 60).to_bytes(8, "little")
    assert reader.feed(head + b"only this") == []
    assert len(reader._filling) == 9


BODIES = st.lists(st.binary(min_size=1, max_size=50), max_size=5)


@given(BODIES, st.booleans(), st.lists(st.integers(0, 10**6), max_size=8), st.booleans())
def test_answers_come_back_however_they_were_cut(parts: list[bytes], chunked: bool, places: list[int], early: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n"
    if early:
        head = b"HTTP/1.1 100 Continue\r\n\r\n" + head
    if chunked:
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        data = head + b"transfer-encoding: chunked\r\n\r\n" + body
    else:
        data = head + b"content-length: %d\r\n\r\n" % sum(map(len, parts)) + b"".join(parts)
    reader = ResponseReader()
    came = b"".join(piece for part in cut(data, places) for piece in reader.feed(part))
    assert came == b"".join(parts)
    assert (reader.done, reader.status, reader.keep_alive) == (True, 200, True)
    assert reader.headers[b"content-type"] == b"a/b"


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nsome") == [b"some"]
    assert not reader.done and reader.end()
    half = ResponseReader()
    half.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhalf")
    assert not half.end()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 no http\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n",
        b"x" * 70000,
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseReader().feed(data)


@given(st.binary(max_size=200))
def test_noise_never_breaks_a_reader_otherwise(noise: bytes) -> None:
    for feed in (FrameReader().feed, ResponseReader().feed):
        try:
            feed(noise)
        except (FramingError, BadResponse):
            continue
