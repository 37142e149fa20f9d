"""What a real Slurm does to machines of a pool while they serve and work: takes them for more urgent jobs, loses its state, loses
its answers, loses the network."""

from __future__ import annotations

import shutil
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from pool_cluster import PoolCluster, pooled
from steelyard_cluster import wait_until

from slurm_bed import render_conf

WAIT_S = 90.0
APP = """
import asyncio, os, socket


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": socket.gethostname().encode(), "more_body": True})
    if scope["path"].endswith("/slow"):
        while not os.path.exists(os.environ["GATE"]):
            await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b" done"})
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[PoolCluster]:
    with pooled() as made:
        bed, conf = made.bed, render_conf(made.bed.machines)
        # 30 s where nobody set it: room for a machine that is busy with other tests
        conf = conf.replace("KillWait=2", "KillWait=100\nPreemptType=preempt/partition_prio\nPreemptMode=CANCEL")
        conf = conf.replace("PartitionName=main ", "PartitionName=main PriorityTier=1 ")
        bed.write_conf(f"{conf}PartitionName=urgent Nodes=n1,n2 PriorityTier=9 PreemptMode=OFF\n")
        for machine in bed:
            bed.stop(machine.name, signal.SIGTERM)
            bed.start(machine.name)
        bed.wait_idle()
        made.ok("cluster", "attach")
        yield made


def ask(view: dict[str, Any], path: str = "") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(view["url"] + path, timeout=WAIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as err:
        return err.code, err.read().decode()


def test_a_machine_that_is_preempted_while_it_serves_fails_no_request(shared: PoolCluster) -> None:
    shared.create("low", "--nodes", "0..2", "--idle", "1s")
    (shared.folder / "hi.py").write_text(APP)
    gate = shared.folder / "gate"
    target = f"{shared.folder / 'hi.py'}:app"
    shared.ok("deploy", target, "--pool", "low", "--name", "calm", "--public", "--env", f"GATE={gate}", timeout=WAIT_S)
    view, first = shared.function("calm"), shared.wait_pilot("low", "READY")
    begun: list[tuple[int, str]] = []
    answers: list[tuple[int, str]] = []
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            answers.append(ask(view))

    threads = [threading.Thread(target=lambda: begun.append(ask(view, "slow")), daemon=True)]
    threads += [threading.Thread(target=client, daemon=True) for _ in range(3)]
    for each in threads:
        each.start()
    try:
        wait_until(lambda: shared.function("calm")["replicas"], 30, "a replica")
        urgent = shared.bed.ok(
            "sbatch", "--parsable", "-p", "urgent", "-w", first["node"], "--exclusive", "--mem=900", "--wrap", "exec sleep 1000"
        ).strip()
        wait_until(lambda: shared.function("calm")["machines"] not in ([], [first["id"]]), WAIT_S, "another machine to take over")
        second = shared.wait_pilot("low", "READY")
        wait_until(lambda: ask(view)[1] == f"{second['node']} done", WAIT_S, "requests to be sent there")
        assert not begun, "what was begun on the first is answered by it, and by nobody else"
        gate.touch()
        threads[0].join()
        wait_until(lambda: shared.bed.ok("squeue", "-h", "-j", urgent, "-o", "%T").strip() == "RUNNING", WAIT_S, "the urgent job")
    finally:
        over.set()
        for each in threads[1:]:
            each.join()
    assert begun == [(200, f"{first['node']} done")]
    assert set(answers) == {(200, f"{node} done") for node in (first["node"], second["node"])}
    ended = shared.wait_pilot("low", "ENDED")
    assert (ended["id"], ended["detail"]) == (first["id"], "it was preempted in Slurm")
    shared.bed.ok("scancel", urgent)
    shared.ok("delete", "calm")
    shared.delete("low")


def test_a_slurm_that_lost_its_state_loses_the_machines_and_others_come(shared: PoolCluster) -> None:
    shared.create("lost", "--nodes", "1..1")
    mark = shared.folder / "mark"
    script = f"[ ! -e {mark} ] || exit 0; touch {mark}; exec sleep 1000"
    job = shared.submit("sh", "-c", script, pool="lost", retry=[{"on": "node-lost", "times": 1, "backoff_s": 0.0}])
    wait_until(mark.exists, WAIT_S, "it to run")
    first = shared.wait_pilot("lost", "READY")
    shared.bed.stop("head")
    shared.bed["head"].ok("sh", "-c", "rm -rf /var/spool/slurmctld/*")
    shared.bed.start("head")
    seen = shared.wait_job(job, "SUCCEEDED", 2 * WAIT_S)
    assert seen["restarts"] == 1
    ended = next(each for each in shared.pilots("lost") if each["id"] == first["id"])
    assert (ended["state"], ended["detail"]) == ("ENDED", "Slurm no longer knows it")
    shared.delete("lost")


def test_a_machine_that_is_cut_off_from_home_and_comes_back_has_lost_nothing(shared: PoolCluster) -> None:
    shared.create("cut", "--nodes", "0..1", "--idle", "1s")
    gate = shared.folder / "heal"
    job = shared.submit("sh", "-c", f"echo ready; while [ ! -e {gate} ]; do sleep 0.05; done; exit 5", pool="cut")
    wait_until(lambda: shared.cli("logs", job).stdout == b"ready\n", WAIT_S, "it to run")
    node = shared.bed[shared.wait_pilot("cut", "READY")["node"]]
    node.cut(f"{shared.bed.network}.1")  # Slurm still hears of it
    try:
        wait_until(lambda: shared.job(job)["reason"] == "agent-unreachable", WAIT_S, "it to be known to be silent")
        assert shared.job(job)["state"] == "RUNNING"
        gate.touch()
    finally:
        node.heal()
    seen = shared.wait_job(job, "FAILED", WAIT_S)
    assert (seen["exit_code"], seen["attempt"], seen["restarts"]) == (5, 1, 0)
    shared.delete("cut")


def test_an_answer_that_was_lost_makes_one_machine_and_not_two(shared: PoolCluster) -> None:
    """`sbatch` hands the pilot over and then says that slurmctld timed out."""
    folder = shared.folder / "bin"
    folder.mkdir()
    words = 'echo "sbatch: error: Batch job submission failed: Socket timed out" >&2; exit 1'
    real = shutil.which("sbatch", path=shared.bed.led["PATH"])
    (folder / "sbatch").write_text(f'#!/bin/sh\n{real} "$@" >/dev/null\n{words}\n')
    (folder / "sbatch").chmod(0o755)
    shared.down()
    shared.ok(
        "up", "--detach", "--port", str(shared.api_port), "--gateway-port", str(shared.gateway_port),
        "--cluster-address", f"{shared.bed.network}.1:{shared.cluster_port}", env={"PATH": f"{folder}:{shared.bed.led['PATH']}"},
    )  # fmt: skip
    shared.create("once", "--nodes", "1..1")
    pilot = shared.wait_pilot("once", "READY", WAIT_S)
    names = shared.bed.ok("squeue", "-h", "-t", "all", "-o", "%j").split()
    assert names.count(f"steelyard-{pilot['id']}") == 1 and len(shared.pilots("once")) == 1
    shared.delete("once")
