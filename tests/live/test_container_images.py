"""Container images by hand: fetched ahead of need, listed beside environments, inspected, removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from steelyard_cluster import Cluster, wait_until

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries, entry

pytestmark = NEEDS_CONTAINERS


def make(registry: Registry, name: str) -> tuple[str, OciImage]:
    config = {"Env": ["PATH=/bin"], "Cmd": ["echo", "hi"], "ExposedPorts": {"80/tcp": {}}}
    image = OciImage([*busybox_entries(), entry("etc/id", os.urandom(8))], config=config)
    return registry.add(name, image), image


def list_containers(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """By each of their references."""
    listed = json.loads(cluster.ok("image", "ls", "--json"))
    return {name: each for each in listed if each["kind"] == "container" for name in each["references"]}


def test_an_image_that_was_pulled_starts_without_a_word_to_its_registry(shared: Cluster, registry: Registry) -> None:
    reference, _ = make(registry, "pulled:1")
    digest = shared.ok("image", "pull", reference).strip()
    assert digest.startswith("sha256:")
    asked = len(registry.asked)
    assert shared.ok("run", "--image", reference) == "hi\n"
    assert shared.ok("image", "pull", reference).strip() == digest
    assert len(registry.asked) == asked


def test_many_pulls_at_a_time_fetch_it_once(shared: Cluster, registry: Registry) -> None:
    reference, image = make(registry, "many:1")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: shared.ok("image", "pull", reference), range(4)))
    assert len(set(done)) == 1
    assert registry.blobs_asked.count(image.layers[0]) == 1


def test_a_pull_under_way_is_told_and_joined(shared: Cluster, registry: Registry) -> None:
    reference, _ = make(registry, "slow:1")
    registry.gate.clear()
    try:
        pulls = [shared.api("POST", "/v1/pulls", {"image": reference}).json() for _ in range(2)]
        assert registry.asked_blob.wait(20)
    finally:
        registry.gate.set()
    assert pulls[0]["id"] == pulls[1]["id"]
    assert pulls[0]["state"] == "FETCHING"
    ended = wait_until(lambda: find_end(shared, pulls[0]["id"]), 30, "the end of the pull")
    assert (ended["state"], ended["image"]) == ("READY", reference)


def test_who_waits_for_work_in_an_image_is_shown_how_far_it_is(shared: Cluster, registry: Registry) -> None:
    reference, _ = make(registry, "awaited:1")
    registry.gate.clear()
    try:
        command = (sys.executable, "-P", "-m", "steelyard", "run", "--image", reference)
        waits = subprocess.Popen(command, env=shared.environ({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waits.stderr is not None
        assert waits.stderr.readline() == f"{reference}: fetching\n"
    finally:
        registry.gate.set()
    assert waits.communicate(timeout=60)[0] == "hi\n"
    assert waits.returncode == 0
    assert b"fetching" not in shared.cli("run", "--image", reference).stderr, "it is there"
    missing = shared.cli("run", "--image", f"{registry.host}/awaited:2")
    assert (missing.returncode, missing.stdout) == (125, b"")
    assert b"there is no such image or tag" in missing.stderr
    assert b"kB" not in missing.stderr and b"MB" not in missing.stderr, "nothing of it came"


def test_a_registry_that_stalls_delays_nobody_who_wants_nothing_of_it(shared: Cluster, registry: Registry) -> None:
    here, _ = make(registry, "here:1")
    shared.ok("image", "pull", here)
    stalls = Registry()
    try:
        stalls.gate.clear()
        wanted = [make(stalls, f"app:{at}")[0] for at in range(12)]
        with ThreadPoolExecutor(8) as pool:
            pulls = list(pool.map(lambda name: shared.api("POST", "/v1/pulls", {"image": name}).json()["id"], wanted))
        assert stalls.asked_blob.wait(20)
        assert shared.ok("run", "--cpus", "0.1", "--image", here) == "hi\n"
        assert shared.ok("image", "pull", make(registry, "meanwhile:1")[0]).startswith("sha256:")
        assert find_end(shared, pulls[-1]) is None
    finally:
        stalls.gate.set()
        for pull in pulls:
            wait_until(lambda pull=pull: find_end(shared, pull), 60, "the end of the pull")
        stalls.close()


def find_end(cluster: Cluster, pull: str) -> dict[str, Any] | None:
    seen = cluster.api("GET", f"/v1/pulls/{pull}").json()
    return seen if seen["state"] in ("READY", "FAILED") else None


def test_it_is_listed_and_inspected_by_its_name_and_its_digest(shared: Cluster, registry: Registry) -> None:
    reference, _ = make(registry, "listed:1")
    digest = shared.ok("image", "pull", reference).strip().removeprefix("sha256:")
    view = list_containers(shared)[reference]
    assert (view["id"], view["command"], view["ports"]) == (digest, ["echo", "hi"], [80])
    assert view["size_bytes"] > 1_000_000
    assert reference in shared.ok("image", "ls")
    for name in (reference, digest, digest[:12], f"sha256:{digest}"):
        assert json.loads(shared.ok("image", "inspect", name, "--json")) == list_containers(shared)[reference]
    assert f"sha256:{digest}" in shared.ok("image", "inspect", reference)


def test_what_a_job_runs_on_is_not_removed_and_what_nothing_needs_is(shared: Cluster, registry: Registry) -> None:
    reference, image = make(registry, "removed:1")
    spec = {"name": "held", "argv": ["sleep", "1000"], "cwd": "", "image": reference, "resources": {"cpus": 0.1}}
    job = shared.api("POST", "/v1/jobs", {"spec": spec}).json()["id"]
    shared.wait_job(job, "RUNNING")
    assert list_containers(shared)[reference]["used_by"] == [f"job {job}"]
    refused = shared.cli("image", "rm", reference)
    assert refused.returncode == 2
    assert f"is needed by job {job}" in refused.stderr.decode()
    shared.ok("stop", job)
    shared.wait_job(job, "STOPPED")
    wait_until(lambda: not list_containers(shared)[reference]["used_by"], 10, "nothing runs on it")
    assert shared.ok("image", "rm", reference) == f"{reference} removed\n"
    assert reference not in list_containers(shared)
    registry.asked.clear()
    shared.ok("image", "pull", reference)
    assert image.layers[0] in registry.blobs_asked, "its layers were gone, too"


def test_what_is_not_there_is_said_so(shared: Cluster, registry: Registry) -> None:
    missing = shared.cli("image", "pull", f"{registry.host}/nothing:1")
    assert missing.returncode == 2
    assert "there is no such image or tag" in missing.stderr.decode()
    assert "docker://nginx" in shared.cli("image", "pull", "nginx").stderr.decode()
    for command in ("inspect", "rm"):
        assert "There is no image" in shared.cli("image", command, f"{registry.host}/nothing:1").stderr.decode()
    assert shared.api("GET", "/v1/pulls/p999").status == 404
