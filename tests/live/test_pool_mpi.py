"""Pools whose machines come two at a time, and MPI on them: Slurm's own step in the pilot's allocation starts the ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from mpi_ring import RING
from pool_cluster import PoolCluster, pooled
from steelyard_cluster import wait_until

from slurm_bed import PLUGINS

#: a machine may take that long to come or to be known to be gone, on a machine that is busy with other tests
WAIT_S = 90.0
SOON = "Slurm takes its machine back soon"
PYTHON = "/usr/bin/python3"
MPI = ("--pool", "mpi", "--tasks-per-node", "2", "--cpus", "0.4", "--launcher", "mpi")


@pytest.fixture(scope="module")
def shared() -> Iterator[PoolCluster]:
    with pooled() as made:
        (made.folder / "ring.py").write_text(RING)
        made.create("mpi", "--nodes", "2..2", "--nodes-per-allocation", "2")
        wait_until(lambda: len(ready(made)) == 2 or None, WAIT_S, "two machines")
        yield made


def ready(cluster: PoolCluster) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in cluster.pilots("mpi") if each["state"] == "READY" and each["slurm_job"]}


def test_two_machines_come_as_one_allocation(shared: PoolCluster) -> None:
    rows = list(ready(shared).values())
    assert [row["node"] for row in rows] == ["n1", "n2"]
    assert len({row["slurm_job"] for row in rows}) == 1
    assert shared.bed.ok("squeue", "-h", "-o", "%A %D").split() == [rows[0]["slurm_job"], "2"]


def test_ranks_of_mpi_start_by_slurms_own_step_and_are_told_their_place(shared: PoolCluster) -> None:
    code, out, err = shared.tell("run", *MPI, "--", PYTHON, str(shared.folder / "ring.py"))
    assert (code, sorted(out.splitlines())) == (0, ["rank 0, sum 3", "rank 1, sum 3"]), err
    said = 'echo $RANK/$WORLD_SIZE $LOCAL_RANK $FROM_ME "$(ps -o args= $PPID | grep -c step.py)"; [ -n "$SLURM_STEP_ID" ]'
    code, out, err = shared.tell("run", *MPI, "--env", "FROM_ME=yes", "--", "sh", "-c", said)
    assert (code, sorted(out.splitlines())) == (0, ["0/2 0 yes 1", "1/2 1 yes 1"]), err
    job = shared.newest()
    proof = shared.proof(job)
    assert proof["state"] == "MATCH" and proof["got"]["host"] in ("n1", "n2"), proof
    shown = json.loads(shared.ok("job", job, "--json"))
    assert shown["job"]["usage"]["cpu_s"] > 0


BOTH = ("--pool", "mpi", "--nodes", "2", "--cpus", "0.5", "--launcher", "mpi")


def test_ranks_of_mpi_span_the_machines_of_one_allocation(shared: PoolCluster) -> None:
    code, out, err = shared.tell("run", *BOTH, "--", PYTHON, str(shared.folder / "ring.py"))
    assert (code, sorted(out.splitlines())) == (0, ["rank 0, sum 3", "rank 1, sum 3"]), err
    code, out, err = shared.tell("run", *BOTH, "--", "sh", "-c", 'echo $RANK $NODE_RANK $LOCAL_RANK $(hostname); [ -d "$HOME" ]')
    assert (code, sorted(out.splitlines())) == (0, ["0 0 0 n1", "1 1 0 n2"]), err
    shown = json.loads(shared.ok("job", shared.newest(), "--json"))["job"]
    assert {shared.proof(shown["id"])["got"][f"host[{rank}]"] for rank in (0, 1)} == {"n1", "n2"}
    code, _, err = shared.tell("run", *BOTH, "--", "sh", "-c", '[ "$RANK" = 1 ] && exit 5; exec sleep 1000')
    assert code == 5 and "rank 1 exited with code 5; the other rank was ended with it" in err
    refused = shared.cli("run", *BOTH[:3], "3", *BOTH[4:], "--", "true")
    assert refused.returncode == 125 and b"reach across one allocation" in refused.stderr


def test_over_machines_a_stop_reaches_all_ranks_whoever_is_killed_meanwhile(shared: PoolCluster) -> None:
    begun = shared.folder / "over"
    script = f"trap 'echo told $RANK; exit 0' TERM; echo >>{begun}; while :; do sleep 0.1; done"
    job = shared.ok("run", "--detach", *BOTH, "--", "sh", "-c", script).strip()
    wait_until(lambda: begun.exists() and len(begun.read_text()) == 2, WAIT_S, "both ranks")
    for node in ("n1", "n2"):
        shared.bed[node].ok("sh", "-c", "kill -9 $(ps -eo pid,args | awk '/[s]teelyard agent/ {print $1}')")
    server = shared.kill("server")
    shared.wait_replaced("server", server)
    shared.wait_ready()
    assert shared.wait_job(job, "RUNNING", WAIT_S)["state"] == "RUNNING"
    shared.ok("stop", "--grace", "60s", job)
    shared.wait_job(job, "STOPPED", WAIT_S)
    assert sorted(shared.ok("logs", job).splitlines()) == ["told 0", "told 1"]
    assert len(begun.read_text()) == 2, "none was begun twice"


def test_a_rank_that_fails_ends_all_and_is_named(shared: PoolCluster) -> None:
    script = '[ "$RANK" = 1 ] && exit 5; exec sleep 1000'
    code, _, err = shared.tell("run", *MPI, "--", "sh", "-c", script)
    assert code == 5 and "rank 1 exited with code 5; the other rank was ended with it." in err
    code, _, err = shared.tell("run", *MPI, "--", "no-such-program")
    assert code == 127 and "no-such-program could not be executed on n" in err


def test_a_stop_reaches_all_ranks_and_force_comes_after_the_grace(shared: PoolCluster) -> None:
    for traps, grace, said in (("exit 0", "60s", "told\ntold\n"), ("", "1s", "told\ntold\n")):
        begun = shared.folder / f"begun{grace}"
        script = f"trap 'echo told; {traps}' TERM; echo >>{begun}; while :; do sleep 0.1; done"
        job = shared.ok("run", "--detach", *MPI, "--", "sh", "-c", script).strip()
        wait_until(lambda begun=begun: begun.exists() and len(begun.read_text()) == 2, WAIT_S, "both ranks")
        shared.ok("stop", "--grace", grace, job)
        shared.wait_job(job, "STOPPED", WAIT_S)
        assert shared.ok("logs", job).startswith(said), shared.ok("logs", job)
        wait_until(lambda job=job: steps(shared, job) == [], WAIT_S, "its step to be over")


def steps(cluster: PoolCluster, job: str) -> list[str]:
    listed = cluster.bed.ok("squeue", "-h", "--steps", "-o", "%i %j").splitlines()
    return [line for line in listed if f" {job}." in line]


def test_what_ends_srun_ends_its_step_and_who_is_killed_meanwhile_loses_nothing(shared: PoolCluster) -> None:
    gate, begun = shared.folder / "gate", shared.folder / "begun"
    script = f"echo >>{begun}; while [ ! -e {gate} ]; do sleep 0.1; done"
    job = shared.ok("run", "--detach", *MPI, "--", "sh", "-c", script).strip()
    wait_until(lambda: begun.exists() and len(begun.read_text()) == 2, WAIT_S, "both ranks")
    node = shared.bed["n1" if "n1" in str(shared.proof(job)["got"]["host"]) else "n2"]
    node.ok("sh", "-c", "kill -9 $(ps -eo pid,args | awk '/[s]teelyard agent/ {print $1}')")
    gate.touch()
    assert shared.wait_job(job, "SUCCEEDED", WAIT_S)
    gate.unlink()
    begun.unlink()
    job = shared.ok("run", "--detach", *MPI, "--", "sh", "-c", script).strip()
    wait_until(lambda: begun.exists() and len(begun.read_text()) == 2, WAIT_S, "both ranks")
    # the first of its two processes: the other one ends with it, sooner or later
    node.ok("pkill", "-KILL", "--oldest", "--full", f"srun .*{job}")
    assert shared.wait_job(job, "FAILED", WAIT_S)["detail"].startswith("Ended by signal 9")
    wait_until(lambda: steps(shared, job) == [], WAIT_S, "its step to be over")


def test_a_slurm_without_pmix_says_what_is_missing(shared: PoolCluster) -> None:
    there, kept = f"/{PLUGINS}", "/usr/lib/kept"
    for node in ("n1", "n2"):
        shared.bed[node].ok("sh", "-c", f"mkdir {kept}; cd {there}; mv mpi_pmix*.so {kept}")
    try:
        code, _, err = shared.tell("run", *MPI, "--", "true")
        assert code != 0 and "Slurm did not start the ranks: " in err and "libpmix are to be installed" in err, err
    finally:
        for node in ("n1", "n2"):
            shared.bed[node].ok("sh", "-c", f"cd {there}; mv {kept}/* .")


def free_nodes(cluster: PoolCluster) -> None:
    """Of the machines that the other tests run on."""
    if any(each["spec"]["name"] == "mpi" for each in json.loads(cluster.ok("pool", "ls", "--json"))):
        cluster.delete("mpi")


def test_a_pool_takes_whole_allocations_alone_and_gives_back_no_half_of_one(shared: PoolCluster) -> None:
    refused = shared.cli("pool", "create", "odd", "--nodes", "0..3", "--nodes-per-allocation", "2")
    assert refused.returncode == 2 and b"make both multiples of 2" in refused.stderr
    free_nodes(shared)
    assert shared.bed.ok("squeue", "-h") == ""
    for node in ("n1", "n2"):
        left = shared.bed[node].ok("sh", "-c", "find /tmp/steelyard-*; ps -eo args | grep '^[^ ]*python.*steelyard' || true")
        assert not left, f"left behind on {node}:\n{left}"
    shared.create("pair", "--nodes", "0..2", "--nodes-per-allocation", "2", "--idle", "1s", "--cpus-per-node", "2")
    words = ("run", "--pool", "pair", "--nodes", "2", "--launcher", "mpi", "--exclusive")
    assert shared.ok(*words, "--", "nproc") == "1\n1\n"
    proof = shared.proof(shared.newest())
    assert (proof["state"], proof["asked"]["cpu_count"]) == ("MATCH", 1), "a core of its own to each"
    wait_until(lambda: shared.bed.ok("squeue", "-h") == "", WAIT_S, "both to be given back")
    wait_until(lambda: {each["state"] for each in shared.pilots("pair")} == {"ENDED"}, WAIT_S, "that to be known")
    assert [each["detail"] for each in shared.pilots("pair")] == ["nothing ran on it for 1 s"] * 2
    shared.delete("pair")
    shared.create("brief", "--nodes", "2..2", "--nodes-per-allocation", "2")
    wait_until(lambda: [each["state"] for each in shared.pilots("brief")] == ["READY"] * 2 or None, WAIT_S, "two machines")
    # as before its time limit
    number = wait_until(lambda: shared.pilots("brief")[0]["slurm_job"], WAIT_S, "its number")
    shared.bed.ok("scancel", "--batch", "--signal=USR1", number)
    wait_until(lambda: {each["detail"] for each in shared.pilots("brief")[:2]} == {SOON}, WAIT_S, "both to drain")
    shared.delete("brief")


def test_a_node_that_fails_takes_its_work_along_and_the_other_one_drains(shared: PoolCluster) -> None:
    free_nodes(shared)
    shared.create("lost", "--nodes", "2..4", "--nodes-per-allocation", "2")
    wait_until(lambda: [each["state"] for each in shared.pilots("lost")] == ["READY"] * 2 or None, WAIT_S, "two machines")
    words = ("run", "--detach", "--pool", "lost", "--cpus")
    jobs = [shared.ok(*words, "0.6", "--", "sleep", "1000").strip() for _ in range(2)]
    over_both = shared.ok(*words, "0.3", "--nodes", "2", "--launcher", "mpi", "--", "sleep", "1000").strip()
    shared.wait_job(over_both, "RUNNING", WAIT_S)
    rows = [shared.wait_job(job, "RUNNING", WAIT_S) for job in jobs]
    first, second = (each["id"] for each in shared.pilots("lost"))
    assert {row["machine"] for row in rows} == {first, second}
    shared.bed["n2"].cut()
    try:
        gone = shared.wait_pilot("lost", "ENDED", WAIT_S)
        assert (gone["id"], gone["detail"]) == (second, "its node failed")
        left = shared.pilots("lost")[0]
        assert (left["state"], left["detail"]) == ("DRAINING", f"its allocation has lost {second}")
        for job, row in zip(jobs, rows, strict=True):
            shared.wait_job(job, "FAILED" if row["machine"] == second else "RUNNING", WAIT_S)
        assert shared.wait_job(over_both, "FAILED", WAIT_S)["reason"] == "node-lost"
    finally:
        shared.bed["n2"].heal()
    (on_first,) = (job for job, row in zip(jobs, rows, strict=True) if row["machine"] == first)
    shared.ok("stop", on_first)
    wait_until(lambda: {each["state"] for each in shared.pilots("lost")[:2]} == {"ENDED"}, WAIT_S, "the rest of it to go")
