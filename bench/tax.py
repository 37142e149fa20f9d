"""Does a program run as fast under `steelyard run` as in a shell? Five programs, in turns: shell, job, pinned job, container.

All three get the same small environment and run the same file with the same interpreter; the program times itself, so neither
the command line nor the start of Python is in the figure. The container's image is made of this machine's own files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy

from bench.containers import find_lacking, make_layout
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
WORDS = {"job": "unpinned", "pinned": "pinned (--exclusive)", "container": "in a container"}


def measure_tax(say: Callable[[str], None], quick: bool) -> list[Figure]:
    rounds = 3 if quick else 24  # short ones: what else the host does drifts over seconds
    env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    results: dict[tuple[str, str], list[float]] = {}
    with installation() as steelyard:
        image = "" if find_lacking() else _make_image(steelyard.folder)
        if image:
            steelyard.cli("volumes", "create", "scratch")
        scratch = steelyard.folder / "scratch"
        scratch.mkdir()
        scratch.chmod(0o777)
        env["TMPDIR"] = str(scratch)
        identity = ["setpriv", "--reuid=64000", "--regid=64000", "--clear-groups"] if os.getuid() == 0 else []
        for at in range(rounds + 1):
            for name in NAMES:
                say(f"{name} {at}/{rounds}")
                program = [sys.executable, str(PROGRAMS / f"{name}.py")]
                shell = ["sh", "-c", " ".join([*identity, *program])]
                told = ["--env", "LANG=C.UTF-8", "--env", f"TMPDIR={scratch}"]
                ways = {
                    "shell": shell,
                    "control": shell,
                    "job": steelyard.command("run", *told, "--", *program),
                    "pinned": steelyard.command("run", "--exclusive", *told, "--", *program),
                }
                if image:
                    inside = [str(Path(sys.executable).resolve()), *program[1:]]
                    # what a container writes beside its volumes is memory; this one lies on the disk that the others write to
                    options = ["--image", image, "--volume", "scratch:/scratch", "--env", "TMPDIR=/scratch"]
                    options += ["--env", f"PYTHONPATH={Path(numpy.__file__).parent.parent}", "--env", "LANG=C.UTF-8"]
                    ways["container"] = steelyard.command("run", *options, "--", *inside)
                for way in _order(list(ways), at):
                    value = _run(ways[way], scratch, env if ways[way] is shell else steelyard.env)
                    if at:  # the first round warms caches and the page cache
                        results.setdefault((name, way), []).append(value)
    return [_figure(name, way, results) for name in NAMES for way in WORDS if (name, way) in results]


def _order(ways: list[str], at: int) -> list[str]:
    """Each way stands in each place, with either neighbour before it, over the rounds."""
    turned = ways[at // 2 % len(ways) :] + ways[: at // 2 % len(ways)]
    return turned if at % 2 else turned[::-1]


def _make_image(folder: Path) -> str:
    """The interpreter that the shell runs, its library, NumPy, what they load, and the programs, all at the same paths."""
    root, python, lib = folder / "root", Path(sys.executable).resolve(), Path(os.__file__).parent
    site = Path(numpy.__file__).parent.parent
    needed = {python}
    for program in (python, *lib.glob("lib-dynload/*.so"), *site.glob("numpy*/**/*.so*")):
        told = subprocess.run(["ldd", str(program)], capture_output=True, text=True).stdout
        needed |= {Path(word) for word in told.split() if word.startswith("/") and not word.startswith(str(site))}
    for tree in (lib, PROGRAMS, *site.glob("numpy*")):
        shutil.copytree(tree, _inside(root, tree), ignore=shutil.ignore_patterns("test", "tests", "*.a", "config-*"))
    for file in needed:
        _inside(root, file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, _inside(root, file))
        _inside(root, file).chmod(0o755)
    return make_layout(folder, root)


def _inside(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")


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
    goal = 1.0 if way == "pinned" else 0.99
    words = WORDS[way]
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
