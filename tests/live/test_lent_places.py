"""A sleeping function lends its core to a preemptible job, has it to itself again on a wake, and gives it back."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

import pytest
from apps import MANY, deploy, free_cores
from steelyard_cluster import Cluster, wait_until

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or (os.cpu_count() or 1) < 2, reason="needs root and two cores: one core always stays shared"
)

EVERYWHERE = tuple(range(os.cpu_count() or 2))
WAKES = 5


def allowed(pid: str) -> tuple[int, ...]:
    status = Path(f"/proc/{pid}/status").read_text()
    text = next(line.split()[1] for line in status.splitlines() if line.startswith("Cpus_allowed_list:"))
    parts = [part.split("-") for part in text.split(",")]
    return tuple(cpu for part in parts for cpu in range(int(part[0]), int(part[-1]) + 1))


def lends(cluster: Cluster, name: str) -> bool:
    return any(row["lends"] for row in json.loads(cluster.ok("functions", "--json")) if row["name"] == name)


def start_job(cluster: Cluster) -> tuple[str, str]:
    """All cores' worth of share, which only fits while the function lends its own; its id and pid."""
    command = ("--preemptible", "--cpus", str(len(EVERYWHERE)), "--", "sh", "-c", "echo $$; exec sleep 100")
    job = cluster.ok("run", "--detach", *command).strip()
    cluster.wait_job(job, "RUNNING")
    wait_until(lambda: cluster.ok("logs", job).strip() != "", 20, "the job to say its pid")
    return job, cluster.ok("logs", job).strip()


def wakes_of(cluster: Cluster, name: str) -> list[dict[str, float]]:
    rows = json.loads(cluster.ok("coldstarts", "--json"))
    return [{**row["phases"], "wall": row["wall_ms"]} for row in rows if row["function"] == name]


def wake(cluster: Cluster, name: str, times: int) -> None:
    for _ in range(times):
        assert cluster.call(f"/{name}/pid").status == 200
        wait_until(lambda: cluster.function(name)["state"] == "SLEEPING", 20, "it to sleep")


def test_a_preemptible_job_has_the_core_of_a_function_while_that_sleeps_and_only_then(shared: Cluster) -> None:
    options = ("--timing", "dedicated", "--cpus", "1", "--idle-timeout", "300ms")
    deploy(shared, "lender", MANY, *options, "--wake-bound", "2s")
    wait_until(lambda: lends(shared, "lender"), 20, "the function to lend its core")
    refused = shared.ok("run", "--detach", "--cpus", str(len(EVERYWHERE)), "--", "true").strip()
    assert shared.wait_job(refused, "QUEUED")["reason"] == "no-cores-left", "it is held against what does not give way"
    shared.ok("stop", refused)
    job, pid = start_job(shared)
    assert allowed(pid) == EVERYWHERE
    own = allowed(shared.call("/lender/pid").body.split()[1].decode())
    assert len(own) == 1 and allowed(pid) == tuple(cpu for cpu in EVERYWHERE if cpu not in own)
    wait_until(lambda: allowed(pid) == EVERYWHERE, 20, "the core to be lent again")
    assert shared.job(job)["attempt"] == 1, "nobody ends for cores"
    wake(shared, "lender", WAKES)
    shared.ok("delete", "lender")
    shared.ok("stop", job)
    free_cores(shared)
    deploy(shared, "keeper", MANY, *options)
    wake(shared, "keeper", WAKES)
    shared.ok("delete", "keeper")
    free_cores(shared)
    lender, keeper = wakes_of(shared, "lender"), wakes_of(shared, "keeper")
    assert all("take_back" in row for row in lender) and not any("take_back" in row for row in keeper)
    p50 = {name: statistics.median(row["wall"] for row in rows) for name, rows in (("lends", lender), ("keeps", keeper))}
    taken = statistics.median(row["take_back"] for row in lender)
    print(f"wake p50 (ms): {p50['lends']:.2f} lending its core, {p50['keeps']:.2f} keeping it; take_back p50 {taken:.3f}")


def test_a_wake_takes_its_core_back_while_the_server_is_away(shared: Cluster) -> None:
    deploy(shared, "alone", MANY, "--timing", "dedicated", "--cpus", "1", "--idle-timeout", "300ms", "--wake-bound", "2s")
    wait_until(lambda: lends(shared, "alone"), 20, "the function to lend its core")
    job, pid = start_job(shared)
    assert allowed(pid) == EVERYWHERE
    shared.kill("server")
    own = allowed(shared.call("/alone/pid").body.split()[1].decode())
    assert len(own) == 1 and not set(own) & set(allowed(pid))
    wait_until(lambda: allowed(pid) == EVERYWHERE, 20, "the core to be lent again")
    shared.wait_ready()
    shared.ok("stop", job)
    shared.ok("delete", "alone")
    free_cores(shared)
