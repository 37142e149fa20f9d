"""What does the gateway add to a request of a function that is awake? Ours against a bare Envoy before the same server.

Ours: Envoy with routes, keys and the runner (private function, with a key). Bare: the same Envoy binary, one worker, one route, and
the same app under the same uvicorn. The load comes from `wrk` where it is installed, else from `bench.load`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Figure, ratio_of_pairs
from bench.installation import Installation, cpu_s, free_port
from bench.load import Target, request_once, run_connections
from bench.peers import free_folder
from bench.session import EXAMPLES, Session, end, wait_until
from steelyard.gateway.envoy import envoy_binary

CONNECTIONS = (1, 16)
SECONDS = 2
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True)
class Load:
    """One burst of load on one side."""

    p50_ms: float
    per_s: float
    envoy_us: float


def measure_warm(session: Session) -> list[Figure]:
    rounds = session.rounds(10, 2)
    seen: dict[tuple[str, int], list[Load]] = {}
    with Installation() as place, _bare(place.folder) as (bare, bare_pid):
        place.deploy(EXAMPLES / "hello" / "app.py", "hello", "--min-replicas", "1", "--concurrency", "64")
        key = place.cli("keys", "create", "bench").strip()
        ours = place.target("hello", headers=(("authorization", f"Bearer {key}"),))
        sides = {"ours": (ours, place.pid("envoy")), "bare": (bare, bare_pid)}
        for target, _ in sides.values():
            wait_until(lambda target=target: asyncio.run(request_once(target)).status == 200, 30, f"{target} to answer")
        for at in range(rounds):
            session.say(f"warm: round {at} of {rounds}")
            for connections in CONNECTIONS:
                # who is first takes turns
                for side in ("ours", "bare") if at % 2 else ("bare", "ours"):
                    target, pid = sides[side]
                    seen.setdefault((side, connections), []).append(_load(target, connections, pid))
    figures: list[Figure] = []
    for connections in CONNECTIONS:
        figures += _figures(connections, seen["ours", connections], seen["bare", connections])
    return figures


def _figures(connections: int, ours: list[Load], bare: list[Load]) -> list[Figure]:
    slower = ratio_of_pairs([load.p50_ms for load in ours], [load.p50_ms for load in bare])
    through = ratio_of_pairs([load.per_s for load in ours], [load.per_s for load in bare])
    more = {
        "ours, p50 ms": statistics.median(load.p50_ms for load in ours),
        "bare Envoy, p50 ms": statistics.median(load.p50_ms for load in bare),
        "ours, requests/s": statistics.median(load.per_s for load in ours),
        "bare Envoy, requests/s": statistics.median(load.per_s for load in bare),
        "ours, Envoy CPU us per request": statistics.median(load.envoy_us for load in ours),
        "bare Envoy, CPU us per request": statistics.median(load.envoy_us for load in bare),
    }
    detail = (
        f"A private function with its key, through the gateway, against a bare Envoy of the same version with one worker before the "
        f"same app under uvicorn on a Unix socket; {connections} connection{'s' if connections > 1 else ''} kept alive, "
        f"{len(ours)} rounds of {SECONDS} s in turns, load by {'wrk' if shutil.which('wrk') else 'an asyncio client'} on the same machine."
    )
    what = f"warm request, {connections} connection{'s' if connections > 1 else ''}"
    return [
        Figure(f"warm_p50_{connections}", f"{what}: p50 against bare Envoy", slower[0], "x", "<= 1.25 x", slower[0] <= 1.25, detail,
               more | {"ratio, 95 % from": slower[1], "ratio, 95 % to": slower[2]}),
        Figure(f"warm_throughput_{connections}", f"{what}: throughput against bare Envoy", through[0], "x", ">= 0.9 x",
               through[0] >= 0.9, "Of the same rounds.", {"ratio, 95 % from": through[1], "ratio, 95 % to": through[2]}),
    ]  # fmt: skip


def _load(target: Target, connections: int, envoy_pid: int) -> Load:
    before_s = cpu_s(envoy_pid)
    if shutil.which("wrk"):
        p50_ms, per_s, count = _wrk(target, connections)
    else:
        latencies = asyncio.run(run_connections(target, connections, SECONDS))
        p50_ms, count = statistics.median(latencies) * 1000, len(latencies)
        per_s = count / SECONDS
    return Load(p50_ms, per_s, (cpu_s(envoy_pid) - before_s) * 1e6 / count)


def _wrk(target: Target, connections: int) -> tuple[float, float, int]:
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency"]
    for name, value in target.headers:
        argv += ["-H", f"{name}: {value}"]
    argv.append(f"http://127.0.0.1:{target.port}{target.path}")
    text = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS + 30, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"not every request was answered with 200:\n{text}")
    p50 = re.search(r"50%\s+([\d.]+)(us|ms|s)", text)
    per_s = re.search(r"Requests/sec:\s+([\d.]+)", text)
    count = re.search(r"(\d+) requests in", text)
    if p50 is None or per_s is None or count is None:
        raise RuntimeError(f"wrk said something else:\n{text}")
    return float(p50[1]) * UNITS_MS[p50[2]], float(per_s[1]), int(count[1])


@contextlib.contextmanager
def _bare(readable: Path) -> Iterator[tuple[Target, int]]:
    """(target, Envoy's pid) of a bare Envoy before the hello app."""
    folder, port = free_folder(), free_port()
    app_socket = folder / "app.sock"
    config = folder / "envoy.json"
    config.write_text(json.dumps(_bare_config(app_socket, port)))
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = [sys.executable, "-P", "-m", "uvicorn", "app:app", "--app-dir", str(EXAMPLES / "hello"), "--uds", str(app_socket)]
    server += ["--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "error", "--timeout-keep-alive", "75"]
    envoy = [envoy_binary(), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.append(subprocess.Popen(server, cwd=readable, **quiet))
        wait_until(app_socket.exists, 30, "uvicorn to listen")
        processes.append(subprocess.Popen(envoy, cwd=readable, **quiet))
        yield Target(path="/", port=port), processes[1].pid
    finally:
        for process in reversed(processes):
            end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _bare_config(app_socket: Path, port: int) -> dict[str, object]:
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(app_socket)}}}}
    cluster = {
        "name": "app",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
