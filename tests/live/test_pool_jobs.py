"""Jobs on machines of a pool, on a real Slurm: where they run, how they are reached, what becomes of them when a machine goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pool_cluster import PoolCluster, pooled
from steelyard_cluster import wait_until

#: a machine may take that long to come or to be known to be gone, on a machine that is busy with other tests
WAIT_S = 90.0


@pytest.fixture(scope="module")
def shared() -> Iterator[PoolCluster]:
    with pooled() as made:
        made.create("train", "--nodes", "2..2")
        wait_until(lambda: len(ready(made)) == 2 or None, WAIT_S, "two machines")
        yield made


def ready(cluster: PoolCluster) -> dict[str, str]:
    """Machine -> its number in Slurm's queue."""
    return {
        pilot["id"]: pilot["slurm_job"] for pilot in cluster.pilots("train") if pilot["state"] == "READY" and pilot["slurm_job"]
    }


def begin(cluster: PoolCluster, *words: str) -> str:
    return cluster.ok("run", "--detach", "--pool", "train", *words).strip()


def job(cluster: PoolCluster, name: str) -> dict[str, Any]:
    shown = json.loads(cluster.ok("job", name, "--json"))
    return {**shown["job"], "events": shown["events"]}


def wait_for(cluster: PoolCluster, name: str, state: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = job(cluster, name)
        return found if found["state"] == state else None

    return wait_until(look, WAIT_S, f"{name} {state}")


def test_jobs_run_on_the_machines_of_a_pool_and_are_reached_there(shared: PoolCluster) -> None:
    done = shared.cli("run", "--pool", "train", "--cpus", "0.1", "--", "sh", "-c", "hostname; echo no >&2; exit 3")
    assert (done.returncode, done.stdout in (b"n1\n", b"n2\n"), b"no\n" in done.stderr) == (3, True, True)
    whole = [begin(shared, "--cpus", "1", "--", "sleep", "1000") for _ in range(2)]
    rows = [wait_for(shared, each, "RUNNING") for each in whole]
    assert {row["machine"] for row in rows} == ready(shared).keys(), "one on each"
    nodes = {row["id"]: row for row in json.loads(shared.ok("nodes", "--json"))}
    assert {nodes[row["machine"]]["pool"] for row in rows} == {"train"}
    for row in rows:
        assert shared.ok("exec", row["id"], "--", "hostname").strip() == nodes[row["machine"]]["name"]
    third = begin(shared, "--cpus", "1", "--", "true")
    told = json.loads(shared.ok("why", third, "--json"))
    said = {(reason["node"], reason["reason"]) for reason in told["reasons"] if reason["node"]}
    assert said == {("n1", "no-cores-left"), ("n2", "no-cores-left")}
    shared.ok("stop", whole[0])
    assert wait_for(shared, third, "SUCCEEDED")["machine"] == rows[0]["machine"]
    shared.ok("stop", whole[1])
    wait_for(shared, whole[1], "STOPPED")


def test_what_no_pool_can_do_is_refused_at_the_door(shared: PoolCluster) -> None:
    for words, told in (
        (("--pool", "other"), b"there is no pool other"),
        (("--pool", "train", "--direct"), b"either to a pool or"),
        (("--pool", "train", "--nodes", "2"), b"all its ranks on one machine"),
        (("--pool", "train", "--image", "docker://alpine:3"), b"not on those of pools"),
        (("--pool", "train", "--cpus", "64"), b"no machine of pool train"),
    ):
        done = shared.cli("run", *words, "--", "true")
        assert done.returncode != 0 and told in done.stderr, done.stderr


def test_a_machine_that_goes_takes_its_work_along_and_never_its_output(shared: PoolCluster) -> None:
    lost = begin(shared, "--cpus", "0.1", "--", "sh", "-c", "echo begun; exec sleep 1000")
    script = f"hostname; test -e {shared.home.parent}/go || exec sleep 1000"
    again = begin(shared, "--cpus", "0.1", "--retry", "node-lost:3@0s", "--", "sh", "-c", script)
    row, other = wait_for(shared, again, "RUNNING"), wait_for(shared, lost, "RUNNING")
    assert row["machine"] == other["machine"], "the fuller machine is filled first"
    where = json.loads(shared.ok("nodes", "--json"))
    first = next(node["name"] for node in where if node["id"] == row["machine"])
    wait_until(lambda: shared.ok("logs", again) == f"{first}\n" or None, WAIT_S, "its first words")
    (shared.home.parent / "go").touch()
    shared.bed.ok("scancel", "-s", "KILL", ready(shared)[row["machine"]])
    ended = wait_for(shared, again, "SUCCEEDED")
    assert (ended["attempt"], ended["machine"] != row["machine"]) == (2, True)
    failed = job(shared, lost)
    assert (failed["state"], failed["reason"], failed["machine"]) == ("FAILED", "node-lost", row["machine"])
    assert shared.ok("logs", lost) == "begun\n"
    second = next(name for name in ("n1", "n2") if name != first)
    assert shared.ok("logs", again) == f"{second}\n"
    texts = [event["text"] for event in ended["events"]]
    assert [text for text in texts if "-> STARTING" in text] == ["QUEUED -> STARTING (placed)"] * 2, "one after the other"
