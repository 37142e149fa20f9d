"""Ports inside jobs: the machine's network and networks of their own, many connections, half-closed ones, and the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from steelyard_cluster import Cluster, free_ports, wait_until

from oci_images import NEEDS_CONTAINERS, OciImage, Registry, busybox_entries

#: says what it was told, only once it was told everything
ECHO = (
    "import socket, sys, threading\n"
    "def serve(c):\n"
    "    said = b''\n"
    "    while data := c.recv(65536): said += data\n"
    "    c.sendall(b'<' + said + b'>'); c.close()\n"
    "s = socket.create_server(('127.0.0.1', int(sys.argv[1])), backlog=100)\n"
    "print('listening', flush=True)\n"
    "while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()\n"
)


def listens(cluster: Cluster, *argv: str, **fields: object) -> str:
    job = cluster.submit(*argv, **fields)
    wait_until(lambda: b"listening" in cluster.cli("logs", job).stdout, 30, "it to listen")
    return job


@contextmanager
def forwarding(cluster: Cluster, job: str, remote: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    command = cluster.start("port-forward", job, f"0:{remote}")
    assert command.stdout is not None
    line = command.stdout.readline().decode()
    try:
        yield command, int(line.split(" ")[0].rpartition(":")[2])
    finally:
        command.kill()
        command.communicate()


def ask(port: int, said: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        heard = b""
        while data := connection.recv(65536):
            heard += data
        return heard


def test_many_connections_at_once_arrive_whole_and_half_closed(shared: Cluster) -> None:
    (remote,) = free_ports(1)
    job = listens(shared, "python3", "-c", ECHO, str(remote))
    with forwarding(shared, job, remote) as (command, port), ThreadPoolExecutor(20) as pool:
        texts = [os.urandom(1 << 20) if number < 3 else b"%d" % number for number in range(20)]
        assert list(pool.map(lambda text: ask(port, text), texts)) == [b"<" + text + b">" for text in texts]
        listening = subprocess.run(["ss", "-ltnH", f"sport = :{port}"], capture_output=True, text=True, check=False).stdout
        assert not listening or listening.split()[3] == f"127.0.0.1:{port}"
        command.send_signal(signal.SIGINT)
        assert command.wait(30) == 0
    shared.ok("stop", job)


def test_a_port_that_nobody_listens_on_closes_the_connection_and_says_so(shared: Cluster) -> None:
    (closed,) = free_ports(1)
    job = listens(shared, "sh", "-c", "echo listening; sleep 1000")
    with forwarding(shared, job, closed) as (command, port):
        with pytest.raises(ConnectionResetError):
            ask(port, b"hello")
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=30)
        assert f"Nothing answers on port {closed} inside".encode() in err
    shared.ok("stop", job)


def test_it_ends_with_the_job(shared: Cluster) -> None:
    job = listens(shared, "sh", "-c", "echo listening; sleep 1000")
    with forwarding(shared, job, 80) as (command, _):
        shared.ok("stop", job)
        _, err = command.communicate(timeout=30)
        assert command.returncode == 0 and f"job {job} has ended".encode() in err


def test_what_can_not_be_forwarded_is_refused_in_words(shared: Cluster) -> None:
    job = listens(shared, "sh", "-c", "echo listening; sleep 1000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = shared.cli("port-forward", job, f"{taken.getsockname()[1]}:80")
        assert words.returncode == 2 and b"Name another one" in words.stderr
    assert b"names no port" in shared.cli("port-forward", job, "http").stderr
    shared.ok("stop", job)
    shared.wait_job(job, "STOPPED")
    assert b"while a job runs" in shared.cli("port-forward", job, "80").stderr


@NEEDS_CONTAINERS
def test_a_containers_own_network_is_reached_and_no_other(shared: Cluster, registry: Registry) -> None:
    image = registry.add("busybox:1", OciImage(busybox_entries(), config={"Env": ["PATH=/bin"]}))
    (remote,) = free_ports(1)
    # loopback of an own network: nobody else can have its port
    script = f"echo inside > /tmp/index.html; echo listening; exec httpd -f -p 127.0.0.1:{remote} -h /tmp"
    job = listens(shared, "sh", "-c", script, cwd="", image=image, own_network=True)
    with pytest.raises(ConnectionRefusedError):
        ask(remote, b"")
    with forwarding(shared, job, remote) as (_, port):
        assert wait_until(lambda: heard(port), 30, "it to answer").endswith(b"\r\n\r\ninside\n")
    shared.ok("stop", job)


def heard(port: int) -> bytes:
    try:
        return ask(port, b"GET / HTTP/1.0\r\n\r\n")
    except OSError:
        return b""
