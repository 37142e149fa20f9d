"""Which elements has an array, and which jobs are they? `0-99`, `1,3,5-9:2`, `0-99%8`: as sbatch writes it. Pure."""

from __future__ import annotations

import re
from itertools import pairwise

import msgspec

from steelyard.errors import Refused
from steelyard.model.batch import ARRAY_MAX, ArrayPlace
from steelyard.model.ids import JobId

_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)
_HOW = "Write for example 0-99, 1,3,5-9:2 or 0-99%8."


class ArrayDemand(msgspec.Struct, frozen=True):
    """Indices in ascending order, each once."""

    indices: tuple[int, ...]
    #: elements that may run at a time; None: all
    at_once: int | None = None


def parse_array(text: str) -> ArrayDemand:
    """Raises Refused. Counts before it makes anything, so that an array of ten million costs nothing."""
    listed, percent, limit = text.strip().partition("%")
    if percent and not re.fullmatch(r"[1-9]\d{0,8}", limit, re.ASCII):
        raise Refused(f"{text!r} is no array: after % comes how many may run at a time. {_HOW}", code="bad-array")
    ranges: list[range] = []
    for part in listed.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise Refused(f"{text[:80]!r} is no array. {_HOW}", code="bad-array")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if last < first or step < 1:
            raise Refused(f"{part!r} holds no index. {_HOW}", code="bad-array")
        ranges.append(range(first, last + 1, step))
        if sum(map(len, ranges)) > ARRAY_MAX:
            raise Refused(
                f"An array has at most {ARRAY_MAX} elements; {text[:80]!r} has more. Nothing was submitted. Split it, or let "
                "each element do several pieces of the work.",
                code="array-too-large",
            )
    indices = tuple(sorted({index for each in ranges for index in each}))
    return ArrayDemand(indices, int(limit) if percent else None)


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
