"""How do many inputs travel in one request, and their results in one answer? As frames.

A frame is a head (kind, number of segments, id), the segments' lengths, and the segments. Integers are little-endian. What is in
a segment is nobody's business on the way: kind and id are all that a server reads.

    request     CALL...                                     one per input; ids are the caller's, from 0, in order
    answer      RESULT | ERROR | YIELD... END               per input, as soon as it is there, in any order
                STARTED                                     only with several inputs: those with an id below this may have begun
                DONE                                        last; its segment: nanoseconds that the inputs ran, summed

An input that got neither RESULT, ERROR nor END had begun if its id is below the highest STARTED, and was not touched otherwise.
An ERROR has two segments: JSON ({"code", "type", "text", "traceback"}) and the pickled exception, empty where it can't be one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

CONTENT_TYPE = "application/x-steelyard-call"
#: below a function's address; `/<method>` follows for a class
CALL_PATH = "/.steelyard/call"

CALL, RESULT, ERROR, YIELD, END, STARTED, DONE = range(1, 8)

#: codes of an ERROR: the user's own exception; the input took too long; argument or result can't travel; not executed at all
RAISED, TIMEOUT, PAYLOAD, NOT_BEGUN = "raised", "timeout", "payload", "not-begun"

_HEAD = struct.Struct("<BxHI")
_LENGTH = struct.Struct("<Q")
#: pieces up to this size are joined into one write
JOIN_BYTES = 1 << 16
SEGMENTS_MAX = (1 << 16) - 1

Buffer = Any  # bytes, bytearray or memoryview: `collections.abc.Buffer` is of Python 3.12


class FramingError(ValueError):
    """What came is no sequence of frames."""


class Frame(NamedTuple):
    kind: int
    id: int
    segments: list[Buffer]


def encode(kind: int, id: int, segments: Sequence[Buffer] = ()) -> list[Buffer]:
    """The frame as buffers to be sent one after the other, small ones joined; large ones are not copied. ValueError for more than
    65535 segments."""
    count = len(segments)
    if count == 1:
        only = segments[0]
        length = len(only)
        head = _HEAD.pack(kind, 1, id) + _LENGTH.pack(length)
        return [head + only] if length <= JOIN_BYTES else [head, only]
    if count > SEGMENTS_MAX:
        raise ValueError(f"{count} segments do not fit into a frame")
    head = _HEAD.pack(kind, count, id) + b"".join(_LENGTH.pack(len(segment)) for segment in segments)
    return join([head, *segments])


def join(buffers: Sequence[Buffer]) -> list[Buffer]:
    """The same bytes in fewer pieces."""
    joined: list[Buffer] = []
    small: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) <= JOIN_BYTES:
            small.append(buffer)
            continue
        if small:
            joined.append(b"".join(small))
            small = []
        joined.append(buffer)
    if small:
        joined.append(b"".join(small) if len(small) > 1 else small[0])
    return joined


class FrameReader:
    """Bytes in, frames out. Memory grows with what has come, not with what was announced."""

    def __init__(self) -> None:
        self._rest = b""
        #: of a frame whose segments are still coming
        self._head: tuple[int, int] | None = None
        self._lengths: list[int] = []
        self._segments: list[Buffer] = []
        self._filling = bytearray()

    @property
    def empty(self) -> bool:
        """No frame has begun that is not complete."""
        return self._head is None and not self._rest

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. FramingError."""
        frames: list[Frame] = []
        at = 0
        if self._head is not None:
            at = self._fill(data, 0, frames)
        elif self._rest:
            data = self._rest + data
            self._rest = b""
        end = len(data)
        while at < end:
            if end - at < _HEAD.size:
                break
            kind, count, number = _HEAD.unpack_from(data, at)
            if not CALL <= kind <= DONE:
                raise FramingError(f"no frame begins with {kind}")
            body = at + _HEAD.size + count * _LENGTH.size
            if body > end:
                break
            if count == 1:
                (length,) = _LENGTH.unpack_from(data, at + _HEAD.size)
                if body + length <= end:
                    at = body + length
                    frames.append(Frame(kind, number, [data[body:at]]))
                    continue
            self._head = (kind, number)
            self._lengths = [_LENGTH.unpack_from(data, at + _HEAD.size + each * _LENGTH.size)[0] for each in range(count)]
            self._lengths.reverse()
            at = self._fill(data, body, frames)
        self._rest = data[at:]
        return frames

    def _fill(self, data: bytes, at: int, frames: list[Frame]) -> int:
        """Take segments of the frame that has begun; returns where the next begins, or the end."""
        end = len(data)
        while self._lengths:
            wanted = self._lengths[-1] - len(self._filling)
            have = min(wanted, end - at)
            if not self._filling and have == wanted:
                self._segments.append(data[at : at + have])
            else:
                self._filling += memoryview(data)[at : at + have]
                if have < wanted:
                    return end
                self._segments.append(self._filling)
                self._filling = bytearray()
            at += have
            self._lengths.pop()
        kind, number = self._head or (0, 0)
        frames.append(Frame(kind, number, self._segments))
        self._head, self._segments = None, []
        return at
