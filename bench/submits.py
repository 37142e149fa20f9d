"""Does the door hold when many submit at once, and what does a long queue cost that nobody touches?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from bench.figures import Figure, percentile
from bench.installation import Installation, installation
from bench.jobs import question, submission
from bench.load import Connection
from bench.warm import cpu_seconds

Say = Callable[[str], None]

RATE = 1000
P99_GOAL_MS = 250.0
IDLE_GOAL = 1.0
CONNECTIONS = 64
WATCHERS = 100
#: submits that are repeated with the key that they had
REPEATED = 100


class Sent(NamedTuple):
    #: number -> (status, the job's id)
    answers: dict[int, tuple[int, str]]
    #: from the moment when it was due
    latencies_ms: list[float]
    whole_s: float


def measure_submits(say: Say, quick: bool) -> list[Figure]:
    count = 500 if quick else 10_000
    with installation() as steelyard:
        # so that no first time is measured
        asyncio.run(_submit(steelyard, range(-50, 0)))
        sent, watched, failed, repeated = asyncio.run(_storm(steelyard, count, say))
        rows = steelyard.api("GET", f"/v1/jobs?limit={count}")
    names = Counter(row["name"] for row in rows)
    refused = Counter(status for status, _ in sent.answers.values() if status != 201)
    lost = sum(names[f"s{number}"] == 0 for number in range(count))
    twice = sum(found > 1 for found in names.values()) + repeated
    p99 = percentile(sent.latencies_ms, 0.99)
    more = {
        "p50 (ms)": statistics.median(sent.latencies_ms),
        "p99.9 (ms)": percentile(sent.latencies_ms, 0.999),
        "worst (ms)": max(sent.latencies_ms),
        "all answered after (s)": sent.whole_s,
        "refused": float(refused.total()),
        "lost": float(lost),
        "twice": float(twice),
        "long polls answered meanwhile": float(watched),
        "long polls failed": float(failed),
    }
    detail = (
        f"{count} submits of held jobs, {RATE} each second whatever the answers, over {CONNECTIONS} connections, each with an "
        f"Idempotency-Key; {WATCHERS} watchers wait for output meanwhile. Latency counts from when it was due. Then all "
        f"jobs are listed: lost are those that are not there, and {REPEATED} submits are sent again with their keys. "
        f"Refused: {dict(refused) or 'none'}."
    )
    what = f"{count:,} submits in {count / RATE:g} s: p99"
    kept = p99 <= P99_GOAL_MS and not lost and not twice and not refused
    return [Figure("submit storm", what, p99, "ms", f"p99 <= {P99_GOAL_MS:g} ms, nothing lost", kept, detail, more)]


async def _storm(steelyard: Installation, count: int, say: Say) -> tuple[Sent, int, int, int]:
    """What was answered; long polls that were answered and that failed; repeated submits that made another job."""
    polls = Counter[str]()
    watched = await _submit(steelyard, range(-50 - WATCHERS, -50))
    watchers = [asyncio.create_task(_watch(steelyard, job, polls)) for _, job in watched.answers.values()]
    await asyncio.sleep(0.5)
    say(f"{count} submits")
    sent = await _submit(steelyard, range(count))
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    say("again with the same keys")
    again = await _submit(steelyard, range(min(REPEATED, count)))
    differ = sum(sent.answers[number] != answer for number, answer in again.answers.items())
    return sent, polls["answered"], polls["failed"], differ


async def _submit(steelyard: Installation, numbers: range) -> Sent:
    """One held job for each number, at the rate, whatever the answers."""
    answers: dict[int, tuple[int, str]] = {}
    latencies: list[float] = []
    left = iter(numbers)
    begin = time.monotonic()

    async def work() -> None:
        connection = Connection(steelyard.api_port)
        with contextlib.closing(connection):
            for number in left:
                due = begin + (number - numbers.start) / RATE
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                spec = {"name": f"s{number}", "argv": ["/bin/true"], "held": True}
                try:
                    status, body = await connection.send(submission(steelyard, spec, f"storm-{number}"))
                except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
                    connection.close()
                    status, body = 0, b""
                latencies.append((time.monotonic() - due) * 1000)
                answers[number] = status, json.loads(body)["id"] if status == 201 else ""

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return Sent(answers, latencies, time.monotonic() - begin)


async def _watch(steelyard: Installation, job: str, polls: Counter[str]) -> None:
    """Waits for output that never comes, again and again."""
    with contextlib.closing(Connection(steelyard.api_port)) as connection:
        while True:
            status, _ = await connection.send(question(steelyard, f"/v1/jobs/{job}/logs?wait_s=2"))
            polls["answered" if status == 200 else "failed"] += 1


# a queue that nobody touches


def measure_idle_queue(say: Say, quick: bool) -> list[Figure]:
    count, watch_s = (1000, 3) if quick else (10_000, 10)
    found: dict[str, dict[str, float]] = {}
    with installation() as steelyard:
        found["held"] = _watch_idle(steelyard, count, {"held": True}, watch_s, say)
    with installation() as steelyard:
        whole = {"resources": {"cpus": os.cpu_count()}}
        blocker = {"name": "blocker", "argv": ["/bin/sleep", "600"], "cwd": "/", **whole}
        steelyard.api("POST", "/v1/jobs", {"spec": blocker})
        found["waiting"] = _watch_idle(steelyard, count, whole, watch_s, say)
    states = {"held": "held", "waiting": "waiting for the cores that a running job has"}
    return [
        Figure(
            f"idle queue, {name}",
            f"{count:,} jobs {states[name]}: server + agent, share of a core",
            used["server"] + used["agent"],
            "%",
            f"< {IDLE_GOAL:g} % of a core",
            used["server"] + used["agent"] < IDLE_GOAL,
            f"An array of {count:,} jobs that are {states[name]}; {watch_s} s without a request, some seconds after it came.",
            {f"{program} (%)": share for program, share in used.items()},
        )
        for name, used in found.items()
    ]


def _watch_idle(steelyard: Installation, count: int, spec: dict[str, object], watch_s: float, say: Say) -> dict[str, float]:
    """Program -> percent of a core."""
    body = {"spec": {"name": "true", "argv": ["/bin/true"], "cwd": "/", **spec}, "array": f"0-{count - 1}"}
    steelyard.api("POST", "/v1/jobs", body)
    say("settling")
    time.sleep(2 if watch_s < 5 else 8)
    pids = {name: int(program["pid"]) for name, program in steelyard.programs().items()}
    begin, before = time.monotonic(), {name: cpu_seconds(pid) for name, pid in pids.items()}
    say(f"watching for {watch_s:g} s")
    time.sleep(watch_s)
    wall_s = time.monotonic() - begin
    return {name: (cpu_seconds(pid) - before[name]) / wall_s * 100 for name, pid in pids.items()}
