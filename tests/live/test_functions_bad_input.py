"""What functions do that they should not: each is told to its caller, and nobody else is harmed."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Answer, Cluster, wait_until

BAD = """
import os, signal, subprocess, sys, threading, time
import steelyard as sy

app = sy.App("bad")
lock = threading.Lock()

@app.function(public=True, timeout="300ms", max_replicas=1)
def hangs(busy: bool) -> int:
    if not busy:
        return os.getpid()
    while True: pass

@app.function(public=True, memory="300MB", max_replicas=1)
def eats(megabytes: int) -> int:
    kept = []
    for _ in range(megabytes):
        kept.append(bytearray(1 << 20))
        for at in range(0, 1 << 20, 4096): kept[-1][at] = 1
    return len(kept)

@app.function(public=True)
def good(x: int) -> int:
    return x + 1

@app.function(public=True)
def prints(megabytes: int) -> int:
    line = "x" * 1023 + "\\n"
    for _ in range(megabytes):
        sys.stdout.write(line * 1024)
    return megabytes

@app.function(public=True)
def leaves(how: str) -> int:
    if how == "_exit": os._exit(3)
    if how == "exit": sys.exit(3)
    if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
    return 1

@app.function(public=True, idle_timeout="300ms")
def forks() -> list[int]:
    child = subprocess.Popen(["sleep", "1000"])
    other = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    return [child.pid, other.pid]

@app.function(public=True)
def locked() -> object:
    return lock

def holder():
    held = threading.Lock()
    def inner() -> object:
        return lambda: held
    return inner()

@app.function(public=True)
def closure() -> object:
    return holder()
"""


@pytest.fixture(scope="module")
def bad(shared: Cluster) -> Iterator[Cluster]:
    folder = shared.folder / "bad"
    folder.mkdir()
    (folder / "bad_sdk.py").write_text(BAD)
    shared.ok("deploy", str(folder / "bad_sdk.py"), "--python", sys.executable)
    yield shared
    for name in ("hangs", "eats", "good", "prints", "leaves", "forks", "locked", "closure"):
        shared.cli("delete", f"bad-{name}", "--yes")


def call(cluster: Cluster, name: str, timeout: float = 60.0, **arguments: Any) -> Answer:
    headers = {"content-type": "application/json"}
    body = json.dumps(arguments).encode()
    return cluster.call(f"/bad-{name}/.steelyard/call", method="POST", body=body, headers=headers, timeout=timeout)


def test_an_argument_of_the_wrong_type_is_422_with_its_field(bad: Cluster) -> None:
    answer = call(bad, "good", x="one")
    assert answer.status == 422 and answer.json()["field"] == "x"


def test_a_function_that_never_returns_is_given_up_and_its_replica_replaced(bad: Cluster) -> None:
    pid = call(bad, "hangs", busy=False).json()
    answer = call(bad, "hangs", busy=True)
    assert answer.status == 504 and answer.json()["code"] == "timeout"
    after = wait_until(lambda: (answer := call(bad, "hangs", busy=False)).status == 200 and answer, 20, "a new replica's answer")
    assert after.json() != pid


def test_one_that_eats_memory_is_killed_alone_and_its_peak_is_told(bad: Cluster) -> None:
    assert call(bad, "eats", megabytes=10).json() == 10
    good = [call(bad, "good", x=0)]
    eating = threading.Thread(target=lambda: good.append(call(bad, "eats", megabytes=2000)))
    eating.start()
    while eating.is_alive():
        assert call(bad, "good", x=1).json() == 2
    assert good[-1].status in (502, 503)
    told = wait_until(
        lambda: "oom-killed" in (text := str(bad.cli("logs", "bad-eats").stderr)) and text, 20, "the log to tell of it"
    )
    assert "MB at most" in told
    assert call(bad, "eats", megabytes=10).json() == 10


def test_a_gigabyte_of_output_is_bounded(bad: Cluster) -> None:
    assert call(bad, "prints", megabytes=1024, timeout=120).json() == 1024
    logs = bad.home / "workloads"
    wait_until(lambda: sum(file.stat().st_size for file in logs.rglob("stdout")) < 200 << 20, 60, "the log to be bounded")


@pytest.mark.parametrize("how", ["_exit", "kill"])
def test_a_replica_that_ends_itself_is_replaced(bad: Cluster, how: str) -> None:
    assert call(bad, "leaves", how=how).status in (502, 503)
    assert call(bad, "leaves", how="no").json() == 1


def test_leaving_the_program_is_only_an_error(bad: Cluster) -> None:
    answer = call(bad, "leaves", how="exit")
    assert answer.status == 500 and answer.json()["exception"] == "SystemExit"


def test_children_that_a_function_forked_end_with_its_replica(bad: Cluster) -> None:
    children = call(bad, "forks").json()
    bad.wait_function("bad-forks", "SLEEPING")
    wait_until(lambda: not any(_lives(pid) for pid in children), 20, "the children to end")


def test_a_result_that_cannot_travel_is_an_error_that_names_it(bad: Cluster) -> None:
    for name in ("locked", "closure"):
        answer = call(bad, name)
        assert answer.status == 500 and answer.json()["code"] == "no-json"
    assert "_thread.lock has no JSON form" in call(bad, "locked").json()["detail"]


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
