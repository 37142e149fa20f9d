"""Which lines does a tool's screen have? Bounded, without the colours of a terminal; one cutting for all readers of text."""

from __future__ import annotations

import re

from steelyard.errors import Refused

#: a matrix of 512 devices has lines of 4 KiB; a screen about 16 GPUs has 4,000 lines
LINE_CHARACTERS_MAX = 8192
LINES_MAX = 200_000
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def split_lines(text: str, source: str) -> list[str]:
    """The lines without escapes and blanks at their ends. Raises `Refused` for more or longer ones than any screen has."""
    lines = text.split("\n", LINES_MAX)
    if len(lines) > LINES_MAX or any(len(line) > LINE_CHARACTERS_MAX for line in lines):
        raise Refused(f"{source} has more or longer lines than any tool's screen about one machine, so it is not read.")
    return [drop_escapes(line).rstrip() for line in lines]


def drop_escapes(text: str) -> str:
    """Without a terminal's colours and underlines: nvidia-smi underlines its header even into a file."""
    return _ESCAPE.sub("", text)
