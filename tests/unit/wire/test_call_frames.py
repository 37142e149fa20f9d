"""Does the server read of an answer what the sandbox's own reader does, however it is cut, and refuse what is none?"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.sdk import frames
from steelyard.wire.call_frames import CALL_PATH, CONTENT_TYPE, TEXT_MAX, AnswerFrames, Raised

_segments = st.lists(st.binary(max_size=40), max_size=4)
_frames = st.lists(st.tuples(st.sampled_from(range(frames.CALL, frames.DONE)), st.integers(0, 9), _segments), max_size=6)


def encode(*parts: tuple[int, int, list[bytes]]) -> bytes:
    return b"".join(piece for part in parts for piece in frames.encode(*part))


def read(body: bytes, size: int) -> AnswerFrames:
    found = AnswerFrames()
    for at in range(0, len(body), size):
        found.feed(body[at : at + size])
    return found


def test_both_sides_mean_the_same_address_and_type() -> None:
    assert (CALL_PATH, CONTENT_TYPE) == (frames.CALL_PATH, frames.CONTENT_TYPE)


@given(_frames, st.integers(1, 30), st.booleans())
def test_an_answer_is_complete_with_its_last_frame_however_it_is_cut(
    parts: list[tuple[int, int, list[bytes]]], size: int, ended: bool
) -> None:
    body = encode(*parts, *([(frames.DONE, 0, [b"5"])] if ended else []))
    found = read(body, size)
    assert found.complete is ended
    assert (found.raised is None) is all(kind != frames.ERROR for kind, _, _ in parts)
    for cut in range(len(body)):
        assert not read(body[:cut], size).complete


@given(st.text(max_size=200), st.integers(1, 50))
def test_the_first_exception_is_told_in_its_own_words(text: str, size: int) -> None:
    told = json.dumps({"code": "raised", "type": "x.Error", "text": text, "traceback": "..."}).encode()
    body = encode((frames.ERROR, 3, [told, b"\x80pickle"]), (frames.ERROR, 4, [b"{}", b""]), (frames.DONE, 0, []))
    assert read(body, size).raised == Raised("raised", "x.Error", text)


@pytest.mark.parametrize("segments", [[], [b""], [b"no json"], [b"[]", b"x"], [b" " * (TEXT_MAX + 1)]])
def test_an_exception_without_readable_words_is_still_one(segments: list[bytes]) -> None:
    found = read(encode((frames.ERROR, 0, segments), (frames.DONE, 0, [])), 1 << 16)
    assert found.raised == Raised() and found.complete


@pytest.mark.parametrize("body", [b"\x00" * 8, b"HTTP/1.1 200", b"\xff" * 40])
def test_what_is_no_sequence_of_frames_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="no frame begins"):
        read(body, 3)


def test_nothing_follows_the_last_frame() -> None:
    with pytest.raises(ValueError, match="follows"):
        read(encode((frames.DONE, 0, [])) + b"x", 100)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_are_read_or_refused(body: bytes, size: int) -> None:
    try:
        read(body, size)
    except ValueError:
        return
