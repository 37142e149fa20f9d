"""How punctual is each timing class beside a neighbour that burns every core it may, and the memory? One interleaved run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from bench.figures import Figure

RATIO_MIN = 15.0
SECONDS = 30
WHAT = "jitter, p99.9 of realtime beside best-effort, noisy neighbour"


def measure_jitter(say: Callable[[str], None], quick: bool) -> list[Figure]:
    goal = f">= {RATIO_MIN:g} x better"
    if os.geteuid() != 0 or (os.cpu_count() or 1) < 2:
        return [Figure("jitter", WHAT, None, "x", goal, None, "Needs root and two cores: one always stays shared.")]
    seconds = 3 if quick else SECONDS
    say(f"three classes, alone and with noise, {seconds} s each in turns")
    command = [sys.executable, "-P", "-m", "steelyard", "jitter", "--noise", "--json", "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 10 * seconds, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"steelyard jitter: {done.stderr}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    found = {(row["timing"], row["with_noise"]): row for row in rows}
    more: dict[str, float] = {}
    for (timing, noise), row in found.items():
        for name, key in (("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us"), ("worst", "max_us")):
            if row[key] is not None:
                more[f"{timing}, {'noise' if noise else 'alone'}, {name} (us)"] = float(row[key])
    more["wake-ups each"] = float(min(row["samples"] for row in rows))
    common, punctual = found["best-effort", True]["p999_us"], found["realtime", True]["p999_us"]
    could_not = list(dict.fromkeys(sentence for row in rows for sentence in row["could_not"]))
    detail = (
        f"{rows[0]['engine']}, a wake-up each millisecond, classes in turns in one run. In best-effort the timer loop asks for a "
        "tenth of a core and the neighbour for all the rest; else it has a core of its own and the neighbour the others. "
        + " ".join(could_not)
    )
    if not common or not punctual:
        return [Figure("jitter", WHAT, None, "x", goal, None, detail, more)]
    ratio = common / punctual
    return [Figure("jitter", WHAT, ratio, "x", goal, ratio >= RATIO_MIN, detail.strip(), more)]
