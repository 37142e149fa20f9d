"""What does it cost that a function is on another machine, and how soon does a gang run on two?

The same function at home and on a pilot, in one Steelyard, asked in turns; the gang beside `srun -N2` on the same cluster. That
cluster is that of the tests: slurmctld and nodes, namespaces of this machine, so the wire costs nothing, and all machines share
its cores. To the function on the pilot a request passes two gateways, over mutual TLS; the second one only copies it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.figures import Figure, percentile, ratio_of_pairs
from bench.installation import EXAMPLES
from bench.load import Target, read_response, request_once

WARM_GOAL, WAKE_GOAL_MS, GANG_GOAL = 1.4, 3.0, 0.5
#: requests in a row on one connection
RUN = 400
HOME, AWAY = "near", "far"
GIVE_UP_S = 60.0
#: Slurm holds the pilot's programs too
MEMORY = ("--memory-per-node", "700MiB")


def measure_pool(say: Callable[[str], None], quick: bool) -> list[Figure]:
    tests = Path(__file__).resolve().parent.parent / "tests"
    sys.path[:0] = [str(tests), str(tests / "live")]
    from pool_cluster import pooled

    rounds, wakes, gangs = (4, 10, 10) if quick else (25, 60, 40)
    with pooled(nodes=1) as steelyard:
        steelyard.create("away", "--nodes", "1..1")
        app = f"{EXAMPLES / 'hello' / 'app.py'}:app"
        for kind, idle in (("warm", "10m"), ("cold", "200ms")):
            for name in (HOME, AWAY):
                where = ("--pool", "away") if name == AWAY else ()
                say(f"deploys {kind}-{name}")
                steelyard.ok("deploy", app, "--name", f"{kind}-{name}", "--public", "--idle-timeout", idle, *where)
        port = int(steelyard.gateway_url.rpartition(":")[2])
        warm = _measure_warm(port, rounds, say)
        cold = _measure_wakes(steelyard, port, wakes, say)
    return [_warm_figure(warm), _wake_figure(cold), _measure_gangs(gangs, say)]


def _measure_gangs(rounds: int, say: Callable[[str], None]) -> Figure:
    """From asking to the moment at which the last of two ranks runs, each on a machine of its own."""
    from pool_cluster import pooled
    from steelyard_cluster import wait_until

    taken: dict[str, list[float]] = {"API": [], "command": [], "srun": []}
    with pooled(nodes=4) as steelyard:
        bed, folder = steelyard.bed, steelyard.folder / "stamps"
        folder.mkdir()
        folder.chmod(0o777)
        stamp = folder / "stamp.sh"
        stamp.write_text('#!/bin/sh\ndate +%s%N > "$1.$2.part" && mv "$1.$2.part" "$1.$2"\n')
        stamp.chmod(0o755)
        # with one CPU of each node, Slurm would bind both machines and all that runs on them to one and the same core of this one
        steelyard.ok("pool", "create", "pair", "--nodes", "2..2", "--cpus-per-node", str(os.cpu_count()), *MEMORY)
        wait_until(lambda: sum(each["state"] == "READY" for each in steelyard.pilots("pair")) == 2, GIVE_UP_S, "two machines")
        for at in range(rounds + 1):
            say(f"gang {at}/{rounds}")
            for way in taken if at % 2 else reversed(taken):
                out = folder / f"{way}-{at}"
                words = ["sh", "-c", f'exec {stamp} {out} "$RANK"']
                began = time.time_ns()
                if way == "srun":
                    bed.ok("srun", "-N2", "-n2", "--exclusive", "sh", "-c", f'exec {stamp} {out} "$SLURM_PROCID"')
                elif way == "command":
                    steelyard.ok("run", "--detach", "--pool", "pair", "--nodes", "2", "--cpus", "0.1", "--", *words)
                else:
                    _submit_gang(steelyard, words)
                took = (max(_read_stamp(out.with_name(f"{out.name}.{rank}")) for rank in (0, 1)) - began) / 1e6
                wait_until(lambda: not steelyard.api("GET", "/v1/jobs?state=STARTING,RUNNING").json(), GIVE_UP_S, "its end")
                if at:
                    taken[way].append(took)
    ratio, low, high = ratio_of_pairs(taken["API"], taken["srun"])
    medians = {name: statistics.median(took) for name, took in taken.items()}
    return Figure(
        "pool gang",
        "a gang on two machines of a pool: from asking to the last rank's first instruction, against `srun -N2 --exclusive`",
        ratio,
        "x",
        f"<= {GANG_GOAL:g} x",
        ratio <= GANG_GOAL,
        f"{rounds} of each in turns, one slurmctld; ours asked by the API, and by `steelyard run`, which has a Python to start. "
        "Both on whole nodes, which here means that each may use all of this machine's cores.",
        {"ratio, low": low, "ratio, high": high, **{f"{name}, p50 (ms)": value for name, value in medians.items()}},
    )


def _submit_gang(steelyard: Any, words: list[str]) -> None:
    spec = {"name": "pair", "argv": words, "cwd": "/", "env": {"PATH": "/usr/bin:/bin"}, "resources": {"cpus": 0.1}}
    answer = steelyard.api("POST", "/v1/jobs", {"spec": {**spec, "pool": "pair", "gang": {"nodes": 2}}})
    if answer.status != 201:
        raise RuntimeError(f"the gang was refused: {answer.text}")


def _read_stamp(file: Path) -> int:
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        if file.exists():
            return int(file.read_text())
        time.sleep(0.02)
    raise RuntimeError(f"no rank wrote {file}")


def _measure_warm(port: int, rounds: int, say: Callable[[str], None]) -> dict[str, list[list[float]]]:
    """By name, seconds of each request of each round; the first round warms all up."""
    found: dict[str, list[list[float]]] = {HOME: [], AWAY: []}
    for at in range(rounds + 1):
        say(f"warm {at}/{rounds}")
        for name in found if at % 2 else reversed(found):
            took = asyncio.run(_ask_in_a_row(Target(f"/warm-{name}/", port=port)))
            if at:
                found[name].append(took)
    return found


async def _ask_in_a_row(target: Target) -> list[float]:
    reader, writer = await target.connect()
    request, took = target.render(), list[float]()
    try:
        for _ in range(RUN):
            began = time.perf_counter()
            writer.write(request)
            status, _, _ = await read_response(reader)
            took.append(time.perf_counter() - began)
            if status != 200:
                raise RuntimeError(f"{target.path} answered {status}")
    finally:
        writer.close()
    return took


def _measure_wakes(steelyard: Any, port: int, wakes: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """By name, milliseconds from a new connection to the first byte."""
    from steelyard_cluster import wait_until

    found: dict[str, list[float]] = {HOME: [], AWAY: []}
    for at in range(wakes + 1):
        say(f"wake {at}/{wakes}")
        for name in found if at % 2 else reversed(found):
            wait_until(lambda name=name: steelyard.function(f"cold-{name}")["state"] == "SLEEPING", 30, "it to sleep")
            answer = asyncio.run(request_once(Target(f"/cold-{name}/", port=port)))
            if answer.status != 200:
                raise RuntimeError(f"cold-{name} answered {answer.status}")
            if at:
                found[name].append(answer.first_byte_s * 1e3)
    return found


def _warm_figure(found: dict[str, list[list[float]]]) -> Figure:
    medians = {name: [statistics.median(took) for took in runs] for name, runs in found.items()}
    ratio, low, high = ratio_of_pairs(medians[AWAY], medians[HOME])
    all_of = {name: [each for took in runs for each in took] for name, runs in found.items()}
    return Figure(
        "pool warm",
        "warm request to a function on another machine, p50 beside the same one at home",
        ratio,
        "x",
        f"<= {WARM_GOAL:g} x",
        ratio <= WARM_GOAL,
        f"One connection; {len(medians[HOME])} runs of {RUN} requests of each in turns. All of it runs on this machine's cores.",
        {
            "ratio, low": low,
            "ratio, high": high,
            **{f"{name}, p50 (us)": statistics.median(took) * 1e6 for name, took in all_of.items()},
            **{f"{name}, p99 (us)": percentile(took, 0.99) * 1e6 for name, took in all_of.items()},
        },
    )


def _wake_figure(found: dict[str, list[float]]) -> Figure:
    medians = {name: statistics.median(took) for name, took in found.items()}
    more = medians[AWAY] - medians[HOME]
    return Figure(
        "pool wake",
        "wake of a function on another machine, p50, more than of the same one at home",
        more,
        "ms",
        f"<= {WAKE_GOAL_MS:g} ms more",
        more <= WAKE_GOAL_MS,
        f"{len(found[HOME])} of each in turns: new connection to first byte at the client.",
        {f"{name}, p50 (ms)": value for name, value in medians.items()},
    )
