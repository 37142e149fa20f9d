"""Schedules of a real server: doors, changes, and each time submitted once whatever is killed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_rig import Server, problem
from msgspec.structs import replace
from steelyard_cluster import wait_until

from steelyard.model.ids import DEFAULT_PROJECT
from steelyard.store.sql import open_store

SPEC = {"name": "x", "argv": ["true"], "cwd": "/"}
HOURS_3_US = 3 * 3600 * 1_000_000


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with Server(home) as made:
        yield made


def put(server: Server, name: str, cron: str = "0 3 * * *", **more: Any) -> Any:
    return server.http.put(f"/v1/schedules/{name}", json={"cron": cron, "spec": SPEC, **more})


def test_a_schedule_is_made_listed_changed_paused_and_deleted(server: Server) -> None:
    made = put(server, "nightly", timezone="Europe/Berlin")
    assert made.status_code == 200, made.text
    view = made.json()
    assert (view["cron"], view["timezone"], view["paused"], view["last_job"]) == ("0 3 * * *", "Europe/Berlin", False, None)
    assert view["next_at"] > "2026"
    assert put(server, "nightly", timezone="Europe/Berlin").json()["generation"] == view["generation"]
    assert put(server, "nightly", "0 4 * * *").json()["generation"] == view["generation"] + 1
    assert [each["cron"] for each in server.http.get("/v1/schedules").json()] == ["0 4 * * *"]
    for _ in range(2):
        paused = server.http.post("/v1/schedules/nightly/pause")
        assert (paused.status_code, paused.json()["paused"], paused.json()["next_at"]) == (202, True, None)
    assert server.http.post("/v1/schedules/nightly/resume").json()["next_at"] is not None
    assert server.http.delete("/v1/schedules/nightly").status_code == 204
    assert problem(server.http.delete("/v1/schedules/nightly")) == (404, "not-found")
    assert problem(server.http.get("/v1/schedules/nightly")) == (404, "not-found")


def test_what_cannot_be_is_refused_at_the_door(server: Server) -> None:
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("A_B", {}, "bad-name"),
        ("x", {"cron": "0 0 30 2 *"}, "bad-cron"),
        ("x", {"cron": "often"}, "bad-cron"),
        ("x", {"timezone": "Mars/Olympus"}, "bad-timezone"),
        ("x", {"timezone": "../../etc/passwd"}, "bad-timezone"),
        ("x", {"spec": {**SPEC, "after": [{"job": "j-000001"}]}}, "bad-schedule"),
        ("x", {"spec": {**SPEC, "priority": 101}}, "bad-priority"),
        ("x", {"spec": {**SPEC, "prioriti": 1}}, "unknown-field"),
    ]
    for name, more, code in refused:
        answer = server.http.put(f"/v1/schedules/{name}", json={"cron": "0 3 * * *", "spec": SPEC, **more})
        assert problem(answer) == (422, code), (name, more)
    assert server.http.get("/v1/schedules").json() == []


def test_hours_away_and_killed_at_once_it_submits_one_job(server: Server) -> None:
    assert put(server, "hourly", "0 * * * *").status_code == 200
    server.stop(signal.SIGKILL)

    async def three_hours_ago() -> None:
        store = open_store(server.paths.store)
        row = await store.read(lambda tx: tx.schedule(DEFAULT_PROJECT, "hourly"))
        assert row is not None
        earlier = replace(row, generation=row.generation + 1, done_until=row.done_until - HOURS_3_US)
        await store.write(lambda tx: tx.put_schedule(earlier))
        await store.close()

    asyncio.run(three_hours_ago())
    for _ in range(3):
        # as soon as it answers: before, during or after the loop's first look
        server.start()
        server.stop(signal.SIGKILL)
    server.start()
    wait_until(lambda: server.http.get("/v1/jobs").json(), 10, "the job")
    server.stop()
    server.start()
    (job,) = server.http.get("/v1/jobs").json()
    (schedule,) = server.http.get("/v1/schedules").json()
    assert (schedule["last_job"], schedule["last_state"]) == (job["id"], job["state"])
    assert server.http.get(f"/v1/jobs/{job['id']}/events").json()[0]["text"] == "submitted by schedule hourly"
