"""Which names does `a[1-3,5],b[01-10]` stand for? Slurm's hostlist expressions.

Numbers keep their width (`01-10` gives `01`). Several brackets in one name multiply. The number of names is bounded before they
are made, so that `a[1-999999999]` costs nothing.
"""

from __future__ import annotations

import itertools
import re

from steelyard.errors import Refused

NAMES_MAX = 1_000_000
#: of one expression without what its brackets stand for; longer ones are no names of machines
LENGTH_MAX = 250
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_NAME = re.compile(r"[^\s\[\],\"'=\\]+")


def expand_hostlist(text: str, source: str, names_max: int = NAMES_MAX) -> tuple[str, ...]:
    """The names in the order written. `Refused` for what is no hostlist or stands for more than `names_max` names."""
    names: list[str] = []
    for part in _split(text, source):
        pieces = _BRACKET.split(part)  # text, ranges, text, ranges, ..., text
        if sum(map(len, pieces[::2])) > LENGTH_MAX:
            raise Refused(f"{source}: {_short(part)!r} is too long for the name of a machine or switch")
        choices = [[piece] for piece in pieces]
        count = 1
        for place in range(1, len(pieces), 2):
            count *= _count(pieces[place], source)
            if len(names) + count > names_max:
                raise Refused(f"{source}: {_short(part)!r} stands for more than {names_max} names: write a smaller range")
        for place in range(1, len(pieces), 2):
            choices[place] = _numbers(pieces[place])
        if any("[" in piece or "]" in piece for piece in pieces[::2]):
            raise Refused(f"{source}: {_short(part)!r} has a bracket that is not closed or not opened")
        names += map("".join, itertools.product(*choices))
        if len(names) > names_max:
            raise Refused(f"{source}: more than {names_max} names in one list")
    for name in names:
        if not _NAME.fullmatch(name):
            raise Refused(f"{source}: {_short(name)!r} is no name of a machine or switch")
    return tuple(names)


def _split(text: str, source: str) -> list[str]:
    """At commas outside of brackets."""
    parts: list[str] = []
    depth, start = 0, 0
    for place, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if depth not in (0, 1):
            raise Refused(f"{source}: {_short(text)!r} has a bracket that is not closed or not opened")
        if char == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    if depth:
        raise Refused(f"{source}: {_short(text)!r} ends inside a bracket: the file may be cut off")
    parts.append(text[start:].strip())
    if not all(parts):
        raise Refused(f"{source}: {_short(text)!r} has an empty name between commas")
    return parts


def _count(ranges: str, source: str) -> int:
    total = 0
    for item in ranges.split(","):
        match = _RANGE.fullmatch(item.strip())
        if match is None or len(item) > 40:
            raise Refused(f"{source}: {_short(item)!r} is no number or range of numbers in brackets")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise Refused(f"{source}: the range {_short(item)!r} goes backwards")
        total += last - first + 1
    return total


def _numbers(ranges: str) -> list[str]:
    found: list[str] = []
    for item in ranges.split(","):
        first, _, last = item.strip().partition("-")
        found += (f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1))
    return found


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
