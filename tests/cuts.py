"""What a reader of streams may be handed: data in pieces of any size."""

from __future__ import annotations

import itertools


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]
