"""Real programs as jobs: training that is killed and resumed, MPI, molecular dynamics, a chain of jobs as of a makefile."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, wait_until

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = ROOT / ".venv-workloads" / "bin"
MISSING = [
    why
    for why, absent in (
        (".venv-workloads (tools/setup_workloads.sh makes it)", not (PROGRAMS.parent / ".setup-done").exists()),
        ("mpirun", shutil.which("mpirun") is None),
        ("lmp (LAMMPS)", shutil.which("lmp") is None),
    )
    if absent
]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"NOT VERIFIED: real workloads, missing here: {', '.join(MISSING)}"),
    # each rank imports PyTorch, which takes seconds where others use the cores
    pytest.mark.timeout(240),
]
#: what a user has who works in that environment
ENV = {"PATH": f"{PROGRAMS}:{os.environ.get('PATH', os.defpath)}"}
STEPS = 40


def run(cluster: Cluster, *words: str) -> str:
    """`steelyard run WORDS` to its end; what the job wrote."""
    return cluster.ok("run", *words, env=ENV, timeout=120)


def read_rank(cluster: Cluster, job: str, rank: int) -> str:
    """What a rank with a log of its own wrote."""
    return base64.b64decode(cluster.api("GET", f"/v1/jobs/{job}/logs?rank={rank}").json()["stdout"]).decode()


# training


def start_training(cluster: Cluster, checkpoints: Path, step_s: float) -> str:
    checkpoints.mkdir()
    checkpoints.chmod(0o777)
    options = ("--tasks-per-node", "2", "--launcher", "torchrun", "--checkpoint-dir", str(checkpoints), "--retry", "error:3@0s")
    training = (str(checkpoints), "--steps", str(STEPS), "--save-every", "5", "--step-s", str(step_s))
    return cluster.ok("run", "--detach", *options, "--", "train.py", *training, env=ENV, cwd=EXAMPLES / "train").strip()


def newest_step(checkpoints: Path) -> int:
    return max((int(file.stem.partition("-")[2]) for file in checkpoints.glob("step-*.pt")), default=0)


def wait_step(checkpoints: Path, at_least: int) -> int:
    return wait_until(lambda: step if (step := newest_step(checkpoints)) >= at_least else 0, 90, f"step {at_least} to be saved")


def find_processes(cluster: Cluster, job: str, attempt: int) -> tuple[int, list[int]]:
    """torchrun, and its ranks."""
    handle = cluster.home / "agent" / "handles" / f"{job}.{attempt}.json"
    launcher = int(json.loads(handle.read_bytes())["pid"])
    ranks = [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
    return launcher, [pid for pid in ranks if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def final_loss(output: str) -> str:
    found = re.findall(r"^final loss (\S+)$", output, re.MULTILINE)
    assert len(found) == 1, output
    return found[0]


def test_training_that_is_killed_twice_ends_with_the_loss_of_one_that_was_not(shared: Cluster) -> None:
    checkpoints = shared.folder / "killed"
    job = start_training(shared, checkpoints, 0.1)
    wait_step(checkpoints, 5)
    _, ranks = find_processes(shared, job, 1)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    # one rank is dead: torchrun ends the other, and the job is tried again as a unit
    wait_until(lambda: shared.job(job)["restarts"] == 1, 60, "the first restart")
    resumed = newest_step(checkpoints)
    assert resumed < STEPS
    wait_step(checkpoints, resumed + 5)
    launcher, ranks = find_processes(shared, job, 2)
    for pid in (launcher, *ranks):
        os.kill(pid, signal.SIGKILL)
    ended = shared.wait_job(job, "SUCCEEDED", 90)
    assert ended["restarts"] == 2
    output = shared.ok("logs", job)
    begun = re.findall(r"^restart 2: begins at step (\d+)$", output, re.MULTILINE)
    assert len(begun) == 1 and resumed < int(begun[0]) < STEPS, output
    reference = start_training(shared, shared.folder / "untouched", 0.0)
    assert shared.wait_job(reference, "SUCCEEDED", 90)["restarts"] == 0
    assert final_loss(output) == final_loss(shared.ok("logs", reference))


# MPI


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="NOT VERIFIED: ranks on different cores need two cores")
def test_mpi_ranks_run_on_different_cores_and_talk(shared: Cluster) -> None:
    command = ("python", str(EXAMPLES / "mpi" / "pingpong.py"), "-n", "1024", "-l", "100")
    output = run(shared, "--tasks-per-node", "2", "--launcher", "mpi", "--", *command)
    cpus = [set(found.split(",")) for found in re.findall(r"^rank \d runs on CPUs (\S+)$", output, re.MULTILINE)]
    assert len(cpus) == 2 and not cpus[0] & cpus[1], output
    sizes = re.findall(r"^ +(\d+) +[0-9.]+ \| ", output, re.MULTILINE)
    assert sizes == [str(1 << power) for power in range(11)], output


def test_lammps_melts_a_crystal_and_keeps_its_energy(shared: Cluster) -> None:
    command = ("lmp", "-in", str(EXAMPLES / "lammps" / "in.melt"), "-log", "none")
    output = run(shared, "--tasks-per-node", "2", "--launcher", "mpi", "--", *command)
    assert "on 2 procs for 500 steps with 2048 atoms" in output
    # Step Temp E_pair E_mol TotEng Press
    rows = [line.split() for line in output.splitlines() if re.fullmatch(r" +\d+( +[-0-9.e]+){5} *", line)]
    assert [int(row[0]) for row in rows] == [0, 100, 200, 300, 400, 500]
    assert float(rows[-1][1]) < 0.8 * float(rows[0][1])
    assert abs(float(rows[-1][4]) - float(rows[0][4])) < 0.02


# frameworks that find their ranks by variables and files


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ("with_jax.py", "rank {} of 2, sum of all 3"),
        ("with_deepspeed.py", "rank {} of 2, slots in the hostfile 2, sum of all 3"),
    ],
)
def test_ranks_meet_by_the_variables_of(shared: Cluster, example: str, expected: str) -> None:
    job = shared.ok(
        "run", "--detach", "--tasks-per-node", "2", "--", "python", str(EXAMPLES / "launchers" / example), env=ENV
    ).strip()
    shared.wait_job(job, "SUCCEEDED", 90)
    for rank in range(2):
        assert expected.format(rank) in read_rank(shared, job, rank).splitlines()


def test_tf_config_names_the_workers_and_where_they_listen(shared: Cluster) -> None:
    script = str(EXAMPLES / "launchers" / "with_tf_config.py")
    job = shared.ok("run", "--detach", "--tasks-per-node", "2", "--", sys.executable, script).strip()
    shared.wait_job(job, "SUCCEEDED", 60)
    assert read_rank(shared, job, 0).strip() == "worker 0 of 2, sum of all 3"
    assert re.fullmatch(r"worker 1 of 2 at 127\.0\.0\.1:\d+", read_rank(shared, job, 1).strip())


# a chain


def test_each_of_fifty_jobs_starts_after_those_that_it_depends_on(shared: Cluster) -> None:
    text = subprocess.run([sys.executable, EXAMPLES / "chain" / "chain.py"], capture_output=True, check=True).stdout
    begun = time.monotonic()
    shared.ok("apply", "-y", "-f", "-", input=text)
    jobs: dict[str, dict[str, Any]] = {job["name"]: job for job in shared.api("GET", "/v1/jobs?limit=50").json()}
    assert len(jobs) == 50 and {"prepare", "part-7-4", "report"} <= jobs.keys()
    shared.wait_job(jobs["report"]["id"], "SUCCEEDED", 60)
    print(f"fifty jobs in {time.monotonic() - begun:.1f} s")
    jobs = {job["id"]: job for job in shared.api("GET", "/v1/jobs?limit=50").json()}
    assert {job["state"] for job in jobs.values()} == {"SUCCEEDED"}
    waits = [(job, jobs[after.rpartition(":")[2]]) for job in jobs.values() for after in job["after"]]
    assert len(waits) == 56
    for job, before in waits:
        assert before["ended_at"] <= job["started_at"], (job, before)
