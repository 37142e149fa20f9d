"""How does a report that tells a thousand functions each time cost next to nothing? What did not change since the one before is
neither encoded nor decoded again.

Both sides know it by themselves: a `ReportWriter` by the object, a `FrameReader` by the bytes. On the wire every report stands
for itself, so that a lost one costs nothing. One of each per connection.
"""

from __future__ import annotations

import msgspec

from steelyard.model.ids import FunctionName
from steelyard.wire.agent import Answer, FunctionSeen, Hello, Report, encode

_decode_function = msgspec.msgpack.Decoder(FunctionSeen).decode


class _RawReport(Report, frozen=True, tag="Report"):
    """A report whose functions are as they came."""

    functions: tuple[msgspec.Raw, ...] = ()  # pyright: ignore[reportIncompatibleVariableOverride]


_decode = msgspec.msgpack.Decoder(Hello | _RawReport | Answer).decode


class ReportWriter:
    def __init__(self) -> None:
        self._written: dict[FunctionName, tuple[FunctionSeen, msgspec.Raw]] = {}

    def encode(self, report: Report) -> bytes:
        before, self._written = self._written, {}
        for seen in report.functions:
            written = before.get(seen.name)
            same = written is not None and written[0] is seen
            self._written[seen.name] = written if same and written is not None else (seen, msgspec.Raw(encode(seen)))
        rows = tuple(raw for _, raw in self._written.values())
        return encode(msgspec.structs.replace(report, functions=rows))


class FrameReader:
    """Functions that are told in the same words are the same objects."""

    def __init__(self) -> None:
        self._read: dict[bytes, FunctionSeen] = {}

    def decode(self, frame: bytes) -> Hello | Report | Answer:
        """Raises msgspec.MsgspecError."""
        found = _decode(frame)
        if not isinstance(found, _RawReport):
            return found
        before, self._read = self._read, {}
        for raw in found.functions:
            words = bytes(raw)
            self._read[words] = before.get(words) or _decode_function(words)
        return msgspec.structs.replace(found, functions=tuple(self._read.values()))
