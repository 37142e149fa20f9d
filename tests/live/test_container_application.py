"""A real application image, made of Debian's packages, runs with one command each as a job and as a function."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from steelyard_cluster import Cluster, free_ports, wait_until

from debian_image import make_application
from oci_images import NEEDS_CONTAINERS

pytestmark = NEEDS_CONTAINERS


@pytest.fixture(scope="module")
def application(shared: Cluster) -> str:
    folder = shared.folder / "application"
    folder.mkdir(mode=0o755)
    return make_application(folder)


def fetch(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.read()
    except urllib.error.URLError:
        return None


def test_as_a_job(shared: Cluster, application: str) -> None:
    [port] = free_ports(1)
    job = shared.ok("run", "--detach", "--image", application, "--env", f"PORT={port}").strip()
    assert wait_until(lambda: fetch(f"http://127.0.0.1:{port}/"), 30, "nginx") == b"<h1>from the image</h1>\n"
    told = json.loads(fetch(f"http://127.0.0.1:{port}/api/x") or b"{}")
    assert (told["path"], told["uid"]) == ("/api/x", 33)
    assert "serving" in shared.ok("logs", job)
    shared.ok("stop", job)
    shared.wait_job(job, "STOPPED")


def test_as_a_function(shared: Cluster, application: str) -> None:
    shared.ok("deploy", "--name", "application", "--port", "0", "--public", "--image", application)
    shared.wait_function("application", "SLEEPING")
    url = f"{shared.gateway_url}/application"
    assert fetch(f"{url}/") == b"<h1>from the image</h1>\n", "it is woken by who asks"
    told = json.loads(fetch(f"{url}/api/y") or b"{}")
    assert (told["path"], told["uid"]) == ("/api/y", 33)
    shared.ok("delete", "application")
