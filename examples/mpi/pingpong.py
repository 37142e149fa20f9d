"""Where does MPI put the ranks, and how fast do messages go between them? mpi4py's own ping-pong, after a line for each rank.

steelyard run --tasks-per-node 2 --launcher mpi --cpus 1 -- python pingpong.py -n 65536 -l 1000

What follows the file's name goes to `mpi4py.bench pingpong`.
"""

from __future__ import annotations

import os
import sys

from mpi4py import MPI, bench


def main() -> None:
    comm = MPI.COMM_WORLD
    # asked of the kernel, not of MPI
    places = comm.gather(sorted(os.sched_getaffinity(0)))
    for rank, cpus in enumerate(places or ()):
        print(f"rank {rank} runs on CPUs {','.join(map(str, cpus))}", flush=True)
    bench.main(["pingpong", *sys.argv[1:]])


if __name__ == "__main__":
    main()
