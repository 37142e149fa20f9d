"""Jobs through the whole platform: limits that hold, pins that are proved, drift that shows, families that end together."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, wait_until

from steelyard.config import make_paths
from steelyard.host.cgroup import open_cgroups

CORES = len(os.sched_getaffinity(0))
needs_two_cores = pytest.mark.skipif(CORES < 2, reason="NOT VERIFIED on one core: it stays shared, so none can be exclusive")
needs_cgroups = pytest.mark.skipif(
    open_cgroups("probe").flavour == "none", reason="NOT VERIFIED without control groups: limits can't be enforced here"
)


def submit(cluster: Cluster, *argv: str, **resources: Any) -> str:
    spec = {"name": argv[0], "argv": argv, "cwd": "/", "env": {"PATH": os.environ["PATH"]}, "resources": resources}
    answer = cluster.api("POST", "/v1/jobs", {"spec": spec})
    assert answer.status == 201, answer
    return answer.json()["id"]


def proof(cluster: Cluster, job: str) -> dict[str, Any]:
    return cluster.api("GET", f"/v1/jobs/{job}/proof").json()


def find_group(cluster: Cluster, controller: str, name: str) -> Path:
    """A v1 leaf, or the one of the unified tree."""
    tag = make_paths(cluster.home, dict(os.environ), os.getuid()).tag
    candidates = [Path(f"/sys/fs/cgroup/{controller}/steelyard-{tag}/{name}"), Path(f"/sys/fs/cgroup/steelyard-{tag}/{name}"),
                  Path(f"/sys/fs/cgroup/steelyard-{tag}/shared/{name}")]  # fmt: skip
    return next(path for path in candidates if path.exists())


@needs_cgroups
def test_a_job_over_its_memory_limit_is_ended_and_says_so(shared: Cluster) -> None:
    job = submit(shared, "python3", "-c", "x = bytearray(300_000_000)", memory_bytes=64 << 20)
    ended = shared.wait_job(job, "FAILED")
    assert (ended["reason"], ended["exit_code"]) == ("oom-killed", 137)
    assert 50 << 20 < ended["peak_memory_bytes"] <= 64 << 20


@needs_cgroups
@needs_two_cores
def test_exclusive_cores_are_proved_and_leave_the_common_set(shared: Cluster) -> None:
    common = submit(shared, "sleep", "60", cpus=0.1)
    shared.wait_job(common, "RUNNING")
    wait_until(lambda: len(proof(shared, common)["got"]["cpus"]) == CORES, 5, "all cores in common")
    pinned = submit(shared, "sleep", "60", cpus=1, exclusive=True)
    shared.wait_job(pinned, "RUNNING")
    seen = proof(shared, pinned)
    assert seen["state"] == "MATCH", seen
    assert len(seen["got"]["cpus"]) < CORES
    wait_until(lambda: not set(proof(shared, common)["got"]["cpus"]) & set(seen["got"]["cpus"]), 5, "the common set to shrink")
    assert proof(shared, common)["state"] == "MATCH"
    shared.ok("stop", pinned)
    shared.wait_job(pinned, "STOPPED")
    wait_until(lambda: len(proof(shared, common)["got"]["cpus"]) == CORES, 5, "the common set to grow back")
    shared.ok("stop", common)
    assert proof(shared, pinned)["state"] == "MATCH", "the proof outlives the job"


@needs_cgroups
@needs_two_cores
def test_a_change_by_hand_is_drift_within_one_look(shared: Cluster) -> None:
    job = submit(shared, "sleep", "60", cpus=1, exclusive=True, memory_bytes=64 << 20)
    shared.wait_job(job, "RUNNING")
    assert proof(shared, job)["state"] == "MATCH"
    group = find_group(shared, "memory", f"{job}.1")
    limit = group / ("memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max")
    limit.write_text(str(32 << 20))
    seen = proof(shared, job)
    assert seen["state"] == "DRIFTED"
    assert any("memory_bytes" in text for text in seen["differences"])
    limit.write_text(str(64 << 20))
    assert proof(shared, job)["state"] == "MATCH"
    cpus = find_group(shared, "cpuset", f"{job}.1") / "cpuset.cpus"
    before = cpus.read_text()
    cpus.write_text(f"0-{CORES - 1}")
    assert proof(shared, job)["state"] == "DRIFTED"
    cpus.write_text(before)
    shared.ok("stop", job)


def test_what_leaves_its_session_ends_with_the_job(shared: Cluster) -> None:
    mark = f"escapee-{os.getpid()}-{time.monotonic_ns()}"
    job = submit(shared, "sh", "-c", f"setsid sh -c 'sleep 300; : {mark}' & sleep 0.2; exit 3")
    assert shared.wait_job(job, "FAILED")["exit_code"] == 3

    def gone() -> bool:
        return not any(mark.encode() in command_line(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())

    wait_until(gone, 5, "the escapee to be gone")


def command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def test_two_hundred_short_jobs_all_end_with_their_own_code(shared: Cluster) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda number: submit(shared, "sh", "-c", f"exit {number % 5}", cpus=0.01), range(200)))
    assert len(set(jobs)) == 200

    def rows() -> dict[str, Any] | None:
        seen = {row["id"]: row for row in shared.api("GET", "/v1/jobs?limit=1000").json()}
        return seen if all(seen[job]["state"] in ("SUCCEEDED", "FAILED") for job in jobs) else None

    ended = wait_until(rows, 60, "all to end")
    assert [ended[job]["exit_code"] for job in jobs] == [number % 5 for number in range(200)]


def test_a_full_machine_starts_the_rest_in_order(shared: Cluster) -> None:
    first = submit(shared, "sleep", "60", cpus=CORES)
    shared.wait_job(first, "RUNNING")
    waiting = [submit(shared, "sh", "-c", "exit 0", cpus=CORES) for _ in range(3)]
    assert {shared.job(job)["state"] for job in waiting} == {"QUEUED"}
    assert wait_until(lambda: shared.job(waiting[0])["reason"], 5, "a reason") == "no-cores-left"
    shared.ok("stop", first)
    ended = [shared.wait_job(job, "SUCCEEDED") for job in waiting]
    starts = [job["started_at"] for job in ended]
    assert starts == sorted(starts)


@pytest.mark.skipif(os.getuid() != 0, reason="NOT VERIFIED without root: work runs as the submitter's own uid")
def test_a_folder_that_work_may_not_enter_is_explained(shared: Cluster) -> None:
    private = shared.folder / "private"
    private.mkdir(mode=0o700)
    done = shared.cli("run", "--", "true", cwd=private)
    assert done.returncode == 125
    assert b"--as-root" in done.stderr
    assert shared.cli("run", "--as-root", "--", "true", cwd=private).returncode == 0
