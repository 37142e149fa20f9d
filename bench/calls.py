"""How fast are calls of Python functions: one, ten thousand, the first of all, the first after a save? With Ray, Dask, Parsl.

Each round starts every system's client in turn (`programs/calls.py`) and ends it before the next begins, so that nobody is
measured while another idles beside it; only Steelyard stays up, asleep.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import peers
from bench.figures import Figure, percentile, ratio_of_pairs
from bench.installation import Installation, installation
from bench.load import Connection, Target

Say = Callable[[str], None]

CLIENT = Path(__file__).resolve().parent / "programs" / "calls.py"
RUN_TIMEOUT_S = 300
TRIP_GOAL, MAP_GOAL, FIRST_GOAL_MS, RELOAD_GOAL_MS = 0.5, 4.0, 150.0, 300.0
SYSTEMS = ("ray", "dask", "parsl")

APP = """
import time

import steelyard as sy

app = sy.App("calls")


@app.function(max_replicas=2, idle_timeout="10s")
def echo(x: int) -> int:
    return x


@app.function(max_replicas=2, idle_timeout="10s")
def work(x: int) -> int:
    end_s = time.thread_time() + 0.001
    while time.thread_time() < end_s:
        pass
    return x
"""


def measure_calls(say: Say, quick: bool) -> list[Figure]:
    rounds, numbers = (1, (100, 1000, 200, 50)) if quick else (5, (500, 10_000, 2_000, 500))
    missing = _install()
    seen: dict[str, list[dict[str, Any]]] = {}
    with installation() as steelyard:
        steelyard.cli("deploy", str(steelyard.write_app("calls", APP)))
        for at in range(rounds):
            for name in ("steelyard", *([] if missing else SYSTEMS)):
                say(f"{name}, round {at + 1}/{rounds}")
                try:
                    seen.setdefault(name, []).append(_run_client(steelyard, name, numbers))
                except (RuntimeError, subprocess.SubprocessError) as err:
                    missing += f" {name} was not measured in round {at + 1}: {err}."
    return [_trip_figure(seen, missing), *_map_figures(seen, numbers[1], missing), _spawn_figure(seen["steelyard"], numbers[3])]


def _install() -> str:
    try:
        peers.install()
    except RuntimeError as err:
        return f" Peers were not measured: {err}."
    return ""


def _run_client(steelyard: Installation, name: str, numbers: tuple[int, ...]) -> dict[str, Any]:
    """What one client of one system found, and "first_s": from its start to its first result."""
    python = sys.executable if name == "steelyard" else str(peers.PYTHON)
    # what they leave behind goes with the folder
    with tempfile.TemporaryDirectory(prefix=name) as home:
        path = f"{peers.PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
        apart = {
            "HOME": home,
            "PATH": path,
            "RAY_TMPDIR": home,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
        }
        command = [python, "-P", str(CLIENT), name, *map(str, numbers if name == "steelyard" else (*numbers[:3], 0))]
        begin = time.monotonic()
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(
                command, env=steelyard.env | apart, cwd=home, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            assert child.stdout is not None
            try:
                line = child.stdout.readline()
                first_s = time.monotonic() - begin
                answer, _ = child.communicate(timeout=RUN_TIMEOUT_S)
            finally:
                child.kill()
                child.wait()
            errors.seek(0)
            said = errors.read().strip()
    if child.returncode or line.strip() != "first":
        raise RuntimeError(said.splitlines()[-1] if said else f"its client ended with {child.returncode}")
    return {"first_s": first_s, **json.loads(answer)}


def _trip_figure(seen: dict[str, list[dict[str, Any]]], missing: str) -> Figure:
    trips = {
        f"{name}, {way}": [statistics.median(found["trips_s"][way]) * 1000 for found in every]
        for name, every in seen.items()
        for way in every[0]["trips_s"]
    }
    ours = trips.pop("steelyard, remote")
    p50 = statistics.median(ours)
    p99 = percentile([trip * 1000 for found in seen["steelyard"] for trip in found["trips_s"]["remote"]], 0.99)
    more = {"p99 (ms)": p99} | {f"{name}, p50 (ms)": statistics.median(each) for name, each in trips.items()}
    ratio = None
    if "ray" in seen and len(seen["ray"]) == len(ours):
        for way in ("actor", "task"):
            middle, low, high = ratio_of_pairs(ours, trips[f"ray, {way}"])
            more |= {f"times Ray's {way}": middle, f"times Ray's {way}, from": low, f"times Ray's {way}, to": high}
            ratio = middle  # the task's: a function without state is one
    detail = (
        "`.remote(7)` of a function that gives back its argument, one after the other from one thread, everything warm: a "
        "client of its own per round, 50 calls before those that count, one replica or worker at work. Ray: a task, what "
        "a function without state is there, and a warm actor's method, which is faster. Medians of medians."
        f"{missing}"
    )
    held = None if ratio is None else ratio <= TRIP_GOAL
    return Figure("remote call", "`.remote` round trip, p50", p50, "ms", "<= 0.5 x Ray's task", held, detail, more)


def _map_figures(seen: dict[str, list[dict[str, Any]]], count: int, missing: str) -> list[Figure]:
    made: list[Figure] = []
    for key, name, what in (
        ("echoes_per_s", "map", f"`.map` of {count:,} no-ops"),
        ("works_per_s", "map of 1 ms", "`.map` of inputs with 1 ms of work"),
    ):
        rates = {system: [found[key] for found in every] for system, every in seen.items()}
        ours = statistics.median(rates["steelyard"])
        more = {f"{system} (1/s)": statistics.median(each) for system, each in rates.items() if system != "steelyard"}
        ratio = None
        if "ray" in seen and len(rates["ray"]) == len(rates["steelyard"]):
            ratio, more["times Ray, from"], more["to"] = ratio_of_pairs(rates["steelyard"], rates["ray"])
            more["times Ray"] = ratio
        detail = (
            "Inputs and results from and to one client, in order, warm; two replicas or workers of one core, which the client "
            "shares with them. Ray: tasks and one `get`; Dask: `map` and `gather`; Parsl: apps on a HighThroughputExecutor. "
            f"Medians of the rounds.{missing}"
        )
        goal, held = (">= 4 x Ray's tasks/s", None if ratio is None else ratio >= MAP_GOAL) if name == "map" else ("", None)
        if name != "map":
            more["of what two cores could do at most (%)"] = ours / 20
        made.append(Figure(name, what, ours, "inputs/s", goal, held, detail, more))
    return made


def _spawn_figure(found: list[dict[str, Any]], count: int) -> Figure:
    made = statistics.median(each["spawns_per_s"] for each in found)
    done = statistics.median(each["spawned_per_s"] for each in found)
    detail = (
        f"{count} durable calls, made one after the other from one thread: each is on disk before `.spawn` returns. The first "
        "results are made meanwhile."
    )
    more = {"until all results were read (1/s)": done}
    return Figure("spawn", "`.spawn`, durable calls accepted", made, "calls/s", "", None, detail, more)


# the first call of all

FIRST_APP = """
import steelyard as sy

app = sy.App("first")


@app.function
def square(x: int) -> int:
    return x * x  # {round}
"""

#: the command without its start: imports are done, then it begins
PRELOADED = """
import sys, time
from pathlib import Path
from steelyard.cli.run import run
from steelyard.cli.run_function import run_function
from steelyard.cli import bundle
from steelyard.sdk import caller
begin = time.monotonic()
code = run_function(None, sys.argv[1], ("12",), None, False, {})
print(time.monotonic() - begin)
sys.exit(code)
"""


def measure_first(say: Say, quick: bool) -> list[Figure]:
    rounds = 5 if quick else 40
    seen: dict[str, list[float]] = {name: [] for name in ("result", "exit", "preloaded", "python")}
    peer_firsts: dict[str, list[float]] = {}
    missing = _install()
    with installation() as steelyard:
        for at in range(rounds + 2):
            say(f"first call {at + 1}/{rounds + 2}")
            file = steelyard.write_app("first", FIRST_APP.format(round=at))
            found: dict[str, float] = {}
            found["result"], found["exit"] = _first_line(steelyard.command("run", f"{file}:square", "12"), steelyard, b"144")
            file = steelyard.write_app("first", FIRST_APP.format(round=f"{at} again"))
            command = [sys.executable, "-P", "-c", PRELOADED, f"{file}:square"]
            done = subprocess.run(command, env=steelyard.env, capture_output=True, text=True, check=True, timeout=60)
            found["preloaded"] = float(done.stdout.split()[1]) * 1000
            begin = time.monotonic()
            subprocess.run([sys.executable, "-P", "-c", "pass"], check=True)
            found["python"] = (time.monotonic() - begin) * 1000
            if at >= 2:  # the first ones make what all share: an interpreter to fork from, files in the page cache
                for name, value in found.items():
                    seen[name].append(value)
            for name in SYSTEMS if peers.PYTHON.exists() and at % (rounds if quick else 15) == 0 else ():
                try:
                    first_s = _run_client(steelyard, name, (1, 1, 1, 0))["first_s"]
                    peer_firsts.setdefault(name, []).append(first_s * 1000)
                except (RuntimeError, subprocess.SubprocessError) as err:
                    missing += f" {name} was not measured: {err}."
    p50 = statistics.median(seen["result"])
    more = {
        "p90 (ms)": percentile(seen["result"], 0.9),
        "until the command has ended, all cleared away (ms)": statistics.median(seen["exit"]),
        "without the command's own start: its modules imported before (ms)": statistics.median(seen["preloaded"]),
        "`python -c pass` (ms)": statistics.median(seen["python"]),
    } | {f"{name}: a script's start to its first result (ms)": statistics.median(each) for name, each in peer_firsts.items()}
    detail = (
        "`steelyard run FILE.py:square 12` from exec until its result is read, with a file that nobody has seen before: it is "
        "captured, sent, deployed under a name of its own, imported by a new template, called, and deleted. Warm: Steelyard is "
        "up, an interpreter to fork from is there, bytecode is compiled. The peers' scripts start what they need to run; they "
        f"run three times, in between.{missing}"
    )
    what = "first call of a fresh `steelyard run FILE.py:NAME`: exec to the result, p50"
    return [Figure("first call", what, p50, "ms", f"<= {FIRST_GOAL_MS:g} ms", p50 <= FIRST_GOAL_MS, detail, more)]


def _first_line(command: list[str], steelyard: Installation, wanted: bytes) -> tuple[float, float]:
    """Milliseconds from exec until its first line was read, and until it had ended."""
    begin = time.monotonic()
    child = subprocess.Popen(command, env=steelyard.env, cwd=steelyard.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        first_s = time.monotonic() - begin
        _, said = child.communicate(timeout=60)
        whole_s = time.monotonic() - begin
    finally:
        child.kill()
        child.wait()
    if line.strip() != wanted or child.returncode:
        raise RuntimeError(f"{' '.join(command[-3:])} answered {line!r} and {child.returncode}: {said.decode()}")
    return first_s * 1000, whole_s * 1000


# a save

RELOAD_APP = """
import steelyard as sy

app = sy.App("reload")


@app.function(public=True)
@sy.endpoint
def version() -> int:
    return {round}
"""


def measure_reload(say: Say, quick: bool) -> list[Figure]:
    rounds = 5 if quick else 40
    seen: list[float] = []
    others = 0
    with installation() as steelyard:
        file = steelyard.write_app("reload", RELOAD_APP.format(round=0))
        with tempfile.TemporaryFile() as output:
            command = steelyard.command("serve", str(file))
            child = subprocess.Popen(command, env=steelyard.env, cwd=steelyard.folder, stdout=output, stderr=output)
            try:
                with asyncio.Runner() as runner:
                    runner.run(_wait_version(steelyard, 0))
                    for at in range(1, rounds + 3):
                        say(f"save {at}/{rounds + 2}")
                        time.sleep(0.3)  # the one before is cleared away: nobody saves faster
                        fresh = file.with_suffix(".new")
                        fresh.write_text(RELOAD_APP.format(round=at))
                        begin = time.monotonic()
                        fresh.rename(file)
                        others += runner.run(_wait_version(steelyard, at))
                        if at > 2:
                            seen.append((time.monotonic() - begin) * 1000)
            finally:
                child.terminate()
                child.wait(30)
    p50 = statistics.median(seen)
    more = {"p90 (ms)": percentile(seen, 0.9), "max (ms)": max(seen), "requests that failed meanwhile": float(others)}
    detail = (
        "`steelyard serve` is running; the file is replaced by rename, and asked for over HTTP every 5 ms until the new code "
        "answers. The revision before is warm."
    )
    held = p50 <= RELOAD_GOAL_MS and not others
    return [
        Figure(
            "hot reload", "a save until the first answer by new code, p50", p50, "ms", "<= 300 ms, 0 failed", held, detail, more
        )
    ]


async def _wait_version(steelyard: Installation, wanted: int, timeout_s: float = 30.0) -> int:
    """Until it answers `wanted`; how many answers were none."""
    connection, failed = Connection(steelyard.gateway_port), 0
    end = time.monotonic() + timeout_s
    while True:
        status, body = await connection.send(
            Target("/reload-version-dev/", method="POST", headers=(("content-type", "application/json"),), body=b"{}")
        )
        if status == 200 and json.loads(body) == wanted:
            connection.close()
            return failed
        if status != 200:
            connection.close()  # so does the gateway, where it answers by itself
            failed += wanted > 0
        if time.monotonic() > end:
            raise RuntimeError(f"no answer {wanted} after {timeout_s:g} s; the last was {status}: {body[:200]!r}")
        await asyncio.sleep(0.005)
