"""What does a program's metrics page say? Prometheus text in, the asked-for numbers out; pure.

A gauge is summed over its labels. A counter (by its TYPE line, or a name that ends in `_total`) is told as its increase per
second between two looks. What is damaged, not finite or a histogram is left out: whoever asked has no number then, rather than a
wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

#: a page may be as large as that, and have so many samples of what is asked for
PAGE_MAX, SAMPLES_MAX = 4 << 20, 10_000


def read_samples(page: bytes, names: Collection[str]) -> tuple[dict[str, float], frozenset[str]]:
    """Of each name on the page its sum over all labels, and which of the names are counters."""
    sums: dict[str, float] = {}
    counters = {name for name in names if name.endswith("_total")}
    seen = 0
    for line in page.decode(errors="replace").split("\n"):
        if line.startswith("#"):
            words = line.split()
            if len(words) == 4 and words[1] == "TYPE" and words[2] in names:
                (counters.add if words[3] == "counter" else counters.discard)(words[2])
            continue
        name, rest = _split(line)
        if name in names and seen < SAMPLES_MAX:
            seen += 1
            value = _number(rest)
            # one that can't be read makes the sum unknown: NaN stays NaN
            sums[name] = sums.get(name, 0.0) + (math.nan if value is None else value)
    return {name: value for name, value in sums.items() if math.isfinite(value)}, frozenset(counters)


def _split(line: str) -> tuple[str, str]:
    """Name, and what follows the labels."""
    end = line.find("{")
    space = line.find(" ")
    if end < 0 or 0 <= space < end:
        name, _, rest = line.partition(" ")
        return name, rest
    at, quoted = end + 1, False
    while at < len(line) and (quoted or line[at] != "}"):
        if quoted and line[at] == "\\":
            at += 1
        elif line[at] == '"':
            quoted = not quoted
        at += 1
    return line[:end].rstrip(), line[at + 1 :]


def _number(text: str) -> float | None:
    words = text.split()  # a value, and perhaps its time
    try:
        return float(words[0]) if len(words) in (1, 2) else None
    except ValueError:
        return None


class Meter:
    """Turns one look after the other into numbers. Counters have none before the second look."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._before: Mapping[str, float] = {}
        self._before_ns = 0

    def read(self, now_ns: int, page: bytes) -> tuple[float | None, ...]:
        """In the order of the names; None: the page has no such number."""
        sums, counters = read_samples(page, self.names)
        before, passed_s = self._before, (now_ns - self._before_ns) / 1e9
        self._before, self._before_ns = sums, now_ns

        def value(name: str) -> float | None:
            found = sums.get(name)
            if found is None or name not in counters:
                return found
            if name not in before or passed_s <= 0:
                return None
            # less than before: the program began anew
            return (found - before[name] if found >= before[name] else found) / passed_s

        return tuple(value(name) for name in self.names)
