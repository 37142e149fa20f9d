"""The commands a person types, against the real programs: exit codes, streams, signals, shapes of --json."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
from pathlib import Path

import pytest
from steelyard_cluster import Cluster, wait_until

SPEAKS_THEN_SLEEPS = "echo out; echo err >&2; exec sleep 1000"
RFC3339 = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of its stdout, within ten seconds."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 10)[0], "no output"
    return process.stdout.readline()


@pytest.mark.parametrize("code", [0, 1, 2, 3, 42, 125, 255])
def test_run_answers_with_the_commands_own_code(shared: Cluster, code: int) -> None:
    assert shared.cli("run", "--cpus", "0.1", "--", "sh", "-c", f"exit {code}").returncode == code


def test_both_streams_go_where_they_belong_byte_for_byte(shared: Cluster) -> None:
    data = bytes(range(256)) * 4000
    (shared.folder / "data").write_bytes(data)
    done = shared.cli("run", "--", "sh", "-c", f"cat {shared.folder}/data; cat {shared.folder}/data >&2; printf end >&2")
    assert done.stdout == data
    assert done.stderr == data + b"end"


def test_a_command_killed_by_a_signal_answers_as_a_shell_would(shared: Cluster) -> None:
    assert shared.cli("run", "--", "sh", "-c", "kill -9 $$").returncode == 137


def test_where_it_runs_and_with_what(shared: Cluster) -> None:
    done = shared.cli(
        "run", "--env", "A=1 2", "--env", "PASSED", "--", "sh", "-c", 'pwd; echo "$A $PASSED"', env={"PASSED": "on"}
    )
    assert done.stdout.decode().splitlines() == [str(shared.folder), "1 2 on"]


@pytest.mark.parametrize(
    "args",
    [("--cpus", "100000"), ("--cpus", "0"), ("--cpus", "-1"), ("--cpus", "nan"), ("--memory", "999TB"), ("--memory", "much"),
     ("--name", "a\nb"), ("--env", "=1"), ("--bogus",), ("--exclusive", "--cpus", "100000")],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_125_and_no_job(shared: Cluster, args: tuple[str, ...]) -> None:
    before = shared.ok("ps", "--json")
    done = shared.cli("run", *args, "--", "true")
    assert done.returncode == 125, done.stderr
    assert done.stderr
    assert b"Traceback" not in done.stderr
    assert b"defect" not in done.stderr
    assert shared.ok("ps", "--json") == before


def test_a_command_that_is_not_there_is_said_so(shared: Cluster) -> None:
    done = shared.cli("run", "--", "/no/such/program")
    assert done.returncode == 125
    assert b"/no/such/program" in done.stderr


def test_ctrl_c_is_forwarded_and_the_second_kills(shared: Cluster) -> None:
    polite = shared.start("run", "--", "sh", "-c", "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.1; done")
    assert read_line(polite) == b"ready\n"
    polite.send_signal(signal.SIGINT)
    out, _ = polite.communicate(timeout=20)
    assert (polite.returncode, out) == (7, b"caught\n")

    stubborn = shared.start("run", "--", "sh", "-c", "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done")
    assert read_line(stubborn) == b"ready\n"
    stubborn.send_signal(signal.SIGINT)
    assert read_line(stubborn) == b"caught\n"
    stubborn.send_signal(signal.SIGINT)
    stubborn.communicate(timeout=20)
    assert stubborn.returncode == 137


def test_a_job_outlives_the_command_and_the_server(shared: Cluster) -> None:
    gate = shared.folder / "gate"
    os.mkfifo(gate)
    gate.chmod(0o666)
    process = shared.start("run", "--", "sh", "-c", f"echo before; read line <{gate}; echo after; exit 5")
    assert read_line(process) == b"before\n"
    shared.wait_replaced("server", shared.kill("server"))
    gate.write_text("go\n")
    out, words = process.communicate(timeout=30)
    assert (process.returncode, out) == (5, b"after\n"), words


def test_detached_job_is_listed_logged_proved_and_stopped(shared: Cluster) -> None:
    job = shared.ok("run", "--detach", "--name", "long", "--cpus", "0.1", "--", "sh", "-c", SPEAKS_THEN_SLEEPS).strip()
    shared.wait_job(job, "RUNNING")
    rows = json.loads(shared.ok("ps", "--json"))
    row = next(row for row in rows if row["id"] == job)
    assert set(row) >= {"id", "name", "state", "reason", "exit_code", "submitted_at", "started_at", "ended_at"}
    assert (row["name"], row["state"], row["exit_code"], row["ended_at"]) == ("long", "RUNNING", None, None)
    assert RFC3339.match(row["submitted_at"])
    assert RFC3339.match(row["started_at"])
    logged = wait_until(lambda: done if (done := shared.cli("logs", job)).stdout else None, 10, "its output")
    assert (logged.stdout, logged.stderr) == (b"out\n", b"err\n")
    proof = json.loads(shared.ok("proof", job, "--json"))
    assert set(proof) == {"state", "asked", "got", "differences", "notes"}
    assert proof["state"] in ("MATCH", "PARTIAL")
    follower = shared.start("logs", "-f", job)
    assert read_line(follower) == b"out\n"
    shared.ok("stop", job)
    follower.communicate(timeout=20)
    assert follower.returncode == 0
    assert shared.wait_job(job, "STOPPED")["reason"] == "stopped-by-user"


@pytest.mark.parametrize(
    "line", ["logs nobody", "proof nobody", "stop nobody", "delete nobody", "keys delete nobody", "logs ../x"]
)
def test_what_is_not_there_is_refused_with_2(shared: Cluster, line: str) -> None:
    done = shared.cli(*line.split())
    assert done.returncode == 2
    assert line.split()[-1].encode() in done.stderr


def test_listings_in_a_pipe_are_plain(shared: Cluster) -> None:
    shared.ok("run", "--", "true")
    for line in ("ps", "status", "functions", "keys", "coldstarts", "machine"):
        text = shared.ok(line)
        assert "\x1b" not in text
        assert "\t" not in text


def test_keys_are_made_listed_and_deleted(shared: Cluster) -> None:
    secret = shared.ok("keys", "create", "laptop").strip()
    assert len(secret) > 20
    assert secret not in shared.ok("keys")
    assert [row["name"] for row in json.loads(shared.ok("keys", "--json"))] == ["laptop"]
    assert shared.cli("keys", "create", "laptop").returncode == 2
    shared.ok("keys", "delete", "laptop")
    assert json.loads(shared.ok("keys", "--json")) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("none.py:app",), "no file"),
        (("app.py:app", "--name", "Bad_Name"), "host name"),
        (("app.py",), "--port"),
        (("bad.py:app",), "not Python"),
        (("app.py:app", "--python", "/no/python"), "no program"),
        (("app.py:app", "--memory", "x"), "size"),
        (("app.py:app", "--idle-timeout", "x"), "duration"),
        (("app.py:app", "--min-replicas", "2"), "--max-replicas"),
    ],
)
def test_deploys_that_cannot_be_are_refused_with_2(shared: Cluster, args: tuple[str, ...], words: str) -> None:
    folder = shared.folder / "code"
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text("app = None\n")
    (folder / "bad.py").write_text("def f(:\n")
    done = shared.cli("deploy", *args, cwd=folder)
    assert done.returncode == 2
    assert words in done.stderr.decode()
    assert json.loads(shared.ok("functions", "--json")) == []


HELLO = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"TEXT"})
"""


def test_a_function_from_deploy_to_delete(shared: Cluster) -> None:
    folder = shared.folder / "hello"
    folder.mkdir()
    (folder / "app.py").write_text(HELLO.replace("TEXT", "one"))
    deployed = shared.ok("deploy", "app.py:app", "--name", "hello", "--public", "--idle-timeout", "1s", cwd=folder)
    assert f"{shared.gateway_url}/hello/" in deployed
    rows = json.loads(shared.ok("functions", "--json"))
    shape = {
        "name",
        "revision",
        "state",
        "url",
        "replicas",
        "waking",
        "queued",
        "public",
        "lends",
        "app",
        "interface",
        "expires_at",
        "pool",
        "machines",
    }
    assert set(rows[0]) == shape
    assert (rows[0]["name"], rows[0]["revision"], rows[0]["state"], rows[0]["public"]) == ("hello", 1, "SLEEPING", True)
    # what was captured is what runs, whatever happens to the file
    (folder / "app.py").write_text("raise SystemExit('edited')")
    assert shared.call("/hello/").body == b"one"
    cold = wait_until(lambda: json.loads(shared.ok("coldstarts", "hello", "--json")), 10, "the ledger's row")[0]
    assert set(cold) == {"function", "revision", "at", "road", "reason", "wall_ms", "platform_ms", "user_ms", "phases"}
    assert RFC3339.match(cold["at"])
    assert sum(cold["phases"].values()) == pytest.approx(cold["wall_ms"], abs=1.0)

    failed = shared.cli("deploy", "app.py:app", "--name", "hello", "--public", cwd=folder)
    assert failed.returncode == 2
    assert b"edited" in failed.stderr
    assert b"Revision 1 goes on serving" in failed.stderr
    assert shared.call("/hello/").body == b"one"

    (folder / "app.py").write_text(HELLO.replace("TEXT", "three"))
    shared.ok("deploy", "app.py:app", "--name", "hello", "--public", cwd=folder)
    assert shared.call("/hello/").body == b"three"
    shared.ok("delete", "hello")
    wait_until(lambda: shared.call("/hello/").status == 404, 10, "it to be gone")


def test_a_private_function_wants_a_key(shared: Cluster) -> None:
    folder = shared.folder / "private"
    folder.mkdir()
    (folder / "app.py").write_text(HELLO)
    shared.ok("deploy", "app.py:app", "--name", "private", cwd=folder)
    assert shared.call("/private/").status in (401, 403)
    secret = shared.ok("keys", "create", "caller").strip()
    wait_until(
        lambda: shared.call("/private/", headers={"Authorization": f"Bearer {secret}"}).status == 200, 10, "the key to work"
    )
    shared.ok("delete", "private")
    shared.ok("keys", "delete", "caller")


def test_errors_in_user_code_reach_the_user(shared: Cluster) -> None:
    folder = shared.folder / "broken"
    folder.mkdir()
    (folder / "app.py").write_text("import nothing_of_this_name\n")
    done = shared.cli("deploy", "app.py:app", "--name", "broken", cwd=folder)
    assert done.returncode == 2
    assert b"Traceback" in done.stderr
    assert b"nothing_of_this_name" in done.stderr
    assert shared.function("broken")["state"] == "FAILED"
    (folder / "app.py").write_text("app = 5\n")
    done = shared.cli("deploy", "app.py:app", "--name", "broken", cwd=folder)
    assert done.returncode == 2
    done = shared.cli("deploy", "app.py:other", "--name", "broken", cwd=folder)
    assert done.returncode == 2
    assert b"other" in done.stderr
    shared.ok("delete", "broken")


def test_the_machine_is_shown_without_any_steelyard(home: Path) -> None:
    other = Cluster(home.parent)
    assert json.loads(other.ok("machine", "--json"))["cores"]
    assert not home.exists()


def test_commands_without_a_steelyard_say_so(home: Path) -> None:
    other = Cluster(home.parent)
    for line in ("status", "ps", "functions", "keys", "coldstarts", "logs x", "stop x", "proof x", "delete x"):
        done = other.cli(*line.split())
        assert (done.returncode, b"steelyard up" in done.stderr) == (3, True), line
    assert other.cli("run", "--", "true").returncode == 125
    assert other.cli("down").returncode == 0
    assert not home.exists()
