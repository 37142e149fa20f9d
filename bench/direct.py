"""How much later does a job begin when it goes to Slurm through us? From the command to the job's first instruction, in turns.

The cluster is that of the tests: slurmctld and three nodes, namespaces of this machine. It schedules at once
(`batch_sched_delay=0`). Ours is `steelyard run --direct --detach`, Slurm's own `sbatch` of a script that does the same. Both are
an ordinary user's, as installed, and keep what the job writes.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.figures import Figure

GOAL = 1.15
GIVE_UP_S = 60.0


def measure_direct(say: Callable[[str], None], quick: bool) -> list[Figure]:
    tests = Path(__file__).resolve().parent.parent / "tests"
    sys.path[:0] = [str(tests), str(tests / "live")]
    from direct_cluster import attached

    from slurm_bed import slurm

    rounds = 20 if quick else 120
    # slurmctld starts batch jobs once a second or a little less often, at a moment of its own: each round begins at another part
    # of the second since it last did, and both ways at the same one. Moments drawn for each way alone moved a median of 60 by
    # 60 ms, parts of the clock's second, through which its moment drifts, by 30
    parts = [(at + 0.5) / rounds for at in range(rounds)]
    random.Random(7).shuffle(parts)
    installed = str(Path(sys.executable).with_name("steelyard"))
    taken: dict[str, list[float]] = {"ours": [], "sbatch": []}
    with slurm() as bed, attached(bed) as steelyard:
        script = bed.shared / "ada" / "stamp.sh"
        script.write_text("#!/bin/sh\ndate +%s%N > $1.part && mv $1.part $1\n")
        script.chmod(0o755)
        last_s = 0.0
        for at in range(rounds + 1):
            say(f"round {at}/{rounds}")
            for way in taken if at % 2 else reversed(taken):
                time.sleep((last_s + parts[at % rounds] - time.time()) % 1.0)
                stamp = bed.shared / "ada" / f"{way}-{at}"
                began = time.time_ns()
                if way == "ours":
                    command = [*steelyard.as_user, installed, "run", "--direct", "--detach", "--", str(script), str(stamp)]
                    subprocess.run(command, env=steelyard.environ(), stdout=subprocess.DEVNULL, check=True)
                else:
                    bed.ok("sbatch", f"--output={stamp}.out", str(script), str(stamp), user=True)
                started = _read(stamp)
                last_s, took = started / 1e9, (started - began) / 1e6
                bed.wait_idle()
                if at:
                    taken[way].append(took)
    ours, plain = (statistics.median(taken[way]) for way in ("ours", "sbatch"))
    ratio = ours / plain
    return [
        Figure(
            "direct",
            "a job through Slurm by us: from the command to its first instruction, against `sbatch`",
            ratio,
            "x",
            f"<= {GOAL:g} x",
            ratio <= GOAL,
            f"{rounds} of each in turns; a job of ours is also recorded, and its command answers when it is.",
            {"ours, p50 (ms)": ours, "sbatch, p50 (ms)": plain},
        )
    ]


def _read(stamp: Path) -> int:
    """When the job began, once it has."""
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        if stamp.exists():
            return int(stamp.read_text())
        time.sleep(0.02)
    raise RuntimeError(f"no job wrote {stamp}")
