"""Gangs over several machines of a pool, on a real Slurm: all or none of them starts, and all of them end together."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pool_cluster import PoolCluster, pooled
from steelyard_cluster import wait_until
from test_pool_jobs import WAIT_S, begin, job, ready, wait_for
from test_workloads import ENV, EXAMPLES, MISSING

PLACE = 'echo "$RANK of $WORLD_SIZE, $LOCAL_RANK on node $NODE_RANK $(hostname) $MASTER_ADDR:$MASTER_PORT"'


@pytest.fixture(scope="module")
def shared() -> Iterator[PoolCluster]:
    with pooled() as made:
        made.create("train", "--nodes", "2..2")
        wait_until(lambda: len(ready(made)) == 2 or None, WAIT_S, "two machines")
        yield made


def lines_of(cluster: PoolCluster, name: str, rank: int) -> str:
    return cluster.ok("logs", name, "--rank", str(rank))


def test_ranks_of_a_gang_are_on_two_machines_and_know_their_place(shared: PoolCluster) -> None:
    words = ("--nodes", "2", "--tasks-per-node", "2", "--cpus", "0.1")
    done = shared.cli("run", "--pool", "train", *words, "--", "sh", "-c", PLACE)
    assert done.returncode == 0, done.stderr
    name = json.loads(shared.ok("ps", "--json"))[-1]["id"]
    told = [lines_of(shared, name, rank).split() for rank in range(4)]
    assert [words[:3] for words in told] == [[str(rank), "of", "4,"] for rank in range(4)]
    assert [(words[3], words[6]) for words in told] == [("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")]
    assert len({words[7] for words in told[:2]}) == len({words[7] for words in told[2:]}) == 1
    assert told[0][7] != told[2][7], "one machine for each node"
    assert len({words[8] for words in told}) == 1, "they meet at one place"
    row = job(shared, name)
    assert sorted(row["machine"].split(",")) == sorted(ready(shared))
    assert [end["exit_code"] for end in row["rank_ends"]] == [0] * 4


def test_a_rank_that_fails_ends_the_gang_everywhere_and_is_named(shared: PoolCluster) -> None:
    script = (
        'echo begun; test "$RANK" = 1 || exec sleep 1000; while ! test -e ' + f"{shared.folder}/fail; do sleep 0.1; done; exit 3"
    )
    go = f"GO={shared.folder}/fail"
    name = begin(shared, "--nodes", "2", "--cpus", "0.1", "--env", go, "--", "sh", "-c", script)
    wait_for(shared, name, "RUNNING")
    wait_until(lambda: all(lines_of(shared, name, rank) == "begun\n" for rank in (0, 1)) or None, WAIT_S, "both ranks")
    (shared.folder / "fail").touch()
    row = wait_for(shared, name, "FAILED")
    assert (row["reason"], row["exit_code"]) == ("exited-nonzero", 3)
    assert row["detail"].startswith("rank 1 exited with code 3 (on train-") and "was ended with it" in row["detail"]
    assert {end["rank"]: end["exit_code"] for end in row["rank_ends"]} == {0: None, 1: 3}


def test_a_gang_is_looked_into_and_stopped_as_one(shared: PoolCluster) -> None:
    name = begin(shared, "--nodes", "2", "--cpus", "0.1", "--", "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done")
    wait_for(shared, name, "RUNNING")
    hosts = {shared.ok("exec", "--rank", str(rank), name, "--", "hostname").strip() for rank in (0, 1)}
    assert hosts == {"n1", "n2"}
    assert shared.cli("exec", "--rank", "2", name, "--", "true").returncode != 0
    proof = json.loads(shared.ok("proof", name, "--json"))
    assert proof["state"] in ("MATCH", "PARTIAL") and proof["asked"]
    shared.ok("stop", name)
    row = wait_for(shared, name, "STOPPED")
    assert {end["exit_code"] for end in row["rank_ends"]} == {7}
    assert row["usage"]["cpu_s"] is not None


def test_a_gang_waits_for_both_machines_and_is_not_starved(shared: PoolCluster) -> None:
    first = begin(shared, "--cpus", "0.6", "--max-duration", "600s", "--", "sleep", "1000")
    wait_for(shared, first, "RUNNING")
    name = begin(shared, "--nodes", "2", "--cpus", "0.6", "--", "sleep", "1000")
    behind = begin(shared, "--cpus", "0.6", "--", "sleep", "1000")
    told = wait_until(lambda: job(shared, name)["detail"], WAIT_S, "a reason")
    assert told.startswith("2 machines asked at once, 1 of 2 can take their part now; 0.6 cores asked"), told
    assert job(shared, behind)["state"] == "QUEUED", "one machine is free, and kept for the gang"
    shared.ok("stop", first)
    wait_for(shared, name, "RUNNING")
    assert job(shared, behind)["state"] == "QUEUED"
    shared.ok("stop", name, behind)
    wait_for(shared, name, "STOPPED")


def test_a_server_that_is_killed_starts_nothing_twice(shared: PoolCluster) -> None:
    begun = shared.folder / "starts"
    begun.mkdir()
    begun.chmod(0o777)
    script = f"mktemp {begun}/$RANK.XXXXXX; exec sleep 1000"
    names = [begin(shared, "--nodes", "2", "--cpus", "0.1", "--", "sh", "-c", script) for _ in range(3)]
    shared.wait_replaced("server", shared.kill("server"))
    shared.wait_ready()
    rows = [wait_for(shared, name, "RUNNING") for name in names]
    assert [row["attempt"] for row in rows] == [1, 1, 1]
    wait_until(lambda: len(list(begun.iterdir())) >= 6 or None, WAIT_S, "all ranks")
    assert sorted(file.name[0] for file in begun.iterdir()) == ["0"] * 3 + ["1"] * 3
    shared.ok("stop", *names)
    for name in names:
        wait_for(shared, name, "STOPPED")


def test_a_gang_ends_with_a_machine_and_begins_again_on_others(shared: PoolCluster) -> None:
    script = f"echo begun; test -e {shared.folder}/again || exec sleep 1000"
    words = ("--nodes", "2", "--cpus", "0.1", "--retry", "node-lost:3@0s")
    name = begin(shared, *words, "--", "sh", "-c", script)
    row = wait_for(shared, name, "RUNNING")
    wait_until(lambda: all(lines_of(shared, name, rank) == "begun\n" for rank in (0, 1)) or None, WAIT_S, "both ranks")
    (shared.folder / "again").touch()
    shared.bed.ok("scancel", "-s", "KILL", ready(shared)[row["machine"].split(",")[1]])
    ended = wait_for(shared, name, "SUCCEEDED")
    assert ended["attempt"] == 2 and ended["machine"] != row["machine"]
    assert lines_of(shared, name, 1) == "begun\n"


@pytest.mark.skipif(bool(MISSING), reason=f"NOT VERIFIED: real workloads, missing here: {', '.join(MISSING)}")
@pytest.mark.timeout(240)
def test_torchrun_trains_over_two_machines(shared: PoolCluster) -> None:
    """By gloo, with the rendezvous on the first machine; both torchruns are told where."""
    wait_until(lambda: len(ready(shared)) == 2 or None, WAIT_S, "two machines")
    saves = shared.folder / "saves"
    saves.mkdir()
    saves.chmod(0o777)
    words = ("--nodes", "2", "--cpus", "0.4", "--launcher", "torchrun", "--checkpoint-dir", str(saves))
    training = ("train.py", str(saves), "--steps", "6", "--save-every", "3", "--step-s", "0")
    done = shared.cli("run", "--pool", "train", *words, "--", *training, env=ENV, cwd=EXAMPLES / "train", timeout=200)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    newest = json.loads(shared.ok("ps", "--json"))[-1]
    assert len(set(newest["machine"].split(","))) == 2
    said = lines_of(shared, newest["id"], 0) + lines_of(shared, newest["id"], 1)
    assert "loss" in said, said
