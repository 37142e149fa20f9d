"""What do many jobs on a cluster cost? An array of a thousand through us against `sbatch --array`; ten thousand that are watched.

The cluster is that of the tests: slurmctld and three nodes, namespaces of this machine.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.figures import Figure

ARRAY_GOAL, CORE_GOAL_PERCENT, RPC_GOAL = 1.1, 2.0, 1.0
WATCHED = 10_000
LOOK_S = 60.0
GIVE_UP_S = 900.0


def measure_arrays(say: Callable[[str], None], quick: bool) -> list[Figure]:
    attached, slurm = _beds()
    count, rounds = (60, 1) if quick else (1000, 2)
    taken: dict[str, list[float]] = {"ours": [], "sbatch": []}
    with slurm() as bed, attached(bed) as steelyard:
        script = bed.shared / "ada" / "true.sh"
        script.write_text("#!/bin/sh\nexec /bin/true\n")
        for at in range(rounds):
            for way in taken if at % 2 else reversed(taken):
                say(f"round {at + 1}/{rounds}, {way}")
                began = time.monotonic()
                if way == "ours":
                    steelyard.begin("--array", f"0-{count - 1}", "--", "/bin/true")
                else:
                    bed.ok("sbatch", f"--array=0-{count - 1}", "--output=/dev/null", str(script))
                if way == "ours":
                    _wait(lambda: bed.ok("squeue", "-h").strip() != "", "the array to be there")
                _wait(lambda: not bed.ok("squeue", "-h").strip(), "the array to end")
                taken[way].append(time.monotonic() - began)
        bad = steelyard.ok("ps", "-e", "--json", "--state", "FAILED,UNKNOWN")
        assert bad.strip() == "[]", bad[:400]
    ours, plain = (min(taken[way]) for way in ("ours", "sbatch"))
    ratio = ours / plain
    return [
        Figure(
            "array",
            f"an array of {count:,} through Slurm by us, until its queue is empty, against `sbatch --array`",
            ratio,
            "x",
            f"<= {ARRAY_GOAL:g} x",
            ratio <= ARRAY_GOAL,
            f"the best of {rounds} of each in turns, `true` on three nodes; ours also keeps each element's output and record.",
            {"ours (s)": ours, "sbatch (s)": plain},
        )
    ]


def measure_watching(say: Callable[[str], None], quick: bool) -> list[Figure]:
    attached, slurm = _beds()
    from slurm_bed import render_conf

    seconds = 15.0 if quick else LOOK_S
    found: dict[str, dict[str, float]] = {}
    with slurm(nodes=1) as bed:
        bed.write_conf(f"{render_conf(bed.machines)}MaxJobCount={2 * WATCHED}\n")
        bed.stop("head")
        bed.start("head")
        bed.wait_idle()
        folder = bed.shared / "bin"
        folder.mkdir()
        # a line for each job, as for jobs that were submitted one by one
        (folder / "squeue").write_text('#!/bin/sh\nexec /usr/bin/squeue -r "$@"\n')
        (folder / "squeue").chmod(0o755)
        with attached(bed) as steelyard:
            steelyard.begin("--array", f"0-{WATCHED - 1}", "--cpus", "4000", "true")
            say("10,000 are handed over")
            _wait(lambda: len(bed.ok("squeue", "-h", "-r").splitlines()) == WATCHED, "all to be there")
            for way in ("array", "single"):
                if way == "single":
                    steelyard.down()
                    path = f"{folder}:{os.environ['PATH']}"
                    steelyard.ok("up", "--detach", "--port", str(steelyard.api_port), env={"PATH": path})
                _wait(lambda: steelyard.job(steelyard.newest() + "_9999")["reason"] == "slurm-queue", "all to be seen waiting")
                time.sleep(10)
                found[way] = _watch(bed, steelyard.pid("server"), seconds, say)
    cpu, asked = found["single"]["core (%)"], max(each["requests/s"] for each in found.values())
    return [
        Figure(
            "watching",
            "10,000 jobs that wait in Slurm's queue: share of a core that watching them takes",
            cpu,
            "%",
            f"<= {CORE_GOAL_PERCENT:g} %, <= {RPC_GOAL:g} request/s",
            cpu <= CORE_GOAL_PERCENT and asked <= RPC_GOAL,
            f"over {seconds:.0f} s, server and squeue; a line of it for each (as an array {found['array']['core (%)']:.2g} %)",
            {f"{name}, {way}": value for way, each in found.items() for name, value in each.items()},
        )
    ]


def _watch(bed: Any, server: int, seconds: float, say: Callable[[str], None]) -> dict[str, float]:
    cpu, asked, began = _cpu_s(server), _requests(bed), time.monotonic()
    say(f"watching for {seconds:.0f} s")
    time.sleep(seconds)
    took = time.monotonic() - began
    # (one request is this measurement's own)
    return {"core (%)": (_cpu_s(server) - cpu) / took * 100, "requests/s": (_requests(bed) - asked) / took}


def _cpu_s(pid: int) -> float:
    """With its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _requests(bed: Any) -> int:
    """That asked slurmctld for jobs, since it began."""
    counts = re.findall(r"REQUEST_JOB_INFO\w*\s+\(\s*\d+\) count:(\d+)", bed.ok("sdiag"))
    return sum(map(int, counts))


def _beds() -> tuple[Callable[..., Any], Callable[..., Any]]:
    tests = Path(__file__).resolve().parent.parent / "tests"
    sys.path[:0] = [str(tests), str(tests / "live")]
    from direct_cluster import attached

    from slurm_bed import slurm

    return attached, slurm


def _wait(seen: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + GIVE_UP_S
    while not seen():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {GIVE_UP_S:.0f} s for {what}")
        time.sleep(0.25)
