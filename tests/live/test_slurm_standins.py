"""`srun` and its kin as the real programs that a job's script calls."""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_rig import ADMIN, FakeAgent, Server
from mpi_ring import RING

from steelyard.model.ids import AttemptId
from steelyard.runtime.slurm_bin import make_slurm_bin
from steelyard.wire.agent import AttemptState

#: an unprivileged uid that owns nothing
NOBODY = 65534
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def folder(home: Path) -> Path:
    """Short, and every user may enter and write it."""
    home.mkdir()
    home.chmod(0o777)
    return home


@pytest.fixture
def job(folder: Path) -> dict[str, str]:
    """The environment of a job of two tasks, with the stand-ins in front of its PATH."""
    programs = make_slurm_bin(folder / "slurm", sys.executable)
    return {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(folder),
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NAME": "test",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_ON_NODE": "2",
        "SLURM_TASKS_PER_NODE": "2",
        "SLURMD_NODENAME": "n1",
        "STEELYARD_STEPS": str(folder / "steps"),
    }


@pytest.fixture
def run(folder: Path, job: dict[str, str]) -> Run:
    def call(*words: str, input: str = "", env: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, input=input, capture_output=True, text=True, env=job | (env or {}), cwd=folder, timeout=60, check=False, **more
        )

    return call


def test_a_step_has_as_many_tasks_as_the_job_and_each_knows_its_place(run: Run) -> None:
    done = run("srun", "sh", "-c", "echo $SLURM_PROCID/$SLURM_LOCALID of $SLURM_NTASKS in step $SLURM_STEP_ID, $SLURM_JOB_ID")
    assert sorted(done.stdout.splitlines()) == ["0/0 of 2 in step 0, 12", "1/1 of 2 in step 0, 12"]
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 1" in run("srun", "-n1", "sh", "-c", "echo step $SLURM_STEP_ID").stdout


def test_labels_stand_before_whole_lines_of_both_streams(run: Run) -> None:
    done = run("srun", "-l", "sh", "-c", "printf 'a b\\nc'; echo err >&2")
    assert sorted(done.stdout.splitlines()) == ["0: a b", "0: c", "1: a b", "1: c"]
    assert sorted(done.stderr.splitlines()) == ["0: err", "1: err"]


def test_much_output_of_many_tasks_is_not_torn(run: Run) -> None:
    done = run("srun", "-l", "-O", "-n4", "sh", "-c", "seq 1 20000")
    lines = done.stdout.splitlines()
    assert len(lines) == 80000 and all(re.fullmatch(r"[0-3]: \d+", line) for line in lines)


def test_the_exit_code_is_the_highest_of_the_tasks(run: Run) -> None:
    done = run("srun", "sh", "-c", "exit $((SLURM_PROCID * 3))")
    assert done.returncode == 3
    assert done.stderr == "srun: error: n1: task 1: Exited with exit code 3\n"
    assert run("srun", "-Q", "false").stderr == ""


def test_when_a_task_is_killed_the_others_end_too(run: Run) -> None:
    done = run("srun", "sh", "-c", "[ $SLURM_PROCID = 1 ] && kill -9 $$; exec sleep 1000")
    assert done.returncode == 137
    assert "task 1: Killed" in done.stderr and "task 0: Terminated (ended because another task" in done.stderr


def test_a_task_that_fails_ends_the_others_only_when_asked_to(run: Run) -> None:
    script = "[ $SLURM_PROCID = 1 ] && exit 4; [ -z $WAITS ] || exec sleep 1000; echo done"
    assert run("srun", "-K", "sh", "-c", script, env={"WAITS": "1"}).returncode == 4
    done = run("srun", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (4, "done\n")


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_once_to_every_task(folder: Path, job: dict[str, str], signum: signal.Signals) -> None:
    script = f"trap 'echo got >>{folder}/got-$SLURM_PROCID; exit 5' {signum.name[3:]}; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(["srun", "sh", "-c", script], env=job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as srun:
        assert srun.stdout is not None
        assert [srun.stdout.readline(), srun.stdout.readline()] == [b"ready\n"] * 2
        srun.send_signal(signum)
        assert srun.wait(20) == 5
    assert [(folder / f"got-{rank}").read_text() for rank in (0, 1)] == ["got\n"] * 2


def test_output_goes_to_a_file_for_each_task(run: Run, folder: Path) -> None:
    run("srun", "-o", "out-%j.%s-%t", "sh", "-c", "echo $SLURM_PROCID; echo err >&2")
    assert {file.name: file.read_text() for file in folder.glob("out-*")} == {"out-12.0-0": "0\nerr\n", "out-12.0-1": "1\nerr\n"}
    done = run("srun", "-o", "1", "sh", "-c", "echo $SLURM_PROCID")
    assert done.stdout == "1\n"
    refused = run("srun", "-o", "missing/out", "true")
    assert refused.returncode == 1 and "missing/out" in refused.stderr


def test_standard_input_is_the_first_tasks(run: Run) -> None:
    assert run("srun", "-l", "cat", input="hello\n").stdout == "0: hello\n"
    assert run("srun", "-i", "none", "cat", input="hello\n").stdout == ""


def test_a_reader_that_goes_away_ends_the_step(run: Run) -> None:
    # which of the tasks is heard first is nobody's promise
    assert run("sh", "-c", "srun -l yes 2>/dev/null | head -n 1").stdout in ("0: y\n", "1: y\n")


def test_tasks_are_bound_only_where_the_job_holds_its_cores_alone(run: Run) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one CPU: nothing to bind to")
    show = ("sh", "-c", "echo $SLURM_PROCID $(sed -n 's/Cpus_allowed_list:.//p' /proc/self/status)")

    def masks(*options: str, env: dict[str, str] | None = None) -> list[str]:
        return [line.split()[1] for line in sorted(run("srun", *options, *show, env=env).stdout.splitlines())]

    free = masks()
    assert free[0] == free[1]
    alone = masks(env={"STEELYARD_CPUS": ",".join(map(str, allowed))})
    assert alone[0] != alone[1]
    assert masks("--cpu-bind=threads") == [str(allowed[0]), str(allowed[1])]
    assert masks(f"--cpu-bind=map_cpu:{allowed[1]},{allowed[0]}") == [str(allowed[1]), str(allowed[0])]
    assert masks("--cpu-bind=none", env={"STEELYARD_CPUS": "0,1"}) == free
    assert "may only use CPUs" in run("srun", "--cpu-bind=map_cpu:4095", "true").stderr


def test_steps_side_by_side_wait_for_each_others_cores(run: Run, folder: Path) -> None:
    """Six steps of one task in a job of one core: never two at a time, and each has a number of its own."""
    step = f"mkdir {folder}/busy || echo overlap; echo $SLURM_STEP_ID; sleep 0.02; rmdir {folder}/busy"
    script = f"for i in 1 2 3 4 5 6; do srun -n1 --exclusive sh -c '{step}' & done; wait"
    done = run("sh", "-c", script, env={"SLURM_NTASKS": "1", "SLURM_CPUS_ON_NODE": "1"})
    assert sorted(done.stdout.splitlines()) == list("012345"), done.stderr


def test_a_step_that_may_overlap_does_not_wait(run: Run, folder: Path) -> None:
    os.mkfifo(folder / "gate")
    script = f"srun -n1 cat {folder}/gate & srun -n1 --overlap sh -c 'echo open >{folder}/gate'; wait"
    assert run("sh", "-c", script, env={"SLURM_NTASKS": "1", "SLURM_CPUS_ON_NODE": "1"}).stdout == "open\n"


def test_a_step_inside_a_step_does_not_wait_for_itself(run: Run) -> None:
    done = run("srun", "-n1", "srun", "-n1", "echo", "inner", env={"SLURM_NTASKS": "1", "SLURM_CPUS_ON_NODE": "1"})
    assert done.stdout == "inner\n"


def test_gpus_are_divided_among_tasks(run: Run) -> None:
    env = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c,GPU-d"}
    done = run("srun", "-l", "--gpus-per-task=2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES", env=env)
    assert sorted(done.stdout.splitlines()) == ["0: GPU-a,GPU-b", "1: GPU-c,GPU-d"]
    assert "need 6 GPUs" in run("srun", "--gpus-per-task=3", "true", env=env).stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--bogus", "true"), 2, "there is no option --bogus"),
        (("-Y", "true"), 2, "there is no option -Y"),
        (("--multi-prog", "x"), 1, "a step of its own"),
        (("-n3", "true"), 1, "more than the job's 2"),
        (("-N2", "true"), 1, "the job has one machine"),
        (("-n0", "true"), 1, "--ntasks"),
        ((), 1, "no command"),
        (("-n1", "/no/such/program"), 2, "/no/such/program: No such file or directory"),
        (("-n1", "/etc/passwd"), 13, "Permission denied"),
    ],
)
def test_what_srun_cannot_do_is_named(run: Run, words: tuple[str, ...], code: int, text: str) -> None:
    done = run("srun", *words)
    assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr


def test_what_srun_does_not_act_on_is_named(run: Run) -> None:
    done = run("srun", "-n1", "--time=5", "echo", "ran")
    assert (done.stdout, "--time=5 is not acted on" in done.stderr) == ("ran\n", True)


def test_an_mpi_program_is_started_by_mpirun(run: Run, folder: Path) -> None:
    if shutil.which("mpirun") is None or ctypes.util.find_library("mpi") is None:
        pytest.skip("NO MPI HERE: install openmpi-bin to try srun with MPI programs")
    (folder / "ring.py").write_text(RING)
    env = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "TMPDIR": str(folder),
        "SLURM_JOB_NODELIST": "n1",
    }
    for words in (("srun", "--mpi=pmix"), ("mpirun",)):
        done = run(*words, "/usr/bin/python3", "ring.py", env=env)
        assert sorted(done.stdout.splitlines()) == ["rank 0, sum 3", "rank 1, sum 3"], (words, done.stderr)


def test_the_stand_ins_run_as_anybody_and_with_any_python(run: Run, folder: Path, job: dict[str, str]) -> None:
    other = make_slurm_bin(folder / "slurm", "/no/such/python3")
    more: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    done = run("srun", "id", "-u", env={"PATH": f"{other}:/usr/bin:/bin"}, **more)
    assert done.stdout.split() == [str(more.get("user", os.geteuid()))] * 2, done.stderr


def test_scontrol_expands_and_joins_lists_of_hosts(run: Run) -> None:
    assert run("scontrol", "show", "hostnames").stdout == "n1\nn2\n"
    assert run("scontrol", "show", "hostnames", "a[08-10],b").stdout == "a08\na09\na10\nb\n"
    assert run("scontrol", "show", "hostlist", "a1,a2,a3,b").stdout == "a[1-3],b\n"
    refused = run("scontrol", "update", "jobid=1", "timelimit=5")
    assert refused.returncode == 1 and "submit it anew" in refused.stderr


# with the API


@pytest.fixture
def served(folder: Path, job: dict[str, str]) -> Iterator[tuple[Server, dict[str, str]]]:
    with Server(folder / "api") as server:
        yield server, {"STEELYARD_API_URL": server.url, "STEELYARD_TOKEN": ADMIN, "USER": "root", "SLURM_JOB_USER": "root"}


def test_a_chain_of_scripts_is_submitted_watched_and_cancelled(
    served: tuple[Server, dict[str, str]], run: Run, folder: Path
) -> None:
    server, env = served
    (folder / "next.sh").write_text("#!/bin/bash\n#SBATCH --job-name=next -p gpu\n#SBATCH -o out-%j.txt\necho $1\n")
    with FakeAgent(server) as agent:
        agent.behave = lambda attempt: AttemptState(AttemptId(attempt), "running", started_at=1_700_000_000_000_000)
        first = run("sbatch", "-n1", "next.sh", "a b", env=env)
        assert first.stdout == "Submitted batch job 1\n", first.stderr
        assert "--partition=gpu is not acted on" in first.stderr
        second = run("sbatch", "--parsable", "-Q", "--wrap", "hostname", "-J", "wrapped", env=env)
        assert (second.stdout, second.stderr) == ("2\n", "")
        third = run("sbatch", "--parsable", env=env, input="#!/bin/sh\ntrue\n")
        assert third.stdout == "3\n"
        for number in ("000001", "000002", "000003"):
            wait_for(server, f"j-{number}", "RUNNING")
        listed = run("squeue", "-h", "-o", "%i %j %t", env=env).stdout.splitlines()
        assert listed == ["1 next R", "2 wrapped R", "3 sbatch R"]
        assert run("squeue", "--me", "-n", "next", "-h", "-o", "%A", env=env).stdout == "1\n"
        assert "JobId=2 JobName=wrapped" in run("scontrol", "show", "job", "2", env=env).stdout
        assert run("scancel", "1", env=env).returncode == 0
        assert run("scancel", "--name=wrapped", "-s", "KILL", env=env).returncode == 0
        # the agent of this test ends them at once
        for number in ("000001", "000002"):
            wait_for(server, f"j-{number}", "STOPPED")
        assert run("squeue", "-h", "-t", "CA", "-o", "%i", env=env).stdout == "1\n2\n"
        assert run("squeue", "-h", "-o", "%i", env=env).stdout == "3\n"
        gone = run("squeue", "-j", "99", env=env)
        assert gone.returncode == 1 and "Invalid job id specified" in gone.stderr
        unknown = run("scancel", "99", env=env)
        assert unknown.returncode == 1 and "Invalid job id" in unknown.stderr


def wait_for(server: Server, job: str, state: str) -> None:
    for _ in range(100):
        if server.http.get(f"/v1/jobs/{job}").json()["state"] == state:
            return
        server.http.get(f"/v1/jobs/{job}/logs", params={"wait_s": 0.2})
    raise AssertionError(f"{job} is not {state}")


def test_sbatch_waits_and_answers_with_the_jobs_exit_code(served: tuple[Server, dict[str, str]], run: Run) -> None:
    server, env = served
    with FakeAgent(server) as agent:
        agent.behave = lambda attempt: AttemptState(
            AttemptId(attempt), "ended", exit_code=7, started_at=1_700_000_000_000_000, ended_at=1_700_000_000_500_000
        )
        assert run("sbatch", "--wait", "--wrap", "exit 7", env=env).returncode == 7


REFUSED = [
    (("sbatch", "--bogus", "x"), 2, "there is no option --bogus"),
    (("sbatch", "missing.sh"), 1, "Unable to open file missing.sh"),
    (("sbatch", "-N2", "--wrap", "x"), 1, "this Steelyard is one machine"),
    (("sbatch", "--time=7 days", "--wrap", "x"), 1, "days-hours"),
    (("squeue", "-o", "%X"), 1, "%X"),
    (("scancel",), 1, "No job identification"),
    (("scancel", "-s", "USR1", "1"), 1, "signals that end a job"),
    (("scancel", "x"), 1, "Invalid job id"),
]


def test_refusals_name_what_is_wrong(served: tuple[Server, dict[str, str]], run: Run) -> None:
    for words, code, text in REFUSED:
        done = run(*words, env=served[1])
        assert (done.returncode, text in done.stderr, "Traceback" in done.stderr) == (code, True, False), (words, done.stderr)


def test_without_a_way_to_the_api_they_say_so(run: Run) -> None:
    assert "STEELYARD_API_URL is not set" in run("squeue").stderr
    away = run("squeue", env={"STEELYARD_API_URL": "http://127.0.0.1:9", "STEELYARD_TOKEN": "x"})
    assert away.returncode == 1 and "does not answer" in away.stderr
