"""Functions in containers, through the whole platform: what runs where, how it wakes and ends, and what can't be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from steelyard_cluster import Cluster, wait_until

from oci_images import OciImage, Registry, busybox_entries, python_entries

MISSING = [name for name in ("skopeo", "umoci", "crun", "busybox") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0, reason=f"NOT VERIFIED without {', '.join(MISSING) or 'root'}: containers"
)
WEB = "mkdir -p /www; echo from the image > /www/index.html; exec httpd -f -p $PORT -h /www"
#: takes its socket by LISTEN_FDS, and tells of itself
TELLS = """
import http.server, json, os, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told = {"pid": os.getpid(), "fds": os.environ.get("LISTEN_FDS"), "files": sorted(os.listdir("/")), "uid": os.getuid(),
                "mine": os.environ.get("MINE"), "cwd": os.getcwd(), "nets": sorted(os.listdir("/proc/sys/net/ipv4/conf"))}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
class Server(http.server.HTTPServer):
    address_family = socket.AF_UNIX
    def server_bind(self): pass
    def get_request(self): return self.socket.accept()[0], ("", 0)
server = Server("", Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.close()


@pytest.fixture(scope="module")
def busybox(registry: Registry) -> str:
    return registry.add("busybox:1", OciImage(busybox_entries(), config={"Env": ["PATH=/bin"], "WorkingDir": "/tmp"}))


@pytest.fixture(scope="module")
def python(registry: Registry) -> str:
    return registry.add("python:3", OciImage(busybox_entries(), python_entries(), config={"Env": ["PATH=/bin", "OF=image"]}))


def deploy(cluster: Cluster, name: str, *options: str) -> None:
    cluster.ok("deploy", "--public", "--name", name, "--cpus", "0.1", *options)


# -- programs


@pytest.mark.parametrize("network", ["host", "none"])
def test_a_program_that_opens_a_port_serves_from_its_image(shared: Cluster, busybox: str, network: str) -> None:
    options = ("--port", "0", "--network", network, "--idle-timeout", "1s", "--image", busybox)
    deploy(shared, f"web-{network}", *options, "--", "sh", "-c", WEB)
    assert shared.call(f"/web-{network}/").body == b"from the image\n"
    shared.wait_function(f"web-{network}", "SLEEPING")
    assert shared.call(f"/web-{network}/").body == b"from the image\n"
    shared.ok("delete", f"web-{network}")


def test_a_program_takes_its_socket_as_it_does_outside_also_without_a_network(shared: Cluster, python: str) -> None:
    options = ("--network", "none", "--image", python, "--env", "MINE=1", "--idle-timeout", "1s")
    deploy(shared, "fds", *options, "--", "python3", "-c", TELLS)
    told = shared.call("/fds/").json()
    assert (told["pid"], told["fds"], told["uid"], told["mine"]) == (1, "1", 0, "1")
    assert told["nets"] == ["all", "default", "lo"]
    assert "root" not in told["files"], "nothing of the machine's own files"
    shared.ok("delete", "fds")


def test_a_file_runs_on_the_images_python_with_its_folder_read_only(shared: Cluster, python: str) -> None:
    code = shared.folder / "code"
    code.mkdir()
    (code / "serve.py").write_text(
        "import http.server, os\n"
        "try: open('x', 'w')\nexcept OSError as err: print(err.strerror, flush=True)\n"
        "http.server.test(http.server.SimpleHTTPRequestHandler, port=int(os.environ['PORT']), bind='127.0.0.1')\n"
    )
    shared.ok("deploy", "--public", "--port", "0", "--image", python, str(code / "serve.py"))
    assert b"serve.py" in shared.call("/serve/").body
    assert "Read-only file system" in shared.ok("logs", "serve")
    shared.ok("delete", "serve")


def test_what_an_image_runs_is_deployed_without_a_word(shared: Cluster, registry: Registry) -> None:
    config = {"Env": ["PATH=/bin"], "User": "web", "Cmd": ["sh", "-c", "id -u > /tmp/index.html; exec httpd -f -p $PORT -h /tmp"]}
    reference = registry.add("web:2", OciImage(busybox_entries(), config=config))
    deploy(shared, "told", "--port", "0", "--image", reference)
    assert shared.call("/told/").body == b"101\n"
    shared.ok("delete", "told")


def test_several_replicas_open_the_same_port_where_each_has_a_network(shared: Cluster, busybox: str) -> None:
    options = ("--port", "8000", "--network", "none", "--min-replicas", "2", "--max-replicas", "2", "--image", busybox)
    deploy(shared, "same", *options, "--", "sh", "-c", WEB)
    assert shared.wait_function("same", "RUNNING")["replicas"] == 2
    assert shared.call("/same/").body == b"from the image\n"
    shared.ok("delete", "same")


def test_the_relay_of_a_container_holds_no_right_but_to_signal_and_nothing_of_the_users_reaches_root(
    shared: Cluster, busybox: str
) -> None:
    options = ("--port", "0", "--min-replicas", "1", "--image", busybox, "--env", "LD_PRELOAD=/evil.so", "--env", "EVIL=1")
    deploy(shared, "rights", *options, "--", "sh", "-c", "unset LD_PRELOAD; " + WEB)
    pids = find_pids("rights.1")
    by_name = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in pids}
    relay, crun, program = (by_name[name] for name in ("python", "crun", "httpd"))
    status = Path(f"/proc/{relay}/status").read_text()
    work_uid = json.loads((shared.home / "settings.json").read_text())["work_uid"]
    assert re.search(rf"^Uid:(\t{work_uid}){{4}}$", status, re.M)
    assert re.search(r"^CapEff:\t0000000000000020$", status, re.M)
    assert re.search(r"^CapEff:\t0000000000000000$", Path(f"/proc/{program}/status").read_text(), re.M)
    for pid in (relay, crun):
        assert b"EVIL" not in Path(f"/proc/{pid}/environ").read_bytes()
    shared.ok("delete", "rights")


def test_a_killed_agent_takes_it_over_and_it_ends_as_any(shared: Cluster, busybox: str) -> None:
    options = ("--port", "0", "--idle-timeout", "3s", "--image", busybox)
    deploy(
        shared,
        "kept",
        *options,
        "--",
        "sh",
        "-c",
        "trap 'echo asked to end; exit 0' TERM; httpd -p $PORT -h /; while :; do sleep 0.1; done",
    )
    assert shared.call("/kept/etc/passwd").status == 200
    pid = shared.kill("agent")
    shared.wait_replaced("agent", pid)
    assert shared.call("/kept/etc/passwd").status == 200
    shared.wait_function("kept", "SLEEPING")
    assert "asked to end" in shared.ok("logs", "kept")
    assert shared.call("/kept/etc/passwd").status == 200
    shared.ok("delete", "kept")
    wait_until(lambda: not find_pids("kept.1"), 20, "nothing of it to be left")


# -- what cannot be


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--port", "0", "--image", "{busybox}"), "names no command"),
        (("--port", "0", "--image", "{busybox}", "--", "no-such-program"), "no program 'no-such-program'"),
        (("--port", "0", "--image", "{host}/missing:1", "--", "true"), "no such image or tag"),
        (("--port", "0", "--image", "{arm}", "--", "true"), "is made for linux/arm64"),
        (("--port", "0", "--image", "{busybox}", "--", "true"), "exit code 0 before it accepted connections"),
        (("--port", "0", "--startup-deadline", "1s", "--image", "{busybox}", "--", "sleep", "9"), "startup deadline of 1 s"),
        (("--port", "0", "--image", "{busybox}", "--as-root", "--", "true"), "as_root"),
        (("--port", "0", "--image", "{busybox}", "--python", "/usr/bin/python3", "--", "true"), "brings its own Python"),
        (("--port", "0", "--network", "none", "--", "true"), "--image"),
        (("--port", "0"), "Say what to deploy"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(shared: Cluster, registry: Registry, busybox: str, options: tuple[str, ...], words: str) -> None:
    arm = registry.add("arm:1", OciImage(busybox_entries(), architecture="arm64"))
    named = [word.format(busybox=busybox, host=registry.host, arm=arm) for word in options]
    done = shared.cli("deploy", "--name", "cannot", *named)
    assert done.returncode in (1, 2), done
    assert words in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    shared.cli("delete", "cannot")


def find_pids(workload: str) -> list[int]:
    """Of all processes in the control groups of workloads that begin so."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if f"/{workload}." in path.read_text():
                found.append(int(path.parent.name))
    return found
