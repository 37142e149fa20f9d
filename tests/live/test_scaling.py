"""Scaling through the whole platform: why a function has as many replicas as it has, and who gets what of a full machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from apps import MANY, deploy
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
