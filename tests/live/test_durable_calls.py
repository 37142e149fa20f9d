"""Durable calls on the whole of Steelyard: each program is killed with -9 while they are carried out, and none is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from steelyard_cluster import Cluster, wait_until

CALLS = 200

APP = '''
import os, time
import steelyard as sy

app = sy.App("dur")

@app.function(max_replicas=2, idle_timeout="30s", min_replicas=1, concurrency=8)
def note(path, number):
    with open(path, "a") as file:
        file.write(f"{number}\\n")
    time.sleep(0.02)
    return number * 2

@app.function(max_replicas=1, idle_timeout="30s")
def outer(count):
    """Finds its own way: by the token that its replica was given."""
    calls = [inner.spawn(number) for number in range(count)]
    return sum(call.get(timeout=60) for call in calls) + inner.remote(1)

@app.function(max_replicas=1, concurrency=8)
def inner(number):
    return number + 1

@app.function(schedule=sy.Every(seconds=1), max_replicas=1)
def tick():
    print("tick", flush=True)

@app.function(max_replicas=1)
def boom(x: int = 1):
    raise ValueError("no boom")
'''

SPAWN = """
import sys
import steelyard as sy
note = sy.Function.from_name("dur-note")
for number in range(int(sys.argv[2])):
    print(note.spawn(sys.argv[1], number).object_id, flush=True)
"""

GET = """
import sys
import steelyard as sy
assert sy.Function.from_name("dur-outer").spawn(5).get(timeout=60) == 17
for number, call in enumerate(sys.argv[1:]):
    assert sy.FunctionCall.from_id(call).get(timeout=60) == number * 2, call
"""


@pytest.fixture(scope="module")
def app(shared: Cluster) -> Iterator[Cluster]:
    folder = shared.folder / "dur"
    folder.mkdir()
    (folder / "dur.py").write_text(APP)
    shared.ok("deploy", str(folder / "dur.py"), "--python", sys.executable)
    yield shared
    for name in ("note", "outer", "inner", "tick", "boom"):
        shared.cli("delete", f"dur-{name}")


def python(cluster: Cluster, program: str, *arguments: str) -> str:
    environ = {**os.environ, "STEELYARD_HOME": str(cluster.home)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environ, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def executed(path: Path) -> Counter[int]:
    return Counter(map(int, path.read_text().split()))


def test_no_call_is_lost_when_server_gateway_and_agent_are_killed_while_they_are_carried_out(
    app: Cluster, tmp_path: Path
) -> None:
    path = app.folder / "notes"
    path.touch()
    path.chmod(0o666)
    calls: list[str] = []
    spawning = threading.Thread(target=lambda: calls.extend(python(app, SPAWN, str(path), str(CALLS)).split()))
    spawning.start()
    for program, after in (("server", CALLS // 10), ("envoy", CALLS // 3), ("agent", CALLS // 2), ("server", CALLS * 2 // 3)):
        wait_until(lambda after=after: len(executed(path)) >= after, 60, f"{after} calls are carried out")
        app.wait_replaced(program, app.kill(program))
    spawning.join(100)
    app.wait_ready()  # the last call may have been made before the last kill
    assert len(calls) == len(set(calls)) == CALLS, "asking again with the same key makes no second call"
    for call in calls:
        view = app.api("GET", f"/v1/calls/{call}?wait_s=60").json()
        assert view["state"] == "SUCCEEDED", view
    found = executed(path)
    assert set(found) == set(range(CALLS)), "each was carried out"
    assert sum(found.values()) <= CALLS + 3 * 16, "only what was being carried out is carried out again"
    python(app, GET, *calls[:20])


def test_a_schedule_calls_its_function_and_what_it_printed_is_in_its_log(app: Cluster) -> None:
    def called() -> Any:
        rows = app.api("GET", "/v1/calls?function=dur-tick&state=SUCCEEDED").json()
        return rows if len(rows) >= 2 else None

    rows = wait_until(called, 60, "two calls by the clock have succeeded")
    assert {row["schedule"] for row in rows} == {"dur-tick"}
    listed = app.ok("schedules")
    assert "dur-tick" in listed and "every 1.0s" in listed
    assert "tick" in app.ok("logs", "dur-tick")
    shown = app.ok("calls", "show", rows[0]["id"])
    assert "by the schedule dur-tick" in shown and "SUCCEEDED" in shown
    assert app.ok("calls", "result", rows[0]["id"]) == "null"


def test_a_call_made_with_json_is_answered_in_json_and_what_it_raised_is_told(app: Cluster) -> None:
    made = app.api("POST", "/v1/functions/dur-inner/calls", {"number": 4}).json()
    assert app.cli("calls", "result", made["id"], "--wait").stdout == b"5"
    made = app.api("POST", "/v1/functions/dur-boom/calls", {}).json()
    failed = app.cli("calls", "result", made["id"], "--wait")
    assert failed.returncode == 1 and b"no boom" in failed.stdout
    view = app.api("GET", f"/v1/calls/{made['id']}").json()
    assert (view["state"], view["reason"]) == ("FAILED", "raised") and "no boom" in view["detail"]
    made = app.api("POST", "/v1/functions/dur-inner/calls", {"numbers": 4}).json()
    view = app.api("GET", f"/v1/calls/{made['id']}?wait_s=30").json()
    assert (view["state"], view["reason"]) == ("FAILED", "call-refused") and "number" in view["detail"]
