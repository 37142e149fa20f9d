"""Which of what is typed is for us? `~.` at the beginning of a line hangs up, `~~` there is one `~`, as with ssh. Pure."""

from __future__ import annotations

from enum import Enum, auto


class _Where(Enum):
    BEGIN = auto()
    TILDE = auto()
    INSIDE = auto()


class Escape:
    def __init__(self) -> None:
        self._where = _Where.BEGIN

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """(what goes to the program, was it hung up?); what comes behind `~.` is dropped."""
        passed = bytearray()
        for byte in typed:
            if self._where is _Where.TILDE:
                if byte == ord("."):
                    return bytes(passed), True
                # the one that was kept back; `~~` is one of them
                passed.append(ord("~"))
                self._where = _Where.INSIDE
                if byte == ord("~"):
                    continue
            if self._where is _Where.BEGIN and byte == ord("~"):
                self._where = _Where.TILDE
                continue
            passed.append(byte)
            self._where = _Where.BEGIN if byte in b"\r\n" else _Where.INSIDE
        return bytes(passed), False
