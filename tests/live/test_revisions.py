"""Several revisions of a function at once: shares, tags, going back by hand and by itself, and programs that are killed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from apps import MANY, Load, deploy
from steelyard_cluster import Cluster, wait_until

#: answers 500 to every other request
HALF_BROKEN = MANY.replace(
    '    path = scope["path"]',
    '    global turn\n    turn += 1\n    if turn % 2:\n        return await answer(send, 500, "")\n    path = scope["path"]',
).replace("async def app(", "turn = 0\n\nasync def app(")
OPTIONS = ("--concurrency", "4", "--idle-timeout", "5s")


def version(cluster: Cluster, name: str, path: str = "") -> str:
    """Of the revision that answers, as MANY tells it."""
    return cluster.call(f"/{name}{path}/x").body.split()[0].decode()


def put(cluster: Cluster, name: str, number: int, *options: str) -> None:
    deploy(cluster, name, MANY.replace("VERSION", f"v{number}"), *OPTIONS, *options)


def rows(cluster: Cluster, name: str) -> dict[int, dict[str, Any]]:
    return {row["revision"]: row for row in json.loads(cluster.ok("revisions", name, "--json"))}


def until_shares(cluster: Cluster, name: str, shares: dict[int, int]) -> None:
    def found() -> bool:
        routes = cluster.api("GET", f"/v1/functions/{name}").json()["routes"]
        return {share["revision"]: share["percent"] for share in routes["shares"]} == shares

    wait_until(found, 30, f"{name} to be routed {shares}")


def test_a_share_of_the_requests_reaches_the_new_revision_and_its_tag_always_does(shared: Cluster) -> None:
    put(shared, "part", 1)
    put(shared, "part", 2, "--traffic", "20", "--tag", "next")
    seen = Counter(version(shared, "part") for _ in range(300))
    assert 20 <= seen["v2"] <= 120 and seen["v1"] + seen["v2"] == 300
    assert {version(shared, "part", "@next") for _ in range(5)} == {"v2"}
    host = {"Host": f"next--part.localhost:{shared.gateway_port}"}
    assert shared.call("/x", headers=host).body.startswith(b"v2 ")
    assert shared.call("/part@none/x").status == 404
    shared.ok("traffic", "part", "1=100")
    until_shares(shared, "part", {1: 100})
    assert {version(shared, "part") for _ in range(30)} == {"v1"}
    assert version(shared, "part", "@next") == "v2", "a tag leads there without any traffic"
    shared.ok("traffic", "part", "2=100", "--untag", "next")
    until_shares(shared, "part", {2: 100})
    wait_until(lambda: shared.call("/part@next/x").status == 404, 10, "the tag to be gone")
    found = rows(shared, "part")
    assert [found[key]["state"] for key in (1, 2)] == ["RETIRED", "READY"]
    assert found[1]["requests"] >= seen["v1"] and found[2]["requests"] >= seen["v2"]
    shared.ok("delete", "part")
    assert shared.cli("revisions", "part").returncode == 2


def test_twenty_deploys_with_shares_and_rollbacks_in_between_fail_no_request(shared: Cluster) -> None:
    put(shared, "many", 0)
    with Load(lambda: shared.call("/many/sleep/0.02", timeout=30).status) as load:
        for number in range(1, 21):
            put(shared, "many", number, *(("--traffic", "30") if number % 4 == 0 else ()))
            if number % 5 == 0:
                shared.ok("rollback", "many")
        seen = load.stop()
    assert set(seen) == {200} and seen.total() > 100
    shared.ok("delete", "many")


def test_too_many_failed_requests_bring_the_revision_before_back(shared: Cluster) -> None:
    put(shared, "errs", 1)
    for _ in range(30):
        assert version(shared, "errs") == "v1"
    deploy(shared, "errs", HALF_BROKEN.replace("VERSION", "v2"), *OPTIONS)
    with Load(lambda: shared.call("/errs/x").status) as load:
        until_shares(shared, "errs", {1: 100})
        seen = load.stop()
    assert set(seen) == {200, 500}
    found = rows(shared, "errs")
    assert (found[2]["state"], found[2]["reason"], found[1]["percent"]) == ("ROLLED_BACK", "too-many-errors", 100)
    assert "requests failed" in found[2]["detail"] and found[2]["errors"] >= 5 > found[1]["errors"]
    assert {version(shared, "errs") for _ in range(10)} == {"v1"}
    deploy(shared, "errs", HALF_BROKEN.replace("VERSION", "v3"), *OPTIONS, "--rollback-errors", "off")
    assert {shared.call("/errs/x").status for _ in range(60)} == {200, 500}
    assert rows(shared, "errs")[3]["percent"] == 100, "nobody asked for going back"
    shared.ok("delete", "errs")


def test_streams_and_websockets_end_where_they_began(shared: Cluster) -> None:
    put(shared, "open", 1)

    async def converse() -> list[str]:
        from websockets.asyncio.client import connect

        async with connect(f"ws://127.0.0.1:{shared.gateway_port}/open/ws", proxy=None) as socket:
            stream = asyncio.create_task(asyncio.to_thread(shared.call, "/open/stream/6", timeout=30))
            await asyncio.to_thread(put, shared, "open", 2, "--traffic", "50")
            await asyncio.to_thread(shared.ok, "traffic", "open", "2=100")
            await asyncio.to_thread(until_shares, shared, "open", {2: 100})
            await socket.send("still there")
            return [str(await socket.recv()), (await stream).body.decode()]

    assert asyncio.run(converse()) == ["echo still there", "first second"]
    assert version(shared, "open") == "v2"
    shared.ok("delete", "open")


def test_what_cannot_be_is_refused_and_changes_nothing(shared: Cluster) -> None:
    put(shared, "firm", 1)
    for args, words in (
        (("traffic", "firm", "1=60"), b"sum to 100"),
        (("traffic", "firm", "1=50", "7=50"), b"no revision 7"),
        (("traffic", "firm", "1=100", "--tag", "UPPER=1"), b"can't be a tag"),
        (("rollback", "firm"), b"no revision before 1"),
        (("rollback", "nobody"), b"no function nobody"),
    ):
        done = shared.cli(*args)
        assert done.returncode == 2 and words in done.stderr, args
    assert version(shared, "firm") == "v1"
    shared.ok("delete", "firm")


@pytest.mark.parametrize("program", ["agent", "server", "envoy"])
def test_a_program_that_is_killed_loses_nothing_of_shared_traffic(shared: Cluster, program: str) -> None:
    name = f"kill-{program}"
    put(shared, name, 1)
    put(shared, name, 2, "--traffic", "50", "--tag", "next")

    def call() -> int:
        # a dead gateway answers nobody; everything else is not in the road of a request
        return 200 if program == "envoy" else shared.call(f"/{name}/x", timeout=30).status

    with Load(call) as load:
        pid = shared.kill(program)
        shared.wait_replaced(program, pid)
        shared.wait_ready(30)
        assert set(load.stop()) == {200}
    until_shares(shared, name, {1: 50, 2: 50})
    assert {version(shared, name) for _ in range(40)} == {"v1", "v2"}
    assert version(shared, name, "@next") == "v2"
    shared.ok("rollback", name)
    until_shares(shared, name, {1: 100})
    assert version(shared, name) == "v1"
    shared.ok("delete", name)
