"""How much later does a job begin when it goes to Slurm through us? From the command to the job's first instruction, in turns.

The cluster is that of the tests: slurmctld and three nodes, namespaces of this machine. It schedules at once
(`batch_sched_delay=0`). Ours is `steelyard run --direct --detach`, Slurm's own `sbatch` of a script that does the same. Both are
an ordinary user's, as installed, and keep what the job writes.

slurmctld starts batch jobs once a second, whoever they come from: half a second of luck on the way, which moved a median of 120
rounds by 40 ms from one run to the next. Its log says when it had each job and when it started it. So what is ours is measured on
either side of that wait, and the wait itself, of all jobs together, is in both sums.
"""

from __future__ import annotations

import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from bench.figures import Figure

GOAL = 1.15
GIVE_UP_S = 60.0
LOG = "/var/log/slurm/slurmctld.log"
_TAKEN = re.compile(r"^\[(\S+)\] _slurm_rpc_submit_batch_job: JobId=(\d+) ", re.MULTILINE)
_STARTED = re.compile(r"^\[(\S+)\] .*(?:Started|Allocate) JobId=(\d+) ", re.MULTILINE)


def measure_direct(say: Callable[[str], None], quick: bool) -> list[Figure]:
    tests = Path(__file__).resolve().parent.parent / "tests"
    sys.path[:0] = [str(tests), str(tests / "live")]
    from direct_cluster import attached

    from slurm_bed import slurm

    rounds, parts = 10 if quick else 60, random.Random(7)
    installed = str(Path(sys.executable).with_name("steelyard"))
    #: in the order of slurmctld's numbers: (way, when the command was begun, when the job's first instruction was)
    seen: list[tuple[str, float, float]] = []
    with slurm() as bed, attached(bed) as steelyard:
        script = bed.shared / "ada" / "stamp.sh"
        script.write_text("#!/bin/sh\ndate +%s%N > $1.part && mv $1.part $1\n")
        script.chmod(0o755)
        log = bed["head"].path(LOG)
        skipped = len(_TAKEN.findall(log.read_text()))
        for at in range(rounds + 1):
            say(f"round {at}/{rounds}")
            for way in ("ours", "sbatch") if at % 2 else ("sbatch", "ours"):
                # at another part of slurmctld's second each time, as jobs come
                time.sleep(parts.random())
                stamp = bed.shared / "ada" / f"{way}-{at}"
                began = time.time()
                if way == "ours":
                    command = [*steelyard.as_user, installed, "run", "--direct", "--detach", "--", str(script), str(stamp)]
                    subprocess.run(command, env=steelyard.environ(), stdout=subprocess.DEVNULL, check=True)
                else:
                    bed.ok("sbatch", f"--output={stamp}.out", str(script), str(stamp), user=True)
                seen.append((way, began, _read(stamp)))
                bed.wait_idle()
        taken = _TAKEN.findall(log.read_text())[skipped:]
        started = {number: when for when, number in _STARTED.findall(log.read_text())}
    return [_figure(seen[2:], taken[2:], started, rounds)]  # the first round warms all up


def _figure(seen: list[tuple[str, float, float]], taken: list[tuple[str, str]], started: dict[str, str], rounds: int) -> Figure:
    before: dict[str, list[float]] = {"ours": [], "sbatch": []}
    behind: dict[str, list[float]] = {"ours": [], "sbatch": []}
    waits: list[float] = []
    for (way, began, stamp), (when, number) in zip(seen, taken, strict=True):
        had, start = _seconds(when), _seconds(started[number])
        before[way].append((had - began) * 1e3)
        waits.append((start - had) * 1e3)
        behind[way].append((stamp - start) * 1e3)
    wait = statistics.mean(waits)
    ours, plain = (statistics.median(before[way]) + wait + statistics.median(behind[way]) for way in ("ours", "sbatch"))
    return Figure(
        "direct",
        "a job through Slurm by us: from the command to its first instruction, against `sbatch`",
        ours / plain,
        "x",
        f"<= {GOAL:g} x",
        ours / plain <= GOAL,
        f"{rounds} of each in turns; a job of ours is also recorded, and its command answers when it is. slurmctld's wait is the "
        "mean of both ways' jobs, in both sums.",
        {
            "ours (ms)": ours,
            "sbatch (ms)": plain,
            "from the command until slurmctld has it: ours, p50 (ms)": statistics.median(before["ours"]),
            "from the command until slurmctld has it: sbatch, p50 (ms)": statistics.median(before["sbatch"]),
            "until slurmctld starts it, mean (ms)": wait,
            "from then to the first instruction: ours, p50 (ms)": statistics.median(behind["ours"]),
            "from then to the first instruction: sbatch, p50 (ms)": statistics.median(behind["sbatch"]),
        },
    )


def _seconds(when: str) -> float:
    """Of slurmctld's log, which is in local time, to the millisecond."""
    return datetime.fromisoformat(when).timestamp()


def _read(stamp: Path) -> float:
    """When the job began, in seconds, once it has."""
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        if stamp.exists():
            return int(stamp.read_text()) / 1e9
        time.sleep(0.02)
    raise RuntimeError(f"no job wrote {stamp}")
