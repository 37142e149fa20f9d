"""Does this machine's kernel enforce what our control groups ask for, and does a kill leave nothing? Needs root and groups."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steelyard.host import Cgroups
from steelyard.host.cgroup import find_mounts, open_cgroups
from steelyard.host.proc import read_got
from steelyard.host.sysfs import format_cpus
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan

JOB, OTHER = WorkloadId("j1.1"), WorkloadId("j2.1")
JOIN = """import os, sys
for fd in sys.argv[1].split(","): os.write(int(fd), b"0"); os.close(int(fd))
"""
READY = "print('ready', flush=True)\n"
SLEEP = "import time\ntime.sleep(600)\n"

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def cgroups(nothing_left_behind: None) -> Iterator[Cgroups]:
    mounts = find_mounts()
    if mounts.flavour == "none":
        pytest.skip(f"no control groups that we may write: {mounts.missing}")
    made = open_cgroups(f"live-{os.getpid()}")
    made.prepare(tuple(sorted(os.sched_getaffinity(0))), (0,))
    try:
        yield made
    finally:
        made.destroy()


@pytest.fixture
def start(cgroups: Cgroups) -> Iterator[Start]:
    """Run a piece of Python as the first process of a workload; returns once it has printed its line."""
    children: list[subprocess.Popen[bytes]] = []

    def run(workload: WorkloadId, code: str, uid: int | None = None) -> subprocess.Popen[bytes]:
        fds = cgroups.open_join(workload)
        child = subprocess.Popen(
            [sys.executable, "-Sc", JOIN + code, ",".join(map(str, fds))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            start_new_session=True,
            user=uid,
        )
        children.append(child)
        for fd in fds:
            os.close(fd)
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith(b"ready"), line + child.stdout.read()
        return child

    try:
        yield run
    finally:
        cgroups.destroy()
        for child in children:
            child.kill()
            child.communicate()


def needs(cgroups: Cgroups, *controllers: str) -> None:
    lacking = set(controllers) - cgroups.controllers
    if lacking:
        pytest.skip(f"this kernel does not give us {sorted(lacking)}: {cgroups.missing}")


def test_a_memory_hog_is_killed_at_its_limit_and_counted(cgroups: Cgroups, start: Start) -> None:
    needs(cgroups, "memory")
    cgroups.make(JOB, Plan(memory_bytes=48 << 20))
    hog = start(JOB, READY + "held = []\nwhile True: held.append(bytearray(1 << 20))\n")
    assert hog.wait(timeout=30) == -signal.SIGKILL
    reading = cgroups.read(JOB)
    assert reading.oom_kills == 1
    assert reading.memory_peak_bytes is not None
    assert 40 << 20 <= reading.memory_peak_bytes <= 48 << 20


def test_an_exclusive_core_holds_every_thread_and_can_not_be_left(cgroups: Cgroups, start: Start) -> None:
    needs(cgroups, "cpuset")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU only: there is nothing to be kept off")
    cgroups.make(JOB, Plan(cpus=(cpus[-1],)))
    escape = f"""import threading
for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()
try: os.sched_setaffinity(0, [{cpus[0]}])
except OSError: pass
"""
    child = start(JOB, escape + READY + SLEEP)
    got = read_got([child.pid], cgroups.read(JOB))
    assert got["cpus"] == [cpus[-1]]
    assert got["threads"] == 4
    assert got["cgroup"] == cgroups.path(JOB)


def test_best_effort_work_follows_the_common_cpuset(cgroups: Cgroups, start: Start) -> None:
    needs(cgroups, "cpuset")
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    cgroups.make(JOB, Plan())
    child = start(JOB, READY + SLEEP)
    assert os.sched_getaffinity(child.pid) == set(cpus)
    cgroups.prepare(cpus[:1], (0,))
    assert os.sched_getaffinity(child.pid) == {cpus[0]}
    cgroups.prepare(cpus, (0,))
    assert os.sched_getaffinity(child.pid) == set(cpus)


def test_one_strayed_thread_shows_in_the_proof(cgroups: Cgroups, start: Start) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU only: a thread has nowhere to stray to")
    cgroups.make(JOB, Plan())
    threads = "import threading\nfor _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    child = start(JOB, f"os.sched_setaffinity(0, [{cpus[0]}])\n" + threads + READY + SLEEP)
    assert read_got([child.pid], cgroups.read(JOB))["cpus"] == cpus[:1]
    strayed = int(sorted(os.listdir(f"/proc/{child.pid}/task"))[-1])
    os.sched_setaffinity(strayed, cpus)
    got = read_got([child.pid], cgroups.read(JOB))
    assert got["cpus"] == cpus
    assert got["threads_apart"] == {str(cpus[0]): 3, format_cpus(cpus): 1}


def test_a_change_by_hand_is_read_back(cgroups: Cgroups, start: Start) -> None:
    needs(cgroups, "cpu", "memory")
    cgroups.make(JOB, Plan(share=0.5, memory_bytes=64 << 20))
    start(JOB, READY + SLEEP)
    cgroups.make(JOB, Plan(share=0.25))
    reading = cgroups.read(JOB)
    assert reading.share == 0.25
    assert read_got(reading.pids, reading)["memory_bytes"] == "unlimited"


def test_an_unprivileged_child_joins_through_inherited_descriptors(cgroups: Cgroups, start: Start) -> None:
    cgroups.make(JOB, Plan(memory_bytes=64 << 20))
    child = start(JOB, READY + SLEEP, uid=65534)
    got = read_got([child.pid], cgroups.read(JOB))
    assert (got["uid"], got["cgroup"]) == (65534, cgroups.path(JOB))


def test_processes_that_left_the_session_and_their_parents_are_killed(cgroups: Cgroups, start: Start) -> None:
    for workload in (JOB, OTHER):
        cgroups.make(workload, Plan())
    spared = start(OTHER, READY + SLEEP)
    escapes = """for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            import signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(1, b"escaped\\n")
            signal.pause()
        os._exit(0)
"""
    child = start(JOB, READY + escapes + SLEEP)
    assert child.stdout is not None
    for _ in range(5):
        assert child.stdout.readline() == b"escaped\n"
    assert len(cgroups.pids(JOB)) >= 6
    cgroups.kill(JOB)
    assert cgroups.pids(JOB) == []
    assert cgroups.remove(JOB) is True
    assert spared.poll() is None


def test_a_small_fork_bomb_dies(cgroups: Cgroups, start: Start) -> None:
    needs(cgroups, "pids")
    cgroups.make(JOB, Plan())
    limit = next(path for path in Path("/sys/fs/cgroup").glob(f"**/{cgroups.path(JOB)}/pids.max"))
    limit.write_text("150")
    bomb = start(JOB, READY + "while True:\n try: os.fork()\n except OSError: pass\n")
    deadline = time.monotonic() + 20
    while len(cgroups.pids(JOB)) < 100 and time.monotonic() < deadline:
        pass
    began = time.monotonic()
    cgroups.kill(JOB)
    took_s = time.monotonic() - began
    assert cgroups.pids(JOB) == []
    assert took_s < 2.0
    assert bomb.wait(timeout=5) == -signal.SIGKILL
    assert cgroups.remove(JOB) is True


def test_groups_that_a_job_made_below_its_own_go_with_it(cgroups: Cgroups, start: Start) -> None:
    cgroups.make(JOB, Plan())
    child = start(JOB, READY + SLEEP)
    for leaf in Path("/sys/fs/cgroup").glob(f"**/{cgroups.path(JOB)}"):
        (leaf / "inner").mkdir()
        (leaf / "inner" / "cgroup.procs").write_text(str(child.pid))
    assert cgroups.pids(JOB) == [child.pid]
    cgroups.kill(JOB)
    assert cgroups.remove(JOB) is True


def test_destroy_leaves_no_group_of_this_home(cgroups: Cgroups, start: Start) -> None:
    for workload, plan in ((JOB, Plan()), (OTHER, Plan(cpus=(0,)))):
        cgroups.make(workload, plan)
        start(workload, READY + SLEEP)
    name = cgroups.path(JOB).split("/")[0]
    assert list(Path("/sys/fs/cgroup").glob(f"**/{name}")) != []
    cgroups.destroy()
    assert list(Path("/sys/fs/cgroup").glob(f"**/{name}")) == []
