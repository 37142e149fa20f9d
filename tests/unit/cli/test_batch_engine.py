"""Rows in flight, retries, order and bounds, against a function that is a callable in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.cli import batch_engine
from steelyard.cli.batch_engine import (
    AHEAD,
    Asker,
    Pipeline,
    TooManyErrors,
    Trial,
    decide_wait,
    make_answer,
    parse_retry_after,
)
from steelyard.cli.batch_files import Answer, Row
from steelyard.cli.batch_progress import Meter, render_duration
from steelyard.clock import VirtualClock
from steelyard.errors import NotFound, SteelyardError, Unauthorized, Unreachable


class Fake:
    """A gateway with one function behind it; waits are noted and not waited for."""

    def __init__(self, handler: Callable[[httpx2.Request], httpx2.Response]) -> None:
        self.waits: list[float] = []
        self.asked: list[bytes] = []
        self._handler = handler

    def ask(self, *, retries: int = 3, timeout_s: float = 60.0) -> Answer:
        return asyncio.run(self._ask(retries, timeout_s))

    async def _ask(self, retries: int, timeout_s: float) -> Answer:
        async def handle(request: httpx2.Request) -> httpx2.Response:
            self.asked.append(request.content)
            return self._handler(request)

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handle)) as client:
            asker = Asker(
                client, "http://gateway/f/", "f", VirtualClock(), retries=retries, timeout_s=timeout_s, sleep=sleep,
                chance=lambda: 0.0,
            )  # fmt: skip
            return await asker.ask(Row(7, b'{"x": 1}'))


def problem(status: int, code: str, kind: str = "about:blank") -> httpx2.Response:
    body = {"type": kind, "title": "t", "status": status, "detail": f"because {code}", "code": code}
    return httpx2.Response(status, json=body, headers={"Content-Type": "application/problem+json"})


def answers_in_turn(*answers: httpx2.Response | Exception) -> Callable[[httpx2.Request], httpx2.Response]:
    left = iter(answers)

    def handle(_request: httpx2.Request) -> httpx2.Response:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle


@pytest.mark.parametrize(
    ("body", "kind", "line"),
    [
        (b'{\n  "a": [1, 2.50]\n}', "application/json", b'{"a":[1,2.50]}'),
        (b"hello\nyou", "text/plain", b'"hello\\nyou"'),
        (b"12", "text/plain", b"12"),
        (b"", "application/json", b"null"),
    ],
)
def test_an_answer_becomes_one_line_of_json(body: bytes, kind: str, line: bytes) -> None:
    fake = Fake(answers_in_turn(httpx2.Response(200, content=body, headers={"Content-Type": kind})))
    assert fake.ask() == Answer(7, line, 200)
    assert fake.asked == [b'{"x": 1}']


@pytest.mark.parametrize(("body", "kind"), [(b"{", "application/json"), (b"\xff\xfe", "application/octet-stream")])
def test_an_answer_that_is_no_text_or_lies_about_json_is_the_rows_error(body: bytes, kind: str) -> None:
    answer = Fake(answers_in_turn(httpx2.Response(200, content=body, headers={"Content-Type": kind}))).ask()
    assert (answer.line, answer.status) == (None, 200)
    assert "JSON" in answer.message


def test_busy_is_tried_again_no_earlier_than_told_and_later_each_time() -> None:
    fake = Fake(
        answers_in_turn(
            httpx2.Response(429, headers={"Retry-After": "7"}), httpx2.Response(503), httpx2.Response(503), httpx2.Response(200)
        )
    )
    assert fake.ask().line == b"null"
    assert fake.waits[0] >= 7
    assert fake.waits[2] == 2 * fake.waits[1]


def test_a_lost_connection_is_tried_again_and_then_the_rows_error() -> None:
    fake = Fake(answers_in_turn(*[httpx2.ReadError("reset")] * 3))
    answer = fake.ask(retries=2)
    assert (answer.line, answer.status, len(fake.asked)) == (None, None, 3)
    assert "connection was lost" in answer.message
    fake = Fake(answers_in_turn(problem(502, "replica-lost"), httpx2.Response(200, json=1)))
    assert fake.ask().line == b"1"


@pytest.mark.parametrize("status", [400, 404, 401, 500, 502, 307])
def test_what_another_try_would_not_mend_is_an_error_at_once(status: int) -> None:
    fake = Fake(answers_in_turn(httpx2.Response(status, text="the model says no")))
    assert fake.ask() == Answer(7, None, status, "the model says no")
    assert fake.waits == []


def test_the_functions_own_problem_is_the_rows_message() -> None:
    answer = Fake(answers_in_turn(problem(404, "function-not-found", kind="urn:mine"))).ask()
    assert (answer.status, answer.message) == (404, "because function-not-found")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(401, "key-required"), Unauthorized),
        (problem(404, "function-not-found"), NotFound),
        (httpx2.ConnectError("refused"), Unreachable),
    ],
)
def test_what_befalls_every_row_stops_the_batch_instead_of_failing_all_rows(
    answer: httpx2.Response | Exception, error: type[SteelyardError]
) -> None:
    with pytest.raises(error):
        Fake(answers_in_turn(*[answer] * 4)).ask(retries=3)


def test_a_row_that_takes_too_long_fails_and_is_not_repeated() -> None:
    async def go() -> tuple[Answer, int]:
        asked = 0

        async def never(_request: httpx2.Request) -> httpx2.Response:
            nonlocal asked
            asked += 1
            await asyncio.Event().wait()
            raise AssertionError

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(never)) as client:
            asker = Asker(client, "http://gateway/f/", "f", VirtualClock(), retries=3, timeout_s=0.001)
            return await asker.ask(Row(1, b"1")), asked

    answer, asked = asyncio.run(go())
    assert (answer.line, asked) == (None, 1)
    assert "no answer within 0.001 s" in answer.message


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_engine, "ANSWER_MAX", 10)
    answer = Fake(answers_in_turn(httpx2.Response(200, content=b"1" * 11))).ask()
    assert (answer.line, answer.status) == (None, 200)
    assert "larger" in answer.message


def test_retry_after_is_seconds_or_a_date_and_never_believed_without_bound() -> None:
    now = 1_700_000_000_000_000
    assert parse_retry_after("12", now) == 12
    assert parse_retry_after("Tue, 14 Nov 2023 22:13:40 GMT", now) == 20
    assert parse_retry_after("Tue, 14 Nov 2000 22:13:40 GMT", now) == 0
    assert parse_retry_after("99999999999", now) == batch_engine.RETRY_AFTER_MAX_S
    for nonsense in (None, "", "soon", "-3", "1.5", "\u0661"):
        assert parse_retry_after(nonsense, now) == 0


@given(tries=st.integers(1, 2000), jitter=st.floats(0, 1), told=st.integers(0, 10**9))
def test_waits_are_bounded(tries: int, jitter: float, told: int) -> None:
    wait_s = decide_wait(Trial(503, retry_after=str(told)), tries, 10_000, jitter, 0)
    assert wait_s is not None
    assert 0 < wait_s <= batch_engine.RETRY_AFTER_MAX_S + batch_engine.BACKOFF_MAX_S
    assert decide_wait(Trial(503), tries, tries - 1, jitter, 0) is None


@given(body=st.binary(max_size=40), status=st.sampled_from([200, 204, 400, 503]), is_json=st.booleans())
def test_whatever_comes_back_is_one_line_or_an_error(body: bytes, status: int, is_json: bool) -> None:
    answer = make_answer(1, Trial(status, body, is_json))
    if answer.line is not None:
        assert b"\n" not in answer.line
        msgspec.json.decode(answer.line)
    else:
        assert answer.message


# the pipeline


class Flight:
    """Rows whose answers come when the test says so."""

    def __init__(self, count: int, parallel: int, errors_max: int | None = None) -> None:
        self.open: dict[int, asyncio.Future[Answer]] = {}
        self.emitted: list[int] = []
        self.taken = 0
        self._count = count
        self.pipeline = Pipeline(self._rows(), self._ask, self._emit, done=0, parallel=parallel, errors_max=errors_max)

    def _rows(self) -> Iterator[Row]:
        for number in range(1, self._count + 1):
            self.taken = number
            yield Row(number, b"1")

    async def _ask(self, row: Row) -> Answer:
        self.open[row.number] = asyncio.get_running_loop().create_future()
        return await self.open[row.number]

    def _emit(self, answers: Sequence[Answer]) -> None:
        self.emitted += [answer.number for answer in answers]

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def answer(self, number: int, line: bytes | None = b"1") -> None:
        self.open.pop(number).set_result(Answer(number, line, 200, "" if line else "no"))


@given(st.data())
def test_answers_are_handed_on_in_order_whichever_comes_first(data: st.DataObject) -> None:
    async def go() -> None:
        count, parallel = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 5))
        flight = Flight(count, parallel)
        running = asyncio.create_task(flight.pipeline.run())
        await flight.settle()
        while flight.open:
            assert len(flight.open) <= parallel
            assert flight.taken - len(flight.emitted) <= parallel * AHEAD
            flight.answer(data.draw(st.sampled_from(sorted(flight.open))))
            await flight.settle()
        await running
        assert flight.emitted == list(range(1, count + 1))

    asyncio.run(go())


def test_one_slow_row_does_not_let_the_others_fill_the_memory() -> None:
    async def go() -> None:
        flight = Flight(1000, 4)
        running = asyncio.create_task(flight.pipeline.run())
        await flight.settle()
        while ready := [number for number in flight.open if number != 1]:
            flight.answer(ready[0])
            await flight.settle()
        assert flight.taken == 4 * AHEAD
        assert flight.emitted == []
        flight.answer(1)
        await flight.settle()
        assert len(flight.emitted) == 4 * AHEAD
        assert len(flight.open) == 4
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(go())


def test_bytes_that_wait_for_an_older_row_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_engine, "HELD_BYTES_MAX", 10)

    async def go() -> None:
        flight = Flight(1000, 4)
        running = asyncio.create_task(flight.pipeline.run())
        await flight.settle()
        flight.answer(2, b"x" * 11)
        await flight.settle()
        assert flight.taken == 4
        flight.answer(1)
        await flight.settle()
        assert flight.taken == 6
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(go())


def test_too_many_errors_stop_it_after_what_was_ready_is_handed_on() -> None:
    async def go() -> None:
        flight = Flight(100, 3, errors_max=1)
        running = asyncio.create_task(flight.pipeline.run())
        await flight.settle()
        flight.answer(2, None)
        flight.answer(3, None)
        await flight.settle()
        assert not running.done()
        flight.answer(1)
        with pytest.raises(TooManyErrors):
            await running
        assert flight.emitted == [1, 2, 3]

    asyncio.run(go())


# progress


def test_rate_and_rest_are_those_of_the_last_seconds_not_of_earlier_runs() -> None:
    meter = Meter(1000, 500, 0)
    assert meter.render(bar=False) == "500 of 1,000 rows (50 %), 0 rows/s"
    for second in range(1, 41):
        meter.note(500 + 2 * second, 3, second * 10**9)
    assert meter.render(bar=False) == "580 of 1,000 rows (58 %), 2 rows/s, 3m30s left, 3 failed"
    assert meter.render(bar=True).startswith("█" * 13 + "░" * 11 + " 580")


def test_a_batch_of_nothing_is_done() -> None:
    assert "100 %" in Meter(0, 0, 0).render(bar=True)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (3725, "1h02m"), (864000, "10 days")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text
