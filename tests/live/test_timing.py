"""Timing classes here: what a realtime job really gets, and that everything it changed is put back, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, wait_until

from steelyard.host.cgroup import find_mounts
from steelyard.host.timing import observe_timing

JOURNAL = Path("/run/steelyard/settings.json")
MISSING = [
    why
    for why, absent in (
        ("root", os.geteuid() != 0),
        ("two cores (one always stays shared)", (os.cpu_count() or 1) < 2),
        ("a cpuset controller", "cpuset" not in find_mounts().controllers),
        ("steerable interrupts", not observe_timing().irqs),
    )
    if absent
]
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(bool(MISSING), reason=f"NOT VERIFIED: timing classes, missing here: {', '.join(MISSING)}"),
]
SLEEP = (sys.executable, "-c", "import time; time.sleep(300)")


def observe_settings() -> dict[str, str]:
    """Everything that a realtime job may change, as it stands."""
    places = [Path("/proc/irq/default_smp_affinity"), *Path("/proc/irq").glob("*/smp_affinity_list")]
    places += Path("/sys/devices/virtual/workqueue").glob("**/cpumask")
    places += Path("/sys/class/net").glob("*/queues/*/*ps_cpus")
    places += Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")
    places += Path("/sys/devices/system/cpu").glob("cpu*/cpuidle/state*/disable")
    found: dict[str, str] = {}
    for place in places:
        try:
            found[str(place)] = place.read_text()
        except OSError:
            continue
    for thread in observe_timing().kernel_threads:
        if thread.movable:
            found[f"thread {thread.pid} {thread.name}"] = str(thread.cpus)
    return found


@pytest.fixture
def untouched() -> Iterator[dict[str, str]]:
    """No setting may differ afterwards. Threads of the kernel that came or went meanwhile don't count."""
    before = observe_settings()
    yield before

    def put_back() -> bool:
        now = observe_settings()
        return all(now[place] == before[place] for place in now.keys() & before.keys())

    wait_until(put_back, 10, "all settings to be put back")
    assert not JOURNAL.exists() or not json.loads(JOURNAL.read_bytes())["entries"]


def start(cluster: Cluster, *options: str) -> tuple[str, int]:
    """A running job and the pid of its first process."""
    job = cluster.ok("run", "--detach", *options, "--", *SLEEP).strip()
    cluster.wait_job(job, "RUNNING")
    return job, read_pid(cluster, job)


def read_pid(cluster: Cluster, job: str) -> int:
    return int(json.loads((cluster.home / "agent" / "handles" / f"{job}.1.json").read_bytes())["pid"])


def prove(cluster: Cluster, job: str) -> dict[str, Any]:
    return json.loads(cluster.ok("proof", job, "--json"))


def end(cluster: Cluster, job: str) -> None:
    cluster.ok("stop", job)
    cluster.wait_job(job, "STOPPED")


def test_a_realtime_job_gets_fifo_its_cores_and_quiet_and_leaves_no_trace(untouched: dict[str, str], shared: Cluster) -> None:
    job, pid = start(shared, "--timing", "realtime")
    cpus = os.sched_getaffinity(pid)
    assert os.sched_getscheduler(pid) == os.SCHED_FIFO and os.sched_getparam(pid).sched_priority == 50
    assert "THP_enabled:\t0" in Path(f"/proc/{pid}/status").read_text()
    proof = prove(shared, job)
    got = proof["got"]
    assert (got["timing"], got["scheduler"], got["cpus"]) == ("realtime", "fifo 50", sorted(cpus))
    facts = observe_timing()
    assert got["irqs_on_its_cpus"] == [irq.number for irq in facts.irqs if cpus & set(irq.cpus) and cpus & set(irq.served)]
    # what could not be steered is named, interrupt by interrupt
    named = " ".join(proof["differences"])
    assert all(f"IRQ {number} " in named for number in got["irqs_on_its_cpus"])
    assert got["kernel_threads_on_its_cpus"] == []
    # an agent without CAP_SYS_RESOURCE can't lift the limit, and says so
    assert got["memory_lock_limit"] == "unlimited" or "memory_lock_limit: asked unlimited" in named
    changed = [place for place, value in observe_settings().items() if untouched.get(place, value) != value]
    assert any("/proc/irq/" in place for place in changed)
    entries = json.loads(JOURNAL.read_bytes())["entries"]
    assert {f"/{place}" for place in entries if not place.startswith("thread/")} >= {
        place for place in changed if place[0] == "/"
    }
    end(shared, job)


def test_a_dedicated_job_matches_and_changes_no_setting(untouched: dict[str, str], shared: Cluster) -> None:
    job, pid = start(shared, "--timing", "dedicated")
    proof = prove(shared, job)
    assert proof["state"] == "MATCH" and proof["got"]["timing"] == "dedicated"
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER
    assert {place: value for place, value in observe_settings().items() if untouched.get(place, value) != value} == {}
    assert any("outside this job" in note for note in proof["notes"])
    end(shared, job)


def test_settings_outlive_a_killed_agent_and_are_put_back_by_the_next(untouched: dict[str, str], shared: Cluster) -> None:
    job, pid = start(shared, "--timing", "realtime")
    held = observe_settings()
    shared.wait_replaced("agent", shared.kill("agent"))
    shared.wait_ready()
    wait_until(lambda: prove(shared, job)["state"] != "UNKNOWN", 10, "the new agent to prove the job")
    assert os.sched_getscheduler(pid) == os.SCHED_FIFO
    now = observe_settings()
    assert {place: value for place, value in now.items() if "thread" not in place} == {
        place: value for place, value in held.items() if "thread" not in place
    }
    end(shared, job)


def test_a_job_that_ends_while_the_agent_is_dead_is_cleaned_up_by_the_next(untouched: dict[str, str], shared: Cluster) -> None:
    job, pid = start(shared, "--timing", "realtime")
    agent = shared.kill("agent")
    os.kill(pid, signal.SIGKILL)
    shared.wait_replaced("agent", agent)
    shared.wait_job(job, "FAILED")


def test_down_puts_back_what_running_work_held(untouched: dict[str, str], cluster: Cluster) -> None:
    start(cluster, "--timing", "realtime")
    assert JOURNAL.exists()
    cluster.down()


def test_a_breached_promise_is_an_event_and_never_met_without_data(untouched: dict[str, str], shared: Cluster) -> None:
    # nothing wakes up within a microsecond
    job, _ = start(shared, "--timing", "realtime", "--max-wakeup-us", "1")
    broken = wait_until(lambda: got if (got := prove(shared, job)["got"]).get("wakeup_breaches") else None, 15, "a breach")
    assert broken["max_wakeup"] == "BREACHED" and broken["max_wakeup_us"] > 1

    def told() -> list[str]:
        events = shared.api("GET", f"/v1/jobs/{job}/events").json()
        return [event["text"] for event in events if "max_wakeup_us 1 breached" in event["text"]]

    assert len(wait_until(told, 15, "the event")) == 1
    end(shared, job)
    patient, _ = start(shared, "--max-wakeup-us", "9000000")
    first = prove(shared, patient)
    assert first["got"]["wakeups_watched"] >= 1000 or first["got"]["max_wakeup"] == "NOT VERIFIED"
    met = wait_until(lambda: got if (got := prove(shared, patient)["got"])["max_wakeup"] == "MET" else None, 20, "enough data")
    assert met["wakeups_watched"] >= 1000
    # without its watcher nobody can say any more
    watcher = int(json.loads((shared.home / "agent" / "handles" / f"{patient}.1.probe.json").read_bytes())["pid"])
    os.kill(watcher, signal.SIGKILL)
    wait_until(lambda: prove(shared, patient)["got"]["max_wakeup"] == "NOT VERIFIED", 10, "the watcher's end to be seen")
    end(shared, patient)


def test_jitter_needs_no_steelyard_and_leaves_nothing(untouched: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "steelyard", "jitter", "--timing", "realtime", "--seconds", "1", "--noise", "--json"],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    alone, noisy = json.loads(done.stdout)
    assert (alone["timing"], alone["with_noise"], noisy["with_noise"]) == ("realtime", False, True)
    for row in (alone, noisy):
        assert row["samples"] >= 500 and row["p50_us"] <= row["p99_us"] <= row["p999_us"] <= row["max_us"]
        assert row["engine"] in ("cyclictest", "own loop")


def test_a_killed_jitter_is_swept_up_by_the_next(untouched: dict[str, str]) -> None:
    command = [sys.executable, "-P", "-m", "steelyard", "jitter", "--timing", "realtime", "--noise", "--json", "--seconds"]
    first = subprocess.Popen([*command, "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(JOURNAL.exists, 20, "settings to be held")
    first.kill()
    first.wait()
    assert json.loads(JOURNAL.read_bytes())["entries"]
    subprocess.run([*command, "1"], capture_output=True, timeout=60, check=True)
    assert not list(Path("/sys/fs/cgroup").glob(f"*/steelyard-jitter-{first.pid}-*"))


def test_an_interrupted_jitter_puts_everything_back_itself(untouched: dict[str, str]) -> None:
    command = [sys.executable, "-P", "-m", "steelyard", "jitter", "--timing", "realtime", "--noise", "--seconds", "60"]
    # as a shell's `&` starts it: Python then has no handler of its own, and whoever sends the signal means it all the same
    child = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(JOURNAL.exists, 20, "settings to be held")
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130
    assert time.monotonic() - began < 10
    assert not list(Path("/sys/fs/cgroup").glob(f"*/steelyard-jitter-{child.pid}-*"))
