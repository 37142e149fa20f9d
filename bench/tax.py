"""What does running under Steelyard cost a program? The same program in a shell and as a job, in turns, as the same user with the same
environment; each measures itself.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.figures import Figure, median_interval
from bench.installation import Installation
from bench.session import PROGRAMS, Session

WAYS = ("shell", "run", "shell again", "exclusive")
RUN_S = 120.0
#: two processes on one core: --exclusive gives them one here
PAIRED = ("switches", "pingpong")


def measure_tax(session: Session) -> list[Figure]:
    rounds = session.rounds(20, 2)
    exclusive = (os.cpu_count() or 1) > 1
    figures: list[Figure] = []
    with Installation() as place:
        environ = _environment_of_jobs(place)
        uid = json.loads((place.home / "settings.json").read_bytes())["work_uid"] if os.getuid() == 0 else None
        for program in ("stream", "matmul", "fileio", "switches", "pingpong"):
            values: dict[str, list[float]] = {way: [] for way in WAYS}
            for at in range(-1, rounds):
                if at % 5 == 0:
                    session.say(f"tax: {program}: round {at} of {rounds}")
                # every other round in the opposite order, so that a machine that slows down hits all alike
                for way in WAYS if at % 2 else WAYS[::-1]:
                    if way == "exclusive" and not exclusive:
                        continue
                    value = _measure(place, way, program, environ, uid)
                    # the first round brings the files into the page cache
                    if at >= 0:
                        values[way].append(value)
            figures += _judge(program, values, exclusive)
    return figures


def _measure(place: Installation, way: str, program: str, environ: Mapping[str, str], uid: int | None) -> float:
    argv = [sys.executable, str(PROGRAMS / f"{program}.py")]
    if way.startswith("shell"):
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_S, env=environ, cwd=place.folder, user=uid,
            group=uid, extra_groups=None if uid is None else (), check=True,
        )  # fmt: skip
        return json.loads(done.stdout)["value"]
    wish = ("--exclusive",) if way == "exclusive" else ()
    return json.loads(place.cli("run", *wish, "--", *argv, timeout_s=RUN_S))["value"]


def _environment_of_jobs(place: Installation) -> dict[str, str]:
    """What a job of this caller gets to see, so that the shell's run gets the same."""
    text = place.cli("run", "--", "/usr/bin/env", "-0")
    environ = dict(word.partition("=")[::2] for word in text.split("\0") if word)
    return {name: value for name, value in environ.items() if not name.startswith("STEELYARD")}


def _judge(program: str, values: dict[str, list[float]], exclusive: bool) -> list[Figure]:
    shell = [(first + second) / 2 for first, second in zip(values["shell"], values["shell again"], strict=True)]
    noise = _ratio(values["shell again"], values["shell"])
    figures: list[Figure] = []
    for way, goal, words in (("run", 0.99, "unpinned"), ("exclusive", 1.0, "pinned")):
        what = f"platform tax, {NAMES[program]}, {words}: against a shell"
        name = f"tax_{program}_{words}"
        if way == "exclusive" and not exclusive:
            figures.append(Figure(name, what, None, "x", f">= {goal}", None, "One core only: it stays shared."))
            continue
        ratio, low, high = _ratio(values[way], shell)
        more = {
            f"shell, median {UNITS[program]}": statistics.median(shell),
            f"steelyard run, median {UNITS[program]}": statistics.median(values[way]),
            "ratio, 95 % from": low,
            "ratio, 95 % to": high,
            "a shell against a shell in the same run": noise[0],
            "a shell against a shell, 95 % from": noise[1],
            "a shell against a shell, 95 % to": noise[2],
            "rounds": len(shell),
        }
        figures.append(
            Figure(name, what, ratio, f"x ({low:.3f} to {high:.3f})", f">= {goal}", ratio >= goal, _detail(program, way), more)
        )
    return figures


def _ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), *median_interval(ratios)


NAMES = {
    "stream": "memory bandwidth",
    "matmul": "matrix product",
    "fileio": "file I/O",
    "switches": "context switches",
    "pingpong": "2-process ping-pong",
}
UNITS = {"stream": "GB/s", "matmul": "GFLOP/s", "fileio": "GB/s", "switches": "1/s", "pingpong": "round trips/s"}


def _detail(program: str, way: str) -> str:
    text = (
        f"bench/programs/{program}.py as the same user with the same environment, in turns: in a shell, under `steelyard run`, in a "
        "shell again, under `steelyard run --exclusive`, every other round backwards. It measures itself, so that what is compared "
        "is the running, not the start. Each job is compared with the mean of its round's two shell runs."
    )
    if way == "exclusive" and program in PAIRED:
        text += (
            " `--exclusive` gives one whole core here, so its two processes share that core, whereas a shell may spread them over all: "
            "handing over within one core needs no interrupt to another one."
        )
    return text
