"""Jobs through the queue of a real Slurm: what is Slurm's own there, and that nothing runs twice. What is as with any other job
is asked by test_conformance.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from direct_cluster import Direct, attached
from mpi_ring import RING
from steelyard_cluster import wait_until
from traces import observe_traces

from slurm_bed import SlurmBed, render_conf, slurm


@pytest.fixture(scope="module")
def bed() -> Iterator[SlurmBed]:
    with slurm() as made:
        yield made


@pytest.fixture(scope="module")
def shared(bed: SlurmBed) -> Iterator[Direct]:
    before = observe_traces()
    with attached(bed) as made:
        yield made
    assert not (left := observe_traces().settled_minus(before)), f"left behind:\n{left}"


@pytest.fixture(scope="module")
def limited(shared: Direct) -> str:
    """Ended by Slurm a minute or two later: a test asks how, before others take nodes and Slurm's memory away."""
    return shared.begin("--max-duration", "1m", "--", "sh", "-c", "exec sleep 1000")


def test_a_job_answers_with_its_output_and_code(shared: Direct) -> None:
    code, out, err = shared.run("--", "sh", "-c", "echo out; echo err >&2; hostname; exit 7")
    assert (code, out.splitlines()[0], err) == (7, "out", "err\n")
    assert out.splitlines()[1] in ("n1", "n2", "n3")


def test_variables_folder_and_memory_are_as_asked(shared: Direct) -> None:
    script = "pwd; echo $COLOUR $STEELYARD_ATTEMPT_ID $HOME $SLURM_MEM_PER_NODE; env | grep -c ^STEELYARD_TOKEN"
    folder = shared.folder / "it's here"
    folder.mkdir(exist_ok=True)
    done = shared.cli(
        "run", "--direct", "--env", 'COLOUR=it\'s "$RED"', "--memory", "300MiB", "--", "sh", "-c", script, cwd=folder
    )
    attempt = shared.newest() + ".1"
    assert done.stdout.decode().splitlines() == [
        str(folder), f"it's \"$RED\" {attempt} {shared.bed.shared}/ada 300", "0",
    ]  # fmt: skip


def test_a_gang_spans_machines_each_rank_on_cores_of_its_own(shared: Direct) -> None:
    script = "echo $RANK/$WORLD_SIZE $LOCAL_RANK $NODE_RANK $MASTER_ADDR $(sed -n 's/Cpus_allowed_list:.//p' /proc/self/status)"
    tasks = min(2, os.cpu_count() or 1)
    code, out, err = shared.run("--nodes", "3", "--tasks-per-node", str(tasks), "--", "sh", "-c", script)
    assert code == 0, err
    rows = [line.split() for line in sorted(out.splitlines())]
    assert [row[:4] for row in rows] == [
        [f"{rank}/{3 * tasks}", str(rank % tasks), str(rank // tasks), "n1"] for rank in range(3 * tasks)
    ]
    for node in range(3):
        assert len({row[4] for row in rows if row[2] == str(node)}) == tasks


def test_an_mpi_program_is_started_by_srun(shared: Direct) -> None:
    (shared.folder / "ring.py").write_text(RING)
    code, out, err = shared.run("--nodes", "3", "--launcher", "mpi", "--", "/usr/bin/python3", "ring.py")
    assert (code, sorted(out.splitlines())) == (0, [f"rank {rank}, sum 6" for rank in range(3)]), err


def test_a_path_without_slurm_is_the_ranks_own_affair(shared: Direct) -> None:
    script = "echo $RANK $PATH"
    code, out, err = shared.run("--env", "PATH=/nowhere", "--nodes", "2", "--", "/bin/sh", "-c", script)
    assert (code, sorted(out.splitlines())) == (0, ["0 /nowhere", "1 /nowhere"]), err


def test_torchrun_is_started_once_per_node_with_the_cpus_of_its_ranks(shared: Direct) -> None:
    programs = shared.folder / "torch"
    programs.mkdir()
    (programs / "torchrun").write_text('#!/bin/sh\necho $STEELYARD_NODE_RANK ${RANK-none} $(nproc) "$@"\n')
    (programs / "torchrun").chmod(0o755)
    each = min(2, os.cpu_count() or 1)
    more = ("--env", f"PATH={programs}:/usr/bin:/bin", "--tasks-per-node", str(each))
    code, out, err = shared.run("--nodes", "2", "--launcher", "torchrun", *more, "--", "train.py", "it's", "--lr=1")
    assert code == 0, err
    attempt = shared.newest() + ".1"
    for node, line in enumerate(sorted(out.splitlines())):
        head, endpoint, tail = re.split(r" (--rdzv-endpoint=\S+)", line)
        assert head == f"{node} none {each} --nnodes=2 --nproc-per-node={each} --rdzv-backend=c10d"
        assert re.fullmatch(r"--rdzv-endpoint=n1:\d+", endpoint)
        assert tail == f" --rdzv-id={attempt} train.py it's --lr=1"


def test_a_script_for_sbatch_is_slurms_own_there(shared: Direct) -> None:
    """Its size in Slurm's words, its array and its files as here."""
    script = shared.folder / "job.sh"
    lines = [
        "#!/bin/bash",
        "#SBATCH -N2 --ntasks-per-node=1 --mem-per-cpu=60M",
        "#SBATCH --array=4-5 -o of-%A_%a.txt",
        'cd "$SLURM_SUBMIT_DIR" && srun sh -c "echo $SLURM_ARRAY_TASK_ID $1 \\$SLURM_PROCID" | sort',
        "exit $((SLURM_ARRAY_TASK_ID - 4))",
    ]
    script.write_text("\n".join([*lines, ""]))
    answer = json.loads(shared.ok("submit", "--direct", "--json", str(script), "word"))
    assert answer["ignored"] == []
    shared.wait_job(f"{answer['id']}_4", "SUCCEEDED", 60)
    assert shared.wait_job(f"{answer['id']}_5", "FAILED", 60)["exit_code"] == 1
    number = int(answer["id"].removeprefix("j-"))
    for index in (4, 5):
        assert (shared.folder / f"of-{number}_{index}.txt").read_text() == f"{index} word 0\n{index} word 1\n"
    closed = json.loads(shared.ok("submit", "--direct", "--json", "--partition=closed", "--wrap", "true"))["id"]
    # by 24.11 it waits there for ever
    wait_until(lambda: re.search("permitted to use this partition", shared.job(closed)["detail"]), 60, "Slurm to say no")
    shared.tell("stop", closed)
    code, _, err = shared.tell("submit", "--direct", "--clusters=other", "--wrap", "true")
    assert (code, "--clusters can't be done" in err) == (2, True)


def test_what_a_job_got_and_used_is_told(shared: Direct) -> None:
    gate = shared.folder / "gate3"
    job = shared.begin("--memory", "200MiB", "--", "sh", "-c", f"while [ ! -e {gate} ]; do :; done")
    wait_until(lambda: shared.proof(job)["state"] != "UNKNOWN", 60, "the task to begin")
    while_it_runs = shared.proof(job)
    gate.touch()
    shared.wait_job(job, "SUCCEEDED", 60)
    proof = shared.proof(job)
    assert proof["state"] == "MATCH" and proof["got"] == while_it_runs["got"], proof
    assert (proof["asked"]["cpu_count"], proof["got"]["cpu_count"]) == (1, 1)
    assert (proof["got"]["memory_bytes"], proof["got"]["uid"]) == (200 << 20, 64321)
    assert proof["got"]["host"] in ("n1", "n2", "n3") and proof["got"]["memory_nodes"]
    usage = json.loads(shared.ok("job", job, "--json"))["usage"]
    assert usage["cpu_s"] > 0 and usage["memory_peak_bytes"] > 1 << 20


def test_output_files_are_written_where_they_were_asked_for(shared: Direct, limited: str) -> None:
    out, err = shared.folder / "100%.out", shared.folder / "err"
    code, _, _ = shared.run("--output", str(out), "--error", str(err), "--", "sh", "-c", "echo out; echo err >&2")
    assert (code, out.read_text(), err.read_text()) == (0, "out\n", "err\n")
    closed = shared.begin("--output", "/proc/closed", "true")
    assert "could not open /proc/closed" in shared.wait_job(closed, "FAILED", 60)["detail"]


def test_a_job_that_waits_says_so_in_slurms_words_and_leaves_the_queue(shared: Direct) -> None:
    with shared.bed.closed():
        job = shared.begin("sleep", "1000")
        seen = shared.wait_job(job, "STARTING")
        wait_until(lambda: shared.job(job)["reason"] == "slurm-queue", 30, "Slurm's reason")
        wait_until(lambda: "in Slurm's queue: PartitionDown" in shared.ok("why", job), 30, "Slurm to look at it")
        shared.ok("stop", job)
        seen = shared.wait_job(job, "STOPPED")
    assert (seen["exit_code"], seen["started_at"]) == (None, None)
    assert [state for _, state in shared.entries(job)] == ["CANCELLED"]


def test_an_array_is_one_of_slurms_and_its_elements_are_told_apart(shared: Direct) -> None:
    out = shared.folder / "of"
    out.mkdir(mode=0o777)
    out.chmod(0o777)
    script = "echo $SLURM_ARRAY_TASK_ID $STEELYARD_ARRAY_INDEX $STEELYARD_ATTEMPT_ID; exit $((1004 - STEELYARD_ARRAY_INDEX))"
    job = shared.begin("--array", "3,1003-1004", "--output", f"{out}/%a", "--", "sh", "-c", script)
    shared.wait_job(f"{job}_1004", "SUCCEEDED", 60)
    assert shared.wait_job(f"{job}_1003", "FAILED", 60)["exit_code"] == 1
    shared.wait_job(f"{job}_3", "FAILED", 60)
    assert {file.name: file.read_text() for file in out.iterdir()} == {
        str(index): f"{index} {index} {job}_{index}.1\n" for index in (3, 1003, 1004)
    }
    numbers = [number for number, _ in shared.entries(job, "_")]
    # a thousand indices at most in each of Slurm's arrays
    assert len({number.partition("_")[0] for number in numbers}) == 2, numbers


def test_elements_of_an_array_that_waits_are_stopped_one_by_one(shared: Direct) -> None:
    with shared.bed.closed():
        job = shared.begin("--array", "0-3", "true")
        for index in (0, 3):
            shared.wait_job(f"{job}_{index}", "STARTING", 60)
        wait_until(lambda: shared.job(f"{job}_2")["reason"] == "slurm-queue", 60, "Slurm's reason")
        shared.ok("stop", f"{job}_2")
        shared.wait_job(f"{job}_2", "STOPPED", 60)
        assert shared.job(f"{job}_1")["state"] == "STARTING"
        shared.ok("stop", job)
        for index in (0, 1, 3):
            shared.wait_job(f"{job}_{index}", "STOPPED", 60)


def test_a_job_in_a_partition_that_slurm_hides_is_seen(shared: Direct) -> None:
    shared.bed.ok("scontrol", "update", "PartitionName=main", "Hidden=YES")
    try:
        job = shared.begin("--", "sh", "-c", "echo ready; exec sleep 1000")
        shared.wait_job(job, "RUNNING", 60)
        shared.ok("stop", job)
        shared.wait_job(job, "STOPPED", 60)
    finally:
        shared.bed.ok("scontrol", "update", "PartitionName=main", "Hidden=NO")


def test_a_job_that_slurm_refuses_fails_with_its_words(shared: Direct) -> None:
    job = shared.begin("--gpus", "1", "true")
    seen = shared.wait_job(job, "FAILED", 60)
    assert (seen["reason"], seen["detail"].startswith("Slurm says: ")) == ("start-failed", True), seen


def test_a_job_that_somebody_cancels_in_slurm_is_stopped(shared: Direct) -> None:
    job = shared.begin("--", "sh", "-c", "echo ready; exec sleep 1000")
    wait_until(lambda: shared.ok("logs", job) == "ready\n", 60, "it to run")
    ((number, _),) = shared.entries(job)
    shared.bed.ok("scancel", number)
    seen = shared.wait_job(job, "STOPPED", 60)
    assert seen["reason"] == "cancelled-in-slurm"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--image", "docker://x/y:z", "true"), "image: Slurm's queue decides there"),
        (("--exclusive", "true"), "exclusive: Slurm's queue decides there"),
        (("--env", "a.b=1", "true"), "'a.b' can't be a variable of a batch script"),
    ],
)
def test_what_slurms_queue_cannot_do_is_refused(shared: Direct, words: tuple[str, ...], text: str) -> None:
    code, _, err = shared.run(*words)
    assert (code, text in err) == (125, True), err


def test_without_a_cluster_there_is_no_direct_road(shared: Direct) -> None:
    shared.ok("cluster", "detach")
    try:
        code, _, err = shared.run("true")
        assert (code, "No cluster is attached" in err) == (125, True)
    finally:
        shared.ok("cluster", "attach")
    assert shared.run("true")[0] == 0


# faults


def test_jobs_outlive_the_server_and_are_found_again(shared: Direct) -> None:
    gate = shared.folder / "gate"
    job = shared.begin("--", "sh", "-c", f"echo ready; while [ ! -e {gate} ]; do sleep 0.05; done; exit 4")
    shared.wait_job(job, "RUNNING", 60)
    pid = shared.kill("server")
    gate.touch()
    shared.wait_replaced("server", pid)
    shared.wait_ready()
    assert shared.wait_job(job, "FAILED", 60)["exit_code"] == 4
    assert len(shared.entries(job)) == 1


def test_a_silent_slurmctld_makes_jobs_unknown_and_their_ends_are_told_when_it_is_back(shared: Direct) -> None:
    gate = shared.folder / "gate2"
    job = shared.begin("--", "sh", "-c", f"echo ready; while [ ! -e {gate} ]; do sleep 0.05; done; exit 6")
    wait_until(lambda: shared.job(job)["state"] == "RUNNING", 60, "it to run")
    shared.bed.stop("head", signal.SIGTERM)
    try:
        gate.touch()
        seen: dict[str, Any] = shared.wait_job(job, "UNKNOWN", 120)
        assert seen["reason"] == "slurm-silent"
    finally:
        shared.bed.start("head")
    assert shared.wait_job(job, "FAILED", 60)["exit_code"] == 6
    assert len(shared.entries(job)) == 1


def test_an_answer_that_was_lost_is_found_again_and_nothing_runs_twice(shared: Direct) -> None:
    """`sbatch` hands the job over and then says that slurmctld timed out."""
    folder, log = shared.folder / "bin", shared.folder / "ran"
    folder.mkdir()
    real = shutil.which("sbatch", path=shared.bed.led["PATH"])
    (folder / "sbatch").write_text(
        f'#!/bin/sh\n{real} "$@" >/dev/null\necho "sbatch: error: Batch job submission failed: Socket timed out" >&2\nexit 1\n'
    )
    (folder / "sbatch").chmod(0o755)
    pid = shared.kill("server")
    shared.wait_replaced("server", pid)
    shared.down()
    path = f"{folder}:{shared.bed.led['PATH']}"
    shared.ok("up", "--detach", "--port", str(shared.api_port), env={"PATH": path})
    try:
        job = shared.begin("--", "sh", "-c", f"echo ran >>{log}")
        shared.wait_job(job, "SUCCEEDED", 60)
        assert (len(shared.entries(job)), log.read_text()) == (1, "ran\n")
    finally:
        shared.down()
        shared.up()


def test_a_killed_slurmd_costs_no_job(shared: Direct) -> None:
    gate = shared.folder / "gate4"
    job = shared.begin("--", "sh", "-c", f"hostname; while [ ! -e {gate} ]; do sleep 0.05; done; exit 4")
    node = wait_until(lambda: shared.ok("logs", job).strip(), 60, "it to run")
    shared.bed.stop(node)
    gate.touch()
    shared.bed.start(node)
    assert shared.wait_job(job, "FAILED", 60)["exit_code"] == 4
    assert len(shared.entries(job)) == 1


def test_a_job_at_its_time_limit_is_ended_by_slurm_and_says_so(shared: Direct, limited: str) -> None:
    seen = shared.wait_job(limited, "FAILED", 110)
    assert (seen["reason"], seen["exit_code"]) == ("max-duration", 128 + signal.SIGTERM)


def test_a_node_that_is_cut_off_loses_its_job_and_another_attempt_runs_elsewhere(shared: Direct) -> None:
    mark = shared.folder / "cut"
    script = f"hostname; [ ! -e {mark} ] || exit 0; exec sleep 1000"
    job = shared.begin("--retry", "node-lost:1@0s", "--", "sh", "-c", script)
    node = wait_until(lambda: shared.ok("logs", job).strip(), 60, "it to run")
    mark.touch()
    shared.bed[node].cut()
    try:
        seen = shared.wait_job(job, "SUCCEEDED", 90)
        assert seen["restarts"] == 1 and shared.ok("logs", job).strip() != node
    finally:
        shared.bed[node].heal()
    wait_until(lambda: shared.bed.ok("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T").strip() in ("idle", "mixed"), 60, "it")


def test_a_slurm_that_lost_its_state_is_told_by_the_records(shared: Direct) -> None:
    gate = shared.folder / "gate5"
    job = shared.begin("--", "sh", "-c", f"echo ready; while [ ! -e {gate} ]; do sleep 0.05; done; exit 6")
    wait_until(lambda: shared.ok("logs", job).strip(), 60, "it to run")
    with shared.bed.closed():
        waits = shared.begin("true")
        wait_until(lambda: shared.job(job)["state"] == "RUNNING" and shared.job(waits)["reason"] == "slurm-queue", 60, "both")
        shared.bed.stop("head")
        gate.touch()
        wait_until(lambda: list((shared.home / "slurm").glob(f"*/{job}.1.0.exit")), 60, "its record")
        shared.bed["head"].ok("sh", "-c", "rm -rf /var/spool/slurmctld/*")
        shared.bed.start("head")
        assert shared.wait_job(job, "FAILED", 60)["exit_code"] == 6
        # nobody can say that what had not begun never will: it does not run twice
        lost = shared.wait_job(waits, "FAILED", 60)
        assert (lost["reason"], "no longer knows" in lost["detail"]) == ("exit-unknown", True)


def test_a_slurm_that_came_back_with_an_older_state_starts_nothing_twice(shared: Direct) -> None:
    ran = shared.folder / "older"
    job = shared.begin("--", "sh", "-c", f"echo ran >>{ran}; exec sleep 1000")
    wait_until(ran.exists, 60, "it to run")
    # before it has written down that the job runs
    shared.bed.stop("head")
    shared.bed.start("head")
    wait_until(lambda: shared.job(job)["state"] in ("STOPPED", "FAILED"), 60, "Slurm to have given it up")
    assert ran.read_text() == "ran\n"
    # where the first was still there, Slurm has drained its node: "Duplicate jobid"
    for node in ("n1", "n2", "n3"):
        shared.bed.run("scontrol", "update", f"node={node}", "state=resume")
    wait_until(lambda: "drain" not in shared.bed.ok("sinfo", "-h", "-N", "-o", "%T"), 60, "all nodes to take work")


def test_a_changed_slurm_conf_is_slurms_business(shared: Direct) -> None:
    before = (shared.bed.folder / "slurm.conf").read_text()
    conf = render_conf(shared.bed.machines)
    shared.bed.write_conf(conf.replace("PartitionName=main ", "PartitionName=other "))
    try:
        shared.bed["head"].ok("scontrol", "reconfigure")
        # the attachment names no partition, so Slurm's own default holds
        assert shared.run("true")[0] == 0
        shared.bed.write_conf(conf.replace("Default=YES", "Default=YES State=DOWN"))
        shared.bed["head"].ok("scontrol", "reconfigure")
        job = shared.begin("true")
        wait_until(lambda: "PartitionDown" in shared.job(job)["detail"], 60, "Slurm's reason")
    finally:
        shared.bed.write_conf(conf)
        shared.bed["head"].ok("scontrol", "reconfigure")
    assert (shared.bed.folder / "slurm.conf").read_text() == before
    shared.wait_job(job, "SUCCEEDED", 60)
