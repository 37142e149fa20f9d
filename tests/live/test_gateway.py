"""The rules of the road of a request that concern Envoy, one test each, against the real one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import stat
from pathlib import Path

import pytest
from gateway_world import Answer, Request, SleepyReplica, World, echo, gateway, plain, reply, until

from steelyard.config import write_file
from steelyard.errors import EdgeFailed
from steelyard.gateway import Cluster, GatewayDesired, Route
from steelyard.gateway.render import render_clusters, render_routes, render_static, shape_of


def public(*clusters: Cluster) -> GatewayDesired:
    return GatewayDesired(
        clusters, tuple(Route(cluster.name.split(".")[0], ((cluster.name, 100),), True) for cluster in clusters)
    )


def test_path_and_host_lead_to_the_function_and_only_we_set_our_headers(home: Path) -> None:
    async def run() -> None:
        async with gateway(home, ("hello.1", echo), ("hello-world.1", echo)) as (world, (hello, longer)):
            await world.envoy.apply(public(world.cluster("hello.1"), world.cluster("hello-world.1")))
            lies = {"x-steelyard-start": "1", "x-steelyard-prefix": "/lie", "x-steelyard-else": "x", "authorization": "Bearer me"}
            for target, host, path, prefix in [
                ("/hello/a/b?q=/hello/", "gateway.test", "/a/b?q=/hello/", "/hello"),
                ("/hello", "gateway.test", "/", "/hello"),
                ("/hello?q=1", "127.0.0.1:80", "/?q=1", "/hello"),
                ("/hello//x/../%2e%2e/hello-world/", "gateway.test", "//x/../%2e%2e/hello-world/", "/hello"),
                ("/any/path", "hello.localhost", "/any/path", None),
                ("/hello/x", f"hello.localhost:{world.port}", "/hello/x", None),
            ]:
                assert (await world.fetch(target, host=host, headers=lies)).status == 200, target
                seen = hello.seen[-1]
                names = [name for name, _ in seen.headers if name.startswith("x-steelyard-")]
                assert (seen.target, seen.header("x-steelyard-prefix"), seen.header("host")) == (path, prefix, host)
                assert sorted(names) == (["x-steelyard-prefix"] if prefix else []) + ["x-steelyard-start"]
                seconds, _, micros = (seen.header("x-steelyard-start") or "").partition(".")
                assert int(seconds) > 1_700_000_000 and len(micros) == 6
                assert seen.header("authorization") == "Bearer me"
            assert not longer.seen
            assert (await world.fetch("/hello-world/x")).status == 200
            assert longer.seen[-1].target == "/x"
            for target in ("/hello-wor/", "/helloo", "/", "/Hello/"):
                answer = await world.fetch(target)
                assert (answer.status, answer.problem["code"]) == (404, "function-not-found"), target

    asyncio.run(run())


def test_private_function_asks_for_a_key(home: Path) -> None:
    async def run() -> None:
        async with gateway(home, ("open.1", echo), ("shut.1", echo)) as (world, (_, shut)):
            clusters = (world.cluster("open.1"), world.cluster("shut.1"))
            routes = (Route("open", (("open.1", 100),), True), Route("shut", (("shut.1", 100),), False))

            async def status(target: str, key: str | None = None, host: str = "gateway.test") -> int:
                answer = await world.fetch(target, host=host, headers={"authorization": key} if key else {})
                if answer.status == 401:
                    assert answer.problem["code"] == "key-required" and answer.headers["www-authenticate"] == "Bearer"
                return answer.status

            await world.envoy.apply(GatewayDesired(clusters, routes))
            for key in (None, "Bearer ", "Bearer x", "Bearer sk-one"):
                assert await status("/shut/", key) == 401  # no keys at all: nobody
            assert await status("/open/") == 200
            await world.envoy.apply(GatewayDesired(clusters, routes, ("sk-one", "sk-two")))
            for key in (None, "sk-one", "Bearer sk-on", "Bearer sk-one1", "Basic sk-one", "Bearer sk-one,Bearer sk-two"):
                assert await status("/shut/", key) == 401, key
                assert await status("/x", key, "shut.localhost") == 401, key
            assert not shut.seen
            assert await status("/nobody/") == 404  # not 401: no key would help
            assert await status("/open/", "Bearer wrong") == 200
            for key in ("Bearer sk-one", "bearer sk-two"):
                assert await status("/shut/", key) == await status("/x", key, "shut.localhost") == 200
            assert shut.seen[-1].header("authorization") == "bearer sk-two"
            await world.envoy.apply(GatewayDesired(clusters, routes, ("sk-two",)))
            assert await status("/shut/", "Bearer sk-one") == 401  # taken back
            for path in (*world.paths.gateway.iterdir(), world.paths.envoy_admin_socket):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert sorted(path.name for path in world.paths.gateway.iterdir()) == ["bootstrap.json", "cds.pb", "rds.pb"]

    asyncio.run(run())


def test_posts_around_the_idle_moment_are_neither_lost_nor_executed_twice(home: Path) -> None:
    async def run() -> None:
        async with gateway(home) as (world, _):
            backend = world.backend("idle.1")
            replica = SleepyReplica(backend, idle_s=0.16)
            backend.answer = replica.answer
            # the rule: min(5 s, idle_timeout / 2)
            await world.envoy.apply(public(world.cluster("idle.1", idle_timeout_s=0.08)))
            try:
                failed = []
                for round_ in range(60):
                    answers = await asyncio.gather(
                        *(world.fetch("/idle/", method="POST", body=f"{round_}-{number}".encode()) for number in range(10))
                    )
                    failed += [answer for answer in answers if answer.status != 200]
                    # sweeps over Envoy's idle timeout and over ours
                    await asyncio.sleep(0.07 + 0.0025 * round_)
                assert not failed
                assert sorted(request.body for request in backend.seen) == sorted(
                    f"{round_}-{number}".encode() for round_ in range(60) for number in range(10)
                )
                assert replica.wakes > 5  # it did sleep in between
            finally:
                replica.close()
                await backend.stop()

    asyncio.run(run())


def test_post_that_crashes_after_its_side_effect_runs_once(home: Path) -> None:
    async def crash(request: Request, writer: asyncio.StreamWriter) -> None:
        raise ConnectionResetError

    async def run() -> None:
        async with gateway(home, ("crash.1", crash)) as (world, (backend,)):
            await world.envoy.apply(public(world.cluster("crash.1")))
            asks = {"x-envoy-retry-on": "reset,5xx,gateway-error", "x-envoy-max-retries": "5"}
            for headers in ({}, asks):
                backend.seen.clear()
                answer = await world.fetch("/crash/", method="POST", body=b"pay", headers=headers)
                assert (answer.status, answer.problem["code"]) == (502, "replica-lost")
                assert len(backend.seen) == 1

    asyncio.run(run())


def test_quiet_stream_is_not_cut_and_clients_cannot_set_deadlines(home: Path) -> None:
    async def quiet(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await writer.drain()
        # 15 s is the default route timeout that cuts such streams
        await asyncio.sleep(16 if request.method == "GET" else 0.3)
        writer.write(b"1\r\nb\r\n0\r\n\r\n")

    async def run() -> None:
        async with gateway(home, ("quiet.1", quiet)) as (world, _):
            # shorter than the stream: an idle timeout of connections must not touch one in use
            await world.envoy.apply(public(world.cluster("quiet.1", idle_timeout_s=1.0)))
            asks = {"x-envoy-upstream-rq-timeout-ms": "50", "x-envoy-upstream-stream-duration-ms": "50", "grpc-timeout": "50m"}
            long, short = await asyncio.gather(world.fetch("/quiet/"), world.fetch("/quiet/", method="POST", headers=asks))
            assert (long.body, short.body) == (b"ab", b"ab")

    asyncio.run(run())


def test_overflow_is_429_and_only_the_queue_is_bounded(home: Path) -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def hold(request: Request, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            reply(writer, b"done")

        async with gateway(home, ("busy.1", hold)) as (world, (backend,)):
            await world.envoy.apply(public(world.cluster("busy.1", connections_max=2, pending_max=3)))
            calls = [asyncio.create_task(world.fetch("/busy/")) for _ in range(2)]
            await until(lambda: len(backend.seen) == 2)
            calls += [asyncio.create_task(world.fetch("/busy/")) for _ in range(7)]
            await until(lambda: sum(call.done() for call in calls) == 4)
            assert await world.envoy.pending() == {"busy.1": 3}
            assert len(backend.seen) == 2
            release.set()
            answers = await asyncio.gather(*calls)
            assert sorted(answer.status for answer in answers) == [200] * 5 + [429] * 4
            for answer in answers:
                if answer.status == 429:
                    assert answer.problem["code"] == "queue-full" and int(answer.headers["retry-after"]) >= 1
            assert await world.envoy.pending() == {}

    asyncio.run(run())


def test_nobody_listening_is_503_and_one_request_per_connection_is_kept(home: Path) -> None:
    async def run() -> None:
        async with gateway(home, ("relay.1", echo)) as (world, (backend,)):
            opened = 0
            serve = backend.serve

            async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal opened
                opened += 1
                await serve(reader, writer)

            await backend.stop()
            backend.path.unlink(missing_ok=True)
            backend.serve = counted  # type: ignore[method-assign]
            await world.envoy.apply(public(world.cluster("relay.1", requests_per_connection=1)))
            answer = await world.fetch("/relay/")
            assert (answer.status, answer.problem["code"]) == (503, "function-unreachable") and "retry-after" in answer.headers
            await backend.start()
            for _ in range(5):
                assert (await world.fetch("/relay/")).status == 200
            assert opened == 5

    asyncio.run(run())


async def under_load(world: World, work: object) -> list[int]:
    """Statuses of four clients that ask without a pause while `work` (an awaitable) runs."""
    statuses: list[int] = []
    stop = asyncio.Event()

    async def client() -> None:
        while not stop.is_set():
            statuses.append((await world.fetch("/app/")).status)

    clients = [asyncio.create_task(client()) for _ in range(4)]
    try:
        await work  # type: ignore[misc]
    finally:
        stop.set()
        await asyncio.gather(*clients)
    return statuses


def named(revision: int) -> Answer:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        reply(writer, str(revision).encode())

    return answer


def test_ten_revisions_under_load_without_a_failed_request(home: Path) -> None:
    async def run() -> None:
        names = [f"app.{revision}" for revision in range(1, 12)]
        async with gateway(home, *((name, named(revision)) for revision, name in enumerate(names, 1))) as (world, _):
            await world.envoy.apply(public(world.cluster(names[0])))

            async def switch() -> None:
                for revision, name in enumerate(names[1:], 2):
                    await world.envoy.apply(public(world.cluster(name)))
                    assert (await world.fetch("/app/")).body == str(revision).encode()

            statuses = await under_load(world, switch())
            assert len(statuses) > 50 and set(statuses) == {200}

            async def wrong_order() -> None:
                # what apply must not do; were this to pass unseen, the load above would prove nothing
                gone = public(world.cluster("app.1"))
                write_file(world.paths.gateway / "rds.pb", render_routes(gone))
                await until(lambda: 503 in seen)
                write_file(world.paths.gateway / "cds.pb", render_clusters(gone, world.paths.gateway))

            seen: list[int] = []

            async def watch() -> None:
                while 503 not in seen:
                    seen.append((await world.fetch("/app/")).status)

            await asyncio.gather(wrong_order(), watch())

    asyncio.run(run())


def test_rejected_configuration_moves_the_previous_file_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with gateway(home, ("app.1", named(1))) as (world, _):
            good = public(world.cluster("app.1"))
            await world.envoy.apply(good)
            before = {path.name: path.read_bytes() for path in world.paths.gateway.iterdir()}
            too_long = Cluster("app.2", "/" + "x" * 120, 1, 1, 1.0)
            bad = public(too_long)
            # the first line of defence: the pure check
            with pytest.raises(EdgeFailed, match="longer than 107") as caught:
                await world.envoy.apply(bad)
            assert caught.value.code == "gateway-rejected"
            # the second: Envoy is asked about a shape that it was not asked about before
            monkeypatch.setattr("steelyard.gateway.envoy.check_gateway", lambda desired: [])
            world.envoy._shapes_known.clear()
            with pytest.raises(EdgeFailed, match="exceeds maximum UNIX domain socket path") as caught:
                await world.envoy.apply(bad)
            assert {path.name: path.read_bytes() for path in world.paths.gateway.iterdir()} == before
            # the third: the move is undone, Envoy's words are passed on
            await world.envoy.apply(good)
            world.envoy._shapes_known.add(shape_of(bad))
            with pytest.raises(EdgeFailed, match="exceeds maximum UNIX domain socket path") as caught:
                await world.envoy.apply(bad)
            assert caught.value.code == "gateway-rejected"
            assert {path.name: path.read_bytes() for path in world.paths.gateway.iterdir()} == before
            assert (await world.fetch("/app/")).body == b"1"
            await world.envoy.apply(good)

    asyncio.run(run())


def test_killed_envoy_serves_again_from_the_files_even_amid_a_deploy(home: Path) -> None:
    async def run() -> None:
        names = [f"app.{revision}" for revision in range(1, 7)]
        async with gateway(home, *((name, named(revision)) for revision, name in enumerate(names, 1))) as (world, _):
            await world.envoy.apply(public(world.cluster(names[0])))
            await world.kill()
            await world.start()
            assert (await world.fetch("/app/")).body == b"1"
            await world.kill()
            await world.envoy.apply(public(world.cluster(names[1])))  # Envoy is down: no error
            assert await world.envoy.pending() == {}
            await world.start()
            assert (await world.fetch("/app/")).body == b"2"
            for revision, name in enumerate(names[2:], 3):
                applying = asyncio.create_task(world.envoy.apply(public(world.cluster(name))))
                for _ in range(revision):
                    await asyncio.sleep(0)
                await world.kill()
                await world.start()
                await applying
                await world.envoy.apply(public(world.cluster(name)))
                assert (await world.fetch("/app/")).body == str(revision).encode()
            # a new object, as after the agent's own restart, goes on from the files
            again = World(home)
            again.port, again.settings = world.port, world.settings
            await again.envoy.apply(public(world.cluster(names[0])))
            assert (await world.fetch("/app/")).body == b"1"

    asyncio.run(run())


def test_a_second_envoy_on_the_port_does_not_run(home: Path) -> None:
    async def run() -> None:
        async with gateway(home) as (world, _):
            (home / "2").mkdir()
            second = World(home / "2")
            second.port = world.port
            second.envoy = type(second.envoy)(second.paths, world.settings, second.envoy._clock)
            second.envoy.prepare()
            process = await asyncio.create_subprocess_exec(*second.envoy.argv(), stderr=asyncio.subprocess.PIPE)
            try:
                async with asyncio.timeout(10):
                    _, said = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert process.returncode != 0 and b"Address already in use" in said

    asyncio.run(run())


def test_websocket_goes_through_both_ways(home: Path) -> None:
    async def websocket(request: Request, writer: asyncio.StreamWriter) -> None:
        digest = hashlib.sha1(((request.header("sec-websocket-key") or "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "
            + base64.b64encode(digest.digest())
            + b"\r\n\r\n\x81\x05hello"
        )

    async def run() -> None:
        async with gateway(home, ("ws.1", websocket)) as (world, (backend,)):
            await world.envoy.apply(public(world.cluster("ws.1", idle_timeout_s=0.1)))
            async with world.connection() as (reader, writer):
                writer.write(
                    b"GET /ws/chat HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
                    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                )
                head = await reader.readuntil(b"\r\n\r\n")
                assert b" 101 " in head and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
                assert await reader.readexactly(7) == b"\x81\x05hello"
                assert backend.seen[-1].target == "/chat"
                await asyncio.sleep(0.3)  # well over the idle timeout of unused connections
                writer.write(b"GET /again HTTP/1.1\r\n\r\n")  # any bytes; the server reads them as its next request
                assert await reader.readuntil(b"hello")
                assert backend.seen[-1].target == "/again"

    asyncio.run(run())


def test_http2_without_tls_is_understood(home: Path) -> None:
    curl = shutil.which("curl")
    if not curl:
        pytest.skip("curl is not here: HTTP/2 NOT TESTED")

    async def run() -> None:
        async with gateway(home, ("hello.1", echo)) as (world, _):
            await world.envoy.apply(public(world.cluster("hello.1")))
            process = await asyncio.create_subprocess_exec(
                curl,
                "-s",
                "--http2-prior-knowledge",
                "-o",
                "/dev/null",
                "-w",
                "%{http_version} %{http_code}",
                f"http://127.0.0.1:{world.port}/hello/",
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await process.communicate()
            assert said == b"2 200"

    asyncio.run(run())


def test_thousand_functions_in_one_file_each(home: Path) -> None:
    async def run() -> None:
        async with gateway(home, ("f500.1", named(1)), ("f500.2", named(2))) as (world, _):
            assert world.process
            clusters = [world.cluster(f"f{number}.1") for number in range(1000)]
            routes = [Route(f"f{number}", ((f"f{number}.1", 100),), number % 2 == 0) for number in range(1000)]
            await world.envoy.apply(GatewayDesired(tuple(clusters), tuple(routes), ("sk-a", "sk-b")))
            took_ms = []
            loop = asyncio.get_running_loop()
            for revision in (2, 1, 2):
                clusters[500], routes[500] = world.cluster(f"f500.{revision}"), Route("f500", ((f"f500.{revision}", 100),), True)
                begun = loop.time()
                applying = asyncio.create_task(
                    world.envoy.apply(GatewayDesired(tuple(clusters), tuple(routes), ("sk-a", "sk-b")))
                )
                while (await world.fetch("/f500/")).body != str(revision).encode():
                    pass
                reached = loop.time()
                await applying
                took_ms.append((round(1000 * (reached - begun)), round(1000 * (loop.time() - begun))))
            assert (await world.fetch("/f999/x")).status == 401
            rss_kb = int(
                next(
                    line.split()[1]
                    for line in Path(f"/proc/{world.process.pid}/status").read_text().splitlines()
                    if line.startswith("VmRSS:")
                )
            )
            print(f"1,000 functions: Envoy {rss_kb / 1024:.0f} MB; deploys routed / finished after {took_ms} ms")
            assert rss_kb < 80 * 1024 + 45 * 1000
            begun = loop.time()
            assert await world.envoy.pending() == {}
            print(f"a look at what waits: {1000 * (loop.time() - begun):.1f} ms")

    asyncio.run(run())


def test_envoy_reads_the_binary_files_as_what_it_validated(home: Path) -> None:
    async def run() -> None:
        async with gateway(home) as (world, _):
            desired = GatewayDesired(
                (
                    world.cluster("a.1", idle_timeout_s=0.125),
                    world.cluster("b.12", requests_per_connection=1, connections_max=3000),
                ),
                (Route("a", (("a.1", 100),), True), Route("b", (("b.12", 100),), False)),
                ("sk-one", "sk-two"),
            )
            await world.envoy.apply(desired)
            dump = await world.admin("/config_dump")
            static = json.loads(render_static(world.settings, desired, world.paths.gateway, "x"))["static_resources"]
            wanted = static["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
            (routes,) = [item["route_config"] for part in dump["configs"] for item in part.get("dynamic_route_configs", [])]
            clusters = [item["cluster"] for part in dump["configs"] for item in part.get("dynamic_active_clusters", [])]
            for document in (routes, *clusters):
                del document["@type"]
            assert plain(routes) == plain(wanted)
            assert plain(sorted(clusters, key=lambda cluster: cluster["name"])) == plain(static["clusters"])

    asyncio.run(run())
