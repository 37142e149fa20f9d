"""How fast does one core multiply matrices? Products of two 768 x 768 double matrices on one thread. Prints one JSON line."""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import json
import time

import numpy as np

SIZE = 768
ROUNDS = 20


def main() -> None:
    random = np.random.default_rng(7)
    a, b = random.random((SIZE, SIZE)), random.random((SIZE, SIZE))
    product = a @ b
    began = time.perf_counter()
    for _ in range(ROUNDS):
        np.matmul(a, b, out=product)
    rate = 2 * SIZE**3 * ROUNDS / (time.perf_counter() - began) / 1e9
    assert abs(product[0, 0] - a[0] @ b[:, 0]) < 1e-6
    print(json.dumps({"figure": "matrix product", "value": rate, "unit": "GFLOP/s", "higher_is_better": True}))


if __name__ == "__main__":
    main()
