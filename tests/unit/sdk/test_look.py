"""What is read off a function's code is what `inspect` and `typing` say of it."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.sdk import look


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def around(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return around


def plain(a: int, /, b: list[str], c: float = 1.0, *, d: str | None, e: bool = True) -> dict[str, int]:
    return {}


def signed(*_: Any) -> None: ...


signed.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]


class Holder:
    def method(self, a: int, *rest: str, **others: float) -> None: ...

    def open(*args: int) -> None: ...

    @classmethod
    def of_class(cls, a: int = 1) -> None: ...

    def __call__(self, a: int) -> None: ...


async def coroutine(a: int) -> int:
    return a


async def stream(a: int) -> AsyncIterator[int]:
    yield a


def generator(a: int) -> Iterator[int]:
    yield a


CALLABLES = [
    *(plain, signed, wrapped(plain), functools.partial(plain, 1), Holder, Holder(), Holder().method, Holder().open),
    *(coroutine, stream, generator, wrapped(coroutine), functools.partial(generator, 1), lambda: None, print, Holder.of_class),
]  # fmt: skip


def as_inspect_says(function: Callable[..., Any]) -> list[tuple[str, int, bool]]:
    kinds = list(look._KINDS)
    return [
        (one.name, kinds.index(one.kind), one.default is not one.empty) for one in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize("function", CALLABLES)
def test_parameters_and_kinds_are_those_of_inspect(function: Callable[..., Any]) -> None:
    assert look.parameters_of(function) == as_inspect_says(function)
    assert look.is_async(function) == (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function))
    assert look.is_generator(function) == (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function))


PARTS = st.tuples(*(st.integers(0, 2) for _ in range(6)), st.booleans(), st.booleans(), st.booleans())


@given(PARTS)
def test_parameters_of_any_shape_are_those_of_inspect(parts: tuple[Any, ...]) -> None:
    only, only_default, both, both_default, named, named_default, args, kwargs, bound = parts
    default = "=0" if only_default else ""
    texts = [f"a{n}" for n in range(only)] + [f"b{n}=0" for n in range(only_default)]
    texts += ["/"] if texts else []
    texts += [f"c{n}{default}" for n in range(both)] + [f"d{n}=0" for n in range(both_default)]
    texts += ["*rest"] if args else ["*"] if named + named_default else []
    texts += [f"e{n}" for n in range(named)] + [f"f{n}=0" for n in range(named_default)] + (["**more"] if kwargs else [])
    space: dict[str, Any] = {}
    exec(f"def function({', '.join(texts)}): ...", space)
    function = space["function"]
    if bound and (only + only_default + both + both_default or args):
        function = function.__get__(object())
    assert look.parameters_of(function) == as_inspect_says(function)


@pytest.mark.parametrize(
    "annotations",
    [
        {"a": int, "b": None, "return": list[str]},
        {"a": "int", "b": "list[Holder]"},
        {"a": list["Holder"], "b": int | None},
        {"a": typing.Annotated[int, "more"], "b": dict[str, list[int | None]]},
    ],
    ids=str,
)
def test_hints_are_those_of_typing(annotations: dict[str, Any]) -> None:
    def function(a: Any, b: Any = None) -> Any: ...

    function.__annotations__ = annotations
    assert look.hints_of(function) == typing.get_type_hints(function)


def test_a_hint_that_cannot_be_looked_up_is_an_error_as_ever() -> None:
    def function(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

    with pytest.raises(NameError):
        look.hints_of(function)


def test_a_class_that_says_nothing_of_how_it_is_made_is_told_from_one_that_does() -> None:
    class Asks:
        def __init__(self, a: int) -> None: ...

    class Inherits(Asks): ...

    class Made:
        def __new__(cls, a: int) -> Made:
            return super().__new__(cls)

    class Meta(type):
        def __call__(cls, a: int) -> object:
            return super().__call__()

    class Strange(metaclass=Meta): ...

    assert look.is_made_without(Holder)
    assert not any(look.is_made_without(each) for each in (Asks, Inherits, Made, Strange))
