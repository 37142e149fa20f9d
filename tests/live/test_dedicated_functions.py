"""A dedicated function has its cores to itself while it is deployed, and gives them back; preemptible work gives way."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from apps import MANY, deploy, free_cores
from steelyard_cluster import Cluster, wait_until

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or (os.cpu_count() or 1) < 2, reason="needs root and two cores: one core always stays shared"
)


def allowed(pid: int | str) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith("Cpus_allowed_list:"))


def test_replicas_run_on_the_functions_own_cores_and_jobs_elsewhere(shared: Cluster) -> None:
    deploy(shared, "own", MANY, "--timing", "dedicated", "--cpus", "1", "--idle-timeout", "200ms")
    own = allowed(shared.call("/own/pid").body.split()[1].decode())
    assert allowed(shared.call("/own/pid").body.split()[1].decode()) == own, "also the next replica, after it slept"
    job = shared.ok("run", "--", "grep", "Cpus_allowed_list", "/proc/self/status").split()[1]
    assert own != job and not set(expand(own)) & set(expand(job))
    wait_until(lambda: shared.function("own")["state"] == "SLEEPING", 20, "it to sleep")
    again = allowed(shared.call("/own/pid").body.split()[1].decode())
    assert again == own
    shared.ok("delete", "own")

    def given_back() -> bool:
        everywhere = shared.ok("run", "--", "grep", "Cpus_allowed_list", "/proc/self/status").split()[1]
        return set(expand(own)) <= set(expand(everywhere))

    wait_until(given_back, 20, "jobs to run on the function's cores too")
    free_cores(shared)


def test_cores_that_another_function_holds_are_refused_at_the_door(shared: Cluster) -> None:
    most = (os.cpu_count() or 2) - 1
    deploy(shared, "first", MANY, "--timing", "dedicated", "--cpus", str(most))
    app = shared.folder / "first" / "app.py"
    done = shared.cli("deploy", f"{app}:app", "--name", "second", "--public", "--timing", "dedicated", "--cpus", "1")
    assert done.returncode == 2
    assert b"whole core" in done.stderr and b"Nothing was changed" in done.stderr
    deploy(shared, "first", MANY, "--timing", "dedicated", "--cpus", str(most))  # its own cores are no obstacle to itself
    shared.ok("delete", "first")
    free_cores(shared)


def expand(text: str) -> list[int]:
    parts = [part.split("-") for part in text.split(",")]
    return [cpu for part in parts for cpu in range(int(part[0]), int(part[-1]) + 1)]


def test_a_revision_that_still_serves_keeps_its_cores(shared: Cluster) -> None:
    most = (os.cpu_count() or 2) - 1
    deploy(shared, "old", MANY, "--timing", "dedicated", "--cpus", str(most))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(shared.call, "/old/sleep/4")
        wait_until(lambda: shared.function("old")["state"] == "RUNNING", 20, "the request to be held")
        deploy(shared, "old", MANY, "--timing", "best-effort")
        job = shared.ok("run", "--detach", "--exclusive", "--cpus", str(most), "--", "true").strip()
        waiting = shared.wait_job(job, "QUEUED")
        assert waiting["reason"] == "no-cores-left" and not slow.done()
        assert slow.result().status == 200
    shared.wait_job(job, "SUCCEEDED")
    shared.ok("delete", "old")
    free_cores(shared)


def test_a_preemptible_job_gives_way_and_its_proof_says_so(shared: Cluster) -> None:
    job = shared.ok("run", "--detach", "--preemptible", "--", "sleep", "30").strip()
    shared.wait_job(job, "RUNNING")
    seen = json.loads(shared.ok("proof", job, "--json"))
    assert (seen["state"], seen["got"]["gives_way"]) == ("MATCH", True), seen["differences"]
    shared.ok("stop", job)
    refused = shared.cli("run", "--preemptible", "--exclusive", "--", "true")
    assert (refused.returncode, b"gives way" in refused.stderr) == (125, True)
