"""A real replica on a real socket: who is let in, what the app sees, and how it retires. Most use the plain road, which is
the same runner without a template."""

from __future__ import annotations

import base64
import os
import signal
import socket
import struct
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from runner_bed import READY, Bed, Replica, other_pythons, read_answer

from steelyard.runtime.runner import page as pages

#: GET /hold waits until the file FREE exists (replicas share it); every answer names the replica
APP = """
    import asyncio, os
    FREE = os.environ.get("FREE", "")
    running = peak = 0
    async def app(scope, receive, send):
        global running, peak
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": "echo " + message["text"]})
            return
        assert scope["type"] == "http"
        path = scope["path"]
        running += 1
        peak = max(peak, running)
        try:
            if path == "/hold":
                while not os.path.exists(FREE):
                    await asyncio.sleep(0.002)
            if path == "/raise":
                raise ValueError("handler broke")
            if path == "/exit":
                raise SystemExit(7)
            if path == "/stream":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"first", "more_body": True})
                while not os.path.exists(FREE):
                    await asyncio.sleep(0.002)
                await send({"type": "http.response.body", "body": b"last"})
                return
            if path == "/touch":
                open(FREE, "w").close()
        finally:
            running -= 1
        heads = sorted(scope["headers"])
        body = f"{os.getpid()} {peak} {scope['root_path']}|{path}|{scope['raw_path'].decode()}|{heads}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
"""


class Place:
    """Beds with the app above, and the file that lets held requests go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.free = folder / "free"
        self.bed: Bed

    def bed_with(self, code: str = APP, concurrency: int = 2) -> Bed:
        self.bed = Bed(self.folder / "bed", code, concurrency)
        return self.bed

    def serve(self, **settings: object) -> Replica:
        replica = self.bed.start_plain(env={"FREE": str(self.free)}, **settings)
        replica.await_serving()
        return replica


@pytest.fixture
def place(home: Path) -> Iterator[Place]:
    home.mkdir()
    made = Place(home)
    yield made
    made.bed.close()


def hold(bed: Bed, path: str = "/hold") -> socket.socket:
    client = bed.connect()
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return client


def test_a_plain_start_goes_through_the_same_steps(place: Place) -> None:
    place.bed_with()
    replica = place.serve()
    assert place.bed.get()[0] == 200
    replica.await_page(lambda page: page.finished == 1 and page.connections == 0)
    page = replica.page
    steps = [
        page.alive_ns,
        page.joined_ns,
        page.imported_ns,
        page.entered_ns,
        page.serving_ns,
        page.accepted_ns,
        page.first_byte_ns,
    ]
    assert steps == sorted(steps) and steps[0] > 0
    assert (page.busy, page.accepted) == (0, 1)
    replica.retire()
    assert replica.exit_code() == 0


def test_never_more_connections_than_concurrency(place: Place) -> None:
    bed = place.bed_with(concurrency=3)
    replica = place.serve()
    clients = [hold(bed) for _ in range(9)]
    replica.await_page(lambda page: page.busy == 3)
    waiting = hold(bed, "/")
    assert (replica.page.connections, replica.page.accepted) == (3, 3)
    place.free.touch()
    for client in [*clients, waiting]:
        status, _, body = read_answer(client)
        assert status == 200
        assert int(body.split()[1]) <= 3  # the app's own count agrees
    assert replica.page.accepted == 10


def test_answers_ask_to_close_only_while_someone_waits_at_the_limit(place: Place) -> None:
    bed = place.bed_with(concurrency=2)
    replica = place.serve()
    first, second = hold(bed), hold(bed)
    replica.await_page(lambda page: page.busy == 2)
    third = hold(bed)
    place.free.touch()
    assert read_answer(first)[1].get("connection") == "close" or read_answer(second)[1].get("connection") == "close"
    assert read_answer(third)[0] == 200
    assert "connection" not in bed.get(client=third)[1]  # nobody waits now: the connection stays


def test_two_replicas_share_one_socket(place: Place) -> None:
    bed = place.bed_with(concurrency=4)
    one, two = place.serve(), place.serve()
    clients = [hold(bed) for _ in range(8)]
    for replica in (one, two):
        replica.await_page(lambda page: page.busy == 4)
    place.free.touch()
    pids = [int(read_answer(client)[2].split()[0]) for client in clients]
    assert sorted(pids.count(replica.pid) for replica in (one, two)) == [4, 4]


def test_a_request_that_came_too_late_for_close_is_not_stranded(place: Place) -> None:
    """The slot is held by an idle connection whose answer had begun before the next connection came. Nobody will use it again
    soon, and closing it could meet a request; so the waiting one is let in."""
    bed = place.bed_with(concurrency=1)
    replica = place.serve()
    streaming = hold(bed, "/stream")
    while b"first" not in streaming.recv(1000):
        pass
    late = hold(bed, "/")
    place.free.touch()
    streaming.settimeout(10)
    while b"last" not in streaming.recv(1000):
        pass
    assert read_answer(late)[0] == 200  # while `streaming` is still open and idle
    assert bed.get(client=streaming)[0] == 200
    assert replica.page.accepted == 2


def test_idle_connections_alone_do_not_lift_the_limit(place: Place) -> None:
    bed = place.bed_with(concurrency=2)
    replica = place.serve()
    idle = [bed.connect() for _ in range(5)]
    replica.await_page(lambda page: page.connections == 2)
    assert bed.get(client=idle[0])[0] == 200
    idle[1].close()
    replica.await_page(lambda page: page.accepted >= 3)
    assert replica.page.connections <= 3


def test_a_connection_whose_peer_has_gone_never_reaches_the_app(place: Place) -> None:
    bed = place.bed_with(concurrency=1)
    replica = place.serve()
    blocking = hold(bed)
    replica.await_page(lambda page: page.busy == 1)
    for _ in range(20):
        gone = hold(bed, "/touch")
        gone.close()
    alive = hold(bed, "/")
    blocking.close()
    assert not place.free.exists()
    place.free.touch()
    assert read_answer(alive)[0] == 200
    replica.await_page(lambda page: page.finished == 2)
    assert replica.page.accepted == 2


def test_an_exception_is_a_500_and_the_replica_lives(place: Place) -> None:
    bed = place.bed_with()
    replica = place.serve()
    assert bed.get("/raise")[0] == 500
    assert bed.get("/")[0] == 200
    assert "ValueError: handler broke" in replica.log
    replica.await_page(lambda page: page.finished == 2)
    assert (replica.page.busy, replica.page.state) == (0, pages.SERVING)
    assert replica.page.first_byte_ns >= replica.page.accepted_ns


def test_the_prefix_becomes_root_path_and_our_headers_stay_ours(place: Place) -> None:
    bed = place.bed_with()
    place.serve()
    headers = "x-steelyard-prefix: /my-fn\r\nx-steelyard-start: 1.5\r\nx-other: kept\r\n"
    body = bed.get("/a%20b?q=1", headers)[2].decode()
    assert body.split(" ", 2)[2] == "/my-fn|/my-fn/a b|/my-fn/a%20b|[(b'host', b'x'), (b'x-other', b'kept')]"
    body = bed.get("/")[2].decode()
    assert body.split(" ", 2)[2].startswith("|/|/|")


def test_ready_is_answered_by_the_runner_only_on_a_private_socket(place: Place) -> None:
    bed = place.bed_with()
    private = place.serve(private=True)
    with bed.connect() as client:
        client.sendall(READY)
        assert read_answer(client)[2] == b"ready\n"
    private.await_page(lambda page: page.connections == 0)
    assert (private.page.finished, private.page.first_byte_ns) == (0, 0)  # no request of the user's
    private.retire()
    assert private.exit_code() == 0
    place.serve()
    assert b"|/.steelyard/ready|" in bed.get("/.steelyard/ready")[2]


def test_retire_lets_streams_and_held_requests_end_and_takes_nothing_new(place: Place) -> None:
    bed = place.bed_with(concurrency=4)
    replica = place.serve()
    idle = bed.connect()
    assert "connection" not in bed.get(client=idle)[1]
    streaming, held = hold(bed, "/stream"), hold(bed)
    replica.await_page(lambda page: page.busy == 2)
    replica.retire()
    replica.await_page(lambda page: page.state == pages.RETIRING)
    new = hold(bed, "/")  # waits in the backlog for somebody else
    # an idle connection is not closed under the client: its next request is answered, and asked to be the last
    status, headers, _ = bed.get(client=idle)
    assert (status, headers["connection"]) == (200, "close")
    assert idle.recv(10) == b""
    place.free.touch()
    status, headers, _ = read_answer(held)
    assert (status, headers["connection"]) == (200, "close")
    while b"last" not in streaming.recv(1000):
        pass
    streaming.close()  # its answer had begun before: the gateway closes it when idle, never we
    assert replica.exit_code() == 0
    other = place.serve()
    assert int(read_answer(new)[2].split()[0]) == other.pid


def test_a_retiring_replica_waits_for_idle_connections(place: Place) -> None:
    bed = place.bed_with()
    replica = place.serve()
    idle = bed.connect()
    assert bed.get(client=idle)[0] == 200
    replica.retire()
    replica.await_page(lambda page: page.state == pages.RETIRING)
    assert bed.get(client=idle)[1]["connection"] == "close"
    assert replica.exit_code() == 0


def test_a_websocket_outlives_retirement_until_it_ends(place: Place) -> None:
    bed = place.bed_with()
    replica = place.serve()
    client = bed.connect()
    key = base64.b64encode(os.urandom(16)).decode()
    client.sendall(
        f"GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        f"sec-websocket-key: {key}\r\nsec-websocket-version: 13\r\nx-steelyard-prefix: /my-fn\r\n\r\n".encode()
    )
    assert client.recv(1000).startswith(b"HTTP/1.1 101")
    replica.await_page(lambda page: page.busy == 1)
    assert replica.page.connections == 1
    replica.retire()
    replica.await_page(lambda page: page.state == pages.RETIRING)
    client.sendall(frame(0x1, b"still there?"))
    assert client.recv(1000) == b"\x81\x11echo still there?"
    client.sendall(frame(0x8, struct.pack(">H", 1000)))
    assert replica.exit_code() == 0
    assert (replica.page.connections, replica.page.busy) == (0, 0)


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's WebSocket frame (masked, under 126 bytes)."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


def test_retiring_under_load_loses_no_request(place: Place) -> None:
    bed = place.bed_with(concurrency=8)
    first = place.serve()
    results: list[int] = []
    retired = threading.Event()

    def ask() -> None:
        """Like the gateway: reuses its connection until it is asked not to."""
        client: socket.socket | None = None
        more = 40
        while more:
            more -= retired.is_set()
            client = client or bed.connect()
            status, headers, _ = bed.get(client=client)
            results.append(status)
            if headers.get("connection") == "close":
                client.close()
                client = None

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        first.await_page(lambda page: page.finished > 5)
        place.serve()
        first.retire()
    finally:
        retired.set()
    for thread in threads:
        thread.join()
    assert len(results) > 240 and set(results) == {200}
    assert first.exit_code() == 0


LIFESPAN = """
    import sys
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            {startup}
            scope["state"]["word"] = "from startup"
            await send({{"type": "lifespan.startup.complete"}})
            await receive()
            print("shutting down")
            await send({{"type": "lifespan.shutdown.complete"}})
            return
        body = scope["state"]["word"].encode()
        await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}})
        await send({{"type": "http.response.body", "body": body}})
"""


def test_lifespan_runs_and_its_state_reaches_requests(place: Place) -> None:
    bed = place.bed_with(LIFESPAN.format(startup="pass"))
    replica = place.serve()
    assert bed.get()[2] == b"from startup"
    replica.retire()
    assert replica.exit_code() == 0
    assert replica.log == "shutting down\n"


@pytest.mark.parametrize(
    ("startup", "expected"),
    [
        ("raise RuntimeError('no weights')", "RuntimeError: no weights"),
        ("await send({'type': 'lifespan.startup.failed', 'message': 'no disk'}); return", "no disk"),
        ("sys.exit(4)", "SystemExit: 4"),
    ],
)
def test_a_failing_startup_fails_the_replica(place: Place, startup: str, expected: str) -> None:
    bed = place.bed_with(LIFESPAN.format(startup=startup))
    replica = bed.start_plain()
    assert replica.exit_code() == 1
    assert replica.page.state == pages.FAILED
    assert expected in replica.page.error
    assert expected in replica.log


@pytest.mark.parametrize(
    "before",
    ["assert scope['type'] == 'http'", "scope['path']", "(await receive())['body']", "await receive()"],
)
def test_an_app_that_takes_lifespan_for_http_is_served_all_the_same(place: Place, before: str) -> None:
    bed = place.bed_with(f"""
        async def app(scope, receive, send):
            {before}
            await send({{"type": "http.response.start", "status": 204, "headers": []}})
            await send({{"type": "http.response.body"}})
    """)
    place.serve()
    client = hold(bed, "/")
    assert client.recv(1000).startswith(b"HTTP/1.1 204")


def test_a_plain_start_that_cannot_import_says_so_in_the_page(place: Place) -> None:
    bed = place.bed_with("import nothing_like_this\n")
    replica = bed.start_plain()
    assert replica.exit_code() == 1
    assert "ModuleNotFoundError: No module named 'nothing_like_this'" in replica.page.error
    assert replica.page.error.strip() in replica.log


def test_a_replica_told_to_retire_before_it_serves_leaves_at_once(place: Place) -> None:
    bed = place.bed_with("""
        import asyncio
        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                await receive()
                print("waiting", flush=True)
                await asyncio.Event().wait()
    """)
    replica = bed.start_plain()
    replica.await_page(lambda _: "waiting" in replica.log)
    replica.retire()
    assert replica.exit_code() == 0


@pytest.mark.parametrize("client_leaves", [False, True])
def test_background_work_after_an_answer_counts_against_concurrency_and_is_not_cut(place: Place, client_leaves: bool) -> None:
    bed = place.bed_with(
        """
        import asyncio, os
        running = peak = 0
        async def app(scope, receive, send):
            global running, peak
            assert scope["type"] == "http"
            running += 1
            peak = max(peak, running)
            body = b"%d" % peak
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
            await send({"type": "http.response.body", "body": body})
            if scope["path"] == "/later":
                while not os.path.exists(os.environ["FREE"]):
                    await asyncio.sleep(0.002)
                print("done later")
            running -= 1
        """,
        concurrency=1,
    )
    replica = place.serve()
    client = bed.connect()
    assert bed.get("/later", client=client)[2] == b"1"
    if client_leaves:
        client.close()
        replica.await_page(lambda page: page.connections == 0)
    else:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    replica.retire()
    replica.await_page(lambda page: page.state == pages.RETIRING)
    place.free.touch()
    if not client_leaves:
        assert read_answer(client)[2] == b"1"
    assert replica.exit_code() == 0
    assert replica.log == "done later\n"


def test_work_that_user_code_registered_for_the_exit_runs(place: Place) -> None:
    place.bed_with(APP + "\n    import atexit; atexit.register(print, 'goodbye')\n")
    replica = place.serve()
    replica.retire()
    assert replica.exit_code() == 0
    assert replica.log == "goodbye\n"


@pytest.mark.parametrize("python", other_pythons())
def test_an_interpreter_of_another_version_with_nothing_installed_serves(place: Place, python: str) -> None:
    bed = place.bed_with("import steelyard as sy\n@sy.enter\ndef load(): print('entered')\n" + textwrap.dedent(APP))
    replica = place.serve(python=python)
    assert bed.get()[0] == 200
    assert replica.log == "entered\n"
    replica.retire()
    assert replica.exit_code() == 0


def test_without_compiled_parts_h11_and_asyncio_do_the_work(place: Place) -> None:
    bed = place.bed_with(concurrency=1)
    replica = place.serve(compiled=False)
    held = hold(bed)
    replica.await_page(lambda page: page.busy == 1)
    waiting = hold(bed, "/")
    place.free.touch()
    assert read_answer(held)[1]["connection"] == "close"
    assert read_answer(waiting)[0] == 200
    assert bed.get("/raise", "x-steelyard-prefix: /f\r\n")[0] == 200
    os.kill(replica.pid, signal.SIGTERM)
    waiting.close()
    assert replica.exit_code() == 0
