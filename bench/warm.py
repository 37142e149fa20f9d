"""What does the gateway cost a warm request? Ours beside a bare Envoy (same binary, one worker) before the same replica.

The bare one has one route and no filter but the router; ours checks a key, finds the function, stamps and strips headers. Load by
`wrk` where it is installed, else by bench/load.py (slower, and then a larger part of what is measured).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.figures import Figure, percentile, ratio_of_pairs
from bench.installation import EXAMPLES, Installation, free_port, installation
from bench.load import Target, run_connections
from bench.peers import wait_listening
from steelyard.config import make_paths
from steelyard.gateway.envoy import envoy_binary

ENVOY = "type.googleapis.com/envoy.extensions.filters."


def measure_warm(say: Callable[[str], None], quick: bool) -> list[Figure]:
    """Pairs of short runs in turns, with 1 and 16 connections."""
    pairs, seconds = (2, 1) if quick else (9, 3)
    with installation() as steelyard:
        options = ("--min-replicas", "1", "--concurrency", "64", "--idle-timeout", "10m")
        steelyard.deploy(EXAMPLES / "hello" / "app.py", "hello", *options)
        key = steelyard.cli("keys", "create", "bench").split()[-1]
        headers = (("authorization", f"Bearer {key}"),)
        with _bare_envoy(steelyard) as (port, pid):
            targets = {
                "ours": Target(path="/hello/", port=steelyard.gateway_port, headers=headers),
                "bare": Target(path="/", port=port, headers=headers),
            }
            pids = {"ours": int(steelyard.programs()["envoy"]["pid"]), "bare": pid}
            seen: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
            for at in range(pairs + 1):
                say(f"pair {at}/{pairs}")
                for connections in (1, 16):
                    # who goes first changes, so that neither always meets the warmer machine
                    for name in sorted(targets, reverse=bool(at % 2)):
                        before = cpu_seconds(pids[name])
                        rate, p50_s = _load(targets[name], connections, seconds)
                        cpu_us = (cpu_seconds(pids[name]) - before) * 1e6 / (rate * seconds)
                        if at:  # the first round warms all up
                            seen.setdefault((name, connections), []).append((rate, p50_s, cpu_us))
    return [_figure(seen, connections) for connections in (1, 16)]


def _figure(seen: dict[tuple[str, int], list[tuple[float, float, float]]], connections: int) -> Figure:
    ours, bare = seen["ours", connections], seen["bare", connections]
    slower, slow_low, slow_high = ratio_of_pairs([each[1] for each in ours], [each[1] for each in bare])
    share, low, high = ratio_of_pairs([each[0] for each in ours], [each[0] for each in bare])
    more = {
        "p50 ours (us)": statistics.median(each[1] for each in ours) * 1e6,
        "p50 bare Envoy (us)": statistics.median(each[1] for each in bare) * 1e6,
        "p50 ratio, low": slow_low,
        "p50 ratio, high": slow_high,
        "throughput ours (1/s)": statistics.median(each[0] for each in ours),
        "throughput bare Envoy (1/s)": statistics.median(each[0] for each in bare),
        "throughput ratio": share,
        "throughput ratio, low": low,
        "throughput ratio, high": high,
        "Envoy CPU a request, ours (us)": statistics.median(each[2] for each in ours),
        "Envoy CPU a request, bare (us)": statistics.median(each[2] for each in bare),
    }
    word = "connection" if connections == 1 else "connections"
    return Figure(
        f"warm {connections}",
        f"warm request through the gateway, {connections} {word}, p50 beside bare Envoy (throughput {share:.3f} x)",
        slower,
        "x",
        "p50 <= 1.25 x, throughput >= 0.9 x bare Envoy",
        slower <= 1.25 and share >= 0.9,
        f"Private function with a key; both before the same socket of one replica, {len(ours)} pairs in turns.",
        more,
    )


def _load(target: Target, connections: int, seconds: int) -> tuple[float, float]:
    """(requests a second, median latency in s)"""
    if shutil.which("wrk") is None:
        latencies = asyncio.run(run_connections(target, connections, seconds))
        return len(latencies) / seconds, percentile(latencies, 0.5)
    headers = [word for name, value in target.headers for word in ("-H", f"{name}: {value}")]
    url = f"http://127.0.0.1:{target.port}{target.path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *headers, url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)\b", said)
    assert rate and median
    return float(rate[1]), float(median[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[median[2]]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _bare_envoy(steelyard: Installation) -> Iterator[tuple[int, int]]:
    """(port, pid) of an Envoy with nothing but a route to the function's socket."""
    folder = make_paths(steelyard.folder / "home", dict(os.environ), os.getuid()).function_sockets
    (socket_path,) = folder.glob("*.sock")
    port = free_port()
    manager = {
        "@type": f"{ENVOY}network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "route_config": {"virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "replica"}}]}
        ]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": f"{ENVOY}http.router.v3.Router"}}],
    }  # fmt: skip
    bootstrap = {"static_resources": {
        "listeners": [{
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
        }],
        "clusters": [{"name": "replica", "type": "STATIC", "load_assignment": {"cluster_name": "replica", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(socket_path)}}}}]}
        ]}}],
    }}  # fmt: skip
    config = steelyard.folder / "bare.json"
    config.write_text(json.dumps(bootstrap))
    child = subprocess.Popen(
        [str(envoy_binary()), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_listening(port)
        time.sleep(0.5)  # let its start-up work end before anything is timed
        yield port, child.pid
    finally:
        child.terminate()
        child.wait(30)
