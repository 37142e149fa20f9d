"""How long does `cluster up` take for three prepared hosts, from the command until Slurm runs a step on all three?

The machines are those of the tests: namespaces of this one with a network, an sshd and files of their own; packages are there. So
all three look at their hardware and start their daemons on the cores of one.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.figures import Figure

GOAL_S = 60.0
NAMES = ("n1", "n2", "n3")


def measure_bring_up(say: Callable[[str], None], quick: bool) -> list[Figure]:
    tests = Path(__file__).resolve().parent.parent / "tests"
    sys.path[:0] = [str(tests), str(tests / "live")]
    from cluster_command import Cluster
    from slurm_bed import machines

    first: list[float] = []
    again: list[float] = []
    rounds = 1 if quick else 5
    for at in range(rounds):
        say(f"round {at + 1}/{rounds}")
        with machines(NAMES) as bed, tempfile.TemporaryDirectory() as folder:
            cluster = Cluster(bed, Path(folder))
            hosts = cluster.write_hosts(*NAMES)
            began = time.monotonic()
            cluster.ok("up", hosts, "-y")
            answered = bed["n1"].ok("srun", "-N3", "hostname").split()
            first.append(time.monotonic() - began)
            assert sorted(answered) == list(NAMES), answered
            began = time.monotonic()
            cluster.ok("up", hosts, "-y")
            again.append(time.monotonic() - began)
    worst = max(first)
    return [
        Figure(
            "cluster-up",
            "three prepared hosts: from `cluster up` until `srun -N3` has answered",
            worst,
            "s",
            f"max <= {GOAL_S:g} s",
            worst <= GOAL_S,
            f"{rounds} rounds, p50 {statistics.median(first):.1f} s; a second run {statistics.median(again):.1f} s",
            {"p50": statistics.median(first), "again_p50": statistics.median(again)},
        )
    ]
