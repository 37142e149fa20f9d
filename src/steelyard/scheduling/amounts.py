"""How much of a machine does a demand take, as one number of cores and one of GPUs? What usage and losses are counted in."""

from __future__ import annotations

import math

from steelyard.model.job import Resources

#: parts that the hardware can cut a GPU into: `2g.20gb` is two of them
MIG_SLICES = 7


def count_cores(demand: Resources) -> float:
    """Whole ones where it takes whole ones."""
    return float(math.ceil(demand.cpus)) if demand.whole_cores else demand.cpus


def count_gpus(demand: Resources) -> float:
    """Shares and MIG instances count as the part that they are."""
    gpus = demand.gpus
    if gpus is None:
        return 0.0
    if gpus.mig_profile is not None:
        # `1c.2g.20gb` is a part of a part of two slices, and nobody else gets the rest of those
        slices = next((part for part in gpus.mig_profile.split(".") if part.endswith("g")), "1g")
        return gpus.count * int(slices[:-1]) / MIG_SLICES
    return gpus.count * (1.0 if gpus.fraction is None else gpus.fraction)
