"""What does a container cost a wake? A Python function's beside one outside, a program's beside crun alone; and twenty starts at
once beside one."""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from bench.containers import GROUP, crun_alone, find_lacking, make_layout
from bench.figures import Figure
from bench.installation import EXAMPLES, Installation, installation
from bench.load import Target, request_once

Say = Callable[[str], None]
AT_ONCE = 20
HTTPD = "exec /bin/busybox httpd -f -p 127.0.0.1:$PORT -h /bin"


def measure_container_functions(say: Say, quick: bool) -> list[Figure]:
    if missing := find_lacking():
        return [Figure(GROUP, "functions in containers", None, "", "", None, f"NOT VERIFIED: needs {', '.join(missing)}")]
    rounds = 10 if quick else 60
    with installation() as steelyard:
        image = _make_python(steelyard.folder)
        return [
            _measure_fork(steelyard, image, say, rounds),
            _measure_program(steelyard, image, say, rounds),
            _measure_at_once(steelyard, image, say, 2 if quick else 8),
        ]


def _make_python(folder: Path) -> str:
    """The machine's own Python with its standard library, and busybox beside it, as a layout."""
    root, program = folder / "python-root", Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    skipped = shutil.ignore_patterns("test", "idlelib", "lib2to3", "ensurepip", "site-packages", "dist-packages")
    shutil.copytree(library, root / library.relative_to("/"), ignore=skipped, symlinks=True)
    objects = [str(program), *map(str, (library / "lib-dynload").glob("*.so"))]
    linked = subprocess.run(["ldd", *objects], capture_output=True, text=True, check=False).stdout
    words = {word for line in linked.splitlines() for word in line.split() if word.startswith("/") and not word.endswith(":")}
    for path in {str(program), *words}:
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.lstrip("/"))
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin/python3").symlink_to(program)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in ("sh", "true", "sleep", "cat"):
        (root / "bin" / name).symlink_to("busybox")
    return make_layout(folder, root)


def _measure_fork(steelyard: Installation, image: str, say: Say, rounds: int) -> Figure:
    """hello outside and inside, in turns."""
    options = ("--idle-timeout", "200ms", "--public")
    steelyard.deploy(EXAMPLES / "hello" / "app.py", "outside", *options)
    steelyard.deploy(EXAMPLES / "hello" / "app.py", "inside", *options, "--image", image)
    taken = _wake_in_turns(steelyard, ("outside", "inside"), say, rounds)
    outside, inside = (statistics.median(taken[name]) for name in ("outside", "inside"))
    roads = {row["road"] for row in steelyard.wakes("inside")}
    what = f"The hello function forked inside the container of its image, beside the same outside; roads taken: {sorted(roads)}."
    more = {"in a container, p50 (ms)": inside, "outside, p50 (ms)": outside}
    fits = inside <= outside + 2 and roads == {"template"}
    return Figure("container wake", "what a container adds to a wake, p50", inside - outside, "ms", "<= 2 ms", fits, what, more)


def _measure_program(steelyard: Installation, image: str, say: Say, rounds: int) -> Figure:
    """A web server of busybox behind the relay, outside and inside."""
    options = ("deploy", "--public", "--port", "0", "--idle-timeout", "200ms")
    steelyard.cli(*options, "--name", "plain", "--", "sh", "-c", HTTPD)
    steelyard.cli(*options, "--name", "contained", "--image", image, "--", "sh", "-c", HTTPD)
    taken = _wake_in_turns(steelyard, ("plain", "contained"), say, rounds)
    alone = statistics.median(crun_alone(steelyard, image, rounds))
    outside, inside = (statistics.median(taken[name]) for name in ("plain", "contained"))
    more = {"in a container, p50 (ms)": inside, "outside, p50 (ms)": outside, "crun alone, p50 (ms)": alone}
    what = "A program's wake in a container less the same program's outside, against `crun run` alone on the same bundle."
    added = inside - outside - alone
    return Figure(
        "container program",
        "what a container adds to a program's wake beyond crun",
        added,
        "ms",
        "<= 15 ms",
        added <= 15,
        what,
        more,
    )


def _wake_in_turns(steelyard: Installation, names: tuple[str, ...], say: Say, rounds: int) -> dict[str, list[float]]:
    """name -> ms to the first byte of each wake."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for at in range(rounds):
        for name in names:
            say(f"wake of {name} {at + 1}/{rounds}")
            steelyard.wait_asleep(name, wakes=at)
            answer = asyncio.run(request_once(Target(path=f"/{name}/", port=steelyard.gateway_port)))
            taken[name].append(answer.first_byte_s * 1000)
    for name in names:
        steelyard.wait_asleep(name, wakes=rounds)
    return taken


def _measure_at_once(steelyard: Installation, image: str, say: Say, rounds: int) -> Figure:
    """Jobs that do nothing: one alone, then twenty submitted together, until the last has ended."""
    cores = len(os.sched_getaffinity(0))
    one: list[float] = []
    many: list[float] = []
    for at in range(rounds + 1):
        say(f"{AT_ONCE} starts at once {at}/{rounds}")
        for count, into in ((1, one), (AT_ONCE, many)):
            begin = time.monotonic()
            spec = {"name": "true", "argv": ["true"], "cwd": "/", "image": image, "resources": {"cpus": 0.05}}
            jobs = [steelyard.api("POST", "/v1/jobs", {"spec": spec})["id"] for _ in range(count)]
            for job in jobs:
                while not steelyard.api("GET", f"/v1/jobs/{job}/logs?wait_s=10")["ended"]:
                    continue
            if at:
                into.append((time.monotonic() - begin) * 1000)
    alone, together = statistics.median(one), statistics.median(many)
    ratio = together / (alone * AT_ONCE / cores)
    more = {"one, p50 (ms)": alone, f"{AT_ONCE} at once, p50 (ms)": together, "cores": float(cores)}
    what = f"{AT_ONCE} jobs in containers, each `true`, from the first submit to the last end, against one alone {AT_ONCE} times "
    what += f"divided by {cores} cores."
    label = "twenty starts at once, against one by one on all cores"
    return Figure("container crowd", label, ratio, "x", "<= 1.2 x", ratio <= 1.2, what, more)
