"""Are durable calls carried out whatever happens, and is what came of them told? A real server; the gateway is the test's own."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_rig import FakeAgent, Server
from fake_gateway import Answered, Asked, FakeGateway

from steelyard.sdk import frames

SPEC = {"file": "app.py", "attr": "app", "python": "/usr/bin/python3", "replicas_max": 2, "concurrency": 4}


def deploy(server: Server, name: str = "embed", **fields: object) -> None:
    answer = server.http.put(f"/v1/functions/{name}", json={"spec": {**SPEC, "cwd": "/", **fields}})
    assert answer.status_code == 200, answer.text


def spawn(server: Server, body: bytes = b"in", name: str = "embed", key: str | None = None, **params: str) -> dict[str, Any]:
    headers = {"content-type": "text/plain"} | ({} if key is None else {"idempotency-key": key})
    answer = server.http.post(f"/v1/functions/{name}/calls", content=body, headers=headers, params=params)
    assert answer.status_code == 201, answer.text
    return answer.json()


def end_of(server: Server, call: str, wait_s: float = 20) -> dict[str, Any]:
    view = server.http.get(f"/v1/calls/{call}", params={"wait_s": wait_s}).json()
    assert view["ended_at"], view
    return view


def result_of(server: Server, call: str) -> bytes:
    answer = server.http.get(f"/v1/calls/{call}/result", params={"wait_s": 20})
    assert answer.status_code == 200, answer.text
    return answer.content


def gateway_port(server: Server) -> int:
    return json.loads(server.paths.settings.read_bytes())["gateway_port"]


def test_a_call_is_asked_with_the_owners_key_and_its_answer_is_kept_as_it_was(server: Server) -> None:
    with (
        FakeAgent(server) as agent,
        FakeGateway(gateway_port(server), lambda asked: Answered(200, asked.body * 2, "x/y")) as gateway,
    ):
        deploy(server)
        agent.wait_for(lambda: bool(agent.assignments[-1].functions))
        call = spawn(server, b"\x00\xff", method="add")
        assert call["state"] == "QUEUED" and call["id"].startswith("c-") and call["input_bytes"] == 2
        view = end_of(server, call["id"])
        assert (view["state"], view["attempt"], view["result_bytes"], view["result_type"]) == ("SUCCEEDED", 1, 4, "x/y")
        answer = server.http.get(f"/v1/calls/{call['id']}/result")
        assert answer.content == b"\x00\xff" * 2 and answer.headers["content-type"] == "x/y"
        [asked] = gateway.asked
        assert asked.path == "/embed/.steelyard/call/add" and asked.headers["content-type"] == "text/plain"
        key = server.http.get("/v1/call-key").json()
        assert asked.headers["authorization"] == f"Bearer {key['key']}" and key["gateway"].endswith(str(gateway_port(server)))
        assert key["key"] in agent.assignments[-1].keys
        assert server.http.get("/v1/keys").json() == [], "nobody made it, so nobody sees it"
        events = [event["text"] for event in server.http.get(f"/v1/calls/{call['id']}/events").json()]
        assert events == ["submitted", "QUEUED -> RUNNING (attempt 1)", "RUNNING -> SUCCEEDED"]
        assert not list(server.paths.calls.glob("*.input")), "an input that is not needed any more takes no room"


def read_succeeded(server: Server) -> list[str]:
    """By the store of a server that does not run."""
    import pysqlite3  # type: ignore[import-untyped]

    with contextlib.closing(pysqlite3.connect(server.paths.store)) as store:
        return [id_ for (id_,) in store.execute("SELECT id FROM call WHERE state = 'SUCCEEDED'")]


def test_no_call_is_lost_when_the_server_is_killed_in_the_middle_of_two_hundred(fresh: Server) -> None:
    going = threading.Event()

    def answer(asked: Asked) -> Answered:
        if not going.is_set():
            time.sleep(0.02)
        return Answered(200, b"out " + asked.body)

    with FakeGateway(gateway_port(fresh), answer) as gateway:
        deploy(fresh)
        calls = {spawn(fresh, str(number).encode(), key=f"k{number}")["id"]: number for number in range(200)}
        recorded: list[dict[bytes, int]] = []
        for after in (20, 60, 110):
            deadline = time.monotonic() + 30
            while len(gateway.asked) < after:
                assert time.monotonic() < deadline
                going.wait(0.005)
            fresh.stop(signal.SIGKILL)
            done = [b"%d" % calls[call] for call in read_succeeded(fresh)]
            asked = Counter(each.body for each in gateway.asked)
            recorded.append({body: asked[body] for body in done})
            fresh.start()
        going.set()
        for call, number in calls.items():
            assert result_of(fresh, call) == b"out %d" % number
        assert gateway.busiest <= 8, "no more at a time than its replicas hold"
        executed = Counter(asked.body for asked in gateway.asked)
        # at most what was being asked, and what had come back since the last look at what comes back: a replica's worth each
        assert len(executed) == 200 and sum(executed.values()) <= 200 + 3 * (8 + 8)
        assert all(recorded), "something was on record at each kill"
        for known in recorded:
            assert {body: executed[body] for body in known} == known, "what is on record as done is not asked again"
        views = fresh.http.get("/v1/calls").json()
        assert Counter(view["state"] for view in views) == {"SUCCEEDED": 200}
        assert sorted(path.suffix for path in fresh.paths.calls.iterdir()) == [".result"] * 200


def test_a_busy_function_is_asked_again_and_no_attempt_of_its_retries_is_used(server: Server) -> None:
    answers = itertools.chain([Answered(429), Answered(503), Answered(429)], itertools.repeat(Answered(200, b"done")))
    with FakeGateway(gateway_port(server), lambda asked: next(answers)):
        deploy(server)
        call = spawn(server)
        assert result_of(server, call["id"]) == b"done"
        assert end_of(server, call["id"])["attempt"] == 4


def test_a_lost_replica_fails_the_call_unless_its_retries_allow_another_attempt(server: Server) -> None:
    lost = Answered(502, b'{"type":"","title":"","status":502,"detail":"gone","code":"replica-lost"}', "application/problem+json")
    answers = {b"a": [lost], b"b": [lost, Answered(200, b"second")]}
    with FakeGateway(gateway_port(server), lambda asked: answers[asked.body].pop(0)):
        deploy(server)
        view = end_of(server, spawn(server, b"a")["id"])
        assert (view["state"], view["reason"], view["result_bytes"]) == ("FAILED", "replica-lost", None)
        assert "gone" in view["detail"]
        missing = server.http.get(f"/v1/calls/{view['id']}/result")
        assert missing.status_code == 409 and missing.json()["code"] == "no-result" and "gone" in missing.json()["detail"]
        deploy(server, retries=1)
        assert result_of(server, spawn(server, b"b")["id"]) == b"second"


def test_a_gateway_that_is_away_or_goes_away_only_costs_time(server: Server) -> None:
    deploy(server)
    call = spawn(server)["id"]
    deadline = time.monotonic() + 10
    while server.http.get(f"/v1/calls/{call}").json()["reason"] != "gateway-lost":
        assert time.monotonic() < deadline
    answers = itertools.chain([None], itertools.repeat(Answered(200, b"out")))
    with FakeGateway(gateway_port(server), lambda asked: next(answers)):
        assert result_of(server, call) == b"out"


def test_an_exception_of_the_function_is_kept_and_read_no_further_than_its_head(server: Server) -> None:
    error = json.dumps({"code": "raised", "type": "builtins.ValueError", "text": "no such row", "traceback": ""}).encode()
    body = b"".join(
        [*frames.encode(frames.ERROR, 0, [error, b"cos\nsystem\n(S'false'\ntR."]), *frames.encode(frames.DONE, 0, [b"5"])]
    )
    with FakeGateway(gateway_port(server), lambda asked: Answered(200, body, frames.CONTENT_TYPE)):
        deploy(server)
        view = end_of(server, spawn(server)["id"])
        assert (view["state"], view["reason"], view["detail"]) == ("FAILED", "raised", "builtins.ValueError: no such row")
        assert result_of(server, view["id"]) == body


def test_an_answer_that_was_cut_off_is_no_result(server: Server) -> None:
    body = b"".join(frames.encode(frames.RESULT, 0, [b"half"]))
    with FakeGateway(gateway_port(server), lambda asked: Answered(200, body, frames.CONTENT_TYPE)):
        deploy(server)
        view = end_of(server, spawn(server)["id"])
        assert (view["state"], view["result_bytes"]) == ("FAILED", None) and "last frame" in view["detail"]


def test_cancelling_closes_the_connection_of_what_runs_and_takes_what_waits_out_of_the_queue(server: Server) -> None:
    release, began = threading.Event(), threading.Event()

    def answer(asked: Asked) -> Answered:
        began.set()
        release.wait(20)
        return Answered(200, b"x" * (8 << 20))

    with FakeGateway(gateway_port(server), answer) as gateway:
        before = set(server.paths.calls.iterdir())
        deploy(server, replicas_max=1, concurrency=1)
        running, waiting = spawn(server)["id"], spawn(server)["id"]
        assert began.wait(10)
        for call in (waiting, running, running):
            answer_ = server.http.post(f"/v1/calls/{call}/cancel")
            assert answer_.status_code == 202 and answer_.json()["state"] == "CANCELLED"
        release.set()
        assert gateway.broken.wait(10), "whoever answers finds nobody"
        assert len(gateway.asked) == 1
        assert end_of(server, running)["reason"] == "cancelled-by-user"
        assert set(server.paths.calls.iterdir()) == before


def test_the_same_key_makes_one_call_and_leaves_one_input(server: Server) -> None:
    deploy(server)
    first, second = (spawn(server, b"x" * 3_000_000, key="once") for _ in range(2))
    assert first == second
    refused = server.http.post("/v1/functions/embed/calls", content=b"other", headers={"idempotency-key": "once"})
    assert refused.status_code == 422 and refused.json()["code"] == "idempotency-key-reused"
    assert [path.stat().st_size for path in server.paths.calls.glob("*.input")] == [3_000_000]


def test_what_can_not_be_called_is_refused_and_the_calls_of_a_deleted_function_fail(server: Server) -> None:
    assert server.http.post("/v1/functions/nobody/calls", content=b"").status_code == 404
    deploy(server)
    assert server.http.post("/v1/functions/embed/calls", params={"method": "a/b"}).json()["code"] == "bad-method"
    assert server.http.get("/v1/calls/c-nothing").status_code == 404
    assert server.http.get("/v1/calls", params={"state": "SLEEPING"}).json()["code"] == "no-such-state"
    call = spawn(server)["id"]
    unfinished = server.http.get(f"/v1/calls/{call}/result")
    assert unfinished.status_code == 409 and unfinished.json()["code"] == "not-ended"
    assert server.http.delete("/v1/functions/embed").status_code == 204
    view = end_of(server, call)
    assert (view["state"], view["reason"]) == ("FAILED", "function-gone")


def test_workloads_call_their_owners_functions_and_do_nothing_else(server: Server) -> None:
    with FakeAgent(server) as agent, FakeGateway(gateway_port(server), lambda asked: Answered(200, b"out")):
        before = server.http.get("/v1/calls").json()
        deploy(server)
        agent.wait_for(lambda: bool(agent.assignments[-1].functions))
        token = {"Authorization": f"Bearer {agent.assignments[-1].functions[0].token}"}
        made = server.http.post("/v1/functions/embed/calls", content=b"", headers=token)
        assert made.status_code == 201
        assert server.http.get(f"/v1/calls/{made.json()['id']}/result", params={"wait_s": 20}, headers=token).content == b"out"
        assert server.http.get("/v1/call-key", headers=token).json() == server.http.get("/v1/call-key").json()
        assert len(server.http.get("/v1/calls", headers=token).json()) == len(before) + 1
        assert server.http.delete("/v1/functions/embed", headers=token).status_code == 401
        assert server.http.delete("/v1/functions/embed").status_code == 204
        assert server.http.get("/v1/call-key", headers=token).status_code == 401, (
            "nobody is the owner of a token whose function is gone"
        )


def test_a_function_brings_its_schedule_along_and_takes_it_away_again(server: Server) -> None:
    with FakeGateway(gateway_port(server), lambda asked: Answered(200, b"null", "application/json")) as gateway:
        put = {"spec": {**SPEC, "cwd": "/"}, "schedule": {"every_s": 1}}
        assert server.http.put("/v1/functions/tick", json=put).status_code == 200
        deadline = time.monotonic() + 20
        while len(gateway.asked) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert {(asked.path, asked.body, asked.headers["content-type"]) for asked in gateway.asked} == {
            ("/tick/.steelyard/call", b"{}", "application/json")
        }
        [shown] = server.http.get("/v1/schedules").json()
        assert (shown["name"], shown["function"], shown["every_s"], shown["spec"]) == ("tick", "tick", 1, None)
        call = server.http.get(f"/v1/calls/{shown['last_call']}").json()
        assert (call["function"], call["schedule"]) == ("tick", "tick")
        refused = server.http.put("/v1/schedules/tick", json={"every_s": 5, "function": "tick"})
        assert refused.status_code == 409 and "deploy it again" in refused.json()["detail"]
        assert server.http.put("/v1/functions/tick", json={"spec": put["spec"]}).status_code == 200
        assert server.http.get("/v1/schedules").json() == []
        assert server.http.put("/v1/functions/tick", json=put).status_code == 200
        assert server.http.delete("/v1/functions/tick").status_code == 204
        assert server.http.get("/v1/schedules").json() == []


@pytest.mark.parametrize(
    ("schedule", "code"),
    [
        ({"cron": "0 0 31 2 *"}, "bad-cron"),
        ({"cron": "every day"}, "bad-cron"),
        ({"cron": "@daily", "timezone": "Mars/Olympus"}, "bad-timezone"),
        ({"cron": "@fortnightly"}, "bad-cron"),
        ({"every_s": 0.5}, "bad-period"),
        ({"every_s": 5, "cron": "@daily"}, "bad-schedule"),
        ({}, "bad-schedule"),
    ],
)
def test_a_schedule_that_never_comes_true_is_refused_with_its_function(
    server: Server, schedule: dict[str, object], code: str
) -> None:
    answer = server.http.put("/v1/functions/tick", json={"spec": {**SPEC, "cwd": "/"}, "schedule": schedule})
    assert answer.status_code == 422 and answer.json()["code"] == code, answer.text
    assert server.http.get("/v1/functions").json() == [] and server.http.get("/v1/schedules").json() == []


def test_a_schedule_made_by_itself_outlives_its_function(server: Server) -> None:
    assert server.http.put("/v1/schedules/s", json={"cron": "@daily", "function": "tick"}).json()["code"] == "no-such-function"
    deploy(server, "tick")
    made = server.http.put("/v1/schedules/s", json={"cron": "@daily", "function": "tick"})
    assert made.status_code == 200 and made.json()["next_at"].endswith("T00:00:00.000000Z")
    assert server.http.put("/v1/schedules/s", json={"cron": "@daily"}).json()["code"] == "bad-schedule"
    assert server.http.delete("/v1/functions/tick").status_code == 204
    assert [row["name"] for row in server.http.get("/v1/schedules").json()] == ["s"]


@pytest.fixture
def small_disk(fresh: Server) -> Iterator[Path]:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(fresh.paths.calls)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"NOT TESTED: no tmpfs can be mounted here ({made.stderr.strip()})")
    yield fresh.paths.calls
    subprocess.run(["umount", "-l", str(fresh.paths.calls)], check=True)


def test_a_full_disk_refuses_inputs_keeps_nothing_and_answers_are_asked_for_again_when_there_is_room(
    fresh: Server, small_disk: Path
) -> None:
    deploy(fresh)
    refused = fresh.http.post("/v1/functions/embed/calls", content=b"x" * (5 << 20))
    assert refused.status_code == 507 and refused.json()["code"] == "disk-full"
    assert list(small_disk.iterdir()) == [] and fresh.http.get("/v1/calls").json() == []
    ballast = small_disk / "ballast"
    with FakeGateway(gateway_port(fresh), lambda asked: Answered(200, b"y" * (1 << 20))):
        ballast.write_bytes(b"x" * (1536 << 10))
        call = spawn(fresh)["id"]
        deadline = time.monotonic() + 20
        while fresh.http.get(f"/v1/calls/{call}").json()["reason"] != "disk-full":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ballast.unlink()
        assert len(result_of(fresh, call)) == 1 << 20
