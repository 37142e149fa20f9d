"""Inputs in a replica: in threads and on the loop, never more at a time than allowed, answered once, given up in time."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import steelyard.sdk as sdk
from steelyard.sdk import frames, payload
from steelyard.sdk.executor import Executor, Method, Work, release
from steelyard.sdk.frames import Frame, FrameReader


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    sdk.exits.clear()
    faulthandler.cancel_dump_traceback_later()


def make_inputs(*values: Any) -> list[Frame]:
    return [Frame(frames.CALL, number, payload.dumps(((value,), {}), "it")) for number, value in enumerate(values)]


async def collect(executor: Executor, work: Work, until: Callable[[list[Frame]], bool] | None = None) -> list[Frame]:
    """What `serving` would send."""
    reader, came = FrameReader(), []
    while True:
        await work.wakeup.wait()
        done = work.complete
        buffers, waiting = work.drain()
        for buffer in buffers:
            came += reader.feed(bytes(buffer))
        release(waiting)
        if done or (until is not None and until(came)):
            executor.finish(work)
            return came


def run(
    function: Callable[..., Any], *values: Any, limit: int = 1, timeout_s: float | None = None
) -> tuple[list[Frame], list[int]]:
    """The frames that come out, and how often the replica asked to be replaced."""
    retired: list[int] = []

    async def story() -> list[Frame]:
        executor = Executor(limit, lambda: retired.append(1))
        work = executor.start(Method("", function, "f()", timeout_s), make_inputs(*values))
        return await asyncio.wait_for(collect(executor, work), 20)

    return asyncio.run(story()), retired


def values_of(came: list[Frame], kind: int = frames.RESULT) -> dict[int, Any]:
    return {frame.id: payload.loads(frame.segments) for frame in came if frame.kind == kind}


def errors_of(came: list[Frame]) -> dict[int, str]:
    return {frame.id: json.loads(bytes(frame.segments[0]))["code"] for frame in came if frame.kind == frames.ERROR}


async def double_later(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


@pytest.mark.parametrize("function", [lambda x: 2 * x, double_later, lambda x: double_later(x)])
@pytest.mark.parametrize("count", [1, 50])
def test_every_input_is_answered(function: Callable[[int], Any], count: int) -> None:
    came, retired = run(function, *range(count), limit=3)
    assert values_of(came) == {number: 2 * number for number in range(count)}
    assert not retired


def test_inputs_are_announced_before_they_begin() -> None:
    seen: list[int] = []

    async def story() -> None:
        executor = Executor(1)
        work = executor.start(Method("", seen.append, "f()", None), make_inputs(*range(5)))
        reader, announced = FrameReader(), 0
        while not work.complete:
            await work.wakeup.wait()
            buffers, waiting = work.drain()
            for frame in [frame for buffer in buffers for frame in reader.feed(bytes(buffer))]:
                if frame.kind == frames.STARTED:
                    announced = max(announced, frame.id)
            assert len(seen) <= announced
            release(waiting)
        executor.finish(work)

    asyncio.run(story())
    assert seen == list(range(5))


@pytest.mark.parametrize("on_loop", [False, True])
def test_no_more_than_the_limit_runs_at_a_time(on_loop: bool) -> None:
    lock, running, most = threading.Lock(), [0], [0]
    together = threading.Barrier(3)

    def work(x: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        if x < 3:
            together.wait(10)
        with lock:
            running[0] -= 1
        return x

    waiting = []

    async def work_on_loop(x: int) -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        if x < 3:
            waiting.append(asyncio.get_running_loop().create_future())
            if len(waiting) == 3:
                for one in waiting:
                    one.set_result(None)
            await waiting[x]
        running[0] -= 1
        return x

    came, _ = run(work_on_loop if on_loop else work, *range(12), limit=3)
    assert len(values_of(came)) == 12
    assert most == [3]


def count_up(n: int) -> Iterator[int]:
    yield from range(n)


async def count_up_later(n: int) -> Any:
    for number in range(n):
        await asyncio.sleep(0)
        yield number


@pytest.mark.parametrize("function", [count_up, count_up_later])
def test_generators_yield_and_end(function: Callable[[int], Any]) -> None:
    came, _ = run(function, 3)
    assert [(frame.kind, payload.loads(frame.segments) if frame.segments else None) for frame in came] == [
        (frames.YIELD, 0),
        (frames.YIELD, 1),
        (frames.YIELD, 2),
        (frames.END, None),
    ]


def test_errors_belong_to_their_input(capsys: pytest.CaptureFixture[str]) -> None:
    def picky(x: int) -> Any:
        if x == 1:
            raise KeyError("no ones")
        if x == 2:
            return threading.Lock()
        if x == 3:
            raise SystemExit(5)
        return x

    came, retired = run(picky, 0, 1, 2, 3, 4)
    assert values_of(came) == {0: 0, 4: 4}
    assert errors_of(came) == {1: frames.RAISED, 2: frames.PAYLOAD, 3: frames.RAISED}
    assert not retired
    log = capsys.readouterr().err
    assert "in picky" in log and "sdk/executor.py" not in log


def test_an_input_that_cannot_be_read_says_so() -> None:
    async def story() -> list[Frame]:
        executor = Executor(1)
        broken = [Frame(frames.CALL, 0, [b"\x80\x04\x8c\x07missing\x8c\x01X\x93."])]
        return await collect(executor, executor.start(Method("", print, "f()", None), broken))

    assert errors_of(asyncio.run(story())) == {0: frames.PAYLOAD}


def test_what_runs_too_long_in_a_thread_is_answered_and_the_replica_replaced() -> None:
    stuck = threading.Event()

    def maybe_stuck(x: int) -> int:
        if x == 2:
            stuck.wait(30)
        return x

    came, retired = run(maybe_stuck, *range(6), timeout_s=0.05)
    stuck.set()
    assert errors_of(came)[2] == frames.TIMEOUT
    # those behind it were not begun, and are either told so or left out
    assert {code for number, code in errors_of(came).items() if number != 2} <= {frames.NOT_BEGUN}
    assert set(values_of(came)) == {0, 1}
    assert retired == [1]


def test_a_coroutine_that_runs_too_long_is_cancelled_and_the_replica_lives() -> None:
    cancelled: list[int] = []

    async def slow(x: int) -> int:
        try:
            await asyncio.sleep(30 if x == 1 else 0)
        except asyncio.CancelledError:
            cancelled.append(x)
            raise
        return x

    came, retired = run(slow, 0, 1, 2, limit=3, timeout_s=0.05)
    assert errors_of(came) == {1: frames.TIMEOUT}
    assert values_of(came) == {0: 0, 2: 2}
    assert not retired


def test_a_coroutine_that_does_not_end_when_cancelled_costs_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.sdk.executor.CANCEL_S", 0.01)
    retired = asyncio.Event()

    async def stubborn(x: int) -> int:
        for _ in range(2):
            try:
                await asyncio.wait_for(retired.wait(), 10)
            except asyncio.CancelledError:
                continue
        return x

    async def story() -> list[Frame]:
        executor = Executor(1, retired.set)
        work = executor.start(Method("", stubborn, "f()", 0.02), make_inputs(0))
        came = await collect(executor, work)
        await asyncio.wait_for(retired.wait(), 10)
        return came

    assert errors_of(asyncio.run(story())) == {0: frames.TIMEOUT}


def test_a_caller_that_leaves_ends_what_ran_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.sdk.executor.CANCEL_S", 0.0)
    stuck = threading.Event()
    retired: list[int] = []
    cancelled: list[int] = []
    begin: Callable[[], object]

    def in_thread(x: int) -> None:
        begin()
        stuck.wait(30)

    async def on_loop(x: int) -> None:
        begin()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(x)
            raise

    async def story(function: Callable[[int], Any]) -> None:
        nonlocal begin
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        begin = lambda: loop.call_soon_threadsafe(begun.set)  # noqa: E731
        executor = Executor(1, lambda: retired.append(1))
        work = executor.start(Method("", function, "f()", None), make_inputs(0, 1))
        await work.wakeup.wait()
        release(work.drain()[1])
        await asyncio.wait_for(begun.wait(), 10)
        work.gone = True
        executor.finish(work)
        for _ in range(4):
            await asyncio.sleep(0)

    asyncio.run(story(on_loop))
    assert (cancelled, retired) == ([0], [])
    asyncio.run(story(in_thread))
    stuck.set()
    assert retired == [1]


def test_nothing_begins_in_a_replica_that_is_being_replaced() -> None:
    async def story() -> bool:
        executor = Executor(1, lambda: None)
        executor.retire()
        work = executor.start(Method("", print, "f()", None), make_inputs(0))
        return work.complete and not work.drain()[0]

    assert asyncio.run(story())


def test_the_process_ends_for_good_after_the_users_own_exit_hooks() -> None:
    sdk.exits.append(print)
    Executor(1, lambda: None).retire()
    assert sdk.exits[-1] is print  # the last registered runs first
    assert len(sdk.exits) == 2
