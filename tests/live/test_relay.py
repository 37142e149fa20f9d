"""Real programs behind a real relay: with the socket handed over, and with a port of their own."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runner_bed import Bed, Replica, read_answer

from steelyard.runtime.relay import relay_command
from steelyard.runtime.runner import page as pages

#: an HTTP server on fd 3 in a few lines; GET /hold waits until the file `free` exists
SERVER = """
    import http.server, os, socket, sys, threading, time
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/hold":
                while not os.path.exists("free"): time.sleep(0.002)
            if self.path == "/health":
                return self.send_error(200 if os.path.exists("free") else 503)
            if self.path == "/die":
                os._exit(9)
            if self.path == "/metrics":
                body = b'# TYPE held gauge\\nheld{a="b"} 3\\n'
            elif self.path == "/large":
                body = b"x" * 5_000_000
            else:
                body = f"{os.environ.get('LISTEN_FDS')} {int(os.environ.get('LISTEN_PID', 0)) == os.getpid()}".encode()
            self.answer(body)
        def answer(self, body):
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def do_POST(self):
            left = int(self.headers["content-length"]); n = 0
            while n < left: n += len(self.rfile.read(min(65536, left - n)))
            self.answer(str(n).encode())
        def log_message(self, *args): pass
    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        def get_request(self): return self.socket.accept()[0], ("", 0)
    server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=3)
    print("up", flush=True)
    server.serve_forever()
"""


@pytest.fixture
def bed(home: Path) -> Iterator[Bed]:
    made = Bed(home, SERVER)
    yield made
    made.close()


def start(
    bed: Bed, *argv: str, port: int | None = None, concurrency: int = 2, readiness: str = "", metrics: tuple[str, ...] = ()
) -> Replica:
    replica = bed._replica()
    page = os.open(replica.page_path, os.O_RDWR)
    fds = [bed.listener.fileno(), page]
    command, env = relay_command(
        sys.executable, argv, port=port, concurrency=concurrency, readiness=readiness, metrics=metrics, folder=str(bed.folder),
        listen_fd=fds[0], page_fd=fds[1],
    )  # fmt: skip
    bed.run_as(replica, command, {"PATH": os.environ["PATH"], **env}, fds, cwd=bed.code)
    os.close(page)
    return replica


def ask(bed: Bed, path: str = "/", headers: str = "") -> socket.socket:
    client = bed.connect()
    client.sendall(f"GET {path} HTTP/1.0\r\nhost: x\r\n{headers}\r\n".encode())
    return client


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_program_gets_the_socket_by_the_systemd_convention(bed: Bed) -> None:
    replica = start(bed, sys.executable, "app.py")
    client = ask(bed, headers="X-Steelyard-Start: 1700000000.25\r\n")
    assert read_answer(client)[2] == b"1 True"
    client.close()
    replica.await_page(lambda page: page.finished == 1)
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
    assert (page.arrival_us, page.connections, page.busy, page.accepted) == (1_700_000_000_250_000, 0, 0, 1)
    replica.retire()
    assert replica.exit_code() == 0
    assert not list(bed.folder.glob("steelyard-*"))  # the private socket's folder


def test_uvicorn_as_a_program(bed: Bed) -> None:
    bed.write(
        "web.py",
        """
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"hi"})
    """,
    )
    replica = start(bed, sys.executable, "-m", "uvicorn", "--fd", "3", "web:app")
    client = ask(bed)
    assert read_answer(client)[2] == b"hi"
    client.close()
    replica.retire()
    assert replica.exit_code() == 0
    assert "Traceback" not in replica.log


def test_a_program_on_a_port_of_its_own(bed: Bed) -> None:
    port = free_port()
    (bed.code / "file.txt").write_text("from a file")
    replica = start(bed, sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", port=port)
    replica.await_serving()
    assert read_answer(ask(bed, "/file.txt"))[2] == b"from a file"
    replica.retire()
    assert replica.exit_code() == 0


def test_a_program_that_accepts_serves_only_once_it_answers_readiness(bed: Bed) -> None:
    replica = start(bed, sys.executable, "app.py", readiness="/health")
    client = ask(bed)
    replica.await_page(lambda page: page.said == "GET /health was answered with 503")
    assert (replica.page.state, replica.page.accepted) == (pages.IMPORTED, 0)
    (bed.code / "free").touch()
    assert read_answer(client)[2] == b"1 True"
    client.close()
    replica.retire()
    assert replica.exit_code() == 0


def test_what_a_program_tells_of_itself_is_read_while_it_has_requests(bed: Bed) -> None:
    replica = start(bed, sys.executable, "app.py", metrics=("held", "absent"))
    replica.await_serving()
    client = ask(bed, "/hold")
    replica.await_page(lambda page: page.metrics_ns > 0)
    assert replica.page.read_metrics(2) == (3.0, None)
    (bed.code / "free").touch()
    read_answer(client)
    client.close()
    replica.retire()
    assert replica.exit_code() == 0


def test_port_zero_is_a_port_for_each_replica(bed: Bed) -> None:
    (bed.code / "file.txt").write_text("from a file")
    command = (sys.executable, "-m", "http.server", "$PORT", "--bind", "127.0.0.1")
    replicas = [start(bed, *command, port=0) for _ in range(2)]
    for replica in replicas:
        replica.await_serving()
    assert read_answer(ask(bed, "/file.txt"))[2] == b"from a file"
    for replica in replicas:
        replica.retire()
    assert [replica.exit_code() for replica in replicas] == [0, 0]


def test_a_port_that_is_taken_is_not_relayed_to_a_stranger(bed: Bed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = int(stranger.getsockname()[1])
        replica = start(bed, sys.executable, "-m", "http.server", str(port), port=port)
        assert replica.exit_code() == 1
    assert replica.page.error == f"port {port} is taken by another program on this machine"


@pytest.mark.parametrize(
    ("code", "expected"), [("import sys; sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), ("", 1)]
)
def test_a_program_that_ends_before_it_accepts(bed: Bed, code: str, expected: int) -> None:
    replica = start(bed, sys.executable, "-c", code)
    assert replica.exit_code() == expected
    assert replica.page.state == pages.FAILED
    assert "before it accepted connections" in replica.page.error


def test_a_program_that_does_not_exist(bed: Bed) -> None:
    replica = start(bed, "no-such-program")
    assert replica.exit_code() == 127
    assert "no-such-program could not be started: No such file or directory" in replica.log


def test_never_more_connections_than_concurrency_and_gone_peers_are_dropped(bed: Bed) -> None:
    replica = start(bed, sys.executable, "app.py", concurrency=2)
    held = [ask(bed, "/hold") for _ in range(5)]
    replica.await_page(lambda page: page.busy == 2)
    gone = ask(bed, "/die")
    gone.close()
    (bed.code / "free").touch()
    for client in held:
        assert read_answer(client)[0] == 200
        assert replica.page.connections <= 2
        client.close()
    replica.await_page(lambda page: page.finished == 5)
    assert replica.page.accepted == 5


def test_retire_waits_for_the_last_answer_and_then_ends_the_program(bed: Bed) -> None:
    replica = start(bed, sys.executable, "app.py")
    held = ask(bed, "/hold")
    replica.await_page(lambda page: page.busy == 1)
    replica.retire()
    replica.await_page(lambda page: page.state == pages.RETIRING)
    (bed.code / "free").touch()
    assert read_answer(held)[0] == 200
    held.close()
    assert replica.exit_code() == 0


def test_a_program_that_dies_ends_its_relay_with_its_code(bed: Bed) -> None:
    replica = start(bed, sys.executable, "app.py")
    replica.await_serving()
    client = ask(bed, "/die")
    assert client.recv(10) == b""
    client.close()
    assert replica.exit_code() == 9


def test_large_bodies_pass_both_ways(bed: Bed) -> None:
    replica = start(bed, sys.executable, "app.py")
    assert len(read_answer(ask(bed, "/large"))[2]) == 5_000_000
    client = bed.connect()
    client.sendall(b"POST / HTTP/1.0\r\ncontent-length: 3000000\r\n\r\n" + b"y" * 3_000_000)
    assert read_answer(client)[2] == b"3000000"
    client.close()
    replica.retire()
    assert replica.exit_code() == 0
