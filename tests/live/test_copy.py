"""Files into running jobs and out of them, as the job's user and by the job's paths."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from steelyard_cluster import Cluster, wait_until

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries


def inside(cluster: Cluster, job: str, script: str) -> str:
    return cluster.ok("exec", job, "--", "sh", "-c", script)


def make_tree(folder: Path) -> Path:
    tree = folder / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "big").write_bytes(os.urandom(3 << 20))
    (tree / "program").write_text("#!/bin/sh\n")
    (tree / "program").chmod(0o750)
    (tree / "link").symlink_to("program")
    os.utime(tree / "program", ns=(1, 1_500_000_000_000_000_000))
    return tree


def check_both_ways(cluster: Cluster, job: str, tmp_path: Path, target: str, uid: str) -> None:
    tree = make_tree(tmp_path)
    cluster.ok("cp", str(tree), f"{job}:{target}")
    told = inside(cluster, job, f"cd {target}; stat -c '%u %a %Y' program; readlink link; wc -c < sub/big")
    assert told.split("\n")[:3] == [f"{uid} 750 1500000000", "program", str(3 << 20)]
    cluster.ok("cp", f"{job}:{target}", str(tmp_path / "back"))
    assert (tmp_path / "back" / "sub" / "big").read_bytes() == (tree / "sub" / "big").read_bytes()
    assert (tmp_path / "back" / "program").stat().st_mode == (tree / "program").stat().st_mode
    assert os.readlink(tmp_path / "back" / "link") == "program"
    (tmp_path / "into").mkdir()
    cluster.ok("cp", f"{job}:{target}/program", str(tmp_path / "into"))
    assert (tmp_path / "into" / "program").read_text() == "#!/bin/sh\n"
    inside(cluster, job, f"rm -r {target}")


def test_files_and_folders_both_ways_as_the_jobs_user(shared: Cluster, tmp_path: Path) -> None:
    job = shared.running("sleep", "1000")
    check_both_ways(shared, job, tmp_path, f"/tmp/copied-{os.getpid()}", inside(shared, job, "id -u").strip())
    shared.ok("stop", job)


@NEEDS_CONTAINERS
def test_paths_and_links_of_a_container_mean_what_they_mean_inside(shared: Cluster, registry: Registry, tmp_path: Path) -> None:
    image = registry.add("busybox:1", OciImage(busybox_entries(), config={"Env": ["PATH=/bin"]}))
    job = shared.running("sleep", "1000", cwd="", image=image)
    check_both_ways(shared, job, tmp_path, "/tmp/copied", "0")
    inside(shared, job, "echo of the container > /tmp/passwd; ln -s /tmp/passwd /tmp/l; ln -s /../../../../etc/shadow /tmp/out")
    shared.ok("cp", f"{job}:/tmp/l", str(tmp_path / "got"))
    assert (tmp_path / "got").read_text() == "of the container\n"
    refused = shared.cli("cp", f"{job}:/tmp/out", str(tmp_path / "shadow"))
    assert refused.returncode == 1 and b"No such file" in refused.stderr
    # a folder that leads out of it, by a link, is one inside too
    (tmp_path / "mark").write_text("mark")
    inside(shared, job, "ln -s / /tmp/root")
    shared.ok("cp", str(tmp_path / "mark"), f"{job}:/tmp/root/tmp")
    assert inside(shared, job, "cat /tmp/mark") == "mark"
    shared.ok("stop", job)


def test_the_jobs_user_may_no_more_than_it_may(shared: Cluster, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT VERIFIED without root: work runs as ourselves")
    job = shared.running("sleep", "1000")
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    refused = shared.cli("cp", f"{job}:{secret}", str(tmp_path / "got"))
    assert refused.returncode == 1 and b"Permission denied" in refused.stderr
    refused = shared.cli("cp", str(secret), f"{job}:/etc/steelyard-copied")
    assert refused.returncode == 1 and b"Permission denied" in refused.stderr
    assert not Path("/etc/steelyard-copied").exists() and not (tmp_path / "got").exists()
    shared.ok("stop", job)


def test_one_that_is_broken_off_leaves_the_old_file(shared: Cluster, tmp_path: Path) -> None:
    job = shared.running("sleep", "1000")
    folder = f"/tmp/broken-{os.getpid()}"
    inside(shared, job, f"mkdir {folder}; echo old > {folder}/f")
    big = tmp_path / "f"
    with open(big, "wb") as file:
        file.truncate(64 << 30)
    command = shared.start("cp", str(big), f"{job}:{folder}/f")
    wait_until(lambda: ".part" in inside(shared, job, f"ls -A {folder}"), 30, "the copy to begin")
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=30)
    assert command.returncode == 130
    wait_until(lambda: inside(shared, job, f"ls -A {folder}") == "f\n", 30, "what was begun to be gone")
    assert inside(shared, job, f"cat {folder}/f; rm -r {folder}") == "old\n"
    shared.ok("stop", job)


def test_what_can_not_be_copied_is_refused_in_words(shared: Cluster, tmp_path: Path) -> None:
    job = shared.running("sleep", "1000")
    for words, code, sentence in (
        (["/tmp/a", "/tmp/b"], 2, b"One of both"),
        ([f"{job}:/a", f"{job}:/b"], 2, b"One of both"),
        ([str(tmp_path / "none"), f"{job}:/tmp"], 2, b"no file"),
        ([f"{job}:/dev/null", str(tmp_path / "null")], 1, b"device"),
        ([f"{job}:/none", str(tmp_path)], 1, b"No such file"),
        (["j-999999:/tmp", str(tmp_path)], 2, b"no job"),
    ):
        done = shared.cli("cp", *words)
        assert done.returncode == code and sentence in done.stderr, done
    assert list(tmp_path.iterdir()) == []
    shared.ok("stop", job)
