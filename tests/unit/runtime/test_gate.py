"""The gate's decisions, on a loop of its own with hand-made ASGI messages."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from steelyard.runtime.runner.gate import FAILED, Gate, microseconds
from steelyard.runtime.runner.page import PAGE_BYTES, Page


class FakeAcceptor:
    def __init__(self) -> None:
        self.waits = False
        self.first_ns = 5
        self.busy_after: list[int] = []

    def someone_waits(self) -> bool:
        return self.waits

    def answered(self, busy: int) -> None:
        self.busy_after.append(busy)


@pytest.fixture
def page() -> Iterator[Page]:
    fd = os.memfd_create("page")
    os.ftruncate(fd, PAGE_BYTES)
    made = Page.from_fd(fd)
    os.close(fd)
    yield made
    made.close()


def make_gate(page: Page, app: Any, concurrency: int = 2, private: bool = False) -> tuple[Gate, FakeAcceptor]:
    gate, acceptor = Gate(concurrency), FakeAcceptor()
    gate.app = app
    gate.bind(acceptor, page, private)  # type: ignore[arg-type]
    return gate, acceptor


def scope(path: str = "/", **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "raw_path": path.encode(), "root_path": "", "headers": pairs}


async def ok(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b""})


async def call(gate: Gate, scope: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await gate(scope, None, send)
    return sent


CLOSE = (b"connection", b"close")


@pytest.mark.parametrize(("waits", "retiring", "closes"), [(False, False, False), (True, False, True), (False, True, True)])
def test_answers_close_when_someone_waits_or_when_retiring(page: Page, waits: bool, retiring: bool, closes: bool) -> None:
    gate, acceptor = make_gate(page, ok)
    acceptor.waits, gate.retiring = waits, retiring
    for _ in range(2):  # the first request takes another path through the gate
        assert (CLOSE in asyncio.run(call(gate, scope()))[0]["headers"]) is closes


def test_a_private_gate_answers_ready_by_itself_and_counts_nothing(page: Page) -> None:
    called: list[str] = []

    async def app(scope: Any, *_: Any) -> None:
        called.append(scope["path"])

    gate, _ = make_gate(page, app, private=True)
    assert asyncio.run(call(gate, scope("/.steelyard/ready")))[0]["status"] == 200
    assert (called, page.finished, page.arrival_us) == ([], 0, 0)
    gate.private = False
    asyncio.run(call(gate, scope("/.steelyard/ready")))
    assert called == ["/.steelyard/ready"]


@pytest.mark.parametrize(
    ("prefix", "root_path", "path"),
    [("/my-fn", "/my-fn", "/my-fn/x"), ("/my-fn/", "/my-fn", "/my-fn/x"), ("/", "", "/x"), ("", "", "/x")],
)
def test_the_prefix_is_put_back(page: Page, prefix: str, root_path: str, path: str) -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, *_: Any) -> None:
        seen.append(scope)

    gate, _ = make_gate(page, app)
    asyncio.run(call(gate, scope("/x", x_steelyard_prefix=prefix, x_steelyard_start="1.5", x_mine="1")))
    assert (seen[0]["root_path"], seen[0]["path"], seen[0]["raw_path"]) == (root_path, path, path.encode())
    assert seen[0]["headers"] == [(b"x-mine", b"1")]
    assert page.arrival_us == 1_500_000


def test_never_more_than_concurrency_run_and_waiting_ones_go_in_order(page: Page) -> None:
    async def story() -> None:
        order: list[str] = []
        doors = {name: asyncio.Event() for name in "abcd"}

        async def app(scope: Any, *_: Any) -> None:
            order.append(scope["path"])
            await doors[scope["path"]].wait()

        gate, acceptor = make_gate(page, app, concurrency=2)
        calls = {name: asyncio.ensure_future(call(gate, scope(name))) for name in "abcd"}
        await asyncio.sleep(0)
        assert (order, gate.busy, page.busy) == (["a", "b"], 2, 2)
        calls["c"].cancel()  # one that gave up waiting takes no turn from the next
        doors["a"].set()
        await calls["a"]
        while len(order) < 3:
            await asyncio.sleep(0)
        assert (order, gate.busy) == (["a", "b", "d"], 2)
        doors["b"].set()
        doors["d"].set()
        await asyncio.gather(*calls.values(), return_exceptions=True)
        assert (gate.busy, page.busy, page.finished) == (0, 0, 3)
        assert acceptor.busy_after[-1] == 0

    asyncio.run(story())


def test_an_exception_frees_the_slot_and_ends_the_wake(page: Page) -> None:
    async def app(*_: Any) -> None:
        raise ValueError("broke")

    gate, _ = make_gate(page, app)
    with pytest.raises(ValueError, match="broke"):
        asyncio.run(call(gate, scope()))
    assert (gate.busy, page.finished) == (0, 1)
    assert page.first_byte_ns >= page.accepted_ns > 0


def test_only_the_first_request_is_stamped(page: Page) -> None:
    gate, _ = make_gate(page, ok)
    asyncio.run(call(gate, scope(x_steelyard_start="7.000001")))
    first = page.first_byte_ns
    asyncio.run(call(gate, scope(x_steelyard_start="9.0")))
    assert (page.arrival_us, page.first_byte_ns) == (7_000_001, first)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1700000000.123456", 1_700_000_000_123_456),
        (b"1700000000.5", 1_700_000_000_500_000),
        (b"1700000000.1234567", 1_700_000_000_123_456),
        (b"17", 17_000_000),
        (b"", 0),
        (b"soon", 0),
        (b"1.x", 0),
    ],
)
def test_microseconds(text: bytes, expected: int) -> None:
    assert microseconds(text) == expected


def answers(status: int, error: BaseException | None = None, told: bool = False) -> Any:
    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if told:
            scope[FAILED]()
        if status:
            await send({"type": "http.response.start", "status": status, "headers": []})
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize(
    ("app", "failed"),
    [
        (answers(200), 0),
        (answers(404), 0),
        (answers(500), 1),
        (answers(0, ValueError("x")), 1),
        # an app that answers for its exception and passes it on, as frameworks do, has failed once
        (answers(500, ValueError("x")), 1),
        (answers(200, told=True), 1),
        (answers(0, asyncio.CancelledError()), 0),  # its client left
    ],
)
def test_failed_requests_are_counted_once(page: Page, app: Any, failed: int) -> None:
    gate, _ = make_gate(page, app)
    for turn in (1, 2):  # the first request takes another path through the gate
        with contextlib.suppress(ValueError, asyncio.CancelledError):
            asyncio.run(call(gate, scope()))
        assert (page.errors, page.finished) == (failed * turn, turn)
