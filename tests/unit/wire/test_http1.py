"""HTTP answers survive being cut anywhere; what is none is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuts import cut
from steelyard.wire.http1 import BadResponse, ResponseReader

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


def test_the_answer_to_a_head_ends_with_its_head() -> None:
    reader = ResponseReader(body=False)
    assert reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n") == []
    assert reader.done and reader.keep_alive


@given(st.binary(max_size=200))
def test_noise_never_breaks_a_reader_otherwise(noise: bytes) -> None:
    with contextlib.suppress(BadResponse):
        ResponseReader().feed(noise)
