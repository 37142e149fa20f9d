"""Which instance of a class with parameters does a call go to? In each replica there is one for each choice of values that it was
called with: made by the first such call, with its `@sy.enter` methods run, and kept until the replica ends.

That of the defaults, where all have one, is made in the template as that of any class.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import steelyard.sdk as sdk
from steelyard.sdk.handle import Cls, bound_method, methods_of
from steelyard.sdk.lifecycle import enters_of, exits_of, make_instance
from steelyard.sdk.parameters import KEY, Missing, complete


class _Made:
    def __init__(self, instance: Any = None) -> None:
        self.lock = threading.Lock()
        self.instance = instance


class Instances:
    """`loop` gives the event loop on which enter methods that are coroutines run."""

    def __init__(self, cls: Cls, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._cls = cls
        self._loop = loop
        self._lock = threading.Lock()
        self._made: dict[tuple[Any, ...], _Made] = {}
        #: None where a parameter has no default
        self.default: Any = None
        defaults = [taken.default for taken in cls.parameters.values()]
        if Missing not in defaults:
            self.default = make_instance(cls.target)
            self._made[tuple(defaults)] = _Made(self.default)

    def runners(self) -> dict[str, Callable[..., Any]]:
        """The class's methods, each of which finds its instance by itself."""
        return {name: self._runner(name, function) for name, function in methods_of(self._cls.target).items()}

    def of(self, values: dict[str, Any]) -> Any:
        """In a thread. Raises what an enter method raises; the next call tries anew."""
        chosen = complete(self._cls.parameters, values, self._cls.base_name)
        with self._lock:
            made = self._made.setdefault(tuple(chosen.values()), _Made())
        with made.lock:
            if made.instance is None:
                made.instance = self._make(chosen)
        return made.instance

    def _make(self, chosen: dict[str, Any]) -> Any:
        target = self._cls.target
        instance = make_instance(target)
        for name, value in chosen.items():
            setattr(instance, name, value)
        for _, name in enters_of(target):
            result = bound_method(instance, name)()
            if inspect.iscoroutine(result):
                asyncio.run_coroutine_threadsafe(result, self._loop()).result()
        sdk.exits.extend(bound_method(instance, name) for name in exits_of(target))
        return instance

    def _runner(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        async def here(kwargs: dict[str, Any]) -> Any:
            return bound_method(await asyncio.to_thread(self.of, kwargs.pop(KEY, {})), name)

        async def run_generator(*args: Any, **kwargs: Any) -> Any:
            async for item in (await here(kwargs))(*args, **kwargs):
                yield item

        async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
            return await (await here(kwargs))(*args, **kwargs)

        def run_plain(*args: Any, **kwargs: Any) -> Any:
            return bound_method(self.of(kwargs.pop(KEY, {})), name)(*args, **kwargs)

        on_loop = run_coroutine if inspect.iscoroutinefunction(function) else run_plain
        run: Any = run_generator if inspect.isasyncgenfunction(function) else on_loop
        functools.update_wrapper(run, function)
        whole = inspect.signature(function)
        run.__signature__ = whole.replace(parameters=list(whole.parameters.values())[1:])
        return run
