"""Does a program run as fast under `steelyard run` as in a shell? Five programs, in turns: shell, job, pinned job.

All three get the same small environment and run the same file with the same interpreter; the program times itself, so neither
the command line nor the start of Python is in the figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.figures import Figure, ratio_of_pairs
from bench.installation import installation

PROGRAMS = Path(__file__).resolve().parent / "programs"
NAMES = {
    "stream": "memory bandwidth",
    "matmul": "matrix product",
    "fileio": "file I/O",
    "switches": "context switches",
    "pingpong": "two processes, ping-pong",
}
#: these run two processes that wait for each other; one core of their own is another machine to them, usually a better one
TWO_PROCESSES = ("switches", "pingpong")


def measure_tax(say: Callable[[str], None], quick: bool) -> list[Figure]:
    rounds = 3 if quick else 12
    env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    results: dict[tuple[str, str], list[float]] = {}
    with installation() as steelyard:
        scratch = steelyard.folder / "scratch"
        scratch.mkdir()
        scratch.chmod(0o777)
        identity = ["setpriv", "--reuid=64000", "--regid=64000", "--clear-groups"] if os.getuid() == 0 else []
        for at in range(rounds + 1):
            for name in NAMES:
                say(f"{name} {at}/{rounds}")
                program = [sys.executable, str(PROGRAMS / f"{name}.py")]
                shell = ["sh", "-c", " ".join([*identity, *program])]
                ways = {
                    "shell": shell,
                    "control": shell,
                    "job": steelyard.command("run", "--env", "LANG=C.UTF-8", "--", *program),
                    "pinned": steelyard.command("run", "--exclusive", "--env", "LANG=C.UTF-8", "--", *program),
                }
                order = list(ways) if at % 2 else list(reversed(ways))
                for way in order:
                    value = _run(ways[way], scratch, env if ways[way] is shell else steelyard.env)
                    if at:  # the first round warms caches and the page cache
                        results.setdefault((name, way), []).append(value)
    return [_figure(name, way, results) for name in NAMES for way in ("job", "pinned")]


def _run(command: list[str], folder: Path, env: dict[str, str]) -> float:
    """How fast (higher is better)."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return float(found["value"]) if found["higher_is_better"] else 1.0 / float(found["value"])


def _figure(name: str, way: str, results: dict[tuple[str, str], list[float]]) -> Figure:
    ratio, low, high = ratio_of_pairs(results[name, way], results[name, "shell"])
    same, same_low, same_high = ratio_of_pairs(results[name, "control"], results[name, "shell"])
    goal = 0.99 if way == "job" else 1.0
    words = "pinned (--exclusive)" if way == "pinned" else "unpinned"
    detail = (
        "Speed as a job over speed in a shell, pair by pair, in turns; the control is a second run in a shell over the first. "
        "Held: the median reaches the goal. NO: even the interval's upper end does not. In between, noise hides the answer."
    )
    if way == "pinned" and name in TWO_PROCESSES:
        detail += " Its two processes share the one core; in the shell they may use both."
    more = {
        "interval, low": low,
        "interval, high": high,
        "control": same,
        "control, low": same_low,
        "control, high": same_high,
        "pairs": float(len(results[name, way])),
    }
    held = True if ratio >= goal else None if high >= goal else False
    what = f"platform tax, {NAMES[name]}, {words}"
    return Figure(f"tax {name} {words}", what, ratio, "x the shell", f">= {goal} x", held, detail, more)
