"""Frames survive being cut anywhere; what is no frame is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuts import cut
from steelyard.sdk.frames import CALL, DONE, JOIN_BYTES, RESULT, Frame, FrameReader, FramingError, encode, join

FRAMES = st.lists(
    st.tuples(
        st.integers(CALL, DONE),
        st.integers(0, 2**32 - 1),
        st.lists(st.binary(max_size=40) | st.integers(1, 3).map(lambda n: bytes(n * JOIN_BYTES)), max_size=4),
    ),
    max_size=6,
)


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


@given(st.binary(max_size=200))
def test_noise_never_breaks_a_reader_otherwise(noise: bytes) -> None:
    with contextlib.suppress(FramingError):
        FrameReader().feed(noise)
