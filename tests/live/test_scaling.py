"""Scaling through the whole platform: why a function has as many replicas as it has, and who gets what of a full machine."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from apps import MANY, Load, deploy
from steelyard_cluster import Cluster, wait_until


def why(cluster: Cluster, name: str) -> dict[str, Any]:
    return cluster.api("GET", f"/v1/functions/{name}/why").json()


def revision(cluster: Cluster, name: str) -> dict[str, Any]:
    (found,) = why(cluster, name)["revisions"]
    return found


def test_why_tells_what_was_seen_what_decided_and_what_bounds_it(shared: Cluster) -> None:
    deploy(shared, "explained", MANY, "--max-replicas", "2", "--concurrency", "1", "--idle-timeout", "500ms")
    shared.wait_function("explained", "SLEEPING")
    assert revision(shared, "explained")["text"] == "It sleeps; the next request wakes one replica."
    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(shared.call, "/explained/sleep/1", timeout=30)
        bounded = wait_until(
            lambda: seen if (seen := revision(shared, "explained"))["serving"] == 2 else None, 10, "two replicas to serve"
        )
    assert "the most it may have (max-replicas 2)" in bounded["text"]
    assert [(step["before"], step["after"]) for step in bounded["changes"][:2]] == [(0, 1), (1, 2)]
    shared.wait_function("explained", "SLEEPING")
    shown = shared.ok("why", "explained")
    assert "explained SLEEPING" in shown and "one replica wakes" in shown
    shared.ok("delete", "explained")
    assert shared.cli("why", "explained").returncode == 2


#: answers after a second; its page /metrics tells how many it is at
TELLING = """
import http.server, os, time
at = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"# TYPE at gauge\\nat {len(at)}\\n".encode()
        if self.path != "/metrics":
            at.append(self)
            time.sleep(1)
            at.remove(self)
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_replicas_are_added_by_what_they_tell_of_themselves(shared: Cluster) -> None:
    program = shared.folder / "telling.py"
    program.write_text(TELLING)
    # sixteen places are never full: only what it tells of itself asks for more
    shared.ok(
        "deploy", "--name", "telling", "--port", "0", "--public", "--concurrency", "16", "--max-replicas", "3",
        "--scale-on", "at=2", "--scale-on", "absent=1", "--idle-timeout", "500ms", "--", sys.executable, str(program),
    )  # fmt: skip
    shared.wait_function("telling", "SLEEPING")
    with Load(lambda: shared.call("/telling/", timeout=30).status, threads=6) as load:
        seen = wait_until(
            lambda: seen if (seen := revision(shared, "telling"))["serving"] == 3 else None, 20, "three replicas for six"
        )
        assert load.stop().keys() == {200}
    assert any("by what they say of themselves. at is" in step["text"] for step in seen["changes"])
    assert all("No replica tells absent" in step["text"] for step in seen["changes"][1:])
    shared.wait_function("telling", "SLEEPING")
    shared.ok("delete", "telling")


def test_a_full_machine_is_shared_and_nobody_starves(shared: Cluster) -> None:
    memory = shared.api("GET", "/v1/machine").json()["memory_bytes"]
    limit = f"{round(memory * 0.3 / 2**20)}MiB"  # three replicas fit
    for name in ("left", "right"):
        deploy(shared, name, MANY, "--max-replicas", "4", "--concurrency", "1", "--idle-timeout", "500ms", "--memory", limit)
        shared.wait_function(name, "SLEEPING")

    def shared_out() -> bool:
        left, right = (shared.function(name) for name in ("left", "right"))
        texts = [found["text"] for name in ("left", "right") for found in why(shared, name)["revisions"]]
        serving = (left["replicas"], right["replicas"])
        return min(serving) >= 1 and sum(serving) <= 3 and any("fair share" in text for text in texts)

    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(shared.call, f"/{name}/sleep/1.5", timeout=60) for _ in range(8) for name in ("left", "right")]
        # what one look started before the other's demand was known ends again
        wait_until(shared_out, 15, "both to serve, within what the machine holds")
        assert {answer.result().status for answer in answers} == {200}
    for name in ("left", "right"):
        shared.ok("delete", name)
