"""What callers choose of a class, and which instance they get for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import steelyard as sy
import steelyard.sdk as sdk
from steelyard.sdk.instances import Instances
from steelyard.sdk.parameters import KEY


def no_loop() -> Any:
    raise AssertionError("no enter method here is a coroutine")


class Sized:
    size: int = sy.parameter(default=3)
    name: str = sy.parameter(default="a")

    @sy.enter
    def load(self) -> None:
        self.made = threading.get_ident()

    @sy.method
    def get(self, x: int) -> tuple[int, str, int]:
        return self.size, self.name, x

    @sy.method
    async def later(self) -> int:
        return self.size

    @sy.method
    async def each(self, n: int) -> Any:
        for number in range(n):
            yield self.size * number


handle: Any = sy.App("box").cls(Sized)


def test_each_choice_of_values_has_one_instance_and_the_defaults_have_theirs() -> None:
    instances = Instances(handle, no_loop)
    assert (instances.default.size, instances.default.name) == (3, "a")
    assert instances.of({}) is instances.of({"size": 3, "name": "a"}) is instances.default
    other = instances.of({"size": 4})
    assert other is instances.of({"name": "a", "size": 4})
    assert (other.size, other.name, other.made) == (4, "a", threading.get_ident())
    assert instances.of({"size": 5}) is not other


def test_methods_of_all_kinds_find_the_instance_that_was_asked_for() -> None:
    runners = Instances(handle, no_loop).runners()
    assert runners["get"](1) == (3, "a", 1)
    assert runners["get"](x=1, **{KEY: {"size": 4}}) == (4, "a", 1)

    async def go() -> tuple[int, list[int]]:
        return await runners["later"](**{KEY: {"size": 6}}), [x async for x in runners["each"](3, **{KEY: {"size": 7}})]

    assert asyncio.run(go()) == (6, [0, 7, 14])


def test_many_callers_at_once_have_an_instance_made_once() -> None:
    made: list[object] = []

    class Slow:
        size: int = sy.parameter()

        @sy.enter
        def load(self) -> None:
            made.append(self)
            gate.wait(10)

        @sy.method
        def get(self) -> int:
            return self.size

    gate = threading.Event()
    instances = Instances(sy.App("box").cls(Slow), no_loop)  # type: ignore[arg-type]
    assert instances.default is None
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(instances.of({"size": 1}))) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(10)
    assert len(found) == 4 and len(set(map(id, found))) == len(made) == 1


def test_an_instance_whose_enter_fails_is_made_anew_by_the_next_call_and_its_exits_run_only_once_it_is_there() -> None:
    fails = [True]

    class Shaky:
        size: int = sy.parameter()

        @sy.enter
        def load(self) -> None:
            if fails:
                fails.clear()
                raise OSError("not yet")

        @sy.exit
        def leave(self) -> None: ...

        @sy.method
        def get(self) -> int:
            return self.size

    kept = sdk.exits[:]
    try:
        instances = Instances(sy.App("box").cls(Shaky), no_loop)  # type: ignore[arg-type]
        with pytest.raises(OSError, match="not yet"):
            instances.of({"size": 1})
        assert sdk.exits == kept
        assert instances.of({"size": 1}).get.local() == 1
        assert len(sdk.exits) == len(kept) + 1
    finally:
        sdk.exits[:] = kept


def test_values_travel_with_handles_and_calls() -> None:
    chosen = handle(size=8)
    target = chosen.get._target()
    assert target.parameters == {"size": 8}
    assert handle().get._target().parameters is None
    assert chosen.get.local(2) == (8, "a", 2)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: handle(sise=1), "box-sized has no parameter 'sise'. It has size, name."),
        (lambda: handle(size="1"), "box-sized: its parameter 'size' is of type int, and '1' is not."),
        (lambda: handle(size=True), "of type int, and True is not"),
        (lambda: handle(4), "its parameters are given by name"),
    ],
)
def test_what_is_no_choice_is_refused(wrong: Callable[[], Any], text: str) -> None:
    with pytest.raises(sy.DeclarationError) as refused:
        wrong()
    assert text in str(refused.value)


def declare(body: dict[str, Any], kind: Any = int, default: Any = None) -> None:
    more = {} if default is None else {"default": default}
    body = {"__annotations__": {"size": kind}, "size": sy.parameter(**more), "get": sy.method(lambda self: 1), **body}
    sy.App("box").cls(type("Made", (), body))


@pytest.mark.parametrize(
    ("body", "kind", "default", "text"),
    [
        ({}, list, None, "Made.size: a parameter is str, int, float, bool, bytes"),
        ({}, int, "x", "Made.size is of type int, and 'x' is not"),
        ({"__init__": lambda self: None}, int, None, "Made has parameters, and so no constructor of its own"),
        ({"get": sy.batched(max_size=2)(lambda self, xs: xs)}, int, None, "is batched, and its class has parameters"),
        ({"get": sy.endpoint(lambda self: 1)}, int, None, "is served by HTTP, with the defaults of all parameters"),
    ],
)
def test_what_can_not_be_declared_is_refused(body: dict[str, Any], kind: Any, default: Any, text: str) -> None:
    with pytest.raises(sy.DeclarationError) as refused:
        declare(body, kind, default)
    assert text in str(refused.value)


def test_endpoints_are_served_with_the_defaults() -> None:
    declare({"get": sy.endpoint(lambda self: 1)}, float, 1)


def test_what_only_type_checkers_are_told_of_is_no_parameter() -> None:
    class Told:
        table: list[int] = sy.parameter(init=False)
        more: list[int] = sy.parameter(init=False, default=())

        @sy.method
        def get(self) -> int:
            return len(self.table)

    handle: Any = sy.App("box").cls(Told)
    assert handle.parameters == {}
    assert (hasattr(Told, "table"), Told.more) == (False, ())
