"""Functions in containers, through the whole platform: what runs where, how it wakes and ends, and what can't be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, free_ports, wait_until

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries, entry, link, python_entries
from steelyard.host.proc import observe_walls

pytestmark = NEEDS_CONTAINERS
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
def busybox(registry: Registry) -> str:
    return registry.add("busybox:1", OciImage(busybox_entries(), config={"Env": ["PATH=/bin"], "WorkingDir": "/tmp"}))


@pytest.fixture(scope="module")
def python(registry: Registry) -> str:
    return registry.add("python:3", OciImage(busybox_entries(), python_entries(), config={"Env": ["PATH=/bin", "OF=image"]}))


def deploy(cluster: Cluster, name: str, *options: str) -> None:
    cluster.ok("deploy", "--public", "--name", name, "--cpus", "0.1", *options)


# -- programs


@pytest.mark.parametrize(("network", "port"), [("host", "0"), ("none", "80")])
def test_a_program_that_opens_a_port_serves_from_its_image(shared: Cluster, busybox: str, network: str, port: str) -> None:
    options = ("--port", port, "--network", network, "--idle-timeout", "1s", "--image", busybox)
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
        (("--port", "0", "--image", "{busybox}", "--", "chown", "web", "/tmp"), "expects to be root, at this step: 'chown: /tmp"),
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


def find_pids(workload: str, but: str | None = None) -> list[int]:
    """Of all processes in the control groups of workloads that begin so, but for those whose groups have `but` in them."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            groups = path.read_text()
            if f"/{workload}." in groups and (but is None or but not in groups):
                found.append(int(path.parent.name))
    return found


# -- Python functions: templates inside


@pytest.fixture(scope="module")
def app(shared: Cluster, python: str) -> Iterator[Path]:
    """An app whose functions tell of where they run, deployed once."""
    folder = shared.folder / "boxed"
    folder.mkdir()
    (folder / "boxed.py").write_text(BOXED.format(image=python, port=free_ports(1)[0]))
    shared.ok("deploy", str(folder / "boxed.py"))
    yield folder
    for name in ("tell", "stays", "serve", "threads", "alone"):
        shared.ok("delete", f"boxed-{name}")


BOXED = """
import http.server, os, socket, threading
import steelyard as sy

image = sy.Image.from_registry("{image}")
app = sy.App("boxed", image=image)
common = dict(env={{"MINE": "1"}}, cpus=0.1)

def told():
    status = open("/proc/self/status").read()
    lines = dict(line.split(":\\t", 1) for line in status.splitlines() if ":\\t" in line)
    return {{"pid": os.getpid(), "uid": os.getuid(), "files": sorted(os.listdir("/")), "of": os.environ.get("OF"),
            "mine": os.environ.get("MINE"), "others": sorted(name for name in os.listdir("/proc") if name.isdigit()),
            **{{name: lines[name] for name in ("NoNewPrivs", "Seccomp", "CapBnd")}}}}

@app.function(**common, idle_timeout="1s")
def tell() -> dict:
    return told()

@app.function(**common)
def stays(end: bool = False) -> dict:
    if end:
        os._exit(7)
    return told()

@app.function(**common, public=True)
@sy.web_server({port})
def serve():
    import subprocess, sys
    subprocess.Popen([sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", "/etc"])

if os.environ.get("STEELYARD_FUNCTION") == "boxed-threads":
    threading.Thread(target=threading.Event().wait, daemon=True).start()

@app.function(**common)
def threads() -> dict:
    return told()

@app.function(**common)
def alone() -> list:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
    return sorted(os.listdir("/proc/sys/net/ipv4/conf"))
"""


def call(cluster: Cluster, name: str, *args: str) -> Any:
    return json.loads(cluster.ok("call", name, *args))


def last_wake(cluster: Cluster, name: str) -> dict[str, Any]:
    """It is told a moment after the answer."""
    rows = wait_until(lambda: cluster.api("GET", f"/v1/coldstarts?function={name}").json(), 10, "its wake to be told")
    return rows[-1]


def host_pids(cluster: Cluster, name: str) -> list[int]:
    """Of a function's replicas, as the machine sees them; its templates have other groups."""
    return sorted(find_pids(f"{name}.1", but="/tmpl"))


def test_a_python_function_is_forked_inside_the_container_of_its_image(shared: Cluster, app: Path) -> None:
    told = call(shared, "boxed-tell")
    assert (told["uid"], told["of"], told["mine"]) == (0, "image", "1")
    assert "root" not in told["files"], "nothing of the machine's own files"
    assert (told["NoNewPrivs"], told["Seccomp"], told["CapBnd"]) == ("1", "2", "0" * 16)
    wait_until(lambda: not host_pids(shared, "boxed-tell"), 30, "it to sleep")
    again = call(shared, "boxed-tell")
    assert again["pid"] > told["pid"] > 1, "forked in the same pid namespace"
    row = last_wake(shared, "boxed-tell")
    assert (row["road"], row["reason"]) == ("template", "template-ready")


def test_the_kernel_has_the_same_walls_around_a_replica_as_around_any_container(shared: Cluster, app: Path) -> None:
    call(shared, "boxed-stays")
    (pid,) = host_pids(shared, "boxed-stays")
    walls = observe_walls([pid])
    assert walls == {
        "namespaces": ["cgroup", "ipc", "mnt", "pid", "user", "uts"], "seccomp": "filter", "capabilities": "none",
    }  # fmt: skip
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[1]) == shared.pid("spawner"), "whoever records its end"


def test_how_a_replica_in_a_container_ended_is_known_and_the_next_one_serves(shared: Cluster, app: Path) -> None:
    assert shared.cli("call", "boxed-stays", "true").returncode == 1
    ends = wait_until(lambda: shared.api("GET", "/v1/functions/boxed-stays/ends").json(), 10, "its end to be told")
    assert ends[-1]["exit_code"] == 7
    assert call(shared, "boxed-stays")["uid"] == 0


def test_functions_of_one_image_share_its_box_and_each_replica_has_a_control_group(shared: Cluster, app: Path) -> None:
    call(shared, "boxed-stays")
    call(shared, "boxed-alone")
    (stays,), (alone,) = host_pids(shared, "boxed-stays"), host_pids(shared, "boxed-alone")
    assert os.readlink(f"/proc/{stays}/ns/pid") == os.readlink(f"/proc/{alone}/ns/pid")
    shown = json.loads(shared.ok("template", "boxed-stays", "--json"))
    assert [each["role"] for each in shown] == ["base", "environment", "revision"]
    assert all(each["walls"] == observe_walls([stays]) for each in shown), "what is forked is behind the same walls"
    assert "Runs in a container of" in shared.cli("template", "boxed-stays").stderr.decode()


def test_a_revision_that_must_not_be_forked_starts_from_its_environment_inside(shared: Cluster, app: Path) -> None:
    told = call(shared, "boxed-threads")
    assert told["pid"] > 1 and told["of"] == "image"
    row = last_wake(shared, "boxed-threads")
    assert (row["road"], row["reason"]) == ("environment", "template-has-threads")


def test_with_no_room_for_templates_one_in_a_container_is_evicted_and_its_function_wakes_inside_all_the_same(
    shared: Cluster, app: Path
) -> None:
    call(shared, "boxed-tell")
    shared.down()
    shared.up("--template-memory", "1KB")
    wait_until(lambda: role(shared, "boxed-tell", "revision")["state"] == "template-evicted", 60, "its template to be evicted")
    told, row = wake(shared, "boxed-tell")
    assert (told["of"], told["Seccomp"], told["CapBnd"]) == ("image", "2", "0" * 16)
    assert "root" not in told["files"], "nothing of the machine's own files"
    assert (row["road"], row["reason"]) == ("environment", "template-evicted")
    assert told["pid"] > 1, "forked in the box: a container of its own would have begun with it"
    shared.down()
    shared.up("--template-memory", "2GB")
    wait_until(lambda: role(shared, "boxed-tell", "revision")["state"] == "ready", 60, "its template to be back")
    assert wake(shared, "boxed-tell")[1]["road"] == "template"


def wake(cluster: Cluster, name: str) -> tuple[Any, dict[str, Any]]:
    """What it answers when it has slept, and the row of the ledger for that."""
    cluster.wait_function(name, "SLEEPING")
    path = f"/v1/coldstarts?function={name}&limit=1000"
    before = len(cluster.api("GET", path).json())
    told = call(cluster, name)
    return told, wait_until(lambda: found[-1] if len(found := cluster.api("GET", path).json()) > before else None, 10, "its wake")


def role(cluster: Cluster, name: str, which: str) -> dict[str, Any]:
    """The template of that role that a function begins at."""
    return next(each for each in json.loads(cluster.ok("template", name, "--json")) if each["role"] == which)


def test_a_function_that_opens_a_port_of_its_own_runs_inside_too(shared: Cluster, app: Path) -> None:
    assert b"web:x:101" in shared.call("/boxed-serve/passwd").body


def test_a_killed_agent_and_spawner_leave_a_replica_in_its_container(shared: Cluster, app: Path) -> None:
    told = call(shared, "boxed-stays")
    shared.wait_replaced("agent", shared.kill("agent"))
    assert call(shared, "boxed-stays")["pid"] == told["pid"], "it serves on"
    (pid,) = host_pids(shared, "boxed-stays")
    shared.wait_replaced("spawner", shared.kill("spawner"))
    shared.wait_ready()
    assert call(shared, "boxed-stays")["pid"] == told["pid"], "its container was not ended with its templates"
    assert Path(f"/proc/{pid}").exists()


def test_volumes_and_files_of_secrets_are_seen_inside(shared: Cluster, python: str) -> None:
    folder = shared.folder / "given"
    folder.mkdir()
    (folder / "given.py").write_text(
        "import os, steelyard as sy\n"
        f"app = sy.App('given', image=sy.Image.from_registry('{python}'))\n"
        "secret = sy.Secret.from_name('boxed', as_files=True)\n"
        "@app.function(volumes={'/data': sy.Volume.from_name('boxdata')}, secrets=[secret])\n"
        "def given() -> list:\n"
        "    open('/data/x', 'a').write('x')\n"
        "    return [open('/data/x').read(), open(os.environ['STEELYARD_SECRETS'] + '/boxed/WORD').read()]\n"
    )
    shared.ok("volumes", "create", "boxdata")
    shared.ok("secrets", "create", "boxed", "WORD", input=b"hunter2-hunter2")
    shared.ok("deploy", str(folder / "given.py"))
    assert call(shared, "given-given") == ["x", "hunter2-hunter2"]
    assert call(shared, "given-given") == ["xx", "hunter2-hunter2"]
    shared.ok("delete", "given-given")
    shared.ok("secrets", "delete", "boxed")


def test_without_a_network_a_python_function_is_reached_all_the_same(shared: Cluster, app: Path) -> None:
    shared.ok("deploy", "--network", "none", f"{app / 'boxed.py'}:alone")
    assert call(shared, "boxed-alone") == ["all", "default", "lo"]


@pytest.mark.parametrize(("made", "words"), [("none", "has no python3"), ("old", "has Python 3.8")])
def test_an_image_without_a_python_that_fits_is_refused_and_says_what_is_needed(
    shared: Cluster, registry: Registry, app: Path, made: str, words: str
) -> None:
    more = [] if made == "none" else [entry("usr/bin/python3.8", b"x"), link("bin/python3", "/usr/bin/python3.8")]
    reference = registry.add(f"{made}:1", OciImage(busybox_entries(), more, config={"Env": ["PATH=/bin"]}))
    (app / "asgi.py").write_text("async def app(scope, receive, send): ...\n")
    done = shared.cli("deploy", "--image", reference, "--name", "cannot", f"{app / 'asgi.py'}:app")
    assert done.returncode == 2
    assert words in done.stderr.decode() and "3.10 or later" in done.stderr.decode()
    shared.cli("delete", "cannot")


def test_a_file_for_apply_names_the_image_of_a_function(shared: Cluster, busybox: str) -> None:
    text = f"type: function\nname: applied\nimage: {busybox}\nnetwork: none\nport: 0\npublic: true\ncommand: [sh, -c, '{WEB}']\n"
    shared.ok("apply", "--yes", "-f", "-", input=text.encode())
    assert shared.call("/applied/").body == b"from the image\n"
    shared.ok("delete", "applied")


# -- without a template

PLAIN = """
import json, os
async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = json.dumps({"pid": os.getpid(), "files": sorted(os.listdir("/")), "mine": os.environ.get("MINE")}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
"""
PLAIN_OPTIONS = ("--public", "--cpus", "0.1", "--idle-timeout", "1s", "--env", "MINE=1")


def test_without_a_template_to_be_had_a_python_function_starts_plainly_in_a_container_of_its_own(
    shared: Cluster, python: str
) -> None:
    name, folder = "plain", shared.folder / "plain"
    folder.mkdir()
    (folder / "plain.py").write_text(PLAIN)
    shared.ok("deploy", "--name", name, *PLAIN_OPTIONS, "--image", python, str(folder / "plain.py:app"))
    shared.wait_function(name, "SLEEPING")
    sockets = Path(f"/run/steelyard/{shared.tag}/tmpl")
    assert sockets.is_dir()
    sockets.rename(f"{sockets}.away")  # none can be made anew
    try:
        for pid in filter(None, (each["pid"] for each in json.loads(shared.ok("template", name, "--json")))):
            os.kill(pid, signal.SIGKILL)
        for _ in range(2):
            told = shared.call(f"/{name}/").json()
            assert (told["pid"], told["mine"], "root" in told["files"]) == (1, "1", False), "its container's first process"
            (proof,) = json.loads(shared.ok("proof", name, "--json"))
            assert (proof["proof"]["state"], proof["proof"]["got"]["tier"]) == ("MATCH", "T1"), proof
            assert shared.ok("exec", name, "--", "sh", "-c", "echo $MINE; ls plain.py").split() == ["1", "plain.py"]
            assert last_wake(shared, name)["road"] == "plain"
            shared.wait_function(name, "SLEEPING")
    finally:
        Path(f"{sockets}.away").rename(sockets)
    shared.ok("delete", name)
    wait_until(lambda: not find_pids(f"{name}.1"), 20, "nothing of it to be left")
