"""How are secret values kept out of what is shown? Pure: bytes or text in, the same out with `[secret NAME.KEY]` in their place.

Every byte that lies in any occurrence of a value is hidden, also where occurrences overlap; those that overlap become one mark.
So what is hidden depends on the bytes around a place alone, and a log may be read in pieces from anywhere: `margin` bytes before
and behind a piece are enough to know. Where values neither contain nor overlap each other this is what `str.replace` does.

Only values as they are written are found: not their base64, nor what JSON makes of a line break in them. Values shorter than
`VALUE_MIN` would hide half of a text and are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

VALUE_MIN = 6


class Shown(NamedTuple):
    data: bytes
    #: bytes of the piece that this is all of; the next piece begins behind them
    used: int


class Redactor:
    """Of some secrets. False when there is nothing to hide."""

    def __init__(self, secrets: Iterable[tuple[str, Mapping[str, str]]]) -> None:
        """(name, values), the first of equal values names them. White space around a value is not part of what is hidden: files
        end with a line break that shells take off."""
        self._marks: dict[bytes, bytes] = {}
        for name, values in secrets:
            for key, value in values.items():
                hidden = value.strip().encode(errors="surrogateescape")
                if len(hidden) >= VALUE_MIN:
                    self._marks.setdefault(hidden, f"[secret {name}.{key}]".encode())

    def __bool__(self) -> bool:
        return bool(self._marks)

    @property
    def margin(self) -> int:
        """Bytes on either side of a piece that decide what of it is hidden."""
        return max(map(len, self._marks), default=1) - 1

    def clean(self, text: str) -> str:
        """All of a text."""
        if not self._marks:
            return text
        raw = text.encode(errors="surrogateescape")
        return self.show(raw, 0, len(raw), over=True).data.decode(errors="surrogateescape")

    def show(self, window: bytes, begin: int, end: int, *, over: bool) -> Shown:
        """The piece [begin, end) of `window`, which holds up to `margin` more bytes on both sides, where there are any.
        `over`: nothing will ever follow the window; else what may become a value is left for the next piece."""
        if not over:
            end = min(end, self._held_from(window, begin))
        shown: list[bytes] = []
        at = begin
        for start, stop, mark in self._runs(window):
            if stop <= at or start >= end:
                continue
            if start >= at:
                shown += (window[at:start], mark)
            # what began before this piece has its mark there
            at = min(stop, end)
        shown.append(window[at:end])
        return Shown(b"".join(shown), end - begin)

    def _runs(self, window: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Where occurrences are, those that overlap as one; by their places."""
        found = sorted((start, -len(value), value) for value in self._marks for start in _find_all(window, value))
        run: tuple[int, int, bytes] | None = None
        for start, minus, value in found:
            stop = start - minus
            if run is not None and start < run[1]:
                run = (run[0], max(run[1], stop), run[2])
                continue
            if run is not None:
                yield run
            run = (start, stop, self._marks[value])
        if run is not None:
            yield run

    def _held_from(self, window: bytes, begin: int) -> int:
        """From where on the end of the window may be the beginning of a value."""
        return min((_find_start(window, begin, value) for value in self._marks), default=len(window))


def _find_all(window: bytes, value: bytes, first: int = 0) -> Iterator[int]:
    """Overlapping ones too."""
    start = window.find(value, first)
    while start >= 0:
        yield start
        start = window.find(value, start + 1)


def _find_start(window: bytes, begin: int, value: bytes) -> int:
    """Where the longest end of the window that a value begins with, and is not all of it, starts."""
    first = max(begin, len(window) - len(value) + 1)
    short = max(first, len(window) - VALUE_MIN + 1)
    starts = [*_find_all(window, value[:VALUE_MIN], first), *range(short, len(window))]
    return next((start for start in starts if value.startswith(window[start:])), len(window))
