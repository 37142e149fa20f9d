"""`steelyard apply` and `steelyard schedules` against the real programs."""

from __future__ import annotations

import json
from pathlib import Path

from steelyard_cluster import Cluster

HELLO = Path(__file__).resolve().parents[2] / "examples" / "hello" / "app.py"

FILE = """\
type: job
name: second
commands: [cat made-by-first, "false", echo never]
resources: {cpu: 0.1}
after: any:first
---
type: job
name: first
command: sh -c "echo made > made-by-first"
resources: {cpu: 0.1}
---
type: schedule
name: nightly
schedule: 0 3 * * *
timezone: Europe/Berlin
command: "true"
"""


def test_a_file_of_jobs_and_a_schedule_is_planned_and_applied(shared: Cluster) -> None:
    folder = shared.folder / "files"
    folder.mkdir()
    folder.chmod(0o777)
    file = folder / "jobs.yaml"
    file.write_text(FILE)
    plan = json.loads(shared.ok("apply", "-f", str(file), "--json"))
    assert [(step["name"], step["action"]) for step in plan] == [("first", "create"), ("second", "create"), ("nightly", "create")]
    assert json.loads(shared.ok("ps", "--json")) == []
    refused = shared.cli("apply", "-f", str(file))
    assert (refused.returncode, b"with -y" in refused.stderr) == (2, True)

    applied = json.loads(shared.ok("apply", "-y", "-f", str(file), "--json"))
    first, second = applied[0]["id"], applied[1]["id"]
    assert shared.wait_job(first, "SUCCEEDED")["exit_code"] == 0
    assert shared.wait_job(second, "FAILED")["exit_code"] == 1
    assert shared.ok("logs", second) == "made\n"

    again = shared.ok("apply", "-y", "-f", str(file))
    assert "= schedule nightly: as it is" in again
    file.write_text(FILE[FILE.rindex("---") :].replace("0 3", "30 4"))
    assert "cron: 0 3 * * * -> 30 4 * * *" in shared.ok("apply", "-y", "-f", str(file))
    (row,) = json.loads(shared.ok("schedules", "--json"))
    assert (row["name"], row["cron"], row["timezone"], row["command"]) == ("nightly", "30 4 * * *", "Europe/Berlin", ["true"])
    shared.ok("schedules", "pause", "nightly")
    assert json.loads(shared.ok("schedules", "--json"))[0]["paused"] is True
    assert "next at" in shared.ok("schedules", "resume", "nightly")
    shared.ok("schedules", "delete", "nightly")
    assert shared.ok("schedules") == ""


def test_a_function_is_deployed_left_and_changed_in_place(shared: Cluster) -> None:
    text = f"type: function\nname: greets\ntarget: {HELLO}:app\npublic: true\n"
    done = shared.cli("apply", "-y", "-f", "-", input=text.encode())
    assert done.returncode == 0, done.stderr
    assert shared.call("/greets/x").body == b"Hello from /greets/x\n"
    again = shared.cli("apply", "-y", "-f", "-", input=text.encode())
    assert b"= function greets: as it is" in again.stdout, again.stdout
    assert shared.function("greets")["revision"] == 1
    changed = shared.cli("apply", "-y", "-f", "-", input=f"{text}replicas: 0..4\nenv: {{A: secret}}\n".encode())
    assert b"replicas_max: 1 -> 4" in changed.stdout, changed.stdout + changed.stderr
    assert b"secret" not in changed.stdout
    assert shared.function("greets")["revision"] == 2
    shared.ok("delete", "greets")


def test_a_functions_volume_and_the_traffic_of_its_new_revision_are_as_the_file_says(shared: Cluster) -> None:
    shared.ok("volumes", "create", "apply-notes")
    text = f"type: function\nname: shares\ntarget: {HELLO}:app\npublic: true\nvolumes: [apply-notes:/notes]\n"
    assert shared.cli("apply", "-y", "-f", "-", input=text.encode()).returncode == 0
    assert shared.function("shares")["spec"]["volumes"][0]["path"] == "/notes"
    more = f"{text}env: {{A: b}}\ntraffic: 0\ntag: next\n"
    done = shared.cli("apply", "-y", "-f", "-", input=more.encode())
    assert done.returncode == 0 and b"traffic: none -> 0 %" in done.stdout, done
    assert shared.function("shares")["routes"] == {"shares": [{"revision": 1, "percent": 100}], "tags": [["next", 2]]}
    assert shared.call("/shares@next/x").status == 200
    shared.ok("delete", "shares")
    shared.ok("volumes", "delete", "--yes", "apply-notes")


def test_schedules_of_the_command_line_say_when_they_come_next(shared: Cluster) -> None:
    made = shared.ok(
        "schedules", "create", "probe", "--cron", "*/15 8-18 * * MON-FRI", "--max-duration", "5m", "--", "true", "-x"
    )
    assert made.startswith("probe: next at 20")
    (row,) = json.loads(shared.ok("schedules", "--json"))
    assert (row["cron"], row["command"]) == ("*/15 8-18 * * MON-FRI", ["true", "-x"])
    for options in (
        ("--cron", "never"),
        ("--cron", "0 3 * * *", "--timezone", "Nowhere"),
        ("--cron", "0 3 * * *", "--array", "0-3"),
    ):
        refused = shared.cli("schedules", "create", "bad", *options, "--", "true")
        assert (refused.returncode, b"Traceback" in refused.stderr) == (2, False), refused.stderr
    assert len(json.loads(shared.ok("schedules", "--json"))) == 1
    shared.ok("schedules", "delete", "probe")
