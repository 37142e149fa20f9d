"""Inside functions: commands, terminals, files and ports in a replica that is woken for it and stays awake meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from person import person
from steelyard_cluster import Cluster, free_ports, wait_until
from test_terminals import SHELL, check_terminal

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries, python_entries
from steelyard.host.cgroup import find_mounts

APP = """
import os
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown": return
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
"""
OPTIONS = ("--public", "--cpus", "0.1", "--env", "COLOUR=blue")


@contextmanager
def deployed(cluster: Cluster, name: str, *more: str) -> Iterator[str]:
    folder = cluster.folder / f"code-{name}"
    folder.mkdir(exist_ok=True)
    (folder / "web.py").write_text(APP)
    deploy(cluster, name, *more)
    yield name
    cluster.cli("delete", name)


def deploy(cluster: Cluster, name: str, *more: str) -> None:
    cluster.ok("deploy", "--name", name, *OPTIONS, *more, str(cluster.folder / f"code-{name}" / "web.py:app"))


@pytest.fixture(scope="module")
def awake(shared: Cluster) -> Iterator[str]:
    """One whose replica stays, for tests that end nothing."""
    with deployed(shared, "awake", "--min-replicas", "1") as name:
        yield name


def inside(cluster: Cluster, name: str, script: str, *options: str) -> list[str]:
    return cluster.ok("exec", *options, name, "--", "sh", "-c", script).splitlines()


def test_a_command_wakes_a_function_is_where_its_replica_is_and_keeps_it_awake(shared: Cluster) -> None:
    with deployed(shared, "sleepy", "--idle-timeout", "1s") as name:
        assert shared.function(name)["state"] == "SLEEPING"
        # thrice the time after which it would sleep: what runs inside ends with its replica
        script = "echo $COLOUR; id -u; ls web.py; cat /proc/self/cgroup; sleep 3; exit 7"
        done = shared.cli("exec", name, "--", "sh", "-c", script)
        assert done.returncode == 7, done
        colour, uid, file, *groups = done.stdout.decode().splitlines()
        assert (colour, file) == ("blue", "web.py")
        if os.geteuid() == 0:
            assert uid == "64000"
        if find_mounts().flavour != "none":
            assert any(f"/{name}.1." in line for line in groups), groups
        shared.wait_function(name, "SLEEPING")
        assert b"Somebody wants to be inside" in shared.cli("why", name).stdout


def test_a_shell_in_a_function_is_as_if_it_were_here(shared: Cluster, awake: str) -> None:
    with person(shared, "exec", "-t", awake, "--", *SHELL) as me:
        check_terminal(me)
    with person(shared, "shell", "-c", "PS1='ready> ' sh", awake) as me:
        me.see(b"ready> ")
        me.type(b"exit 3\r")
        assert me.wait() == 3


def test_ctrl_c_ends_the_command_and_not_the_replica(shared: Cluster, awake: str) -> None:
    before = shared.call(f"/{awake}/").body
    command = shared.start("exec", awake, "--", "sh", "-c", "trap 'echo bye; exit 3' INT; echo ready; sleep 30 & wait")
    assert command.stdout is not None
    assert command.stdout.readline() == b"ready\n"
    command.send_signal(signal.SIGINT)
    out, _ = command.communicate(timeout=20)
    assert (command.returncode, out) == (3, b"bye\n")
    assert shared.call(f"/{awake}/").body == before


def test_files_both_ways_by_the_paths_of_the_replica(shared: Cluster, awake: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(os.urandom(1 << 20))
    target = f"/tmp/visited-{os.getpid()}"
    shared.ok("cp", str(tmp_path / "x"), f"{awake}:{target}")
    shared.ok("cp", f"{awake}:{target}", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "x").read_bytes()
    shared.ok("cp", f"{awake}:web.py", str(tmp_path))
    assert (tmp_path / "web.py").read_text() == APP
    inside(shared, awake, f"rm {target}")


def test_what_cannot_be_is_said(shared: Cluster, awake: str) -> None:
    for words, code, sentence in (
        (("exec", "no-such", "--", "true"), 125, b"no function no-such"),
        (("exec", "--replica", "abc", awake, "--", "true"), 125, f"are there: {awake}.1.".encode()),
        (("exec", "--rank", "0", awake, "--", "true"), 125, b"--rank is for jobs"),
        (("exec", "--replica", "abc", "j-000001", "--", "true"), 125, b"--replica is for functions"),
        (("exec", awake, "--", "/no/such/program"), 125, b"No such file"),
        (("shell", "--replica", "abc"), 125, b"name it"),
        (("cp", "--rank", "1", f"{awake}:/x", "."), 2, b"--rank is for jobs"),
        (("port-forward", "no-such", "80"), 2, b"no function no-such"),
    ):
        done = shared.cli(*words)
        assert (done.returncode, sentence in done.stderr) == (code, True), done
    path = f"/v1/functions/other/replicas/{awake}.1.abc"
    assert shared.api("POST", f"{path}/exec", {"argv": ["true"]}).status == 404
    assert shared.api("GET", f"{path}/exec/x1/logs").status == 404


def test_of_several_replicas_the_newest_is_meant_or_the_one_that_is_named(shared: Cluster) -> None:
    with deployed(shared, "several", "--min-replicas", "2", "--max-replicas", "2") as name:
        wait_until(lambda: shared.function(name)["replicas"] == 2, 30, "both to serve")
        show = "grep -o '[a-z]*[.][0-9]*[.][0-9a-f]*' /proc/self/cgroup | tail -1"
        refused = shared.cli("exec", "--replica", "abc", name, "--", "true").stderr.decode()
        newest, oldest = refused.rpartition("there: ")[2].strip(" .\n").split(", ")
        if find_mounts().flavour != "none":
            assert inside(shared, name, show) == [newest]
            assert inside(shared, name, show, "--replica", oldest) == [oldest]
            assert inside(shared, name, show, "--replica", oldest.rpartition(".")[2]) == [oldest]


def test_it_ends_with_its_revision_and_the_next_one_is_entered(shared: Cluster) -> None:
    with deployed(shared, "moves", "--min-replicas", "1") as name, person(shared, "exec", "-t", name, "--", *SHELL) as me:
        me.see(b"ready> ")
        deploy(shared, name, "--min-replicas", "1", "--env", "COLOUR=red")
        assert me.wait() == 128 + signal.SIGKILL
        assert me.restored
        assert inside(shared, name, "echo $COLOUR") == ["red"]
        command = shared.start("exec", name, "--", "sh", "-c", "echo ready; exec sleep 300")
        assert command.stdout is not None
        assert command.stdout.readline() == b"ready\n"
        shared.ok("delete", name)
        _, err = command.communicate(timeout=30)
        assert command.returncode == 128 + signal.SIGKILL, err


def test_a_function_that_can_not_start_says_why(shared: Cluster) -> None:
    broken = shared.folder / "broken"
    program = f"test ! -e {broken} || exec true; exec python3 -m http.server $PORT --bind 127.0.0.1"
    shared.ok("deploy", "--name", "fails", *OPTIONS, "--idle-timeout", "1s", "--port", "0", "--", "sh", "-c", program)
    shared.wait_function("fails", "SLEEPING")
    broken.write_text("")
    done = shared.cli("exec", "fails", "--", "true")
    assert done.returncode == 125 and b"exit code 0 before it accepted" in done.stderr, done
    shared.ok("delete", "fails")


def test_ports_of_a_function_are_reached_and_wake_it(shared: Cluster) -> None:
    (port,) = free_ports(1)
    serve = ("python3", "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", "/etc")
    shared.ok("deploy", "--name", "listens", *OPTIONS, "--idle-timeout", "1s", "--port", str(port), "--", *serve)
    shared.wait_function("listens", "SLEEPING")
    command = shared.start("port-forward", "listens", f"0:{port}")
    assert command.stdout is not None
    local = int(command.stdout.readline().split(b" ")[0].rpartition(b":")[2])
    with socket.create_connection(("127.0.0.1", local), 30) as connection:
        connection.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
        heard = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"root:x:0" in heard
    shared.wait_function("listens", "SLEEPING")
    shared.ok("delete", "listens")
    _, err = command.communicate(timeout=30)
    assert (command.returncode, b"listens was deleted" in err) == (0, True)


def test_a_command_inside_a_function_outlives_the_agent_and_keeps_it_awake(shared: Cluster) -> None:
    with deployed(shared, "kept", "--idle-timeout", "1s") as name:
        command = shared.start("exec", name, "--", "sh", "-c", "echo ready; sleep 4; echo done; exit 4")
        assert command.stdout is not None
        assert command.stdout.readline() == b"ready\n"
        shared.wait_replaced("agent", shared.kill("agent"))
        out, err = command.communicate(timeout=60)
        assert (command.returncode, out) == (4, b"done\n"), err


# -- what replicas really got


def proofs(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    return json.loads(cluster.ok("proof", name, "--json"))


def test_what_each_replica_really_got_is_told_with_its_walls(shared: Cluster, awake: str) -> None:
    (told,) = proofs(shared, awake)
    assert (told["revision"], told["phase"]) == (1, "serving") and told["replica"].startswith(f"{awake}.1.")
    proof = told["proof"]
    assert (proof["state"], proof["differences"]) == ("MATCH", [])
    got = proof["got"]
    assert (got["root"], got["seccomp"], got["no_new_privs"], got["tier"]) == ("of the machine", "none", True, "T0")
    if os.geteuid() == 0:
        assert (got["uid"], proof["asked"]["uid"]) == (64000, 64000)
    if find_mounts().flavour != "none":
        assert abs(got["share"] - 0.1) < 0.01 and told["replica"] in got["cgroup"]
    assert f"{told['replica']} serving" in shared.ok("proof", awake)
    assert shared.cli("proof", awake, "--replica", "abc").stderr.endswith(f"are there: {told['replica']}.\n".encode())
    assert b"claimed" not in shared.cli("why", awake).stdout
    shared.ok("deploy", "--name", "asleep", *OPTIONS, str(shared.folder / f"code-{awake}" / "web.py:app"))
    assert "asleep sleeps" in shared.ok("proof", "asleep") and proofs(shared, "asleep") == []
    shared.ok("delete", "asleep")
    assert shared.cli("proof", "asleep").returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT VERIFIED: root only")
def test_a_tier_that_is_lower_than_claimed_is_named_by_why(shared: Cluster, awake: str) -> None:
    # what became another user inside: here a helper of the replica that is root's, moved there by hand
    if find_mounts().flavour == "none":
        pytest.skip("NOT VERIFIED: no control groups")
    (told,) = proofs(shared, awake)
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            for line in Path(f"/proc/{replica_pid(told)}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                folders = [Path("/sys/fs/cgroup", controllers, path[1:]), Path("/sys/fs/cgroup", path[1:])]
                for folder in [each for each in folders if told["replica"] in str(each) and each.is_dir()]:
                    (folder / "cgroup.procs").write_text(str(stranger.pid))
            assert f"{told['replica']}: Isolation tier T0 is claimed, and the kernel shows none" in shared.ok("why", awake)
            (now,) = proofs(shared, awake)
            assert now["proof"]["state"] == "DRIFTED" and now["proof"]["got"]["uid"] == [0, 64000]
        finally:
            stranger.kill()


def replica_pid(told: dict[str, Any]) -> int:
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if f"/{told['replica']}" in path.read_text():
                return int(path.parent.name)
    raise AssertionError(told)


# -- in containers


@NEEDS_CONTAINERS
def test_inside_a_python_function_in_a_container_is_inside_its_container(
    shared: Cluster, registry: Registry, tmp_path: Path
) -> None:
    image = registry.add("python:3", OciImage(busybox_entries(), python_entries(), config={"Env": ["PATH=/bin", "OF=image"]}))
    with deployed(shared, "boxed", "--image", image, "--min-replicas", "2", "--max-replicas", "2") as name:
        wait_until(lambda: shared.function(name)["replicas"] == 2, 30, "both to serve")
        check_container(shared, name, tmp_path)
        check_walls(shared, name)
        assert inside(shared, name, "cat web.py | head -2 | tail -1; echo $OF $COLOUR") == ["import os", "image blue"]
        with person(shared, "exec", "-t", name, "--", *SHELL) as me:
            check_terminal(me)


@NEEDS_CONTAINERS
@pytest.mark.parametrize("network", ["host", "none"])
def test_inside_a_program_in_a_container_is_inside_its_container(
    shared: Cluster, registry: Registry, tmp_path: Path, network: str
) -> None:
    image = registry.add(
        "busybox:1", OciImage(busybox_entries(), config={"Env": ["PATH=/bin", "OF=image"], "WorkingDir": "/tmp"})
    )
    web, name = "echo of $OF > /tmp/index.html; exec httpd -f -p $PORT -h /tmp", f"web-{network}"
    shared.ok("deploy", "--name", name, *OPTIONS, "--port", "0", "--network", network, "--image", image, "--", "sh", "-c", web)
    check_container(shared, name, tmp_path)
    check_walls(shared, name, *(["net"] if network == "none" else []))
    (told,) = inside(shared, name, "wget -q -O - http://127.0.0.1:$PORT/")
    assert told == "of image", "in its network, with its variables"
    shared.ok("delete", name)


def check_walls(cluster: Cluster, name: str, *more: str) -> None:
    for told in proofs(cluster, name):
        proof = told["proof"]
        assert (proof["state"], proof["differences"]) == ("MATCH", []), proof
        assert proof["got"]["namespaces"] == sorted(["cgroup", "ipc", "mnt", "pid", "user", "uts", *more])
        assert (proof["got"]["tier"], proof["got"]["root"], proof["got"]["device_files"]) == ("T1", "overlay", [])


def check_container(cluster: Cluster, name: str, tmp_path: Path) -> None:
    """A command is behind the walls of its replica, and so are files."""
    script = "ls -d /root /work; id -u; grep -E 'NoNewPrivs|Seccomp:|CapBnd' /proc/self/status; readlink /proc/1/root; echo $$"
    done = cluster.cli("exec", name, "--", "sh", "-c", f"{script}; echo here > /tmp/mark")
    assert b"/root" not in done.stdout, "nothing of the machine's own files"
    assert b"NoNewPrivs:\t1" in done.stdout and b"Seccomp:\t2" in done.stdout and b"CapBnd:\t0000000000000000" in done.stdout
    target = tmp_path / f"mark-{name}"
    cluster.ok("cp", f"{name}:/tmp/mark", str(target))
    assert target.read_text() == "here\n"
    assert not Path("/tmp/mark").exists()
