"""Scratch space of real jobs: of the size that was asked for, the job's alone, and gone when it ends, however it ends."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, wait_until

from steelyard.errors import NoRoom
from steelyard.host.scratch import ScratchDisk
from steelyard.model.ids import WorkloadId

MIB = 1 << 20
ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control") or shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None,
    reason="NOT VERIFIED: mounting takes root, loop devices and mkfs.ext4",
)
FILL = "dd if=/dev/zero of=$TMPDIR/full bs=64K count=4096 2>&1; df --output=size -B1 $STEELYARD_SCRATCH | tail -1"


def submit(cluster: Cluster, *argv: str, **resources: Any) -> str:
    spec = {"name": "t", "argv": argv, "cwd": "/", "resources": {"cpus": 0.1, **resources}}
    answer = cluster.api("POST", "/v1/jobs", {"spec": spec})
    assert answer.status == 201, answer.body
    return answer.json()["id"]


def scratch_of(cluster: Cluster) -> list[Path]:
    return sorted(Path("/").glob(f"*/steelyard-scratch-{cluster.tag}/*")) + sorted(cluster.home.glob("steelyard-scratch-*/*"))


def loops(cluster: Cluster) -> list[str]:
    files = (file.read_text() for file in Path("/sys/block").glob("loop*/loop/backing_file"))
    return [file for file in files if cluster.tag in file]


def mounts(cluster: Cluster) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if cluster.tag in line]


@ROOT
def test_what_does_not_fit_is_refused_by_the_disk_and_nothing_is_left(shared: Cluster) -> None:
    done = shared.cli("run", "--scratch", "32MiB", "--", "sh", "-c", FILL)
    assert b"No space left" in done.stdout, done
    assert 32 * MIB <= int(done.stdout.split()[-1]) < 37 * MIB
    wait_until(lambda: not scratch_of(shared) and not mounts(shared), 5, "the scratch folder to be gone")
    assert loops(shared) == []


@ROOT
def test_it_is_the_jobs_own_and_its_use_is_in_the_record(shared: Cluster) -> None:
    job = submit(
        shared,
        "sh",
        "-c",
        "stat -c '%u %a' $TMPDIR; head -c 5M /dev/zero > $TMPDIR/x; test -w / ; sleep 60",
        scratch_bytes=32 * MIB,
    )
    shared.wait_job(job, "RUNNING")
    assert len(mounts(shared)) == 1 and "nosuid,nodev" in mounts(shared)[0]
    used = wait_until(lambda: usage(shared, job).get("scratch_peak_bytes") or None, 5, "its use to be told")
    assert used is not None
    proof = shared.api("GET", f"/v1/jobs/{job}/proof").json()
    assert (proof["asked"]["scratch_bytes"], proof["state"]) == (32 * MIB, "MATCH"), proof
    wait_until(lambda: usage(shared, job)["scratch_peak_bytes"] >= 5 * MIB or None, 5, "all of it to be told")
    assert shared.cli("logs", job).stdout.split()[1] == b"700"
    shared.ok("stop", job)
    wait_until(lambda: not scratch_of(shared) and not mounts(shared), 5, "the scratch folder to be gone")


def usage(cluster: Cluster, job: str) -> dict[str, Any]:
    return cluster.api("GET", f"/v1/jobs/{job}/usage").json()


def test_more_than_any_disk_has_is_refused_before_the_start(shared: Cluster) -> None:
    job = submit(shared, "true", scratch_bytes=1 << 55)
    assert "no local disk has room" in shared.wait_job(job, "FAILED")["detail"]


@ROOT
def test_an_agent_that_was_killed_finds_it_again_and_clears_what_ended_meanwhile(cluster: Cluster) -> None:
    stays = submit(cluster, "sh", "-c", "sleep 60", scratch_bytes=16 * MIB)
    ends = submit(cluster, "sh", "-c", "sleep 1", scratch_bytes=16 * MIB)
    for job in (stays, ends):
        cluster.wait_job(job, "RUNNING")
    assert len(mounts(cluster)) == len(loops(cluster)) == 2
    pid = cluster.kill("agent")
    cluster.wait_replaced("agent", pid)
    cluster.wait_job(ends, "SUCCEEDED")
    wait_until(lambda: len(mounts(cluster)) == 1 or None, 10, "the ended job's folder to be gone")
    assert cluster.api("GET", f"/v1/jobs/{stays}/proof").json()["state"] == "MATCH"
    cluster.down()
    assert mounts(cluster) == [] and scratch_of(cluster) == [] and loops(cluster) == []
    assert not list(cluster.home.glob("steelyard-scratch-*"))


@pytest.fixture
def disk(nothing_left_behind: None, tmp_path: Path) -> Any:
    made = ScratchDisk(tmp_path, f"test{os.getpid()}", configured=tmp_path)
    yield made
    made.destroy()


JOB = WorkloadId("j-000001.1")


def _written() -> int:
    """Bytes that this process and the programs that it waited for caused to be written."""
    return int(Path("/proc/self/io").read_text().split("\nwrite_bytes:")[1].split()[0])


@ROOT
def test_twenty_gigabytes_are_promised_and_not_written(disk: ScratchDisk) -> None:
    written = _written()
    try:
        disk.make(JOB, 20 << 30, (64000, 64000))
    except NoRoom:
        pytest.skip("NOT VERIFIED: 20 GiB are not free here")
    assert disk.remove(JOB)
    assert _written() - written < 64 * MIB


@ROOT
def test_whoever_still_holds_it_loses_it_all_the_same(disk: ScratchDisk) -> None:
    scratch = disk.make(JOB, 16 * MIB, None)
    with open(f"{scratch.folder}/held", "wb") as held:
        assert disk.remove(JOB)
        assert not os.path.exists(scratch.folder)
        assert scratch.folder not in Path("/proc/self/mounts").read_text()
        held.write(b"x")


@ROOT
def test_space_is_taken_when_it_is_promised(disk: ScratchDisk, tmp_path: Path) -> None:
    before = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    disk.make(JOB, 256 * MIB, None)
    after = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert before - after >= 200 * MIB


def test_without_mounts_the_size_is_watched(disk: ScratchDisk, tmp_path: Path) -> None:
    plain = ScratchDisk(tmp_path, f"test{os.getpid()}", configured=tmp_path, root=False)
    scratch = plain.make(JOB, 4 * MIB, None)
    assert (scratch.enforced, plain.size_bytes(JOB)) == (False, 4 * MIB)
    Path(scratch.folder, "a/b").mkdir(parents=True)
    Path(scratch.folder, "a/b/c").write_bytes(bytes(MIB))
    Path(scratch.folder, "away").symlink_to("/usr")
    used = plain.observe(JOB)
    assert used is not None and used.complete and MIB <= used.used_bytes < 2 * MIB
    found = ScratchDisk(tmp_path, f"test{os.getpid()}", configured=tmp_path, root=False).find(JOB)
    assert found == scratch
    plain.sweep([JOB])
    assert os.path.exists(scratch.folder)
    plain.sweep([])
    assert not os.path.exists(scratch.folder) and json.dumps(os.listdir(Path(scratch.folder).parent)) == "[]"
