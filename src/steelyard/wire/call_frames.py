"""Did a function answer with an exception? Reads the heads of the frames of a call's answer (`sdk/frames.py`) and skips what is
in them: nothing of the user's is ever unpickled here.

A frame is a head (kind, number of segments, id), the segments' lengths, and the segments; integers are little-endian. The first
segment of an ERROR is JSON, which we write ourselves in the sandbox: from it comes the sentence that people read.
"""

from __future__ import annotations

import struct

import msgspec

CONTENT_TYPE = "application/x-steelyard-call"
#: below a function's address; `/<method>` follows for a class
CALL_PATH = "/.steelyard/call"

CALL, ERROR, DONE = 1, 3, 7
_HEAD = struct.Struct("<BxHI")
_LENGTH = struct.Struct("<Q")
#: of an exception's text; a longer one is told without it
TEXT_MAX = 1 << 20


class Raised(msgspec.Struct, frozen=True):
    """The first segment of an ERROR."""

    code: str = ""
    type: str = ""
    text: str = ""


class AnswerFrames:
    """Bytes in, what they said out. Memory is bounded whatever comes."""

    def __init__(self) -> None:
        #: the last frame has come, and nothing after it
        self.complete = False
        #: of the first ERROR
        self.raised: Raised | None = None
        self._rest = b""
        self._kind = 0
        #: lengths of the frame's segments that have not begun, the next one last
        self._lengths: list[int] = []
        #: bytes that are still to come of the one that has
        self._left = 0
        #: the text of an ERROR, while it comes
        self._text: bytearray | None = None

    def feed(self, data: bytes) -> None:
        """Raises ValueError for what is no sequence of frames."""
        data = self._rest + data if self._rest else data
        self._rest = b""
        at = 0
        while True:
            while self._lengths and not self._left:
                self._left = self._lengths.pop()
                if not self._left:
                    self._end_segment()
            if at == len(data):
                return
            if self._left:
                taken = min(self._left, len(data) - at)
                if self._text is not None:
                    self._text += data[at : at + taken]
                at, self._left = at + taken, self._left - taken
                if not self._left:
                    self._end_segment()
                continue
            size = self._begin(data, at)
            if size is None:
                self._rest = data[at:]
                return
            at += size

    def _begin(self, data: bytes, at: int) -> int | None:
        """Size of the frame's head and lengths; None while they are not all here."""
        if self.complete:
            raise ValueError("something follows the last frame")
        if len(data) - at < _HEAD.size:
            return None
        kind, count, _ = _HEAD.unpack_from(data, at)
        if not CALL <= kind <= DONE:
            raise ValueError(f"no frame begins with {kind}")
        size = _HEAD.size + count * _LENGTH.size
        if len(data) - at < size:
            return None
        first = at + _HEAD.size
        self._lengths = [_LENGTH.unpack_from(data, first + each * _LENGTH.size)[0] for each in range(count)][::-1]
        self._kind = kind
        if kind == ERROR and self.raised is None:
            self.raised = Raised()
            if self._lengths and self._lengths[-1] <= TEXT_MAX:
                self._text = bytearray()
        if not self._lengths:
            self._end_frame()
        return size

    def _end_segment(self) -> None:
        if self._text is not None:
            try:
                self.raised = msgspec.json.decode(self._text, type=Raised)
            except msgspec.MsgspecError:
                self.raised = Raised()
            self._text = None
        if not self._lengths:
            self._end_frame()

    def _end_frame(self) -> None:
        self.complete = self._kind == DONE
