"""Images and volumes on machines of a pool, on a real Slurm: what a machine lacks it has from the home, or says why not."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool_cluster import PoolCluster, RootPoolCluster, pooled
from steelyard_cluster import wait_until
from test_pool_jobs import begin, wait_for

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries

APP = """
import os, socket, sys

import steelyard as sy

image = sy.Image.python().env({"COLOUR": "blue"}).copy("helper.py")
app = sy.App("pics", image=image)


@app.function(pool="train")
def look() -> list:
    import helper
    return [socket.gethostname(), sys.prefix, os.environ["COLOUR"], helper.WORD]
"""
SAY = "import helper, os, socket, sys; print(socket.gethostname(), sys.prefix, os.environ['COLOUR'], helper.WORD)"


@pytest.fixture(scope="module")
def shared() -> Iterator[PoolCluster]:
    with pooled() as made:
        made.create("train", "--nodes", "2..2")
        wait_until(lambda: len([each for each in made.pilots("train") if each["state"] == "READY"]) == 2, 90, "two machines")
        yield made


def write_app(cluster: PoolCluster) -> Path:
    folder = cluster.folder / "pics"
    folder.mkdir(exist_ok=True)
    (folder / "helper.py").write_text("WORD = 'helped'\n")
    (folder / "pics.py").write_text(APP)
    return folder / "pics.py"


def test_an_environment_comes_to_each_machine_that_lacks_it_for_jobs_and_functions(shared: PoolCluster) -> None:
    file = write_app(shared)
    image = shared.ok("image", "build", f"{file}:image").strip()
    for _ in range(2):  # the second time it is there
        done = shared.cli("run", "--pool", "train", "--image", image, "--cpus", "0.1", "--", "python", "-c", SAY)
        assert done.returncode == 0, done
        node, prefix, *said = done.stdout.decode().split()
        assert node in ("n1", "n2") and said == ["blue", "helped"], done
        assert prefix.startswith("/tmp/steelyard-") and image in prefix, "from the node's own disk"
    shared.ok("deploy", str(file))
    told = json.loads(shared.ok("call", "pics-look"))
    assert told[0] in ("n1", "n2") and told[1].startswith("/tmp/steelyard-") and told[2:] == ["blue", "helped"], told
    shared.ok("delete", "pics-look")
    refused = shared.cli("run", "--pool", "train", "--image", "docker://alpine:3", "--", "true")
    assert refused.returncode != 0 and b"containers need root" in refused.stderr, refused
    # what a machine can't have it says: here the home has lost it
    (folder,) = (shared.home / "environments").glob("*")
    other = next(each for each in shared.pilots("train") if each["node"] != node)
    full = [begin(shared, "--cpus", "1", "--", "sleep", "1000") for _ in range(2)]
    rows = [wait_for(shared, each, "RUNNING") for each in full]
    shared.ok("stop", next(row["id"] for row in rows if row["machine"] == other["id"]))
    job = begin(shared, "--hold", "--image", image, "--cpus", "0.1", "--", "true")
    (folder / image).rename(folder / "elsewhere")
    try:
        shared.ok("release", job)
        failed = wait_for(shared, job, "FAILED")
        assert (failed["machine"], failed["reason"]) == (other["id"], "image-missing"), failed
        assert "is not on the home's machine any more" in failed["detail"]
    finally:
        (folder / "elsewhere").rename(folder / image)
        for row in full:
            shared.cli("stop", row)


def test_volumes_are_those_that_the_machines_share(shared: PoolCluster) -> None:
    shared.ok("volumes", "create", "notes")
    words = ("run", "--pool", "train", "--cpus", "0.1", "--volume")
    shared.ok(*words, "notes", "--", "sh", "-c", "echo there >$STEELYARD_VOLUME_NOTES/file")
    assert shared.ok(*words, "notes", "--", "sh", "-c", "cat $STEELYARD_VOLUME_NOTES/file") == "there\n"
    folder = shared.folder / "local"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    shared.ok("volumes", "create", "local", "--path", str(folder))
    shared.ok(*words, "local", "--", "true")
    for node in ("n1", "n2"):
        shared.bed[node].ok("mount", "-t", "tmpfs", "-o", "size=1m", "own", str(folder))
    try:
        done = shared.cli(*words, "local", "--", "true")
        assert done.returncode != 0 and b"own (tmpfs), and not the home's" in done.stderr, done
    finally:
        for node in ("n1", "n2"):
            shared.bed[node].ok("umount", str(folder))
    gone = shared.folder / "gone"
    folder.rename(gone)
    done = shared.cli(*words, "local", "--", "true")
    assert done.returncode != 0 and b"is not seen on n" in done.stderr, done


@NEEDS_CONTAINERS
def test_a_container_of_a_machine_has_the_image_that_the_home_has(registry: Registry) -> None:
    image = registry.add("far:1", OciImage(busybox_entries(), config={"Env": ["PATH=/bin", "FROM_IMAGE=yes"]}))
    with pooled(1, RootPoolCluster) as made:
        made.create("train", "--nodes", "1..1")
        words = ("run", "--pool", "train", "--cpus", "0.1", "--image", image)
        # the registry is on a loopback that the node does not have
        done = made.cli(*words, "--", "sh", "-c", "echo $FROM_IMAGE; id -u; ls /; exit 4", timeout=120)
        assert done.returncode == 4, done
        assert done.stdout.decode().splitlines()[:2] == ["yes", "0"] and b"work" not in done.stdout.split(), done
        asked = len(registry.asked)
        job = begin(made, "--cpus", "0.1", "--image", image, "--", "sleep", "1000")
        wait_for(made, job, "RUNNING")
        assert len(registry.asked) == asked, "it is there now"
        assert made.ok("exec", job, "--", "sh", "-c", "echo $FROM_IMAGE").strip() == "yes"
        proof = json.loads(made.ok("proof", job, "--json"))
        assert proof["got"]["tier"] == "T1", proof
        made.ok("stop", job)
        wait_for(made, job, "STOPPED")
        file = made.folder / "stepped.py"
        file.write_text(f"import steelyard as sy\nstepped = sy.Image.from_registry('{image}').run('echo made >/made')\n")
        built = made.ok("image", "build", f"{file}:stepped", timeout=120).strip().splitlines()[-1]
        assert made.ok(*words[:-1], built, "--", "cat", "/made", timeout=120) == "made\n"
        serve = ("sh", "-c", "exec httpd -f -p 127.0.0.1:$PORT -h /")
        made.ok(
            "deploy", "--name", "web", "--pool", "train", "--public", "--port", "0", "--image", built, "--", *serve, timeout=120
        )
        with urllib.request.urlopen(made.function("web")["url"] + "/made", timeout=60) as answer:
            assert answer.read() == b"made\n"
        assert made.ok("exec", "web", "--", "cat", "/made") == "made\n"
        made.ok("delete", "web")
        absent = made.cli("run", "--pool", "train", "--image", image.replace("far:1", "none:1"), "--", "true", timeout=120)
        assert absent.returncode != 0 and b"none:1" in absent.stderr, absent
