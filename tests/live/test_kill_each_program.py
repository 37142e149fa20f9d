"""kill -9 of every program, in turn, under load and with 50 running jobs; the invariants are checked after each fault.

Each job writes its own line when it starts, so one that ran twice shows (I2); the leak check of the fixtures is I6.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from apps import MANY, Load, deploy
from steelyard_cluster import Cluster, started, wait_until

JOBS = 50


@pytest.fixture(scope="module")
def busy(shared: Cluster) -> Iterator[tuple[Cluster, list[str]]]:
    """50 jobs that run until the end of the module, a warm function and a sleeping one."""
    starts = shared.folder / "starts"
    starts.touch()
    starts.chmod(0o666)
    deploy(shared, "warm", MANY, "--min-replicas", "1", "--concurrency", "16")
    deploy(shared, "asleep", MANY, "--idle-timeout", "300ms")
    jobs = [submit(shared, ["sh", "-c", f"echo $STEELYARD_JOB_ID >> {starts}; exec sleep 600"]) for _ in range(JOBS)]
    for job in jobs:
        shared.wait_job(job, "RUNNING")
    yield shared, jobs
    for name in ("warm", "asleep"):
        shared.ok("delete", name)


def submit(cluster: Cluster, argv: list[str], cpus: float = 0.01) -> str:
    spec = {"name": argv[0], "argv": argv, "cwd": "/", "env": {"PATH": os.environ["PATH"]}, "resources": {"cpus": cpus}}
    answer = cluster.api("POST", "/v1/jobs", {"spec": spec})
    assert answer.status == 201, answer
    return answer.json()["id"]


def check_invariants(cluster: Cluster, jobs: list[str], pids: dict[str, int]) -> None:
    """I1 known, I2 none twice, I3 none died: the very same processes run on."""
    seen = {job["id"]: job for job in cluster.api("GET", "/v1/jobs?limit=1000").json()}
    assert set(jobs) <= set(seen)
    assert {seen[job]["state"] for job in jobs} == {"RUNNING"}
    ran = Counter((cluster.folder / "starts").read_text().split())
    assert all(ran[job] == 1 for job in jobs), ran
    assert find_pids(cluster, jobs) == pids


def find_pids(cluster: Cluster, jobs: list[str]) -> dict[str, int]:
    """Job -> pid of its `sleep`, from the processes' own environment. Other tests' jobs are called the same."""
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines = (entry / "environ").read_bytes().split(b"\0")
                comm = (entry / "comm").read_text().strip()
            except OSError:
                continue
            variables = {name: value for name, _, value in (line.partition(b"=") for line in lines)}
            job = variables.get(b"STEELYARD_JOB_ID", b"").decode()
            ours = variables.get(b"STEELYARD_API_URL", b"").decode() == cluster.api_url
            if ours and comm == "sleep" and job in jobs:
                found[job] = int(entry.name)
    return found


def call(cluster: Cluster, name: str) -> int:
    return cluster.call(f"/{name}/pid", timeout=30).status


def test_killed_server_costs_no_work_and_no_request(busy: tuple[Cluster, list[str]]) -> None:
    cluster, jobs = busy
    pids = find_pids(cluster, jobs)
    with Load(lambda: call(cluster, "warm")) as warm, Load(lambda: call(cluster, "asleep"), threads=1) as asleep:
        pid = cluster.kill("server")
        cluster.wait_replaced("server", pid)
        cluster.wait_ready(20)
        assert set(warm.stop()) == {200}
        assert set(asleep.stop()) == {200}
    check_invariants(cluster, jobs, pids)


def test_killed_agent_adopts_everything_and_reports_what_ended_meanwhile(busy: tuple[Cluster, list[str]]) -> None:
    cluster, jobs = busy
    pids = find_pids(cluster, jobs)
    short = submit(cluster, ["sh", "-c", "sleep 0.5; exit 7"])
    cluster.wait_job(short, "RUNNING")
    cluster.wait_function("asleep", "SLEEPING")
    results: list[int] = []
    callers = [threading.Thread(target=lambda: results.append(call(cluster, "asleep"))) for _ in range(10)]
    with Load(lambda: call(cluster, "warm")) as warm:
        os.kill(cluster.pid("up"), signal.SIGSTOP)  # nobody restarts it yet
        try:
            pid = cluster.kill("agent")
            for caller in callers:
                caller.start()
            time.sleep(1.0)  # the time without an agent, in which the short job ends and the callers wait
            assert not results
        finally:
            os.kill(cluster.pid("up"), signal.SIGCONT)
        cluster.wait_replaced("agent", pid)
        ended = cluster.wait_job(short, "FAILED")
        assert ended["exit_code"] == 7
        for caller in callers:
            caller.join(30)
        assert results == [200] * 10
        assert set(warm.stop()) == {200}
    check_invariants(cluster, jobs, pids)
    lasted = _seconds(ended["ended_at"]) - _seconds(ended["started_at"])
    assert 0.4 < lasted < 0.95, "the end was recorded when it happened, not when the agent came back"


def _seconds(text: str) -> float:
    return float(text[17:26]) + 60 * float(text[14:16])


def test_killed_envoy_is_back_from_its_files(busy: tuple[Cluster, list[str]]) -> None:
    cluster, jobs = busy
    pids = find_pids(cluster, jobs)
    pid = cluster.kill("envoy")
    begin = time.monotonic()

    def answers() -> bool:
        try:
            return call(cluster, "warm") == 200 and call(cluster, "asleep") == 200
        except OSError:
            return False

    wait_until(answers, 15, "the gateway to answer again")
    assert time.monotonic() - begin < 5
    assert cluster.pid("envoy") != pid
    check_invariants(cluster, jobs, pids)


def test_killed_template_means_a_start_from_its_environment_and_then_a_new_template(busy: tuple[Cluster, list[str]]) -> None:
    cluster, jobs = busy
    pids = find_pids(cluster, jobs)
    cluster.wait_function("asleep", "SLEEPING")
    # the server may not have been told of a wake yet: a replica that still runs would answer, and nothing would wake
    wait_until(lambda: not any((cluster.home / "agent" / "handles").glob("asleep.*")), 20, "the last replica to be gone")
    killed_at = datetime.now(UTC)  # rows of wakes before may still come
    for pid in template_pids(cluster, "tmpl.asleep.*"):
        os.kill(pid, signal.SIGKILL)  # its spare goes with it
    assert call(cluster, "asleep") == 200

    def woken_since() -> dict[str, Any] | None:
        found = newest_wake(cluster, "asleep")
        return found if found is not None and datetime.fromisoformat(found["at"]) >= killed_at else None

    row = wait_until(woken_since, 10, "a new ledger row")
    assert row["road"] == "environment"
    assert row["reason"] in ("template-died", "template-not-ready")

    def woken_by_template() -> bool:
        cluster.wait_function("asleep", "SLEEPING")
        assert call(cluster, "asleep") == 200
        found = newest_wake(cluster, "asleep")
        return found is not None and found["at"] != row["at"] and found["road"] == "template"

    wait_until(woken_by_template, 20, "a wake from the new template")
    check_invariants(cluster, jobs, pids)


def test_killed_with_all_its_ancestors_a_template_and_they_come_back(busy: tuple[Cluster, list[str]]) -> None:
    cluster, jobs = busy
    pids = find_pids(cluster, jobs)
    cluster.wait_function("asleep", "SLEEPING")
    for pid in template_pids(cluster, "tmpl*"):
        os.kill(pid, signal.SIGKILL)
    assert call(cluster, "asleep") == 200
    wait_until(lambda: len(template_pids(cluster, "tmpl.asleep.*")) == 1, 20, "a new template")
    wait_until(lambda: len(template_pids(cluster, "tmpl-base.*")) == 1, 20, "a new base")
    check_invariants(cluster, jobs, pids)


def template_pids(cluster: Cluster, pattern: str) -> list[int]:
    """Of the templates whose workload fits: `tmpl.<function>.*`, `tmpl-base.*`, `tmpl-environment.*`."""
    handles = (cluster.home / "agent" / "handles").glob(f"{pattern}.json")
    return [json.loads(handle.read_bytes())["pid"] for handle in handles]


def newest_wake(cluster: Cluster, function: str) -> dict[str, Any] | None:
    rows = cluster.api("GET", f"/v1/coldstarts?function={function}&limit=1").json()
    return rows[-1] if rows else None


def test_killed_supervisor_is_followed_by_one_that_adopts(busy: tuple[Cluster, list[str]]) -> None:
    cluster, jobs = busy
    pids = find_pids(cluster, jobs)
    programs = {name: cluster.pid(name) for name in ("spawner", "server", "agent", "envoy")}
    with Load(lambda: call(cluster, "warm")) as warm:
        cluster.kill("up")
        cluster.up()
        assert set(warm.stop()) == {200}
    assert {name: cluster.pid(name) for name in programs} == programs
    check_invariants(cluster, jobs, pids)


@pytest.mark.parametrize("step", ["after-intent", "after-cgroup", "after-spawn", "after-handle"])
def test_agent_killed_at_each_step_of_a_start(step: str) -> None:
    """The job runs exactly once in the end, or is reported as not started."""
    with started(env={"STEELYARD_FAILPOINT": step}) as cluster:
        check_killed_at_a_step(cluster)


def check_killed_at_a_step(cluster: Cluster) -> None:
    marks = cluster.folder / "marks"
    marks.touch()
    marks.chmod(0o666)
    job = submit(cluster, ["sh", "-c", f"echo ran >> {marks}; sleep 0.2"])
    pid = cluster.pid("agent")
    cluster.wait_replaced("agent", pid)
    # from now on agents start without the failpoint
    cluster.kill("up")
    cluster.kill("agent")
    cluster.up()
    ended = wait_until(
        lambda: seen if (seen := cluster.job(job))["state"] in ("SUCCEEDED", "FAILED") else None, 30, "the job to end"
    )
    ran = len(marks.read_text().split())
    assert (ended["state"], ended["reason"], ran) in (("SUCCEEDED", "exited", 1), ("FAILED", "not-started", 0))


def test_callers_of_a_sleeping_function_wait_for_the_spawner(busy: tuple[Cluster, list[str]]) -> None:
    cluster, jobs = busy
    pids = find_pids(cluster, jobs)
    cluster.wait_function("asleep", "SLEEPING")
    results: list[int] = []
    caller = threading.Thread(target=lambda: results.append(call(cluster, "asleep")))
    os.kill(cluster.pid("up"), signal.SIGSTOP)  # nobody restarts it yet
    try:
        pid = cluster.kill("spawner")
        caller.start()
        caller.join(0.5)
        assert not results
    finally:
        os.kill(cluster.pid("up"), signal.SIGCONT)
    cluster.wait_replaced("spawner", pid)
    caller.join(30)
    assert results == [200]
    check_invariants(cluster, jobs, pids)


def test_agent_and_spawner_killed_at_a_time_leave_no_caller_behind_a_replica_that_nobody_reaches(
    busy: tuple[Cluster, list[str]],
) -> None:
    """The socket is lost with them; whoever accepts from it serves only those that it has."""
    cluster, jobs = busy
    lived = find_pids(cluster, jobs)
    deploy(cluster, "awake", MANY, "--idle-timeout", "10m", "--concurrency", "1", "--max-replicas", "1", "--cpus", "0.1")
    assert call(cluster, "awake") == 200
    (old,) = wait_until(lambda: replica_pids(cluster, "awake"), 10, "its record")
    os.kill(cluster.pid("up"), signal.SIGSTOP)
    try:
        pids = {name: cluster.kill(name) for name in ("agent", "spawner")}
    finally:
        os.kill(cluster.pid("up"), signal.SIGCONT)
    for name, pid in pids.items():
        cluster.wait_replaced(name, pid)
    cluster.wait_ready()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: call(cluster, "awake"), range(8))) == [200] * 8
    wait_until(lambda: old not in replica_pids(cluster, "awake"), 30, "the old replica to end")
    cluster.ok("delete", "awake")
    check_invariants(cluster, jobs, lived)


def replica_pids(cluster: Cluster, function: str) -> list[int]:
    handles = (cluster.home / "agent" / "handles").glob(f"{function}.*.json")
    return [json.loads(handle.read_bytes())["pid"] for handle in handles]


def test_killed_spawner_leaves_work_alive_and_starts_again(busy: tuple[Cluster, list[str]]) -> None:
    cluster, _ = busy
    starts = cluster.folder / "starts"
    long = [submit(cluster, ["sh", "-c", f"echo $STEELYARD_JOB_ID >> {starts}; exec sleep 600"]) for _ in range(5)]
    short = submit(cluster, ["sleep", "1"])
    for job in (*long, short):
        cluster.wait_job(job, "RUNNING")
    pids = find_pids(cluster, long)
    pid = cluster.kill("spawner")
    cluster.wait_replaced("spawner", pid)
    check_invariants(cluster, long, pids)
    lost = cluster.wait_job(short, "FAILED")
    assert lost["reason"] == "exit-unknown"
    assert lost["exit_code"] is None
    again = submit(cluster, ["sh", "-c", "exit 4"])
    assert cluster.wait_job(again, "FAILED")["exit_code"] == 4
    assert call(cluster, "asleep") == 200
    for job in long:
        cluster.ok("stop", job)
        assert cluster.wait_job(job, "STOPPED")
