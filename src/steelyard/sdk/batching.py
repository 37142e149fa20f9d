"""How do inputs that come one by one reach a function that takes lists? `@sy.batched`.

The first input that waits opens a batch; it runs when it is full, or `wait_ms` later. One batch runs at a time in a replica, and
what comes meanwhile is the next one, which then need not wait any more. Every parameter of the function gets a list, in the same
order, and its result is a list of as many, dealt back one by one. What it raises, everyone in the batch gets; an exception that
stands in the list, only the one in its place.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

from steelyard.sdk.declare import Batched


class Item:
    """One input. Whoever gave it may have left before it was answered."""

    __slots__ = ("arguments", "future", "left", "since")

    def __init__(self, arguments: list[Any], future: asyncio.Future[Any], since: float) -> None:
        self.arguments = arguments
        self.future = future
        self.since = since
        self.left = False


class Parameters:
    """Of a batched function: those without a default. The others are its own."""

    def __init__(self, function: Callable[..., Any], label: str) -> None:
        taken = [one for one in inspect.signature(function).parameters.values() if one.default is one.empty]
        self._names = [one.name for one in taken]
        self._signature = inspect.Signature([one.replace(kind=one.POSITIONAL_OR_KEYWORD) for one in taken])
        self._keywords = {one.name for one in taken if one.kind is one.KEYWORD_ONLY}
        self._label = label

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """TypeError as a call of the function would raise it."""
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as err:
            raise TypeError(f"{self._label}: {err}") from None
        return [bound[name] for name in self._names]

    def gather(self, rows: list[list[Any]]) -> tuple[list[Any], dict[str, Any]]:
        columns = {name: [row[number] for row in rows] for number, name in enumerate(self._names)}
        return (
            [columns[name] for name in self._names if name not in self._keywords],
            {name: columns[name] for name in self._names if name in self._keywords},
        )


def deal(results: Any, count: int, label: str) -> list[Any]:
    """TypeError when it is no list of `count`."""
    if isinstance(results, str | bytes | dict) or not hasattr(results, "__len__") or not hasattr(results, "__iter__"):
        raise TypeError(f"{label} is batched and must return a list with a result for each input, not {type(results).__name__}")
    if len(results) != count:
        raise TypeError(f"{label} is batched and got {count} inputs, but returned {len(results)} results")
    return list(results)


def call_one(function: Callable[..., Any], label: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A batch of one, here and now. Of a coroutine function, a coroutine."""
    parameters = Parameters(function, label)
    lists, named = parameters.gather([parameters.bind(args, kwargs)])
    results = function(*lists, **named)
    if not inspect.isawaitable(results):
        return _open(deal(results, 1, label)[0])

    async def wait() -> Any:
        return _open(deal(await results, 1, label)[0])

    return wait()


def _open(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


class Batcher:
    """In a replica; used on its event loop only."""

    def __init__(self, function: Callable[..., Any], batched: Batched, label: str) -> None:
        self._function = function
        self._on_loop = inspect.iscoroutinefunction(function)
        self._parameters = Parameters(function, label)
        self._max_size = batched.max_size
        self._wait_s = batched.wait_ms / 1000
        self._label = label
        self._waiting: deque[Item] = deque()
        self._batch: list[Item] = []
        self._running: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        item = Item(self._parameters.bind(args, kwargs), loop.create_future(), loop.time())
        self._waiting.append(item)
        self._look()
        try:
            return await item.future
        except asyncio.CancelledError:
            item.left = True
            if item in self._waiting:
                self._waiting.remove(item)
            elif all(one.left for one in self._batch):
                await self._give_up()
            raise

    def _look(self) -> None:
        """Begin the next batch, or see to it that this is called again in time."""
        if self._running is not None or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        left_s = self._waiting[0].since + self._wait_s - loop.time()
        if left_s > 0 and len(self._waiting) < self._max_size:
            if self._timer is None:
                self._timer = loop.call_later(left_s, self._ring)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._batch = [self._waiting.popleft() for _ in range(min(self._max_size, len(self._waiting)))]
        self._running = loop.create_task(self._run(self._batch))

    def _ring(self) -> None:
        self._timer = None
        self._look()

    async def _run(self, batch: list[Item]) -> None:
        try:
            results = deal(await self._call([item.arguments for item in batch]), len(batch), self._label)
        except asyncio.CancelledError:
            results = [asyncio.CancelledError()] * len(batch)
        except BaseException as err:
            results = [err] * len(batch)
        for item, result in zip(batch, results, strict=True):
            if item.future.done():
                continue
            if isinstance(result, BaseException):
                item.future.set_exception(result)
            else:
                item.future.set_result(result)
        self._running = None
        self._look()

    async def _call(self, rows: list[list[Any]]) -> Any:
        lists, named = self._parameters.gather(rows)
        if self._on_loop:
            return await self._function(*lists, **named)
        return await asyncio.get_running_loop().run_in_executor(None, self._call_in_thread, lists, named)

    def _call_in_thread(self, lists: list[Any], named: dict[str, Any]) -> Any:
        try:
            return self._function(*lists, **named)
        except StopIteration as err:  # a future can't hold one
            raise RuntimeError(f"{self._label} raised StopIteration") from err

    async def _give_up(self) -> None:
        """Nobody waits for the batch that runs. A thread can't be ended, so this waits for it, and whoever cancelled sees that it
        does."""
        running = self._running
        if running is not None:
            if self._on_loop:
                running.cancel()
            await asyncio.wait([running])
