"""What is a replica doing right now, and when did it reach each step of its start? One 4096-byte shared memory file per replica.

The replica (or relay) writes, the agent reads; neither waits for the other. The first half holds unsigned 64-bit numbers, the
second half JSON: the user's phases, what a start waits for and, after a failure, the error text. Never deletes the file: whoever
made it does.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Sequence
from typing import Any

PAGE_BYTES = 4096
TEXT_AT = 2048
#: the error text is cut to this many characters, its end being kept: a traceback's last line says most
ERROR_MAX = 1500

METRICS_MAX, _METRICS_AT = 8, 32

NONE, ALIVE, JOINED, IMPORTED, ENTERED, SERVING, RETIRING, FAILED = range(8)


class _Number:
    """A u64 at a fixed place; reads and writes go straight to the shared memory."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __get__(self, page: Page, owner: object = None) -> int:
        return page.numbers[self.index]

    def __set__(self, page: Page, value: int) -> None:
        page.numbers[self.index] = value


class Page:
    """Open with `create`, `open` or `from_fd`; `close` when done."""

    #: one of the constants above
    state = _Number(0)
    #: accepted and not closed yet
    connections = _Number(1)
    #: requests inside the user's code
    busy = _Number(2)
    #: connections accepted since the start, and requests finished
    accepted = _Number(3)
    finished = _Number(4)
    #: CLOCK_MONOTONIC of the last request's begin or end
    last_active_ns = _Number(5)
    #: CLOCK_MONOTONIC of each step of the start; 0 = not reached
    alive_ns = _Number(6)
    joined_ns = _Number(7)
    imported_ns = _Number(8)
    entered_ns = _Number(9)
    serving_ns = _Number(10)
    #: the first connection with a request was accepted, its answer begun
    accepted_ns = _Number(11)
    first_byte_ns = _Number(12)
    #: wall clock, microseconds: when the gateway saw the first request
    arrival_us = _Number(13)
    #: what finished requests took, together
    service_ns = _Number(14)
    #: of the finished requests, those that were answered with 5xx or raised
    errors = _Number(15)
    #: CLOCK_MONOTONIC of the last look at the program's metrics page, and which of the wanted numbers it told, a bit each
    metrics_ns = _Number(16)
    metrics_told = _Number(17)

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.numbers = memoryview(memory)[:TEXT_AT].cast("Q")

    @classmethod
    def create(cls, path: str | os.PathLike[str], mode: int = 0o600) -> Page:
        """Make a fresh page. FileExistsError when there is one."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            os.ftruncate(fd, PAGE_BYTES)
            return cls.from_fd(fd)
        finally:
            os.close(fd)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Page:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls.from_fd(fd)
        finally:
            os.close(fd)

    @classmethod
    def from_fd(cls, fd: int) -> Page:
        """Map an open page; the descriptor may be closed afterwards. ValueError when the file is too short."""
        return cls(mmap.mmap(fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))

    def close(self) -> None:
        self.numbers.release()
        self._memory.close()

    def read(self) -> dict[str, int]:
        """All numbers by name."""
        return {name: self.numbers[field.index] for name, field in vars(Page).items() if isinstance(field, _Number)}

    def write_metrics(self, now_ns: int, values: Sequence[float | None]) -> None:
        """At most METRICS_MAX; None: not told."""
        told = 0
        for at, value in enumerate(values):
            if value is not None:
                self.numbers[_METRICS_AT + at] = struct.unpack("<Q", struct.pack("<d", value))[0]
                told |= 1 << at
        self.metrics_told, self.metrics_ns = told, now_ns

    def read_metrics(self, count: int) -> tuple[float | None, ...]:
        told = self.metrics_told
        numbers = self.numbers[_METRICS_AT : _METRICS_AT + count]
        values = [struct.unpack("<d", struct.pack("<Q", number))[0] for number in numbers]
        return tuple(value if told >> at & 1 else None for at, value in enumerate(values))

    @property
    def user_phases(self) -> dict[str, float]:
        phases = self._text().get("phases")
        return phases if isinstance(phases, dict) else {}

    @property
    def error(self) -> str:
        return str(self._text().get("error", ""))

    @property
    def said(self) -> str:
        """What the start waits for."""
        return str(self._text().get("said", ""))

    def say(self, text: str) -> None:
        if text != self.said:
            self._write_text({"said": text[-300:]})

    def write_phases(self, phases: dict[str, float]) -> None:
        """Keep what fits, in order; the rest is dropped."""
        kept = {str(name)[:80]: round(spent_ms, 3) for name, spent_ms in list(phases.items())[:64]}
        while kept and not self._write_text({"phases": kept}):
            kept.popitem()

    def fail(self, error: str) -> None:
        """Write the error, then the state, so that whoever sees FAILED finds the text. Phases give way where both don't fit."""
        kept = error[-ERROR_MAX:]
        if not self._write_text({"error": kept}):
            self._write_text({"error": kept[-300:], "phases": {}})
        self.state = FAILED

    def _write_text(self, fields: dict[str, Any]) -> bool:
        data = json.dumps({**self._text(), **fields}).encode()
        room = PAGE_BYTES - TEXT_AT - 8
        if len(data) > room:
            return False
        at = TEXT_AT + 8
        # the length is zero while the text changes: a reader in between sees nothing rather than half
        self._memory[TEXT_AT : TEXT_AT + 8] = bytes(8)
        self._memory[at : at + len(data)] = data
        self._memory[TEXT_AT : TEXT_AT + 8] = len(data).to_bytes(8, "little")
        return True

    def _text(self) -> dict[str, Any]:
        length = int.from_bytes(self._memory[TEXT_AT : TEXT_AT + 8], "little")
        if not 0 < length <= PAGE_BYTES - TEXT_AT - 8:
            return {}
        try:
            found = json.loads(self._memory[TEXT_AT + 8 : TEXT_AT + 8 + length])
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}
