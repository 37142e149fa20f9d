"""What do the steps of an attempt's ranks say together? Pure: records that `engine/slurm/step.py` wrote in; what they used, and
which rank ended the others, out.
"""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.model.slurm import RankRecord
from steelyard.model.usage import Usage


def find_first_bad(records: Sequence[RankRecord]) -> RankRecord | None:
    """The one that ended badly before any other did."""
    return min((each for each in records if each.exit_code != 0), key=lambda each: each.ended_at, default=None)


def make_usage(records: Sequence[RankRecord]) -> Usage | None:
    """Of all its ranks together; the peak is the sum of theirs, which need not have been at the same time."""
    spent = [each.cpu_ms for each in records if each.cpu_ms is not None]
    peaks = [each.peak_memory_bytes for each in records if each.peak_memory_bytes is not None]
    if not spent:
        return None
    return Usage(cpu_s=sum(spent) / 1000, memory_peak_bytes=sum(peaks) if peaks else None)
