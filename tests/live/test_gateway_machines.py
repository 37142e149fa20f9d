"""The roads of a request to a function on another machine: the home's Envoy here, that machine's in a network of its own, mutual
TLS between them, all real. On one road the home's leads to the revision, and the other one copies bytes; on the other it hands
the request over by HTTP/2."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import shutil
import socket
import ssl
import time
from pathlib import Path

import pytest
from gateway_machines import LED, PORT, NodeWorld, both_roads, hand_over, lead, machines, make_endless
from gateway_world import Request, Response, SleepyReplica, echo, plain, reply, until
from network import Elsewhere, elsewhere

from steelyard.errors import EdgeFailed
from steelyard.gateway import Cluster, GatewayDesired, Neighbour, Neighbourhood, Route
from steelyard.gateway.mutual_tls import BYTES, read_certificate, render_client
from steelyard.gateway.render import render_static
from steelyard.model.certificate import Certificate, Identity, Role
from steelyard.store.authority import Authority


@pytest.fixture(scope="module")
def there() -> object:
    with elsewhere() as made:
        yield made


@both_roads
def test_request_arrives_as_on_its_own_machine(home: Path, there: Elsewhere, road: str) -> None:
    async def run() -> None:
        async with machines(home, there, ("hello.1", echo), ("hello.2", echo)) as (made, (first, second)):
            one, two = made.node.cluster("hello.1"), made.node.cluster("hello.2")
            here = (Route("hello", (("hello.1", 100),), False), Route("hello", (("hello.2", 100),), False, "next"))
            keys = ("sk-one",)
            await made.node.envoy.apply(GatewayDesired((one, two), here))
            await made.home.envoy.apply(
                lead((one, two), here, keys, made.around) if road == LED else hand_over(here, keys, made.around)
            )
            lies = {"x-steelyard-start": "1", "x-steelyard-prefix": "/lie", "x-forwarded-for": "1.2.3.4"}
            for target, host, path, prefix, backend in [
                ("/hello/a/b?q=/hello/", "gateway.test", "/a/b?q=/hello/", "/hello", first),
                ("/hello", "gateway.test", "/", "/hello", first),
                ("/hello//x/../%2e%2e/", "gateway.test", "//x/../%2e%2e/", "/hello", first),
                ("/any/path", "hello.localhost", "/any/path", None, first),
                ("/hello@next/x", "gateway.test", "/x", "/hello@next", second),
                ("/x", "next--hello.localhost", "/x", None, second),
            ]:
                assert (await made.home.fetch(target, host=host)).status == 401, target
                before = time.time()
                key = {"authorization": "Bearer sk-one"}
                answer = await made.home.fetch(target, method="POST", body=b"x" * 70_000, host=host, headers=lies | key)
                assert answer.status == 200, target
                seen = backend.seen.pop()
                assert (seen.method, len(seen.body)) == ("POST", 70_000)
                assert (seen.target, seen.header("x-steelyard-prefix"), seen.header("host")) == (path, prefix, host)
                # stamped once, when it came to the home
                assert before <= float(seen.header("x-steelyard-start") or 0) <= time.time()
                # the client's address is added once, not the home's
                assert re.fullmatch(r"1\.2\.3\.4,[0-9.]+", seen.header("x-forwarded-for") or "")
                assert seen.header("x-forwarded-proto") == "http"
                assert not [name for name, _ in seen.headers if name.startswith("x-envoy-")]
            assert not first.seen and not second.seen
            answer = await made.home.fetch("/other/")
            assert (answer.status, answer.problem["code"]) == (404, "function-not-found")

    asyncio.run(run())


@both_roads
def test_sleeping_function_wakes_and_posts_around_its_idle_moment_are_executed_once(
    home: Path, there: Elsewhere, road: str
) -> None:
    async def run() -> None:
        async with machines(home, there) as (made, _):
            backend = made.node.backend("idle.1")
            replica = SleepyReplica(backend, idle_s=0.16)
            backend.answer = replica.answer
            await made.route(made.node.cluster("idle.1", idle_timeout_s=0.08), road=road)
            try:
                sent = []
                for round_ in range(25):
                    bodies = [f"{round_}-{number}".encode() for number in range(6)]
                    answers = await asyncio.gather(*(made.home.fetch("/idle/", method="POST", body=body) for body in bodies))
                    assert [answer.status for answer in answers] == [200] * 6
                    sent += bodies
                    await asyncio.sleep(0.07 + 0.006 * round_)  # sweeps over Envoy's idle timeout and over ours
                assert sorted(request.body for request in backend.seen) == sorted(sent)
                assert replica.wakes > 3
            finally:
                replica.close()
                await backend.stop()

    asyncio.run(run())


@both_roads
def test_quiet_streams_and_websockets_are_not_cut(home: Path, there: Elsewhere, road: str) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if (request.header("upgrade") or "").lower() == "websocket":
            await shake(request, writer)
            return
        if request.target == "/again":
            reply(writer, b"over")
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n"
        )
        await writer.drain()
        # 15 s is the default route timeout that cuts such streams; by 10 s the connection between the machines was asked
        await asyncio.sleep(16)
        writer.write(b"9\r\ndata: b\n\n\r\n0\r\n\r\n")

    async def shake(request: Request, writer: asyncio.StreamWriter) -> None:
        digest = hashlib.sha1(((request.header("sec-websocket-key") or "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "
            + base64.b64encode(digest.digest())
            + b"\r\n\r\n\x81\x05hello"
        )

    async def run() -> None:
        async with machines(home, there, ("quiet.1", answer)) as (made, (backend,)):
            await made.route(made.node.cluster("quiet.1", idle_timeout_s=1.0), road=road)
            stream = asyncio.create_task(made.home.fetch("/quiet/"))
            async with made.home.connection() as (reader, writer):
                writer.write(
                    b"GET /quiet/chat HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
                    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                )
                head = await reader.readuntil(b"\r\n\r\n")
                assert b" 101 " in head and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
                assert await reader.readexactly(7) == b"\x81\x05hello"
                assert (await stream).body == b"data: a\n\ndata: b\n\n"
                writer.write(b"GET /again HTTP/1.1\r\n\r\n")  # any bytes; the server reads them as its next request
                assert await reader.readuntil(b"over")
                assert backend.seen[-1].target == "/again"

    asyncio.run(run())


@both_roads
def test_refusals_come_through_and_a_client_that_left_is_felt_there(home: Path, there: Elsewhere, road: str) -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def hold(request: Request, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            reply(writer, b"done")

        async def busy(request: Request, writer: asyncio.StreamWriter) -> None:
            problem = b'{"code":"start-failed"}'
            lines = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 7\r\n"
            writer.write(lines + b"content-length: %d\r\n\r\n%s" % (len(problem), problem))

        stream, left = make_endless()

        async with machines(home, there, ("busy.1", hold), ("ill.1", busy), ("left.1", stream)) as (made, (backend, _, _)):
            clusters = (made.node.cluster("busy.1", connections_max=1, pending_max=2), made.node.cluster("ill.1"))
            await made.route(*clusters, made.node.cluster("left.1"), made.node.cluster("none.1"), road=road)
            calls = [asyncio.create_task(made.home.fetch("/busy/"))]
            await until(lambda: len(backend.seen) == 1)
            calls += [asyncio.create_task(made.home.fetch("/busy/")) for _ in range(6)]
            await until(lambda: sum(call.done() for call in calls) == 4)
            assert await (made.home if road == LED else made.node).envoy.pending() == {"busy.1": 2}
            ill, none = await asyncio.gather(made.home.fetch("/ill/"), made.home.fetch("/none/"))
            assert (ill.status, ill.problem["code"], ill.headers["retry-after"]) == (503, "start-failed", "7")
            if road == LED:  # the other gateway had said that it is there, and has closed since: it may have been asked
                assert (none.status, none.problem["code"]) == (502, "replica-lost")
            else:
                assert (none.status, none.problem["code"]) == (503, "function-unreachable") and "retry-after" in none.headers
            async with made.home.connection() as (reader, writer):
                writer.write(b"GET /left/ HTTP/1.1\r\nhost: x\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n1\r\na\r\n")
            await asyncio.wait_for(left.wait(), 20)
            release.set()
            answers = await asyncio.gather(*calls)
            assert sorted(answer.status for answer in answers) == [200] * 3 + [429] * 4
            full = [answer for answer in answers if answer.status == 429]
            assert {answer.problem["code"] for answer in full} == {"queue-full"}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in full)

    asyncio.run(run())


def present(trusted: bytes, own: Certificate | None, folder: Path, protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=trusted.decode())
    context.set_alpn_protocols([protocol])
    if own is not None:
        file = folder / "own.pem"
        file.write_bytes(own.key_pem + own.certificate_pem)
        context.load_cert_chain(file)
    return context


async def ask_for_bytes(address: str, context: ssl.SSLContext, name: str) -> bytes:
    """What is answered to a request on a connection to that revision. Raises when one side refuses."""
    reader, writer = await asyncio.open_connection(address, PORT, ssl=context, server_hostname=name)
    try:
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == BYTES
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(20):
            return await reader.readuntil(b"\r\n")
    finally:
        writer.transport.abort()


async def ask_directly(address: str, trusted: bytes, own: Certificate | None, folder: Path) -> tuple[bytes, bytes]:
    """Who answers at a machine's door (its certificate), and what to an HTTP/2 preface. Raises when one side refuses."""
    reader, writer = await asyncio.open_connection(address, PORT, ssl=present(trusted, own, folder, "h2"))
    try:
        tls = writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "h2"
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        async with asyncio.timeout(20):
            return tls.getpeercert(True), await reader.readexactly(9)
    finally:
        writer.transport.abort()


def test_only_the_homes_gateway_is_let_in_and_only_the_right_machine_is_asked(home: Path, there: Elsewhere) -> None:
    async def run() -> None:
        async with machines(home, there, ("hello.1", echo)) as (made, (backend,)):
            await made.route(made.node.cluster("hello.1"))
            trusted = made.authority.certificate_pem(0)
            stranger = Authority(home / "stranger.pem").issue(Role.GATEWAY, "home", (), time.time_ns() // 1000, 3600.0)
            past = made.authority.issue(Role.GATEWAY, "home", (), time.time_ns() // 1000 - 7_200_000_000, 3600.0)
            _, settings = await ask_directly(there.address, trusted, made.issue(Role.GATEWAY, "home"), home)
            assert settings[3] == 4  # the server's half of the handshake of HTTP/2
            for wrong in (
                None,
                stranger,
                past,
                made.issue(Role.AGENT, "n1"),
                made.issue(Role.AGENT, "home"),
                made.issue(Role.NODE_GATEWAY, "n1"),
                made.issue(Role.GATEWAY, "other"),
            ):
                with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                    await ask_directly(there.address, trusted, wrong, home)
                with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                    await ask_for_bytes(there.address, present(trusted, wrong, home, BYTES), "hello.1")
            assert not backend.accepted, "it would have been woken"
            known = present(trusted, made.issue(Role.GATEWAY, "home"), home, BYTES)
            assert await ask_for_bytes(there.address, known, "hello.1") == b"HTTP/1.1 200 OK\r\n"
            for nobody in ("hello.2", "hello", ""):
                with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                    await ask_for_bytes(there.address, known, nobody)
            assert (backend.accepted, len(backend.seen)) == (1, 1)
            assert (await made.home.fetch("/hello/")).status == 200
            # another machine of the same home at that address: it is not asked
            around = Neighbourhood((Neighbour("n2", there.address, PORT),))
            route = Route("hello", (("@n2", 100),), True, away=True)
            await made.home.envoy.apply(GatewayDesired((), (route,), (), (around,)))
            answer = await made.home.fetch("/hello/")
            assert (answer.status, answer.problem["code"]) == (503, "function-unreachable")
            here = (Route("hello", (("hello.1", 100),), True),)
            await made.home.envoy.apply(lead((made.node.cluster("hello.1"),), here, (), around))
            answer = await made.home.fetch("/hello/")
            assert (answer.status, answer.problem["code"]) == (503, "function-unreachable")
            assert len(backend.seen) == 2
            (made.node.paths.gateway / "certificate.json").unlink()
            with pytest.raises(EdgeFailed, match="no certificate"):
                made.node.envoy.prepare()

    asyncio.run(run())


@both_roads
def test_certificates_are_replaced_under_load_without_a_failed_request(home: Path, there: Elsewhere, road: str) -> None:
    async def run() -> None:
        async with machines(home, there, ("app.1", echo)) as (made, _):
            await made.route(made.node.cluster("app.1"), road=road)
            trusted, statuses, stop = made.authority.certificate_pem(0), [], asyncio.Event()

            async def client() -> None:
                while not stop.is_set():
                    statuses.append((await made.home.fetch("/app/")).status)

            clients = [asyncio.create_task(client()) for _ in range(4)]
            try:
                for _ in range(3):
                    made.give(made.home, Role.GATEWAY, "home")
                    node = made.give(made.node, Role.NODE_GATEWAY, "n1")
                    own = made.issue(Role.GATEWAY, "home")
                    wanted = ssl.PEM_cert_to_DER_cert(node.certificate_pem.decode())
                    async with asyncio.timeout(20):
                        while (await ask_directly(there.address, trusted, own, home))[0] != wanted:
                            await asyncio.sleep(0.01)
                    # the connections that were there go on; a new one is made with the new certificates
                    before = len(statuses)
                    await until(lambda before=before: len(statuses) > before + 20)
            finally:
                stop.set()
                await asyncio.gather(*clients)
            assert set(statuses) == {200}
            found = read_certificate(made.node.paths)
            assert found is not None and found[1] == node.certificate_pem and found[2] == trusted

            async def answered(status: int) -> None:
                async with asyncio.timeout(20):
                    while (await made.home.fetch("/app/")).status != status:
                        await asyncio.sleep(0.01)

            # a new connection is made with the new ones on this side too: with a wrong one, it is refused
            made.give(made.home, Role.GATEWAY, "other")
            await made.node.kill()
            await made.node.start()
            await answered(503)
            made.give(made.home, Role.GATEWAY, "home")
            await answered(200)

    asyncio.run(run())


@both_roads
def test_killed_envoy_of_the_machine_loses_what_it_held_and_nothing_runs_twice(home: Path, there: Elsewhere, road: str) -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def hold(request: Request, writer: asyncio.StreamWriter) -> None:
            if request.method == "POST":
                await release.wait()
            reply(writer, b"done")

        async with machines(home, there, ("app.1", hold)) as (made, (backend,)):
            await made.route(made.node.cluster("app.1"), road=road)
            posts = [asyncio.create_task(made.home.fetch("/app/", method="POST", body=b"pay")) for _ in range(5)]
            await until(lambda: len(backend.seen) == 5)
            await made.node.kill()
            answers = await asyncio.gather(*posts)
            assert {(answer.status, answer.problem["code"]) for answer in answers} == {(502, "replica-lost")}
            down = await made.home.fetch("/app/")
            assert (down.status, down.problem["code"]) == (503, "function-unreachable")
            await made.node.start()
            assert (await made.home.fetch("/app/")).status == 200
            assert [request.method for request in backend.seen].count("POST") == 5
            release.set()

    asyncio.run(run())


def test_envoy_reads_neighbours_in_the_binary_file_as_what_it_validated(home: Path, there: Elsewhere) -> None:
    async def run() -> None:
        async with machines(home, there) as (made, _):
            one, both = made.around, Neighbourhood((made.neighbour, Neighbour("n2", "10.1.2.3", 7000)))
            routes = (Route("one", ((one.name, 100),), True, away=True), Route("both", ((both.name, 100),), True, away=True))
            led = tuple(
                Cluster(f"{name}.1", "", 8, 100, 2.5, members=each.members) for name, each in (("led", one), ("shared", both))
            )
            desired = GatewayDesired(led, routes, (), (one, both))
            await made.home.envoy.apply(desired)
            dump = await made.home.admin("/config_dump")
            static = json.loads(render_static(made.home.settings, desired, made.home.paths.gateway, "x"))["static_resources"]
            clusters = [item["cluster"] for part in dump["configs"] for item in part.get("dynamic_active_clusters", [])]
            for document in clusters:
                del document["@type"]
            assert plain(sorted(clusters, key=lambda cluster: cluster["name"])) == plain(
                sorted(static["clusters"], key=lambda cluster: cluster["name"])
            )
            transport = render_client(made.home.paths.gateway, [Identity(Role.NODE_GATEWAY, "n1")])
            assert transport in [document["transport_socket"] for document in clusters]
            assert len(clusters) == 4

    asyncio.run(run())


@both_roads
def test_of_two_machines_the_slow_one_gets_less_and_one_that_is_down_costs_no_request(
    home: Path, there: Elsewhere, road: str
) -> None:
    async def run() -> None:
        pace, release = {"slow": 0, "fast": 0}, asyncio.Event()

        async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
            pace["slow"] += 1
            await release.wait()
            reply(writer, b"slow")

        async def fast(request: Request, writer: asyncio.StreamWriter) -> None:
            pace["fast"] += 1
            reply(writer, b"fast")

        async with machines(home, there, ("app.1", fast)) as (made, _):
            other = NodeWorld(home / "o", there, PORT + 1)
            backend = other.backend("app.1", slow)
            try:
                made.give(other, Role.NODE_GATEWAY, "n2")
                await backend.start()
                await other.start()
                here = (Route("app", (("app.1", 100),), True),)
                for node in (made.node, other):
                    await node.envoy.apply(GatewayDesired((node.cluster("app.1"),), here))
                both = Neighbourhood((made.neighbour, Neighbour("n2", there.address, PORT + 1)))
                led = lead((made.node.cluster("app.1"),), here, (), both)
                await made.home.envoy.apply(led if road == LED else hand_over(here, (), both))
                held: list[asyncio.Task[Response]] = []
                while not pace["slow"]:  # whose turn it is among those that hold nothing is chance
                    held.append(asyncio.create_task(made.home.fetch("/app/")))
                    await asyncio.wait(held[-1:], timeout=0.2)
                before = pace["fast"]
                answers = [await made.home.fetch("/app/") for _ in range(40)]
                assert {answer.body for answer in answers} == {b"fast"}
                assert (pace["slow"], pace["fast"] - before) == (1, 40), "it holds one request, and the other none"
                release.set()
                assert {answer.status for answer in await asyncio.gather(*held)} == {200}
                await other.kill()
                answers = [await made.home.fetch("/app/") for _ in range(40)]
                assert {(answer.status, answer.body) for answer in answers} == {(200, b"fast")}
            finally:
                release.set()
                await other.kill()
                await backend.stop()

    asyncio.run(run())


@both_roads
def test_a_machine_that_answers_nothing_is_left_alone_while_another_one_is_there(home: Path, there: Elsewhere, road: str) -> None:
    async def run() -> None:
        async with machines(home, there, ("app.1", echo)) as (made, _):
            await made.route(made.node.cluster("app.1"))
            with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and nobody says a word
                silent.setblocking(False)
                both = Neighbourhood((made.neighbour, Neighbour("n2", *silent.getsockname())))
                here = (Route("app", (("app.1", 100),), True),)
                led = lead((made.node.cluster("app.1"),), here, (), both)
                await made.home.envoy.apply(led if road == LED else hand_over(here, (), both))
                answers = [await made.home.fetch("/app/") for _ in range(40)]
                assert {answer.status for answer in answers} == {200}
                tried = 0
                with contextlib.suppress(BlockingIOError):
                    while True:
                        silent.accept()[0].close()
                        tried += 1
                assert tried <= 6, "of 40; half of them where nothing is learned from it"

    asyncio.run(run())


@pytest.mark.skipif(shutil.which("nft") is None, reason="NO NETWORK CAN BE CUT HERE: needs `nft` (Debian's nftables)")
def test_a_machine_that_is_cut_off_while_it_answers_is_noticed_on_both_sides(home: Path, there: Elsewhere) -> None:
    async def run() -> None:
        stream, left = make_endless()

        async with machines(home, there, ("app.1", stream)) as (made, _), made.home.connection() as (reader, writer):
            await made.route(made.node.cluster("app.1"), road=LED)
            writer.write(b"GET /app/ HTTP/1.1\r\nhost: x\r\n\r\n")
            await reader.readuntil(b"1\r\na\r\n")
            with there.cut():
                async with asyncio.timeout(60):
                    rest = await reader.read()  # to its end, which is not that of the answer
                    assert not rest.endswith(b"0\r\n\r\n")
                    await left.wait()

    asyncio.run(run())
