"""Jobs on machines of a pool, on a real Slurm: where they run, how they are reached, what becomes of them when a machine goes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from person import person
from pool_cluster import PoolCluster, pooled
from steelyard_cluster import wait_until
from test_pool_functions import ECHO, PORT
from test_port_forward import ask as ask_port
from test_port_forward import forwarding

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
    cluster.wait_job(name, state, WAIT_S)
    return job(cluster, name)


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


def test_terminals_files_and_ports_of_a_job_are_where_its_machine_is(shared: PoolCluster) -> None:
    script = ECHO.replace("PORT", str(PORT))
    row = wait_for(shared, begin(shared, "--cpus", "0.1", "--", sys.executable, "-c", script), "RUNNING")
    node = shared.ok("exec", row["id"], "--", "hostname").strip()
    assert node in ("n1", "n2") and shared.ok("exec", row["id"], "--", "cat", "/proc/self/comm").strip() == "cat"
    with person(shared, "shell", row["id"]) as typist:
        typist.see(b"$ ")  # what is typed before is read by nobody
        typist.type(b"echo $(hostname)-$(tty | cut -c1-8); exit 5\r")
        typist.see(f"{node}-/dev/pts".encode())
        assert typist.wait() == 5
    with person(shared, "shell", "--pool", "train", "--cpus", "0.1") as typist:
        typist.see(b"$ ")
        typist.type(b"echo $(hostname)-$(tty | cut -c1-8); exit 6\r")
        typist.see(b"-/dev/pts")
        assert typist.wait() == 6
    (shared.folder / "in.txt").write_text("there\n")
    place = shared.ok("exec", row["id"], "--", "mktemp", "-d").strip()
    shared.ok("cp", str(shared.folder / "in.txt"), f"{row['id']}:{place}/")
    shared.ok("cp", f"{row['id']}:{place}/in.txt", str(shared.folder / "out.txt"))
    assert (shared.folder / "out.txt").read_text() == "there\n"
    wait_until(lambda: shared.ok("logs", row["id"]) == "listening\n" or None, WAIT_S, "it to listen")
    with forwarding(shared, row["id"], PORT) as (_, port):
        assert ask_port(port, b"hello") == b"<hello>"
    shared.ok("stop", row["id"])


def test_a_script_and_its_array_go_to_a_pool_and_are_followed_there(shared: PoolCluster) -> None:
    script = shared.folder / "train.sh"
    script.write_text("#!/bin/sh\n#SBATCH --array=0-3 -t 10\necho $(hostname) $SLURM_ARRAY_TASK_ID $1\nexit 4\n")
    done = shared.cli("submit", "--pool", "train", "--wait", str(script), "x")
    assert done.returncode == 4, done
    newest = json.loads(shared.ok("ps", "--json"))[-1]
    assert (newest["pool"], newest["elements"]) == ("train", {"FAILED": 4})
    elements = [row for row in json.loads(shared.ok("ps", "-e", "--json")) if row["id"].startswith(f"{newest['id']}_")]
    machines = {row["machine"] for row in elements}
    assert len(elements) == 4 and machines <= ready(shared).keys(), elements
    assert f"on {elements[0]['machine']}" in shared.ok("ps", "-e")
    two = shared.cli("submit", "--pool", "train", "-N2", str(script))
    assert two.returncode == 2 and b"of pool train it gets one machine" in two.stderr, two
    gate = shared.folder / "gate"
    slow = begin(shared, "--cpus", "0.1", "--", "sh", "-c", f"echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; exit 9")
    wait_for(shared, slow, "RUNNING")
    assert json.loads(shared.ok("proof", slow, "--json"))["state"] in ("MATCH", "PARTIAL")
    logs, attached = (shared.start(*words, slow) for words in (("logs", "-f"), ("attach",)))
    assert logs.stdout is not None and logs.stdout.readline() == b"begun\n"
    assert attached.stderr is not None and b"attached to" in attached.stderr.readline()
    gate.touch()
    logs.communicate(timeout=60)
    attached.communicate(timeout=60)
    assert attached.returncode == 9


def test_what_would_be_over_too_late_goes_to_a_machine_that_stays_or_waits(shared: PoolCluster) -> None:
    shared.create("brief", "--nodes", "0..1", "--idle", "300s", "--max-duration", "10m")
    refused = shared.cli("run", "--pool", "brief", "--max-duration", "10m", "--", "true")
    assert refused.returncode != 0 and b"no machine of pool brief stays long enough" in refused.stderr, refused
    shared.ok("pool", "delete", "brief")
    # the fuller machine is filled first, unless it is taken back too soon
    full = wait_for(shared, begin(shared, "--cpus", "0.2", "--", "sleep", "1000"), "RUNNING")
    words = ("--cpus", "0.1", "--max-duration", "30m", "--", "true")
    assert wait_for(shared, begin(shared, *words), "SUCCEEDED")["machine"] == full["machine"]
    soon = time.strftime("%FT%T", time.localtime(time.time() + 600))
    numbers = ready(shared)
    shared.bed.ok("scontrol", "update", f"JobId={numbers[full['machine']]}", f"EndTime={soon}")

    def left(machine: str) -> bool:
        ends = next(each["ends_at"] for each in shared.pilots("train") if each["id"] == machine)
        return ends is not None and datetime.fromisoformat(ends).timestamp() < time.time() + 700

    wait_until(lambda: left(full["machine"]) or None, WAIT_S, "its end to be known")
    assert wait_for(shared, begin(shared, *words), "SUCCEEDED")["machine"] != full["machine"]
    (other,) = numbers.keys() - {full["machine"]}
    shared.bed.ok("scontrol", "update", f"JobId={numbers[other]}", f"EndTime={soon}")
    wait_until(lambda: left(other) or None, WAIT_S, "its end to be known")
    waits = begin(shared, *words)
    told = json.loads(shared.ok("why", waits, "--json"))
    assert {reason["reason"] for reason in told["reasons"]} == {"no-time-left"} and told["changes"][0]["kind"] == "max-duration"
    assert wait_for(shared, begin(shared, "--cpus", "0.1", "--", "true"), "SUCCEEDED")
    for number in numbers.values():
        shared.bed.ok("scontrol", "update", f"JobId={number}", "TimeLimit=UNLIMITED")
    wait_for(shared, waits, "SUCCEEDED")
    shared.ok("stop", full["id"])


def test_what_no_pool_can_do_is_refused_at_the_door(shared: PoolCluster) -> None:
    for words, told in (
        (("--pool", "other"), b"there is no pool other"),
        (("--pool", "train", "--direct"), b"either to a pool or"),
        (("--pool", "train", "--nodes", "3"), b"at most 2 machines"),
        (("--pool", "train", "--nodes", "2", "--launcher", "mpi"), b"reach across one allocation"),
        (("--pool", "train", "--image", "docker://alpine:3"), b"containers need root"),
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
