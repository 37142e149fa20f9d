"""What does batch do to an endpoint beside it? Warm latency of one function, alone and while batch burns every core it may use
and the memory bus: a dedicated function beside preemptible batch, and for contrast a best-effort one beside ordinary batch.
Everything in turns within one run.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable

from bench.figures import Figure, percentile
from bench.installation import Installation, installation
from bench.load import Target, run_connections
from steelyard.host.cgroup_files import CgroupFiles
from steelyard.host.resctrl import NOT_ISOLATED, Resctrl

#: half a millisecond of hashing over more memory than a core's own caches hold
APP = """
import hashlib
DATA = bytes(1 << 20)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = hashlib.sha256(DATA).hexdigest().encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"64")]})
    await send({"type": "http.response.body", "body": body})
"""
#: ends by itself, whatever becomes of the benchmark
BURN = """
import os, time
end = time.monotonic() + 120
for _ in range(os.cpu_count() - 1):
    if not os.fork():
        break
source = bytearray(64 << 20)
while time.monotonic() < end:
    bytes(source)
    sum(range(200_000))
"""
TIMINGS = ("dedicated", "best-effort")


def measure_neighbours(say: Callable[[str], None], quick: bool) -> list[Figure]:
    rounds, seconds = (1, 2) if quick else (5, 5)
    seen: dict[tuple[str, str], list[list[float]]] = {}
    with installation() as steelyard:
        app = steelyard.write_app("near", APP)
        (steelyard.folder / "burn.py").write_text(BURN)
        for at in range(rounds):
            for timing in TIMINGS if at % 2 else reversed(TIMINGS):
                steelyard.deploy(app, "near", "--public", "--timing", timing, "--min-replicas", "1", "--idle-timeout", "10m")
                for beside in ("alone", "batch"):
                    say(f"round {at + 1}/{rounds}: {timing}, {beside}")
                    seen.setdefault((timing, beside), []).append(_measure(steelyard, timing, beside == "batch", seconds))
        proof = _isolation()
    return [_figure(seen, proof)]


def _measure(steelyard: Installation, timing: str, batch: bool, seconds: int) -> list[float]:
    """Latencies in seconds of one connection, after a moment of warming up."""
    job = _start_batch(steelyard, ("--preemptible",) if timing == "dedicated" else ()) if batch else None
    target = Target(path="/near/", port=steelyard.gateway_port)
    try:
        asyncio.run(run_connections(target, 1, 1))
        return asyncio.run(run_connections(target, 1, seconds))
    finally:
        if job is not None:
            steelyard.cli("stop", job)


def _start_batch(steelyard: Installation, options: tuple[str, ...]) -> str:
    job = steelyard.cli("run", "--detach", *options, "--", sys.executable, str(steelyard.folder / "burn.py")).strip()
    end = time.monotonic() + 20
    while steelyard.api("GET", f"/v1/jobs/{job}")["state"] != "RUNNING":
        if time.monotonic() > end:
            raise RuntimeError(f"the batch job {job} did not start")
        time.sleep(0.05)
    return job


def _figure(seen: dict[tuple[str, str], list[list[float]]], proof: str) -> Figure:
    p99 = {key: [percentile(run, 0.99) for run in runs] for key, runs in seen.items()}
    ratios = {
        timing: statistics.median(
            with_batch / alone for with_batch, alone in zip(p99[timing, "batch"], p99[timing, "alone"], strict=True)
        )
        for timing in TIMINGS
    }
    more = {
        f"{name} {timing}, {beside} (ms)": statistics.median(percentile(run, share) for run in runs) * 1e3
        for (timing, beside), runs in sorted(seen.items())
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
    return Figure(
        "neighbours",
        "warm p99 of a dedicated function beside preemptible batch on every core and the memory bus, against its p99 alone",
        ratios["dedicated"],
        "x",
        "<= 1.5 x",
        ratios["dedicated"] <= 1.5,
        f"A best-effort function beside ordinary batch in the same run: {ratios['best-effort']:.2f} x. {proof}",
        more,
    )


def _isolation() -> str:
    """What the machine shares whatever we do."""
    if Resctrl("/sys/fs/resctrl", "", CgroupFiles()).available:
        return "Batch is held to half of the last-level cache and the least memory bandwidth by resctrl."
    return f"Not isolated: {NOT_ISOLATED}."
