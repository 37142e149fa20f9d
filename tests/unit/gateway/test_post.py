"""Does the server's own client take any answer that a gateway may give, and use a connection again only when it may?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from steelyard.gateway.post import Cut, Gateway, NoConnection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\nok"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def pieces(*found: bytes) -> AsyncIterator[bytes]:
    for piece in found:
        yield piece


async def ask(gateway: Gateway, body: bytes = b"in") -> tuple[int, bytes]:
    async with gateway.post("/f/x", {"Content-Length": str(len(body))}, pieces(body)) as answer:
        return answer.status, b"".join([piece async for piece in answer.pieces()])


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return head + await reader.readexactly(length)


def talk(serve: Serve, story: Callable[[Gateway], Awaitable[None]]) -> int:
    """Connections that were made."""

    async def main() -> int:
        made = 0

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal made
            made += 1
            try:
                await serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        gateway = Gateway("127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            await story(gateway)
        finally:
            gateway.close()
            server.close()
            await server.wait_closed()
        return made

    return asyncio.run(main())


def answering(*answers: bytes, close: bool = False) -> Serve:
    """Each request of a connection gets the next."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()
        if not close:
            await reader.read()

    return serve


def test_a_connection_is_used_again_once_its_answer_was_read_to_the_end() -> None:
    async def story(gateway: Gateway) -> None:
        for _ in range(3):
            assert await ask(gateway) == (200, b"ok")

    assert talk(answering(OK, OK, OK), story) == 1


def test_one_that_says_close_or_was_left_early_is_not() -> None:
    async def story(gateway: Gateway) -> None:
        assert await ask(gateway) == (200, b"ok")
        async with gateway.post("/f/x", {"Content-Length": "0"}, pieces()) as answer:
            assert answer.headers["x-a"] == "b"
        assert await ask(gateway) == (200, b"ok")

    closing = OK.replace(b"X-A: b", b"X-A: b\r\nConnection: close")
    assert talk(answering(closing), story) == 3


def test_one_that_the_gateway_closed_meanwhile_is_replaced_before_anything_is_sent() -> None:
    async def story(gateway: Gateway) -> None:
        for _ in range(2):
            assert await ask(gateway) == (200, b"ok")
            while not all(connection.gone for connection in gateway._idle):
                await asyncio.sleep(0)

    assert talk(answering(OK, close=True), story) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
    ],
)
def test_forms_of_an_answer(answer: bytes) -> None:
    async def story(gateway: Gateway) -> None:
        assert await ask(gateway) == (200, b"ok")

    talk(answering(answer), story)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        OK[:-1],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
        b"SSH-2.0\r\n",
    ],
)
def test_an_answer_that_ends_too_early_is_cut(answer: bytes) -> None:
    async def story(gateway: Gateway) -> None:
        with pytest.raises(Cut):
            await ask(gateway)

    talk(answering(answer, close=True), story)


def test_a_refusal_comes_through_although_the_body_was_not_read() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy")
        await writer.drain()
        await reader.readexactly(1 << 22)

    async def story(gateway: Gateway) -> None:
        assert await ask(gateway, b"x" * (1 << 24)) == (429, b"busy")

    talk(serve, story)


def test_a_body_that_can_not_be_read_is_told_as_such_and_nobody_waits() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise OSError(5, "Input/output error")

    async def story(gateway: Gateway) -> None:
        with pytest.raises(OSError, match="Input/output"):
            async with gateway.post("/f/x", {"Content-Length": "9"}, broken()):
                pass

    talk(answering(OK), story)


def test_giving_up_closes_the_connection() -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        try:
            await reader.read()
        finally:
            ended.set()

    async def story(gateway: Gateway) -> None:
        task = asyncio.create_task(ask(gateway))
        await asked.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(5):
            await ended.wait()

    talk(serve, story)


def test_where_nobody_listens_nothing_was_sent() -> None:
    async def story(gateway: Gateway) -> None:
        nobody = Gateway("127.0.0.1", 1)
        with pytest.raises(NoConnection):
            await ask(nobody)

    talk(answering(), story)
