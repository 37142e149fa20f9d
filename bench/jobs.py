"""How fast does a job start, and how many short ones get through? Beside a real Slurm and plain fork + exec, in turns."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.figures import Figure, percentile
from bench.installation import Installation, installation
from bench.load import Connection, Target
from bench.slurm import Slurm, slurm, version

Say = Callable[[str], None]

START_GOAL_MS = 15.0
RATE_GOAL = 300.0
CONNECTIONS = 16
#: each clears away what it ran after its answer, which must not be the next one's burden
SETTLE_S = 0.05
#: tells when it was reached: the first thing that it does after it was executed and linked
DATE = ("/bin/date", "+%s%N")


def submission(steelyard: Installation, spec: dict[str, Any], key: str = "", array: str | None = None) -> Target:
    headers = [("authorization", f"Bearer {steelyard.token}"), ("content-type", "application/json")]
    if key:
        headers.append(("idempotency-key", key))
    spec = {"cwd": "/", **spec}
    body = json.dumps({"spec": spec, "array": array}).encode()
    return Target("/v1/jobs", port=steelyard.api_port, headers=tuple(headers), body=body, method="POST")


def question(steelyard: Installation, path: str) -> Target:
    return Target(path, port=steelyard.api_port, headers=(("authorization", f"Bearer {steelyard.token}"),))


@contextlib.contextmanager
def _peer(say: Say) -> Iterator[tuple[Slurm | None, str]]:
    """Slurm, or None and why not."""
    say("Slurm")
    with contextlib.ExitStack() as stack:
        try:
            found, why = stack.enter_context(slurm()), ""
        except (RuntimeError, OSError, subprocess.SubprocessError) as err:
            found, why = None, f" Slurm was not measured: {err}."
        yield found, why


# one job


def measure_queue(say: Say, quick: bool) -> list[Figure]:
    rounds = 10 if quick else 100
    seen: dict[str, list[float]] = {name: [] for name in ("ours", "recorded", "cli", "srun", "plain")}
    with _peer(say) as (peer, missing), installation() as steelyard:
        connection = Connection(steelyard.api_port)
        with asyncio.Runner() as runner:
            for at in range(rounds + 3):
                say(f"job {at + 1}/{rounds + 3}")
                time.sleep(SETTLE_S)
                reached_ms, recorded_ms = runner.run(_start_one(steelyard, connection))
                time.sleep(SETTLE_S)
                found = {"ours": reached_ms, "recorded": recorded_ms, "plain": _date_ms(DATE)}
                time.sleep(SETTLE_S)
                if peer is not None:
                    found["srun"] = _date_ms(("srun", "--quiet", *DATE), peer.env)
                if at % 5 == 0:
                    time.sleep(SETTLE_S)
                    found["cli"] = _date_ms(tuple(steelyard.command("run", "--", *DATE)), steelyard.env)
                if at >= 3:  # the first ones warm all up
                    for name, value in found.items():
                        seen[name].append(value)
            connection.close()
    p50 = statistics.median(seen["ours"])
    names = {
        "plain": "plain fork + exec from Python, p50 (ms)",
        "srun": f"srun of Slurm {version()}, p50 (ms)" if seen["srun"] else "",
        "recorded": "until the recorded started_at, p50 (ms)",
        "cli": "`steelyard run` as a command, its own start included, p50 (ms)",
    }
    more = {"p99 (ms)": percentile(seen["ours"], 0.99)} | {
        names[name]: statistics.median(seen[name]) for name in names if seen[name]
    }
    detail = (
        "From before POST /v1/jobs on an open connection until `date` in the job says what time it is, on a machine with nothing "
        f"to do. `srun` and plain fork + exec run the same `date` in turns with it; srun's time has its own start in it.{missing}"
    )
    what = "submit to running when free: API call to the job's first instructions, p50"
    goal = f"<= {START_GOAL_MS:g} ms p50"
    return [Figure("submit to running", what, p50, "ms", goal, p50 <= START_GOAL_MS, detail, more)]


async def _start_one(steelyard: Installation, connection: Connection) -> tuple[float, float]:
    """Milliseconds from the call until the job runs: as it says, and as it is recorded."""
    target = submission(steelyard, {"name": "date", "argv": DATE})
    begin_ns = time.time_ns()
    status, body = await connection.send(target)
    if status != 201:
        raise RuntimeError(f"a submit was answered {status}: {body[:200]!r}")
    job = json.loads(body)["id"]
    output = b""
    ended = False
    while not ended:
        _, body = await connection.send(question(steelyard, f"/v1/jobs/{job}/logs?wait_s=10&stdout_offset={len(output)}"))
        chunk = json.loads(body)
        output += base64.b64decode(chunk["stdout"])
        ended = chunk["ended"]
    started = json.loads((await connection.send(question(steelyard, f"/v1/jobs/{job}")))[1])["started_at"]
    recorded_us = round(datetime.datetime.fromisoformat(started).timestamp() * 1e6)
    return (int(output) - begin_ns) / 1e6, (recorded_us - begin_ns / 1000) / 1000


def _date_ms(command: tuple[str, ...], env: dict[str, str] | None = None) -> float:
    begin_ns = time.time_ns()
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, check=True, timeout=60)
    return (int(done.stdout) - begin_ns) / 1e6


# many jobs


def measure_throughput(say: Say, quick: bool) -> list[Figure]:
    rounds, ours_count, slurm_count = (1, 200, 40) if quick else (3, 2000, 100)
    seen: dict[str, list[float]] = {name: [] for name in ("ours", "ended", "accepted", "array", "slurm", "plain")}
    with _peer(say) as (peer, missing), installation() as steelyard:
        asyncio.run(_run_many(steelyard, 20))
        for at in range(rounds):
            say(f"{ours_count} jobs, round {at + 1}/{rounds}")
            for name, rate in asyncio.run(_run_many(steelyard, ours_count)).items():
                seen[name].append(rate)
            seen["array"].append(asyncio.run(_run_array(steelyard, ours_count)))
            seen["plain"].append(_fork_many(ours_count))
            if peer is not None:
                say(f"{slurm_count} jobs in Slurm, round {at + 1}/{rounds}")
                seen["slurm"].append(_sbatch_many(peer, slurm_count))
    rate, plain = statistics.median(seen["ours"]), statistics.median(seen["plain"])
    more = {
        "plain fork + exec one after the other, from Python (jobs/s)": plain,
        "until the last one had ended, its record not read yet (jobs/s)": statistics.median(seen["ended"]),
        "submits accepted (1/s)": statistics.median(seen["accepted"]),
    }
    if seen["slurm"]:
        more[f"Slurm {version()}, sbatch until its queue is empty (jobs/s)"] = statistics.median(seen["slurm"])
        more["times as many as Slurm"] = rate / statistics.median(seen["slurm"])
    detail = (
        f"{ours_count} jobs of `/bin/true`, cpus 0.01 each, submitted over {CONNECTIONS} connections: from the first call until "
        f"all are SUCCEEDED; medians of {rounds}. Slurm runs {slurm_count}, submitted by `sbatch --wrap` one after the other, "
        f"set up for high throughput, without accounting and cgroups. All, and the client, share {os.cpu_count()} CPUs.{missing}"
    )
    goal = f">= {RATE_GOAL:g} jobs/s"
    what = "short jobs end to end: first submit to all SUCCEEDED"
    array = statistics.median(seen["array"])
    as_array = Figure(
        "short jobs, array",
        "the same jobs submitted as one array",
        array,
        "jobs/s",
        goal,
        array >= RATE_GOAL,
        f"One call with `array` 0-{ours_count - 1}; everything else as above, in turns with it.",
    )
    return [Figure("short jobs", what, rate, "jobs/s", goal, rate >= RATE_GOAL, detail, more), as_array]


async def _run_many(steelyard: Installation, count: int) -> dict[str, float]:
    """Rates: all SUCCEEDED as the API says, the last recorded end, and the submits alone."""
    target = submission(steelyard, {"name": "true", "argv": ["/bin/true"], "resources": {"cpus": 0.01}})
    left = iter(range(count))
    ids: list[str] = []

    async def submit() -> None:
        connection = Connection(steelyard.api_port)
        for _ in left:
            status, body = await connection.send(target)
            if status != 201:
                raise RuntimeError(f"a submit was answered {status}: {body[:200]!r}")
            ids.append(json.loads(body)["id"])
        connection.close()

    begin, begin_s = time.monotonic(), time.time()
    await asyncio.gather(*(submit() for _ in range(CONNECTIONS)))
    accepted_s = time.monotonic() - begin
    connection = Connection(steelyard.api_port)
    # the last ones first, by long polls: a list of thousands is not asked for while there is work to do
    for job in sorted(ids)[:-CONNECTIONS:-1]:
        while not json.loads((await connection.send(question(steelyard, f"/v1/jobs/{job}/logs?wait_s=10")))[1])["ended"]:
            pass
    while True:
        mine = set(ids)
        _, body = await connection.send(question(steelyard, f"/v1/jobs?limit={count}"))
        whole_s = time.monotonic() - begin
        rows = [row for row in json.loads(body) if row["id"] in mine]
        states = {row["state"] for row in rows}
        if states == {"SUCCEEDED"} and len(rows) == count:
            break
        if states & {"FAILED", "STOPPED", "UNKNOWN"} or whole_s > 300:
            raise RuntimeError(f"of {count} jobs some did not succeed: {sorted(states)}")
        await asyncio.sleep(0.1)
    connection.close()
    last_s = max(datetime.datetime.fromisoformat(row["ended_at"]).timestamp() for row in rows)
    return {"ours": count / whole_s, "ended": count / (last_s - begin_s), "accepted": count / accepted_s}


async def _run_array(steelyard: Installation, count: int) -> float:
    """Elements a second: from the call until all are SUCCEEDED as the API says."""
    body = {"name": "true", "argv": ["/bin/true"], "resources": {"cpus": 0.01}}
    connection = Connection(steelyard.api_port)
    begin = time.monotonic()
    status, answer = await connection.send(submission(steelyard, body, array=f"0-{count - 1}"))
    if status != 201:
        raise RuntimeError(f"the array was answered {status}: {answer[:200]!r}")
    array = json.loads(answer)["id"]
    for index in range(count - CONNECTIONS, count):
        path = f"/v1/jobs/{array}_{index}/logs?wait_s=10"
        while not json.loads((await connection.send(question(steelyard, path)))[1])["ended"]:
            pass
    while json.loads((await connection.send(question(steelyard, f"/v1/jobs/{array}")))[1])["elements"] != {"SUCCEEDED": count}:
        if time.monotonic() - begin > 300:
            raise RuntimeError("some elements did not succeed")
        await asyncio.sleep(0.1)
    connection.close()
    return count / (time.monotonic() - begin)


def _fork_many(count: int) -> float:
    begin = time.monotonic()
    for _ in range(count):
        subprocess.run(["/bin/true"], check=True)
    return count / (time.monotonic() - begin)


def _sbatch_many(peer: Slurm, count: int) -> float:
    begin = time.monotonic()
    for _ in range(count):
        peer.call("sbatch", "--quiet", "--output=/dev/null", "--wrap", "/bin/true")
    while peer.call("squeue", "--noheader"):
        time.sleep(0.02)
    return count / (time.monotonic() - begin)
