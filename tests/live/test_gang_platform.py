"""Gangs and limits through the whole platform: programs of ours are killed, ranks are killed, and all or none of a gang runs."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, wait_until

from steelyard.agent.job_files import JobFiles

pytestmark = pytest.mark.alone

RANKS = 3


def submit(cluster: Cluster, *argv: str, **spec: Any) -> str:
    body = {"name": argv[0], "argv": argv, "cwd": "/", "env": {"PATH": os.environ["PATH"]}, "resources": {"cpus": 0.1}, **spec}
    answer = cluster.api("POST", "/v1/jobs", {"spec": body})
    assert answer.status == 201, answer
    return answer.json()["id"]


def gang(cluster: Cluster, witness: Path, **spec: Any) -> str:
    witness.touch()
    witness.chmod(0o666)
    program = f"echo $RANK >> {witness}; exec sleep 600"
    return submit(cluster, "sh", "-c", program, gang={"tasks_per_node": RANKS}, **spec)


def find_ranks(job: str) -> dict[int, int]:
    """Rank -> pid of its `sleep`, from the processes' own environment."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "environ").read_text()
                comm = (entry / "comm").read_text().strip()
            except OSError:
                continue
            env = dict(pair.partition("=")[::2] for pair in text.split("\0"))
            if env.get("STEELYARD_JOB_ID") == job and comm == "sleep":
                found[int(env["RANK"])] = int(entry.name)
    return found


def await_ranks(cluster: Cluster, job: str) -> dict[int, int]:
    cluster.wait_job(job, "RUNNING")
    return wait_until(lambda: found if len(found := find_ranks(job)) == RANKS else None, 10, "all ranks")


def test_no_death_of_ours_ends_a_gang_or_starts_a_rank_twice(shared: Cluster) -> None:
    witness = shared.folder / "deaths"
    job = gang(shared, witness)
    ranks = await_ranks(shared, job)
    for program in ("server", "agent", "spawner"):
        pid = shared.kill(program)
        shared.wait_replaced(program, pid)
        shared.wait_ready(20)
        assert find_ranks(job) == ranks, program
    assert shared.wait_job(job, "RUNNING")["attempt"] == 1
    assert Counter(witness.read_text().split()) == {str(rank): 1 for rank in range(RANKS)}
    # their spawner is dead: they end together all the same, and how is not known
    os.kill(ranks[2], signal.SIGKILL)
    wait_until(lambda: not find_ranks(job), 5, "the others to be gone")
    assert shared.wait_job(job, "FAILED")["reason"] == "exit-unknown"


def test_a_killed_rank_ends_the_gang_within_five_seconds(shared: Cluster) -> None:
    job = gang(shared, shared.folder / "one-killed")
    ranks = await_ranks(shared, job)
    os.kill(ranks[1], signal.SIGKILL)
    begin = time.monotonic()
    wait_until(lambda: not find_ranks(job), 5, "the others to be gone")
    ended = shared.wait_job(job, "FAILED")
    assert time.monotonic() - begin < 5
    assert (ended["reason"], ended["exit_code"]) == ("killed-by-signal", 137)
    assert ended["detail"] == "rank 1 was ended by signal 9; the other 2 ranks were ended with it."


def test_a_gang_whose_rank_dies_while_the_agent_is_away_ends_when_it_is_back(shared: Cluster) -> None:
    witness = shared.folder / "away"
    job = gang(shared, witness)
    ranks = await_ranks(shared, job)
    os.kill(shared.pid("up"), signal.SIGSTOP)  # nobody restarts it yet
    try:
        pid = shared.kill("agent")
        os.kill(ranks[0], signal.SIGKILL)
    finally:
        os.kill(shared.pid("up"), signal.SIGCONT)
    shared.wait_replaced("agent", pid)
    ended = shared.wait_job(job, "FAILED")
    assert (ended["exit_code"], find_ranks(job)) == (137, {})
    assert len(witness.read_text().split()) == RANKS


def test_a_limit_holds_while_the_server_is_away(shared: Cluster) -> None:
    job = submit(shared, "sleep", "600", max_duration_s=2.0)
    shared.wait_job(job, "RUNNING")
    os.kill(shared.pid("up"), signal.SIGSTOP)
    try:
        pid = shared.kill("server")
        wait_until(lambda: not find_sleeps(job), 10, "its end without a server")
    finally:
        os.kill(shared.pid("up"), signal.SIGCONT)
    shared.wait_replaced("server", pid)
    shared.wait_ready(20)
    ended = shared.wait_job(job, "FAILED")
    assert (ended["reason"], ended["exit_code"]) == ("max-duration", 143)


def find_sleeps(job: str) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"STEELYARD_JOB_ID={job}\0" in (entry / "environ").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_gigabyte_of_a_ranks_output_stays_bounded_and_binary(shared: Cluster) -> None:
    program = "test $RANK = 0 || exit 0; head -c 1073741824 /dev/zero; printf '\\377end'; exec sleep 600"
    job = submit(shared, "sh", "-c", program, gang={"tasks_per_node": 2})
    shared.wait_job(job, "RUNNING")
    folder = shared.home / "workloads" / f"{job}.1.0"
    stdout = folder / "stdout"

    def done() -> bool:
        with stdout.open("rb") as file:
            file.seek(max(0, stdout.stat().st_size - 4))
            return file.read() == b"\xffend"

    wait_until(done, 90, "all of it to be written")
    kept = wait_until(lambda: size if (size := used_bytes(folder)) < 80 << 20 else None, 10, "what is beyond the bound to be cut")
    assert kept > 10 << 20
    first, _ = JobFiles(shared.home / "workloads").read_output(f"{job}.1.0", "stdout", 0, 1000).plain
    assert first.startswith(b"\n[steelyard: ") and b"bytes of output were dropped here" in first
    shared.ok("stop", job)


def used_bytes(folder: Path) -> int:
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder))
