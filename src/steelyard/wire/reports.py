"""Frames of an agent: of a report that tells a thousand functions each time, those that changed cost something (parts.py)."""

from __future__ import annotations

import msgspec

from steelyard.wire.agent import Answer, FunctionSeen, Hello, Report, encode
from steelyard.wire.parts import PartReader, PartWriter


class _RawReport(Report, frozen=True, tag="Report"):
    """A report whose functions are as they came."""

    functions: tuple[msgspec.Raw, ...] = ()  # pyright: ignore[reportIncompatibleVariableOverride]


_decode = msgspec.msgpack.Decoder(Hello | _RawReport | Answer).decode


class ReportWriter:
    def __init__(self) -> None:
        self._functions = PartWriter[FunctionSeen](encode)

    def encode(self, report: Report) -> bytes:
        return encode(msgspec.structs.replace(report, functions=self._functions.write(report.functions)))


class FrameReader:
    def __init__(self) -> None:
        self._functions = PartReader(msgspec.msgpack.Decoder(FunctionSeen).decode)

    def decode(self, frame: bytes) -> Hello | Report | Answer:
        """Raises msgspec.MsgspecError."""
        found = _decode(frame)
        if not isinstance(found, _RawReport):
            return found
        return msgspec.structs.replace(found, functions=self._functions.read(found.functions))
