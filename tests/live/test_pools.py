"""Pools on a real Slurm, as an ordinary user: machines come, work, drain and go; what is lost is known to be lost."""

from __future__ import annotations

import json
import signal
import ssl
import time
import urllib.request
from collections.abc import Iterator

import pytest
from pool_cluster import PoolCluster, pooled
from steelyard_cluster import wait_until


@pytest.fixture(scope="module")
def shared() -> Iterator[PoolCluster]:
    with pooled() as made:
        yield made


def queue(shared: PoolCluster) -> list[list[str]]:
    """What Slurm has that has not ended: (number, name, state)."""
    return [line.split() for line in shared.bed.ok("squeue", "-h", "-o", "%A %j %T").splitlines()]


def test_a_machine_comes_works_within_what_slurm_gave_it_and_goes_whoever_is_killed_meanwhile(shared: PoolCluster) -> None:
    shared.create("small", "--nodes", "0..2", "--idle", "1s")
    assert queue(shared) == []
    gate = shared.folder / "gate"
    waits = f"while [ ! -e {gate} ]; do sleep 0.05; done; exit 3"
    script = f"echo $(hostname) $(nproc) $(grep -c job_ /proc/self/cgroup); {waits}"
    job = shared.ok("run", "--detach", "--pool", "small", "--cpus", "0.5", "--", "sh", "-c", script).strip()
    said = wait_until(lambda: shared.cli("logs", job).stdout.decode(), 90, "it to run")
    pilot = shared.wait_pilot("small", "READY")
    host, cpus, groups = said.split()
    assert (host, cpus) == (pilot["node"], "1"), said
    assert int(groups) > 0, "it has left Slurm's control groups"
    server = shared.kill("server")
    shared.bed.stop("head", signal.SIGTERM)
    try:
        shared.wait_replaced("server", server)
        shared.wait_ready()
        assert shared.job(job)["state"] == "RUNNING"
    finally:
        shared.bed.start("head")
    gate.touch()
    assert shared.wait_job(job, "FAILED", 60)["exit_code"] == 3
    ended = shared.wait_pilot("small", "ENDED")
    assert (ended["id"], ended["detail"]) == (pilot["id"], "nothing ran on it for 1 s")
    assert shared.ok("logs", job) == said, "what it wrote outlives its machine"
    assert queue(shared) == []
    shared.delete("small")


def test_a_machine_that_slurm_takes_is_lost_with_its_work_and_another_one_comes(shared: PoolCluster) -> None:
    shared.create("taken", "--nodes", "0..1", "--idle", "1s")
    mark = shared.folder / "mark"
    script = f"[ ! -e {mark} ] || exit 0; touch {mark}; exec sleep 1000"
    job = shared.submit("sh", "-c", script, pool="taken", retry=[{"on": "node-lost", "times": 1, "backoff_s": 0.0}])
    wait_until(mark.exists, 90, "it to run")
    # a machine may take work before Slurm was asked again, and told its number
    shared.bed.ok("scancel", wait_until(lambda: shared.pilots("taken")[0]["slurm_job"], 30, "its number"))
    seen = shared.wait_job(job, "SUCCEEDED", 90)
    assert seen["restarts"] == 1
    first, second = shared.pilots("taken")
    # the second where its program told of Slurm's signal before it was killed
    assert first["state"] == "ENDED" and first["detail"] in ("it was cancelled in Slurm", "Slurm takes its machine back soon")
    assert second["id"] != first["id"]
    shared.wait_pilot("taken", "ENDED")
    shared.delete("taken")


def test_nobody_comes_in_without_a_certificate_and_the_admins_token_opens_nothing_there(shared: PoolCluster) -> None:
    context = ssl._create_unverified_context()
    asked = urllib.request.Request(
        f"https://{shared.bed.network}.1:{shared.cluster_port}/v1/jobs", headers={"Authorization": f"Bearer {shared.admin_token}"}
    )
    with pytest.raises(OSError):
        urllib.request.urlopen(asked, context=context)


def test_what_is_missing_on_the_nodes_is_said_and_tried_later(shared: PoolCluster) -> None:
    shared.ok("cluster", "attach", "--python", "/no/such/python")
    try:
        shared.create("absent", "--nodes", "1..1")
        wait_until(lambda: "There is no /no/such/python on this node" in shared.complaint("absent"), 60, "a complaint")
        shared.delete("absent")
    finally:
        shared.ok("cluster", "attach")


def test_a_pool_needs_a_door_and_a_cluster(shared: PoolCluster) -> None:
    shared.ok("cluster", "detach")
    try:
        done = shared.cli("pool", "create", "none")
        assert (done.returncode, b"No cluster is attached" in done.stderr) == (2, True)
    finally:
        shared.ok("cluster", "attach")
    assert json.loads(shared.ok("pool", "ls", "--json")) == []


def test_a_machine_near_its_time_limit_drains_and_another_one_comes_and_down_gives_all_back(shared: PoolCluster) -> None:
    shared.create("short", "--nodes", "1..2", "--drain", "50s")
    first = shared.wait_pilot("short", "READY")
    soon = time.strftime("%FT%T", time.localtime(time.time() + 20))
    shared.bed.ok("scontrol", "update", f"JobId={first['slurm_job']}", f"EndTime={soon}")
    wait_until(lambda: shared.pilots("short")[0]["state"] in ("DRAINING", "ENDED"), 60, "it to drain")
    assert "time limit" in shared.pilots("short")[0]["detail"] or "takes its machine back" in shared.pilots("short")[0]["detail"]
    wait_until(lambda: len(shared.pilots("short")) == 2, 60, "another one to be asked for")
    shared.down()
    wait_until(lambda: queue(shared) == [], 60, "Slurm to have its machines back")
    for node in ("n1", "n2"):
        left = shared.bed[node].ok("sh", "-c", "find /tmp/steelyard-*; ps -eo args | grep '^[^ ]*python.*steelyard' || true")
        assert not left, f"left behind on {node}:\n{left}"
