"""What stands behind `f.remote`, `f.map` and their like? Small objects that are called; `.aio` is the same for coroutines."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from typing import ParamSpec

    from steelyard.sdk.call import FunctionCall
    from steelyard.sdk.caller import Target
    from steelyard.sdk.mapping import Mapping
else:
    from typing import ParamSpec

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")


class _Verb:
    def __init__(self, target: Target) -> None:
        self._target = target


class Remote(_Verb, Generic[P, R]):
    """Run it in a replica and give its result, or raise its exception."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        from steelyard.sdk.caller import call

        return call(self._target, args, kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        from steelyard.sdk.caller import call_async

        return await call_async(self._target, args, kwargs)


class RemoteGenerator(_Verb, Generic[P, Y]):
    """Run a generator in a replica and iterate over what it yields, as it yields."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[Y]:
        from steelyard.sdk.caller import call

        return _as_iterator(call(self._target, args, kwargs), self._target)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Y]:
        from steelyard.sdk.caller import call_async

        found = await call_async(self._target, args, kwargs)
        if not hasattr(found, "__aiter__"):
            _as_iterator(found, self._target)
        async for item in found:
            yield item


class Spawn(_Verb, Generic[P, R]):
    """Have it run in a replica, whatever becomes of this program."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> FunctionCall[R]:
        from steelyard.sdk.call import spawn

        return spawn(self._target, args, kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> FunctionCall[R]:
        import asyncio  # here: most programs never wait for a coroutine, and it costs as much as all the rest of the SDK

        return await asyncio.to_thread(self, *args, **kwargs)


class Map(_Verb, Generic[R]):
    """Run it for each input. Several iterables are walked together, as with the built-in `map`; `kwargs` goes to every input.

    Results come in the order of the inputs unless `order_outputs=False`. The first exception ends it unless
    `return_exceptions=True`, which gives exceptions as results. Inputs are pulled as results are consumed."""

    def __call__(
        self,
        *inputs: Iterable[Any],
        kwargs: dict[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[R]:
        return _drive(self._target, zip(*inputs, strict=False), kwargs, order_outputs, return_exceptions)

    def aio(
        self,
        *inputs: Iterable[Any],
        kwargs: dict[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncIterator[R]:
        return _drive_async(self._target, zip(*inputs, strict=False), kwargs, order_outputs, return_exceptions)


class Starmap(_Verb, Generic[R]):
    """As `map`, where each input is a tuple of arguments."""

    def __call__(
        self,
        inputs: Iterable[Iterable[Any]],
        /,
        *,
        kwargs: dict[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[R]:
        return _drive(self._target, map(tuple, inputs), kwargs, order_outputs, return_exceptions)

    def aio(
        self,
        inputs: Iterable[Iterable[Any]],
        /,
        *,
        kwargs: dict[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncIterator[R]:
        return _drive_async(self._target, map(tuple, inputs), kwargs, order_outputs, return_exceptions)


class ForEach(_Verb):
    """As `map`, for what the function does: results are dropped. `ignore_exceptions` drops exceptions, too."""

    def __call__(self, *inputs: Iterable[Any], kwargs: dict[str, Any] | None = None, ignore_exceptions: bool = False) -> None:
        for _ in _drive(self._target, zip(*inputs, strict=False), kwargs, False, ignore_exceptions):
            pass

    async def aio(self, *inputs: Iterable[Any], kwargs: dict[str, Any] | None = None, ignore_exceptions: bool = False) -> None:
        async for _ in _drive_async(self._target, zip(*inputs, strict=False), kwargs, False, ignore_exceptions):
            pass


def _as_iterator(found: Any, target: Target) -> Iterator[Any]:
    if isinstance(found, Iterator):
        return found
    raise TypeError(f"{target.label} is no generator: it returned a {type(found).__name__}. Call it with .remote().")


def _drive(
    target: Target, inputs: Iterator[Any], kwargs: dict[str, Any] | None, ordered: bool, exceptions: bool
) -> Iterator[Any]:
    from steelyard.sdk.map_drivers import Driver

    return Driver(target, _make_mapping(target, inputs, kwargs, ordered, exceptions)).results()


def _drive_async(
    target: Target, inputs: Iterator[Any], kwargs: dict[str, Any] | None, ordered: bool, exceptions: bool
) -> AsyncIterator[Any]:
    from steelyard.sdk.map_drivers import results_async

    return results_async(target, _make_mapping(target, inputs, kwargs, ordered, exceptions))


def _make_mapping(
    target: Target, inputs: Iterator[Any], kwargs: dict[str, Any] | None, ordered: bool, exceptions: bool
) -> Mapping:
    from steelyard.sdk.mapping import Mapping

    shared = dict(kwargs or {})
    return Mapping(
        inputs,
        lambda args: target.encode(args, shared),
        ordered=ordered,
        return_exceptions=exceptions,
        retries=target.retries,
        width=target.width,
        now_s=time.monotonic(),
    )
