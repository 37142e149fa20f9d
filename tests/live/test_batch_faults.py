"""Gangs, arrays and dependents while server and agent are killed: nothing lost, nothing twice, gangs whole, limits kept."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, started, wait_until

pytestmark = pytest.mark.alone

TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
SMALL = {"cpus": 0.01}
#: how long a gang may go on without one of its ranks
GONE_S = 5.0


@pytest.fixture(scope="module")
def notes(shared: Cluster) -> Path:
    """Every process writes its line when it begins: `<attempt> <rank or ->`."""
    path = shared.folder / "notes"
    path.touch()
    path.chmod(0o666)
    return path


def submit(cluster: Cluster, command: str, notes: Path, array: str | None = None, **fields: Any) -> str:
    note = f'echo "$STEELYARD_ATTEMPT_ID ${{RANK:--}}" >> {notes}; '
    spec = {"name": "x", "argv": ["sh", "-c", note + command], "cwd": "/", "env": {"PATH": os.environ["PATH"]}}
    body: dict[str, Any] = {"spec": {**spec, "resources": SMALL, **fields}}
    if array is not None:
        body["array"] = array
    answer = cluster.api("POST", "/v1/jobs", body)
    assert answer.status == 201, answer
    return answer.json()["id"]


def rows(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in cluster.api("GET", "/v1/jobs?limit=2000").json()}


def wait_all(cluster: Cluster, count: int, timeout: float = 60.0) -> dict[str, dict[str, Any]]:
    """Until so many jobs are known and all of them have ended."""

    def ended() -> dict[str, dict[str, Any]] | None:
        try:
            seen = rows(cluster)
        except OSError:
            return None
        return seen if len(seen) == count and all(row["state"] in TERMINAL for row in seen.values()) else None

    return wait_until(ended, timeout, "all jobs to end")


def kill_server(cluster: Cluster) -> None:
    """And wait for the next one to answer."""
    pid = cluster.kill("server")
    cluster.wait_replaced("server", pid)

    def answers() -> bool:
        try:
            return cluster.api("GET", "/v1/status", timeout=2).status == 200
        except OSError:
            return False

    wait_until(answers, 20, "the server to answer")


def pids_of(job: str, comm: str = "sleep") -> dict[str, int]:
    """Rank -> pid, from the processes' own environment."""
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue
        named: dict[str, str] = {key: value for key, _, value in (each.partition("=") for each in variables)}
        if named.get("STEELYARD_JOB_ID") == job and name == comm:
            found[named.get("RANK", "-")] = int(entry.name)
    return found


def test_server_killed_between_submit_and_start_loses_nothing_and_starts_nothing_twice(shared: Cluster, notes: Path) -> None:
    before = len(rows(shared))
    gang = {"nodes": 1, "tasks_per_node": 2}
    first = submit(shared, "true", notes, gang=gang)
    kill_server(shared)
    array = submit(shared, "true", notes, "0-5%2", after=[{"job": first}])
    kill_server(shared)
    last = submit(shared, "true", notes, gang=gang, after=[{"job": array}])
    kill_server(shared)
    seen = wait_all(shared, before + 8)
    mine = {job: row for job, row in seen.items() if job.startswith((first, array, last))}
    assert {row["state"] for row in mine.values()} == {"SUCCEEDED"}, mine
    ran = Counter(line for line in notes.read_text().splitlines() if line.startswith(tuple(mine)))
    wanted = [f"{job}.1 {rank}" for job in (first, last) for rank in (0, 1)]
    assert ran == Counter([*wanted, *(f"{array}_{index}.1 -" for index in range(6))])
    lines = [line.split()[0] for line in notes.read_text().splitlines()]
    assert max(lines.index(f"{array}_{index}.1") for index in range(6)) < lines.index(f"{last}.1")


def test_rank_killed_takes_its_gang_with_it_and_all_are_tried_again_as_one(shared: Cluster, notes: Path) -> None:
    retry = [{"on": "error", "times": 1, "backoff_s": 0.0}]
    job = submit(shared, "exec sleep 600", notes, gang={"nodes": 1, "tasks_per_node": 3}, retry=retry)
    first = wait_until(lambda: found if len(found := pids_of(job)) == 3 else None, 20, "three ranks")
    shared.wait_job(job, "RUNNING")
    begin = time.monotonic()
    os.kill(first["1"], signal.SIGKILL)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in first.values()), GONE_S, "all ranks to be gone")
    assert time.monotonic() - begin < GONE_S
    second = wait_until(lambda: found if len(found := pids_of(job)) == 3 else None, 20, "three new ranks")
    assert not set(first.values()) & set(second.values())
    row = shared.wait_job(job, "RUNNING")
    assert (row["attempt"], row["restarts"]) == (2, 1)
    shared.ok("stop", job)
    shared.wait_job(job, "STOPPED")
    assert not pids_of(job)
    ran = Counter(line for line in notes.read_text().splitlines() if line.startswith(job))
    assert ran == Counter(f"{job}.{attempt} {rank}" for attempt in (1, 2) for rank in (0, 1, 2))


def test_job_that_passes_its_limit_while_no_agent_is_there_is_ended_when_one_is_back(shared: Cluster, notes: Path) -> None:
    job = submit(shared, "exec sleep 600", notes, max_duration_s=2.0)
    long = submit(shared, "exec sleep 600", notes, max_duration_s=60.0)
    for each in (job, long):
        shared.wait_job(each, "RUNNING")
        wait_until(lambda each=each: pids_of(each), 10, "its process")
    os.kill(shared.pid("up"), signal.SIGSTOP)  # nobody restarts it yet
    try:
        pid = shared.kill("agent")
        time.sleep(3.0)  # the limit passes
        assert pids_of(job)
    finally:
        os.kill(shared.pid("up"), signal.SIGCONT)
    shared.wait_replaced("agent", pid)
    row = shared.wait_job(job, "FAILED")
    assert row["reason"] == "max-duration"
    lasted = datetime.fromisoformat(row["ended_at"]) - datetime.fromisoformat(row["started_at"])
    assert 2.9 < lasted.total_seconds() < 10, "it ran on until there was somebody to end it"
    assert shared.job(long)["state"] == "RUNNING"
    shared.ok("stop", long)
    shared.wait_job(long, "STOPPED")


@pytest.mark.parametrize("step", ["after-spawn:1", "after-handle:2"])
def test_agent_killed_while_a_gang_starts_never_leaves_it_in_part(step: str) -> None:
    with started(env={"STEELYARD_FAILPOINT": step}) as cluster:
        check_killed_in_a_gang(cluster)


def check_killed_in_a_gang(cluster: Cluster) -> None:
    notes = cluster.folder / "notes"
    notes.touch()
    notes.chmod(0o666)
    retry = [{"on": "node-lost", "times": 3, "backoff_s": 0.0}]
    job = submit(cluster, "exec sleep 600", notes, gang={"nodes": 1, "tasks_per_node": 2}, retry=retry)
    pid = cluster.pid("agent")
    cluster.wait_replaced("agent", pid)
    # from now on agents start without the failpoint
    cluster.kill("up")
    cluster.kill("agent")
    cluster.up()
    row = cluster.wait_job(job, "RUNNING")
    assert set(pids_of(job)) == {"0", "1"}
    ran = Counter(notes.read_text().splitlines())
    assert all(count == 1 for count in ran.values()) and row["attempt"] <= 3, ran
    cluster.ok("stop", job)
    cluster.wait_job(job, "STOPPED")


def test_server_killed_again_and_again_while_short_jobs_and_dependents_run(shared: Cluster, notes: Path) -> None:
    before = len(rows(shared))
    short = [submit(shared, "sleep 0.1", notes) for _ in range(60)]
    array = submit(shared, "sleep 0.1", notes, "0-59%20")
    after = [submit(shared, "true", notes, after=[{"job": job}]) for job in short[:20]]
    for _ in range(KILLS):
        kill_server(shared)
    seen = wait_all(shared, before + 140, 90)
    mine = [*short, *after, *(f"{array}_{index}" for index in range(60))]
    assert {seen[job]["state"] for job in mine} == {"SUCCEEDED"}
    ran = Counter(line for line in notes.read_text().splitlines())
    assert {job: ran[f"{job}.1 -"] for job in mine} == dict.fromkeys(mine, 1)
    lines = notes.read_text().splitlines()
    assert all(lines.index(f"{job}.1 -") < lines.index(f"{then}.1 -") for job, then in zip(short, after, strict=False))


#: the supervisor starts what dies again and again ever later
KILLS = int(os.environ.get("STEELYARD_KILLS", "3"))
