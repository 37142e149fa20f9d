"""Frames for an agent: of an assignment that names all jobs each time, those that changed cost something (parts.py)."""

from __future__ import annotations

import msgspec

from steelyard.wire.agent import Ask, AssignedJob, Assignment, ReportAck, encode
from steelyard.wire.parts import PartReader, PartWriter


class _RawAssignment(Assignment, frozen=True, tag="Assignment"):
    """An assignment whose jobs are as they came."""

    jobs: tuple[msgspec.Raw, ...] = ()  # pyright: ignore[reportIncompatibleVariableOverride]


_decode = msgspec.msgpack.Decoder(_RawAssignment | ReportAck | Ask).decode


class AssignmentWriter:
    def __init__(self) -> None:
        self._jobs = PartWriter[AssignedJob](encode)

    def encode(self, assignment: Assignment) -> bytes:
        return encode(msgspec.structs.replace(assignment, jobs=self._jobs.write(assignment.jobs)))


class AssignmentReader:
    def __init__(self) -> None:
        self._jobs = PartReader(msgspec.msgpack.Decoder(AssignedJob).decode)

    def decode(self, frame: bytes) -> Assignment | ReportAck | Ask:
        """Raises msgspec.MsgspecError."""
        found = _decode(frame)
        if not isinstance(found, _RawAssignment):
            return found
        return msgspec.structs.replace(found, jobs=self._jobs.read(found.jobs))
