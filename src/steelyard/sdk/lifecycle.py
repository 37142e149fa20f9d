"""What does a class ask to be run around its work? Its `@sy.enter` and `@sy.exit` methods, those of bases first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from steelyard.sdk.declare import read_marks
from steelyard.sdk.errors import DeclarationError
from steelyard.sdk.handle import bound_method, plain_function
from steelyard.sdk.look import is_made_without


def enters_of(target: type) -> list[tuple[bool, str]]:
    """(shared, method's name): those for the template first, as they run."""
    found: dict[str, bool] = {}
    for name, value in _methods(target):
        found.pop(name, None)
        enter = read_marks(value).enter
        if enter is not None:
            found[name] = enter == "shared"
    return sorted(((shared, name) for name, shared in found.items()), key=lambda pair: not pair[0])


def exits_of(target: type) -> list[str]:
    found: dict[str, None] = {}
    for name, value in _methods(target):
        found.pop(name, None)
        if read_marks(value).exit:
            found[name] = None
    return list(found)


def make_instance(target: type) -> Any:
    """As `check_made`."""
    check_made(target)
    return target()


def check_made(target: type) -> None:
    """DeclarationError when its constructor needs arguments, which nobody would give it."""
    if is_made_without(target):
        return
    try:
        inspect.signature(target).bind()
    except TypeError:
        raise DeclarationError(
            f"{target.__module__}.{target.__qualname__} can't be made without arguments, and replicas make it so. "
            "Give its constructor defaults, or have parameters in its place: `size: int = sy.parameter()`."
        ) from None
    except ValueError:
        pass  # compiled code that doesn't tell


def enter_locally(target: type, values: dict[str, Any]) -> Any:
    """An instance in this process, as a replica would have it, with these parameters."""
    instance = make_instance(target)
    for name, value in values.items():
        setattr(instance, name, value)
    for _, name in enters_of(target):
        result = bound_method(instance, name)()
        if inspect.iscoroutine(result):
            import asyncio

            asyncio.run(result)
    return instance


def _methods(target: type) -> list[tuple[str, Callable[..., Any]]]:
    every = [(name, plain_function(value)) for cls in reversed(target.__mro__) for name, value in vars(cls).items()]
    return [(name, function) for name, function in every if function is not None]
