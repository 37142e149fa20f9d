"""`up`, `down`, `status` and homes, with the real programs."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from steelyard_cluster import Cluster, free_ports, wait_until

PROGRAMS = {"up", "spawner", "server", "agent", "envoy"}


@pytest.fixture
def bare(home: Path) -> Iterator[Cluster]:
    """A home that nothing was started on yet."""
    made = Cluster(home.parent)
    yield made
    made.down()


def refused(cluster: Cluster, *args: str) -> str:
    """`up` must be refused with exit code 2 and one clear line; returns it."""
    done = cluster.cli("up", "--detach", *args)
    words = done.stderr.decode()
    assert done.returncode == 2, words
    assert "Traceback" not in words
    return words


def test_status_shows_every_program_and_where_it_is(shared: Cluster) -> None:
    status = shared.status()
    assert set(status) == {"state", "api_url", "gateway_url", "version", "programs"}
    assert (status["state"], status["api_url"], status["gateway_url"]) == ("running", shared.api_url, shared.gateway_url)
    assert {program["name"] for program in status["programs"]} == PROGRAMS
    for program in status["programs"]:
        assert set(program) == {"name", "pid", "rss_bytes", "state"}
        assert (program["state"], program["pid"]) == ("running", shared.pid(program["name"]))
        assert program["rss_bytes"] > 1_000_000


def test_a_second_up_finds_the_first(shared: Cluster) -> None:
    before = {name: shared.pid(name) for name in PROGRAMS}
    assert shared.api_url in shared.ok("up", "--detach")
    assert shared.api_url in shared.ok("up")
    assert {name: shared.pid(name) for name in PROGRAMS} == before


def test_up_again_with_other_addresses_is_refused_while_it_runs(shared: Cluster) -> None:
    assert "down" in refused(shared, "--port", str(free_ports(1)[0] + 5000))


def test_killed_supervisor_leaves_all_running_and_the_next_adopts(cluster: Cluster) -> None:
    before = {name: cluster.pid(name) for name in PROGRAMS}
    cluster.kill("up")
    assert cluster.api("GET", "/v1/status").status == 200
    cluster.ok("up", "--detach")
    cluster.wait_replaced("up", before.pop("up"))
    assert {name: cluster.pid(name) for name in before} == before
    cluster.wait_replaced("server", cluster.kill("server"))
    cluster.wait_ready()


@pytest.mark.parametrize("program", ["server", "agent", "envoy"])
def test_a_killed_program_is_back_soon(shared: Cluster, program: str) -> None:
    """Each dies once in the Steelyard that is shared: a second death soon after would be waited over."""
    begun = time.monotonic()
    shared.wait_replaced(program, shared.kill(program))
    assert time.monotonic() - begun < 1.0
    shared.wait_ready(10)


def test_down_twice_and_up_again_keeps_addresses_and_tokens(cluster: Cluster) -> None:
    token = cluster.admin_token
    cluster.down()
    assert "Ended" not in (cluster.home / "logs" / "up.log").read_text(), "nothing of ours counts as work, which has a grace"
    assert cluster.cli("status").returncode == 3
    assert cluster.status()["state"] == "stopped"
    cluster.down()
    cluster.up()
    assert (cluster.admin_token, cluster.status()["api_url"]) == (token, cluster.api_url)


def test_down_ends_all_work_and_leaves_no_control_group(cluster: Cluster) -> None:
    cluster.ok("run", "--detach", "--name", "stubborn", "--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    cluster.ok("run", "--detach", "--name", "forks", "--", "sh", "-c", "setsid sleep 1000 & sleep 1000")
    wait_until(lambda: all(job["state"] == "RUNNING" for job in json.loads(cluster.ok("ps", "--json"))), 20, "both to run")
    groups = Path("/sys/fs/cgroup").rglob(f"steelyard-{cluster.tag}/*/cgroup.procs")
    pids = {int(pid) for file in groups for pid in file.read_text().split()}
    assert len(pids) >= 3
    cluster.down()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    # the spawner saw them end before it ended itself
    assert len(list((cluster.home / "agent" / "exits").glob("*.json"))) == 2
    cluster.up()

    def codes() -> dict[str, int | None]:
        return {job["name"]: job["exit_code"] for job in json.loads(cluster.ok("ps", "--json"))}

    wait_until(lambda: codes() == {"stubborn": 137, "forks": 143}, 10, "both ends to be reported")


def test_down_works_after_everything_was_killed(cluster: Cluster) -> None:
    cluster.ok("run", "--detach", "--", "sleep", "1000")
    wait_until(lambda: json.loads(cluster.ok("ps", "--json"))[0]["state"] == "RUNNING", 20, "it to run")
    for program in ("up", "server", "agent", "envoy"):
        cluster.kill(program)
    cluster.down()


def test_foreground_up_ends_everything_on_ctrl_c(bare: Cluster) -> None:
    ports = ["--port", str(bare.api_port), "--gateway-port", str(bare.gateway_port)]
    process = bare.start("up", *ports)
    bare.wait_ready()
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=30)
    assert process.returncode == 0
    assert b"Ending Steelyard and all its work" in words
    assert bare.cli("status").returncode == 3


def test_what_the_first_up_makes(shared: Cluster) -> None:
    modes = {
        name: stat.S_IMODE((shared.home / name).stat().st_mode) for name in ("", "admin.token", "agent.token", "server", "agent")
    }
    assert modes == {"": 0o711, "admin.token": 0o600, "agent.token": 0o600, "server": 0o700, "agent": 0o700}
    assert shared.admin_token != shared.agent_token


def test_nothing_but_health_is_anonymous(shared: Cluster) -> None:
    assert shared.api("GET", "/healthz", token="").status == 200
    for path in ("/v1/status", "/v1/jobs", "/v1/functions", "/v1/keys", "/v1/machine", "/v1/openapi.json"):
        assert shared.api("GET", path, token="").status == 401
        assert shared.api("GET", path, token="wrong").status == 401


def test_two_homes_do_not_collide(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="sy-", dir="/tmp"))
    folder.chmod(0o755)
    other = Cluster(folder)
    try:
        other.up()
        assert other.status()["state"] == cluster.status()["state"] == "running"
        assert other.api("GET", "/v1/status", token=cluster.admin_token).status == 401
        cluster.kill("agent")
        other.down()
        cluster.wait_ready()
    finally:
        other.down()
        shutil.rmtree(folder)


def test_a_port_in_use_is_refused_and_nothing_is_made(bare: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", bare.api_port))
        taken.listen()
        assert str(bare.api_port) in refused(bare, "--port", str(bare.api_port))
        assert str(bare.api_port) in refused(bare, "--gateway-port", str(bare.api_port))
    assert not bare.home.exists()


def test_another_address_needs_tls(bare: Cluster) -> None:
    assert "--tls-cert" in refused(bare, "--host", "0.0.0.0")
    assert "--tls-key" in refused(bare, "--host", "0.0.0.0", "--tls-cert", "/nonexistent")
    assert "certificate" in refused(bare, "--host", "0.0.0.0", "--tls-cert", "/nonexistent", "--tls-key", "/nonexistent")
    assert not bare.home.exists()


def test_with_tls_the_api_is_asked_over_it(bare: Cluster) -> None:
    cert, key = bare.folder / "cert.pem", bare.folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    bare.up("--host", "127.0.0.1", "--tls-cert", str(cert), "--tls-key", str(key))
    assert bare.status()["api_url"] == f"https://127.0.0.1:{bare.api_port}"
    assert bare.ok("run", "--", "echo", "hello") == "hello\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"version": 1, "api_ho', "damaged"),
        (b'{"version": 99}', "newer"),
        (b"", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "damaged"),
    ],
)
def test_settings_that_cannot_be_trusted_are_refused_and_kept(bare: Cluster, content: bytes, words: str) -> None:
    bare.home.mkdir()
    (bare.home / "settings.json").write_bytes(content)
    assert words in refused(bare)
    for command in ("status", "down", "ps"):
        done = bare.cli(command)
        assert (done.returncode, words in done.stderr.decode()) == (2, True), (command, done.stderr)
    assert os.listdir(bare.home) == ["settings.json"]
    assert (bare.home / "settings.json").read_bytes() == content
    (bare.home / "settings.json").unlink()


def test_homes_that_cannot_be_are_refused(bare: Cluster) -> None:
    file = bare.folder / "file"
    file.write_text("mine")
    assert "not a folder" in refused(bare, "--home", str(file))
    assert "no Steelyard home" in refused(bare, "--home", str(bare.folder))
    assert "can't be made" in refused(bare, "--home", "/proc/steelyard")
    assert sorted(os.listdir(bare.folder)) == ["file"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root's work runs as somebody else")
def test_a_home_that_work_cannot_reach_is_refused(bare: Cluster) -> None:
    closed = bare.folder / "closed"
    closed.mkdir(mode=0o700)
    assert "64000" in refused(bare, "--home", str(closed / "home"))
    assert not (closed / "home").exists()


def test_a_damaged_token_is_refused(cluster: Cluster) -> None:
    cluster.down()
    (cluster.home / "agent.token").write_text("")
    assert "agent.token" in refused(cluster)
    (cluster.home / "agent.token").unlink()


def test_a_truncated_store_stops_the_start_with_what_to_do(cluster: Cluster) -> None:
    cluster.ok("run", "--", "true")
    cluster.down()
    # commits may still be in the write-ahead log: what is cut is where they are
    store = max((cluster.home / "server").glob("steelyard.db*"), key=lambda file: file.stat().st_size)
    content = store.read_bytes()
    store.write_bytes(content[: len(content) // 2])
    words = refused(cluster)
    assert "server does not start" in words
    assert store.read_bytes() == content[: len(content) // 2]
    assert cluster.status()["state"] == "stopped"
    store.write_bytes(content)
    cluster.up()
    assert len(json.loads(cluster.ok("ps", "--json"))) == 1
