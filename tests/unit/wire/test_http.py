"""The client of the REST API, against a server that says what the test wants it to."""

from __future__ import annotations

import contextlib
import io
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from steelyard.errors import EdgeFailed, NoRoom, NotFound, Refused, Unreachable
from steelyard.wire.http import ApiClient

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@contextlib.contextmanager
def server(*connections: tuple[bytes, ...]) -> Iterator[tuple[ApiClient, list[bytes]]]:
    """Each connection gets its answers, one for each head that it sends, and is closed after the last. What was read is kept."""
    heads: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for answers in connections:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        data = connection.recv(1 << 16)
                        if not data:
                            return
                        head += data
                    heads.append(head)
                    connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ApiClient(f"http://127.0.0.1:{listener.getsockname()[1]}", "secret") as client:
            yield client, heads
    finally:
        thread.join(10)
        listener.close()


def test_calls_share_a_connection_until_the_server_closes_it() -> None:
    with server((OK, OK), (OK,)) as (client, heads):
        assert [client.call("GET", "/v1/jobs", params={"limit": 3}) for _ in range(2)] == [b"ok"] * 2
        assert select.select(client._idle, (), (), 10)[0]  # its end has come
        assert client.call("GET", "/v1/jobs") == b"ok"
    assert heads[0].startswith(b"GET /v1/jobs?limit=3 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nAuthorization: Bearer secret\r\n" in heads[0]
    assert b"Content-Length" not in heads[0]


def test_the_answer_to_head_has_no_body_and_the_connection_is_kept() -> None:
    with server((b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\n")) as (
        client,
        _,
    ):
        assert (client.has("/v1/bundles/a"), client.has("/v1/bundles/b")) == (True, False)


def test_who_is_refused_before_all_was_sent_hears_why() -> None:
    refusal = b'{"type": "", "title": "", "status": 507, "detail": "The disk is full.", "code": "disk-full"}'
    answer = b"HTTP/1.1 507 No\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(refusal), refusal)
    with server((answer,)) as (client, _), pytest.raises(NoRoom) as caught:
        client.upload("/v1/bundles/a", io.BytesIO(bytes(300_000)), 300_000, "application/gzip")
    assert caught.value.public == "The disk is full."


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhal", b"220 mail.example.org\r\n\r\n"])
def test_half_an_answer_and_what_is_none_are_a_lost_connection(answer: bytes) -> None:
    with server((answer,)) as (client, _), pytest.raises(Unreachable) as caught:
        client.call("POST", "/v1/jobs")
    assert caught.value.code == "connection-lost"


@pytest.mark.parametrize("path", ["/v1/jobs/a b", "/v1/jobs/\r\nx: y", "/v1/jobs/ä"])
def test_what_would_be_another_request_is_not_sent(path: str) -> None:
    with ApiClient("http://127.0.0.1:1", "secret") as client, pytest.raises(EdgeFailed, match="Nothing was changed"):
        client.call("GET", path)


def test_errors_are_those_that_the_status_means() -> None:
    missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\noops"
    wrong = b"HTTP/1.1 422 No\r\ncontent-length: 4\r\n\r\noops"
    with server((missing, wrong)) as (client, _):
        with pytest.raises(NotFound):
            client.call("GET", "/v1/jobs/1")
        with pytest.raises(Refused, match="Steelyard answered 422 to GET /v1/jobs/1"):
            client.call("GET", "/v1/jobs/1")


def test_nobody_at_the_address_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with ApiClient(f"http://127.0.0.1:{port}", "secret") as client, pytest.raises(Unreachable, match="does not answer"):
        client.call("GET", "/v1/status")
