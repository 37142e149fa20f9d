"""How long does a wake take, and what does waking cost beside the work itself?"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import time
from collections.abc import Callable

from bench import peers
from bench.figures import Figure, percentile
from bench.installation import EXAMPLES, Installation, free_port, installation
from bench.load import Result, Target, request_once

Say = Callable[[str], None]


def measure_hello(say: Say, quick: bool) -> list[Figure]:
    """100 sleep/wake rounds through the gateway, the peers' rounds in between."""
    rounds, every, ray_rounds = (20, 5, 0) if quick else (100, 5, 3)
    missing = ""
    try:
        peers.install()
    except RuntimeError as err:
        missing = f" Peers were not measured: {err}."
    walls: list[Result] = []
    plain: list[float] = []
    preloaded: list[float] = []
    with installation() as steelyard:
        steelyard.deploy(EXAMPLES / "hello" / "app.py", "hello", "--idle-timeout", "200ms", "--public")
        target = Target(path="/hello/", port=steelyard.gateway_port)
        warm_peer = Target(path="/", port=free_port())

        def one_round(at: int) -> None:
            steelyard.wait_asleep("hello", wakes=at)
            walls.append(asyncio.run(request_once(target)))
            if at % every == 0 and not missing:
                plain.append(peers.socket_activated(EXAMPLES / "hello", steelyard.folder / "peer.sock"))
                preloaded.append(asyncio.run(request_once(warm_peer)).first_byte_s)

        if missing:
            for at in range(rounds):
                one_round(at)
        else:
            with peers.gunicorn(EXAMPLES / "hello", warm_peer.port or 0):
                for at in range(rounds):
                    say(f"wake {at + 1}/{rounds}")
                    one_round(at)
        steelyard.wait_asleep("hello", wakes=rounds)
        rows = steelyard.wakes("hello")
    ray: list[float] = []
    if ray_rounds and not missing:
        say("Ray Serve, 0 -> 1")
        try:
            ray = peers.ray_serve(free_port(), ray_rounds)
        except (RuntimeError, OSError, subprocess.SubprocessError) as err:
            missing = f" Ray Serve was not measured: {err}."
    return [*_hello_figures(walls, rows, plain, preloaded, ray, missing)]


def _hello_figures(
    walls: list[Result], rows: list[dict[str, float]], plain: list[float], preloaded: list[float], ray: list[float], missing: str
) -> list[Figure]:
    failed = sum(result.status != 200 for result in walls)
    wakes = [result.first_byte_s * 1000 for result in walls if result.status == 200]
    p50, p99 = statistics.median(wakes), percentile(wakes, 0.99)
    platform = [row["platform_ms"] for row in rows]
    more = {"p90 (ms)": percentile(wakes, 0.9), "max (ms)": max(wakes), "rounds": float(len(walls)), "failed": float(failed)}
    if plain:
        more |= {
            "socket-activated uvicorn, fork + exec, p50 (ms)": statistics.median(plain) * 1000,
            "gunicorn --preload, already running, new connection, p50 (ms)": statistics.median(preloaded) * 1000,
        }
    if ray:
        more |= {"Ray Serve 0 -> 1, p50 (ms)": statistics.median(ray) * 1000, "Ray Serve rounds": float(len(ray))}
    how = "New connection to first byte at the client, through the gateway. Cold: no process of the function; warm: page cache. "
    how += "Every round is one row of the ledger; socket-activated start and gunicorn in every fifth round."
    parts = {f"{name} p50 (ms)": statistics.median(row["phases"][name] for row in rows) for name in rows[0]["phases"]}  # type: ignore[index,misc]
    return [
        Figure(
            "wake hello p50",
            "wake of a hello ASGI function, p50",
            p50,
            "ms",
            "p50 <= 6 ms, 0 failed",
            p50 <= 6 and not failed,
            how + missing,
            more,
        ),
        Figure("wake hello p99", "the same, p99", p99, "ms", "p99 <= 25 ms", p99 <= 25, how),
        Figure(
            "wake hello platform",
            "the same, platform phases, p50",
            statistics.median(platform),
            "ms",
            "p50 <= 2.5 ms",
            statistics.median(platform) <= 2.5,
            "From the cold-start ledger: held, plan, fork, join, serve.",
            parts,
        ),
    ]


def measure_embedding(say: Say, quick: bool) -> list[Figure]:
    """First embedding after sleep beside a warm one, in turns."""
    rounds = 8 if quick else 30
    body = json.dumps({"input": "The cat sits on the mat.", "model": "all-MiniLM-L6-v2"}).encode()
    cold: list[float] = []
    warm: list[float] = []
    with installation() as steelyard:
        steelyard.deploy(EXAMPLES / "embeddings" / "app.py", "embeddings", "--idle-timeout", "300ms", "--public")
        target = Target(
            path="/embeddings/v1/embeddings",
            port=steelyard.gateway_port,
            method="POST",
            headers=(("content-type", "application/json"),),
            body=body,
        )
        for at in range(rounds):
            say(f"embedding {at + 1}/{rounds}")
            steelyard.wait_asleep("embeddings", wakes=at)
            cold.append(_ok(asyncio.run(request_once(target))))
            warm.append(statistics.median(_ok(asyncio.run(request_once(target))) for _ in range(3)))
    first, again = statistics.median(cold) * 1000, statistics.median(warm) * 1000
    goal = 1.5 * again + 10
    more = {"warm request (ms)": again, "allowed (ms)": goal, "rounds": float(rounds), "p90 (ms)": percentile(cold, 0.9) * 1000}
    what = "MiniLM (22 M parameters, float32, numpy), no process; first embedding through the gateway, warm ones right after."
    return [
        Figure(
            "wake embedding",
            "wake of the embedding function, first embedding",
            first,
            "ms",
            "<= 1.5 x its warm request + 10 ms",
            first <= goal,
            what,
            more,
        )
    ]


def _ok(result: Result) -> float:
    if result.status != 200:
        raise RuntimeError(f"status {result.status}: {result.body[:200]!r}")
    return result.whole_s


def measure_jobs(say: Say, quick: bool) -> list[Figure]:
    """From the API call to the recorded exit of `true`, beside plain fork + exec, in turns."""
    rounds = 20 if quick else 100
    ours: list[float] = []
    plain: list[float] = []
    with installation() as steelyard:
        spec = {"spec": {"name": "true", "argv": ["/bin/true"], "cwd": "/"}}
        for at in range(rounds + 3):
            say(f"job {at + 1}/{rounds + 3}")
            begin = time.monotonic()
            job = steelyard.api("POST", "/v1/jobs", spec)["id"]
            _wait_ended(steelyard, job)
            middle = time.monotonic()
            subprocess.run(["/bin/true"], check=True)
            if at >= 3:  # the first ones warm both up
                ours.append((middle - begin) * 1000)
                plain.append((time.monotonic() - middle) * 1000)
    p50 = statistics.median(ours)
    more = {"p99 (ms)": percentile(ours, 0.99), "plain fork + exec from Python, p50 (ms)": statistics.median(plain)}
    what = "POST /v1/jobs until a long poll for its output says that the exit is recorded; two requests on new connections."
    return [
        Figure(
            "run true",
            "`steelyard run -- true` inside: API call to exit recorded, p50",
            p50,
            "ms",
            "<= 30 ms p50",
            p50 <= 30,
            what,
            more,
        )
    ]


def _wait_ended(steelyard: Installation, job: str) -> None:
    for _ in range(100):
        if steelyard.api("GET", f"/v1/jobs/{job}/logs?wait_s=10")["ended"]:
            return
    raise RuntimeError(f"{job} did not end")
