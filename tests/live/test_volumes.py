"""Volumes for real: jobs and functions that mount them, on a Steelyard of root and on one of an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, UserCluster, started, wait_until

APP = """
import os
import steelyard as sy

app = sy.App("keep")
notes = sy.Volume.from_name("notes", create_if_missing=True)
SEEN_AT_IMPORT = os.path.isdir("/notes")


@app.function(volumes={"/notes": notes}, max_replicas=2, concurrency=1)
def write(name: str, text: str) -> str:
    with open(f"/notes/{name}", "w") as file:
        file.write(text)
    return os.environ["STEELYARD_VOLUME_NOTES"]


@app.function(volumes={"/deep/notes": notes.read_only()})
def read(name: str) -> str:
    try:
        open(f"/deep/notes/{name}.no", "w")
    except OSError as err:
        return open(f"/deep/notes/{name}").read() + " " + str(err.strerror)
    return "it could be written"


@app.function(volumes={"/notes": notes}, max_replicas=2, concurrency=1)
def meet(me: str, other: str) -> bool:
    import time

    open(f"/notes/{me}", "w").close()
    for _ in range(2000):
        if os.path.exists(f"/notes/{other}"):
            return True
        time.sleep(0.01)
    return False


@app.function()
def plain() -> list[bool]:
    return [SEEN_AT_IMPORT, os.path.exists("/notes"), "STEELYARD_VOLUME_NOTES" in os.environ]


@app.function(volumes={"/notes": notes})
def imported() -> bool:
    return SEEN_AT_IMPORT
"""


def user_can_run() -> bool:
    """May that user execute this interpreter, and make a namespace?"""
    done = subprocess.run(
        [*UserCluster.as_user, "unshare", "--user", "--mount", "--map-current-user", sys.executable, "-c", "import msgspec"],
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


@pytest.fixture
def users(nothing_left_behind: None) -> Iterator[Cluster]:
    if not user_can_run():
        pytest.skip("NOT VERIFIED: an ordinary user can't run this interpreter in a user namespace here")
    with started(UserCluster) as made:
        yield made


@pytest.fixture
def lent(shared: Cluster) -> Iterator[Cluster]:
    """The shared one; the app and its volume end with the test."""
    yield shared
    for row in json.loads(shared.ok("functions", "--json")):
        shared.ok("delete", row["name"])
    shared.ok("volumes", "delete", "--yes", "notes")


def host_mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def run(cluster: Cluster, script: str, *options: str) -> tuple[int, str, str]:
    done = cluster.cli("run", *options, "--", "sh", "-c", script)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def volumes(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(cluster.ok("volumes", "list", "--json"))}


def deploy(cluster: Cluster) -> None:
    file = cluster.folder / "keep.py"
    file.write_text(APP)
    cluster.ok("deploy", str(file))


def call(cluster: Cluster, function: str, **arguments: object) -> Any:
    return json.loads(cluster.ok("call", f"keep-{function}", "--json", json.dumps(arguments)))


def check_jobs_and_functions(cluster: Cluster) -> None:
    before = host_mounts()
    deploy(cluster)
    assert call(cluster, "write", name="a", text="from a function") == "/notes"
    assert call(cluster, "read", name="a") == "from a function Read-only file system"
    code, out, err = run(
        cluster, "cat /x/y/a; echo; echo from a job > /x/y/b; echo $STEELYARD_VOLUME_NOTES", "--volume", "notes:/x/y"
    )
    assert (code, out) == (0, "from a function\n/x/y\n"), err
    assert call(cluster, "read", name="b") == "from a job\n Read-only file system"
    assert call(cluster, "plain") == [False, False, False]
    assert call(cluster, "imported") is True
    code, out, err = run(cluster, "ls $STEELYARD_VOLUME_NOTES", "--volume", "notes")
    assert (code, out.split()) == (0, ["a", "b"]), err
    code, _, err = run(cluster, "echo no > /n/c; touch /here", "--volume", "notes:/n:ro")
    assert code != 0 and "Read-only file system" in err
    assert not {"/notes", "/x", "/n", "/deep"} & {f"/{name}" for name in os.listdir("/")}
    assert host_mounts() == before


def test_what_a_job_writes_a_function_reads_and_the_other_way_round(lent: Cluster) -> None:
    check_jobs_and_functions(lent)


def test_so_it_is_without_root(users: Cluster) -> None:
    check_jobs_and_functions(users)
    proof = prove(users)
    assert (proof["asked"]["volumes"], proof["got"]["volumes"]) == (["notes at /notes"], ["notes at /notes"])


def prove(cluster: Cluster) -> dict[str, Any]:
    job = cluster.ok("run", "-d", "--volume", "notes:/notes", "--", "sleep", "60").strip()
    cluster.wait_job(job, "RUNNING")
    proof = cluster.api("GET", f"/v1/jobs/{job}/proof").json()
    cluster.ok("stop", job)
    cluster.wait_job(job, "STOPPED")
    return proof


def test_two_replicas_see_each_others_files_at_once(lent: Cluster) -> None:
    deploy(lent)
    one = lent.start("call", "keep-meet", "--json", json.dumps({"me": "one", "other": "two"}))
    two = lent.start("call", "keep-meet", "--json", json.dumps({"me": "two", "other": "one"}))
    assert [json.loads(each.communicate(timeout=60)[0]) for each in (one, two)] == [True, True]


def test_a_killed_agent_leaves_mounts_to_its_work_and_none_to_the_machine(lent: Cluster) -> None:
    before = host_mounts()
    deploy(lent)
    call(lent, "write", name="a", text="kept")
    go = "while [ ! -e /n/go ]; do sleep 0.05; done; echo went on > /n/job"
    job = lent.ok("run", "-d", "--volume", "notes:/n", "--", "sh", "-c", go).strip()
    lent.wait_job(job, "RUNNING")
    assert lent.api("GET", f"/v1/jobs/{job}/proof").json()["got"]["volumes"] == ["notes at /n"]
    lent.wait_replaced("agent", lent.kill("agent"))
    lent.wait_ready()
    # a command beside it sees what it sees, also with an agent that did not start it
    assert lent.ok("exec", job, "--", "cat", "/n/a") == "kept"
    assert call(lent, "write", name="go", text="") == "/notes"
    lent.wait_job(job, "SUCCEEDED")
    assert call(lent, "read", name="job") == "went on\n Read-only file system"
    assert host_mounts() == before


def test_a_job_finds_its_output_and_checkpoints_in_a_volume(shared: Cluster) -> None:
    shared.ok("volumes", "create", "runs")
    script = 'echo told; test -z "$STEELYARD_CHECKPOINT" || { echo from $STEELYARD_CHECKPOINT; exit 0; }; touch /r/c/7; exit 3'
    run(shared, "mkdir /r/c", "--volume", "runs:/r")
    options = ("--volume", "runs:/r", "--checkpoint-dir", "/r/c", "--output", "/r/out", "--retry", "error:1@0s")
    job = shared.ok("run", "-d", *options, "--", "sh", "-c", script).strip()
    shared.wait_job(job, "SUCCEEDED")
    assert shared.ok("logs", job).splitlines() == ["told", "told", "from /r/c/7"]


def test_sizes_are_told_and_what_is_used_is_not_deleted(cluster: Cluster) -> None:
    deploy(cluster)
    run(cluster, "head -c 3000000 /dev/zero > /n/large", "--volume", "notes:/n")
    row = volumes(cluster)["notes"]
    assert 3_000_000 <= row["size_bytes"] < 4_000_000 and row["complete"] and row["measured_at"] and row["free_bytes"] > 0
    assert set(row["used_by"]) >= {"function keep-read", "function keep-write"}
    done = cluster.cli("volumes", "delete", "notes")
    assert done.returncode == 2 and b"3.0 MB" in done.stderr and b"--yes" in done.stderr
    refused = cluster.cli("volumes", "delete", "--yes", "notes")
    assert refused.returncode == 2 and b"function keep-write" in refused.stderr and b"--force" in refused.stderr
    job = cluster.ok("run", "-d", "--volume", "notes:/n", "--", "sleep", "60").strip()
    refused = cluster.cli("volumes", "delete", "--yes", "--force", "notes")
    assert refused.returncode == 2 and job.encode() in refused.stderr
    cluster.ok("stop", job)
    cluster.wait_job(job, "STOPPED")
    folder = Path(row["path"])
    cluster.ok("volumes", "delete", "--yes", "--force", "notes")
    wait_until(lambda: not list(folder.parent.iterdir()), 10, "its files to be gone")
    assert volumes(cluster) == {}
    # its functions say what is wrong, and go on once there is one again: not on the folder that was deleted
    failed = cluster.cli("call", "keep-write", "--json", json.dumps({"name": "a", "text": "b"}))
    assert failed.returncode != 0 and b"is not there" in failed.stderr, failed.stderr
    cluster.ok("volumes", "create", "notes")
    wait_until(lambda: cluster.cli("call", "keep-write", "--json", '{"name": "a", "text": "b"}').returncode == 0, 30, "an answer")
    assert (folder / "a").read_text() == "b"


def test_scripts_for_sbatch_and_documents_name_volumes_too(shared: Cluster) -> None:
    shared.ok("volumes", "create", "rows")
    script = shared.folder / "write.sh"
    script.write_text("#!/bin/sh\n#SBATCH --time=1\necho $((3 * 7)) > /rows/$1\n")
    shared.ok("submit", "--wait", "-o", "/rows/log", "--volume", "rows:/rows", str(script), "answer")
    document = shared.folder / "read.yaml"
    document.write_text("type: job\nname: read\nvolumes: [rows:/in:ro]\ncommands: [cat /in/answer]\n")
    (step,) = json.loads(shared.ok("apply", "-y", "--json", "-f", str(document)))
    shared.wait_job(step["id"], "SUCCEEDED")
    assert shared.ok("logs", step["id"]) == "21\n"


def test_a_folder_of_ones_own_is_a_volume_and_outlives_it(shared: Cluster) -> None:
    own = shared.folder / "shared"
    own.mkdir()
    if os.geteuid() == 0:
        own.chmod(0o700)
        refused = shared.cli("volumes", "create", "own", "--path", str(own))
        assert refused.returncode == 2 and b"chown" in refused.stderr
        os.chown(own, 64_000, 64_000)
    shared.ok("volumes", "create", "own", "--path", str(own))
    code, _, err = run(shared, "echo kept > /o/file", "--volume", "own:/o")
    assert code == 0, err
    assert "as it was" in shared.ok("volumes", "delete", "--yes", "own")
    assert (own / "file").read_text() == "kept\n"


def test_what_can_not_be_mounted_is_said_and_nothing_runs(shared: Cluster) -> None:
    shared.ok("volumes", "create", "data")
    for option, words in {
        "none:/data": "`steelyard volumes create none`",
        "data:data": "absolute path",
        "data:/data/../etc": "without ..",
        "data:/usr/local": "belongs to the machine",
        "data:/": "it is all there is",
        "data:/data:rx": "neither ro nor rw",
        "data:/tmp/not-there/x": "mkdir -p",
        f"data:{shared.home}": "would hide",
    }.items():
        code, _, err = run(shared, "echo ran", "--volume", option)
        assert code != 0 and words in err, (option, err)
    twice = shared.cli("run", "--volume", "data:/a", "--volume", "data:/a/b", "--", "true")
    assert b"more than once" in twice.stderr and b"inside" in twice.stderr
    shutil.rmtree(shared.home / "volumes" / "data")
    code, out, err = run(shared, "echo ran", "--volume", "data:/data")
    assert code != 0 and "ran" not in out and "is not there" in err
    assert volumes(shared)["data"]["error"]


def test_a_full_file_system_is_told_before_the_start(shared: Cluster) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT VERIFIED without root: a file system of two megabytes has to be mounted")
    small = shared.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,uid=64000,gid=64000", "tmpfs", str(small)], check=True)
    try:
        shared.ok("volumes", "create", "small", "--path", str(small))
        code, _, err = run(shared, "head -c 9000000 /dev/zero > /s/all", "--volume", "small:/s")
        assert code != 0 and "No space left" in err
        code, out, err = run(shared, "echo ran", "--volume", "small:/s")
        assert code != 0 and "ran" not in out and "is full" in err
        code, out, err = run(shared, "ls /s", "--volume", "small:/s:ro")
        assert (code, out) == (0, "all\n"), err
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_job_with_a_volume_does_not_hold_the_scratch_of_another(shared: Cluster) -> None:
    """Its namespace copied the mount; when the other ends, the disk's space must come back all the same."""
    if os.geteuid() != 0:
        pytest.skip("NOT VERIFIED without root: scratch has no file system of its own")
    shared.ok("volumes", "create", "quiet")
    other = shared.ok("run", "-d", "--scratch", "64MB", "--", "sleep", "60").strip()
    shared.wait_job(other, "RUNNING")
    job = shared.ok("run", "-d", "--volume", "quiet:/data", "--", "sleep", "60").strip()
    shared.wait_job(job, "RUNNING")
    assert "steelyard-scratch" in shared.ok("exec", job, "--", "cat", "/proc/self/mountinfo")
    image = next(Path(line.split()[4]) for line in host_mounts().splitlines() if "steelyard-scratch" in line)
    shared.ok("stop", other)
    shared.wait_job(other, "STOPPED")
    wait_until(lambda: not image.exists(), 10, "the scratch folder to be gone")
    assert "steelyard-scratch" not in shared.ok("exec", job, "--", "cat", "/proc/self/mountinfo")
    shared.ok("stop", job)
