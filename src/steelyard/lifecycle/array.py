"""Which indices does `1,3,5-9:2%4` stand for, as sbatch writes it, and which jobs are they? Pure.

Counted before anything is made, so that ten million cost nothing.
"""

from __future__ import annotations

import re
from itertools import pairwise

import msgspec

from steelyard.errors import Refused
from steelyard.model.batch import ARRAY_MAX, ArrayPlace
from steelyard.model.ids import JobId

#: Slurm's own highest index
INDEX_MAX = 4_194_303
_ITEM = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)
_AT_ONCE = re.compile(r"\d{1,9}", re.ASCII)
_TEXT_MAX = 20_000


class ArrayDemand(msgspec.Struct, frozen=True):
    #: ascending, no index twice
    indices: tuple[int, ...]
    #: elements that may run at a time; None: all
    at_once: int | None = None

    @property
    def text(self) -> str:
        """The shortest spelling that `parse_array` reads back into the same demand."""
        limit = "" if self.at_once is None else f"%{self.at_once}"
        return ",".join(_runs(self.indices)) + limit


def parse_array(text: str) -> ArrayDemand:
    """Raises Refused."""
    body, percent, limit = text.strip().partition("%")
    if len(text) > _TEXT_MAX:
        raise _refused(text, "that is too long")
    at_once = None
    if percent:
        if not _AT_ONCE.fullmatch(limit) or int(limit) == 0:
            raise _refused(text, f"after % stands how many may run at a time, not {limit[:20]!r}")
        at_once = int(limit)
    ranges: list[range] = []
    for item in body.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise _refused(text, f"{item[:40]!r} is neither an index nor a range")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if last < first or step == 0:
            raise _refused(text, f"{item[:40]!r} is a range that goes nowhere")
        if last > INDEX_MAX:
            raise _refused(text, f"an index is at most {INDEX_MAX}")
        ranges.append(range(first, last + 1, step))
    # An index named twice counts twice here; nobody comes near the limit that way by intent.
    count = sum(map(len, ranges))
    if count > ARRAY_MAX:
        raise _refused(text, f"these are {count} jobs, and an array has at most {ARRAY_MAX}: submit it in parts")
    return ArrayDemand(tuple(sorted({index for each in ranges for index in each})), at_once)


def make_places(array: JobId, demand: ArrayDemand) -> tuple[tuple[JobId, ArrayPlace], ...]:
    """Id and place of every element."""
    indices = demand.indices
    steps = {b - a for a, b in pairwise(indices)}
    common = ArrayPlace(
        id=array,
        index=indices[0],
        count=len(indices),
        index_min=indices[0],
        index_max=indices[-1],
        index_step=steps.pop() if len(steps) == 1 else 1,
        at_once=demand.at_once,
    )
    return tuple((JobId(f"{array}_{index}"), msgspec.structs.replace(common, index=index)) for index in indices)


def _runs(indices: tuple[int, ...]) -> list[str]:
    """Greedy arithmetic runs: 1,3 stays 1,3; 1,3,5 becomes 1-5:2."""
    found: list[str] = []
    at = 0
    while at < len(indices):
        end, step = at, 0
        if at + 1 < len(indices):
            step = indices[at + 1] - indices[at]
            while end + 1 < len(indices) and indices[end + 1] - indices[end] == step:
                end += 1
        if end - at >= 2 or (end > at and step == 1):
            found.append(f"{indices[at]}-{indices[end]}" + ("" if step == 1 else f":{step}"))
            at = end + 1
        else:
            found.append(str(indices[at]))
            at += 1
    return found


def _refused(text: str, why: str) -> Refused:
    return Refused(f"{text[:60]!r} is no array: {why}. Write for example 0-99%8, 1,3,7 or 1-9:2.", code="bad-array")
