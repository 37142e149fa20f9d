"""A program bound by the processor and by memory, as a stand-in for real work: prints how long each half took, as JSON.

It asks nothing of Steelyard and knows nothing of it; the demo runs the same file in a shell and as a job.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np


def main(rounds: int) -> None:
    generator = np.random.default_rng(7)
    left, right = generator.random((500, 500)), generator.random((500, 500))
    begun = time.perf_counter()
    for _ in range(rounds):
        left @ right
    products_s = time.perf_counter() - begun
    # three arrays of 64 MB: far beyond any cache
    one, two, total = np.ones(8_000_000), np.full(8_000_000, 2.0), np.empty(8_000_000)
    begun = time.perf_counter()
    for _ in range(rounds):
        np.add(one, two, out=total)
    memory_s = time.perf_counter() - begun
    print(json.dumps({"products_s": products_s, "memory_gb_s": 3 * one.nbytes * rounds / memory_s / 1e9}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
