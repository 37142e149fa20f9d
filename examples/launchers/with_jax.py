"""JAX in a gang: one process per rank, which meet at the coordinator's address. JAX reads that variable itself, the numbers not.

steelyard run --tasks-per-node 2 -- python with_jax.py
"""

from __future__ import annotations

import os

import jax
from jax.experimental import multihost_utils


def main() -> None:
    jax.distributed.initialize(num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"]))
    ranks = multihost_utils.process_allgather(jax.numpy.array([jax.process_index() + 1]))
    print(f"rank {jax.process_index()} of {jax.process_count()}, sum of all {ranks.sum()}", flush=True)


if __name__ == "__main__":
    main()
