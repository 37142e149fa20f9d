"""How fast does one core move memory? STREAM's triad (a = b + 3 c) on arrays far larger than any cache, best half of the rounds.

Bytes counted are those really moved: numpy does it in two passes, so five arrays per round. Prints one JSON line.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import statistics
import time

import numpy as np

LENGTH = 12_000_000
ROUNDS = 20


def main() -> None:
    a, b, c = np.zeros(LENGTH), np.full(LENGTH, 2.0), np.full(LENGTH, 0.5)
    rates: list[float] = []
    # The first rounds also map the pages: they are run but not counted.
    for _ in range(ROUNDS + 2):
        began = time.perf_counter()
        np.multiply(c, 3.0, out=a)
        np.add(a, b, out=a)
        rates.append(5 * a.nbytes / (time.perf_counter() - began) / 1e9)
    assert a[0] == a[-1] == 3.5
    best = sorted(rates[2:])[ROUNDS // 2 :]
    figure = {"figure": "memory bandwidth", "value": statistics.median(best), "unit": "GB/s", "higher_is_better": True}
    print(json.dumps(figure))


if __name__ == "__main__":
    main()
