"""Commands inside running jobs, and what jobs really use."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from steelyard_cluster import Cluster, wait_until

from steelyard.host.cgroup import find_mounts


def test_a_command_runs_as_the_job_where_the_job_is_and_answers_with_its_code(shared: Cluster) -> None:
    job = shared.running("sleep", "60", env={"COLOUR": "blue"})
    script = "echo $COLOUR; pwd; id -u; cat /proc/self/cgroup; echo sorry >&2; exit 7"
    done = shared.cli("exec", job, "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (7, b"sorry\n")
    colour, cwd, uid, *groups = done.stdout.decode().splitlines()
    assert (colour, cwd) == ("blue", "/tmp")
    if os.geteuid() == 0:
        assert uid == "64000"
    if find_mounts().flavour != "none":
        assert any(line.endswith(f"/{job}.1") for line in groups), groups
    assert shared.job(job)["state"] == "RUNNING"
    proof = shared.api("GET", f"/v1/jobs/{job}/proof").json()
    assert proof["state"] == "MATCH", proof
    shared.ok("stop", job)


def test_ctrl_c_ends_the_command_and_not_the_job(shared: Cluster) -> None:
    job = shared.running("sleep", "60")
    command = shared.start("exec", job, "--", "sh", "-c", "trap 'echo bye; exit 3' INT; echo ready; sleep 30 & wait")
    assert command.stdout is not None
    assert command.stdout.readline() == b"ready\n"
    command.send_signal(signal.SIGINT)
    out, _ = command.communicate(timeout=20)
    assert (command.returncode, out) == (3, b"bye\n")
    assert shared.job(job)["state"] == "RUNNING"
    shared.ok("stop", job)


def test_it_ends_with_the_job(shared: Cluster) -> None:
    job = shared.running("sleep", "60")
    command = shared.start("exec", job, "--", "sh", "-c", "echo ready; exec sleep 300")
    assert command.stdout is not None
    assert command.stdout.readline() == b"ready\n"
    shared.ok("stop", job)
    command.communicate(timeout=20)
    assert command.returncode in (128 + signal.SIGTERM, 128 + signal.SIGKILL)


def test_what_can_not_be_started_is_refused_with_125(shared: Cluster) -> None:
    job = shared.running("sleep", "60")
    for words, sentence in (
        (["exec", "j-999999", "--", "true"], b"no job"),
        (["exec", job, "--", "/no/such/program"], b"No such file"),
        (["exec", "--rank", "5", job, "--", "true"], b"no rank 5"),
    ):
        done = shared.cli(*words)
        assert done.returncode == 125 and sentence in done.stderr, done
    shared.ok("stop", job)
    shared.wait_job(job, "STOPPED")
    done = shared.cli("exec", job, "--", "true")
    assert done.returncode == 125 and b"STOPPED" in done.stderr


def test_the_same_key_starts_nothing_twice(shared: Cluster) -> None:
    job = shared.running("sleep", "60")
    names = {shared.api("POST", f"/v1/jobs/{job}/exec", {"argv": ["true"]}, key="k1").json()["exec"] for _ in range(2)}
    assert len(names) == 1
    assert shared.api("POST", f"/v1/jobs/{job}/exec", {"argv": ["true"]}, key="k2").json()["exec"] not in names
    shared.ok("stop", job)


def test_every_rank_of_a_gang_has_its_own_scratch_and_takes_commands(shared: Cluster) -> None:
    spec = {
        "name": "gang",
        "argv": ["sh", "-c", "head -c 1M /dev/zero > $TMPDIR/x; sleep 60"],
        "cwd": "/tmp",
        "gang": {"tasks_per_node": 2},
        "resources": {"cpus": 0.1, "scratch_bytes": 8 << 20},
    }
    job = shared.api("POST", "/v1/jobs", {"spec": spec}).json()["id"]
    shared.wait_job(job, "RUNNING")
    folders: set[bytes] = set()
    for rank in (0, 1):
        done = shared.cli("exec", "--rank", str(rank), job, "--", "sh", "-c", "echo $RANK $TMPDIR; ls $TMPDIR")
        told, folder, held = done.stdout.split()
        assert (done.returncode, told, held) == (0, str(rank).encode(), b"x"), done
        folders.add(folder)
    assert len(folders) == 2
    used = wait_until(lambda: shared.api("GET", f"/v1/jobs/{job}/usage").json(), 5, "its use to be told")
    assert used["scratch_peak_bytes"] >= 2 << 20
    assert shared.api("GET", f"/v1/jobs/{job}/proof").json()["state"] in ("MATCH", "PARTIAL")
    shared.ok("stop", job)
    ended = shared.wait_job(job, "STOPPED")
    assert ended["usage"]["scratch_peak_bytes"] >= 2 << 20 and ended["usage"]["samples"]
    wait_until(lambda: not any(os.path.exists(folder) for folder in folders) or None, 5, "both folders to be gone")


def test_a_command_outlives_the_agent(shared: Cluster) -> None:
    job = shared.running("sleep", "60")
    command = shared.start("exec", job, "--", "sh", "-c", "echo ready; sleep 3; echo done; exit 4")
    assert command.stdout is not None
    assert command.stdout.readline() == b"ready\n"
    shared.wait_replaced("agent", shared.kill("agent"))
    out, err = command.communicate(timeout=40)
    assert (command.returncode, out) == (4, b"done\n"), err
    assert shared.job(job)["state"] == "RUNNING"
    shared.ok("stop", job)


def test_use_of_a_running_and_of_an_ended_job_is_told(shared: Cluster) -> None:
    burn = "import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\nprint(flush=True); time.sleep(2)"
    job = shared.running("python3", "-c", burn, resources={"cpus": 1})

    def used() -> dict[str, Any] | None:
        seen = shared.api("GET", f"/v1/jobs/{job}/usage").json()
        return seen if seen["samples"] and (seen["cpu_s"] or 0) >= 0.5 else None

    seen = wait_until(used, 10, "its use to be told")
    assert 0.5 <= seen["cpu_s"] < 2 and seen["memory_peak_bytes"] > 1 << 20
    shared.wait_job(job, "SUCCEEDED")


@pytest.mark.skipif(find_mounts().flavour == "none", reason="NOT VERIFIED: no control groups that we may write")
def test_a_limit_of_disk_traffic_is_read_back_and_holds(shared: Cluster) -> None:
    script = (
        "import os, time; path = f'/tmp/io-{os.getpid()}'; fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DSYNC)\n"
        "os.unlink(path); began = time.monotonic()\nfor _ in range(4): os.write(fd, bytes(1 << 18))\n"
    )
    script += "print(time.monotonic() - began, flush=True); time.sleep(60)"
    job = shared.running("python3", "-c", script, resources={"cpus": 0.1, "io_max_bytes_s": 1 << 20})
    took = wait_until(lambda: shared.cli("logs", job).stdout.strip() or None, 20, "it to have written 1 MiB")
    assert float(took) > 0.5
    proof = shared.api("GET", f"/v1/jobs/{job}/proof").json()
    assert (proof["asked"]["io_max_bytes_s"], proof["got"]["io_max_bytes_s"]) == (1 << 20, 1 << 20)
    if find_mounts().flavour != "v2":
        assert proof["state"] == "PARTIAL" and any("direct and synchronous" in text for text in proof["differences"])
    shared.ok("stop", job)
