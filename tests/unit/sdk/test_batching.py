"""Inputs that come one by one reach a batched function as lists."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from steelyard.sdk.batching import Batcher, call_one
from steelyard.sdk.declare import Batched


def gather(function: Any, inputs: list[Any], max_size: int = 10, wait_ms: float = 50) -> list[Any]:
    async def run() -> list[Any]:
        batcher = Batcher(function, Batched(max_size, wait_ms), "f()")
        return await asyncio.gather(*(batcher.call(one) for one in inputs), return_exceptions=True)

    return asyncio.run(run())


def test_inputs_that_come_together_are_one_call() -> None:
    seen: list[list[int]] = []

    def double(xs: list[int]) -> list[int]:
        seen.append(xs)
        return [x * 2 for x in xs]

    assert gather(double, [1, 2, 3]) == [2, 4, 6]
    assert seen == [[1, 2, 3]]


def test_a_full_batch_does_not_wait() -> None:
    seen: list[int] = []

    async def size(xs: list[int]) -> list[int]:
        seen.append(len(xs))
        return xs

    assert gather(size, list(range(7)), max_size=3, wait_ms=1) == list(range(7))
    assert seen == [3, 3, 1]


def test_what_comes_while_a_batch_runs_is_the_next_one() -> None:
    async def run() -> list[int]:
        began, go = asyncio.Event(), asyncio.Event()
        sizes: list[int] = []

        async def slow(xs: list[int]) -> list[int]:
            sizes.append(len(xs))
            began.set()
            await go.wait()
            return xs

        batcher = Batcher(slow, Batched(10, 0), "f()")
        first = asyncio.ensure_future(batcher.call(0))
        await began.wait()
        rest = [asyncio.ensure_future(batcher.call(one)) for one in range(1, 5)]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, *rest)
        return sizes

    assert asyncio.run(run()) == [1, 4]


def test_an_error_is_everyones_and_one_in_the_list_is_its_owners() -> None:
    def fails(xs: list[int]) -> list[int]:
        raise KeyError("k")

    def picks(xs: list[int]) -> list[Any]:
        return [ValueError("odd") if x % 2 else x for x in xs]

    assert [type(one) for one in gather(fails, [1, 2])] == [KeyError, KeyError]
    assert [str(one) for one in gather(picks, [1, 2])] == ["odd", "2"]


@pytest.mark.parametrize("result", [None, "ab", {"a": 1, "b": 2}, [1], [1, 2, 3]])
def test_a_result_that_is_no_list_of_as_many_is_an_error(result: Any) -> None:
    for err in gather(lambda xs: result, [1, 2]):
        assert isinstance(err, TypeError) and "f() is batched" in str(err)


def test_even_the_end_of_the_program_is_only_an_error() -> None:
    def leaves(xs: list[int]) -> list[int]:
        raise SystemExit(3)

    def stops(xs: list[int]) -> list[int]:
        raise StopIteration

    async def run(function: Any) -> BaseException:
        batcher = Batcher(function, Batched(2, 0), "f()")
        try:
            await batcher.call(1)
        except BaseException as err:
            return err
        raise AssertionError

    assert isinstance(asyncio.run(run(leaves)), SystemExit)
    assert isinstance(asyncio.run(run(stops)), RuntimeError)


def test_an_input_whose_caller_leaves_before_the_batch_is_not_run() -> None:
    async def run() -> list[list[int]]:
        seen: list[list[int]] = []

        async def note(xs: list[int]) -> list[int]:
            seen.append(xs)
            return xs

        batcher = Batcher(note, Batched(2, 1000), "f()")
        first = asyncio.ensure_future(batcher.call(1))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await asyncio.gather(batcher.call(2), batcher.call(3))
        return seen

    assert asyncio.run(run()) == [[2, 3]]


def test_a_batch_that_everyone_left_is_cancelled() -> None:
    async def run() -> bool:
        began, cancelled = asyncio.Event(), asyncio.Event()

        async def hang(xs: list[int]) -> list[int]:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return xs

        batcher = Batcher(hang, Batched(2, 1000), "f()")
        both = [asyncio.ensure_future(batcher.call(one)) for one in (1, 2)]
        await began.wait()
        for one in both:
            one.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        return cancelled.is_set()

    assert asyncio.run(run())


def test_several_parameters_are_lists_of_the_same_order() -> None:
    def add(xs: list[int], *, ys: list[int], scale: int = 10) -> list[int]:
        return [(x + y) * scale for x, y in zip(xs, ys, strict=True)]

    async def run() -> list[int]:
        batcher = Batcher(add, Batched(2, 1), "add()")
        return list(await asyncio.gather(batcher.call(1, 2), batcher.call(ys=3, xs=1)))

    assert asyncio.run(run()) == [30, 40]
    assert call_one(add, "add()", (1,), {"ys": 1}) == 20
    with pytest.raises(TypeError, match=r"add\(\): missing a required argument: 'ys'"):
        call_one(add, "add()", (1,), {})
