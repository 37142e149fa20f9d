"""What can callers choose of a class? Its parameters: `size: int = sy.parameter(default=3)`; then `Model(size=5).work.remote(…)`.

They are texts, numbers, truth values or bytes, and travel with each call beside its arguments. Pure.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from steelyard.sdk.declare import Marks
from steelyard.sdk.errors import DeclarationError

#: among the keyword arguments of a call; no name that a function could have
KEY = "steelyard.parameters"
_KINDS = {kind.__name__: kind for kind in (str, int, float, bool, bytes)}


class Missing:
    """The default of a parameter that has none."""


class Parameter:
    """What stands in the class until it is declared."""

    def __init__(self, default: Any, init: bool) -> None:
        self.default = default
        self.init = init


class Taken(NamedTuple):
    kind: type
    #: Missing: callers have to give it
    default: Any


def parameter(*, default: Any = Missing, init: bool = True) -> Any:
    """A parameter of an `@app.cls` class, annotated with str, int, float, bool or bytes. Each replica makes an instance of its
    own for each choice of values that it is called with, and keeps it. With `init=False` it is none, but an attribute of the
    instance with an annotation, which type checkers would otherwise expect callers to give."""
    return Parameter(default, init)


def take_parameters(target: type) -> dict[str, Taken]:
    """Those of a class, in whose place their defaults stand then. DeclarationError for one that can't travel."""
    found: dict[str, Taken] = {}
    for cls in reversed(target.__mro__):
        for name, value in list(vars(cls).items()):
            if type(value) is Parameter and value.init:
                found[name] = _take(cls, name, value)
            elif type(value) is Parameter and value.default is Missing:
                delattr(cls, name)
            elif type(value) is Parameter:
                setattr(cls, name, value.default)
    for name, taken in found.items():
        if taken.default is not Missing:
            setattr(target, name, taken.default)
    if found and target.__init__ is not object.__init__:
        raise DeclarationError(
            f"{target.__qualname__} has parameters, and so no constructor of its own: do in a method with @sy.enter what it did."
        )
    return found


def check_method(parameters: dict[str, Taken], where: str, marks: Marks) -> None:
    """DeclarationError for a method that could not know its instance."""
    if marks.batched is not None:
        raise DeclarationError(f"{where} is batched, and its class has parameters: both together there are not.")
    if marks.web is not None and any(one.default is Missing for one in parameters.values()):
        raise DeclarationError(f"{where} is served by HTTP, with the defaults of all parameters: give each one, or leave it out.")


def complete(parameters: dict[str, Taken], values: dict[str, Any], where: str) -> dict[str, Any]:
    """All values, with the defaults of those that were not given. DeclarationError names the one that is wrong."""
    for name in values:
        if name not in parameters:
            offered = f"It has {', '.join(parameters)}." if parameters else f"In the class, write `{name}: int = sy.parameter()`."
            raise DeclarationError(f"{where} has no parameter '{name}'. {offered}")
    found: dict[str, Any] = {}
    for name, taken in parameters.items():
        value = values.get(name, taken.default)
        if value is Missing:
            raise DeclarationError(f"{where}: its parameter '{name}' is missing, and has no default.")
        found[name] = _check(taken.kind, value, f"{where}: its parameter '{name}'")
    return found


def _take(cls: type, name: str, value: Parameter) -> Taken:
    where, hint = f"{cls.__qualname__}.{name}", inspect.get_annotations(cls).get(name)
    kind = _KINDS.get(hint if isinstance(hint, str) else getattr(hint, "__name__", ""))
    if kind is None:
        raise DeclarationError(f"{where}: a parameter is {', '.join(_KINDS)}. Write for example `{name}: int = sy.parameter()`.")
    return Taken(kind, value.default if value.default is Missing else _check(kind, value.default, where))


def _check(kind: type, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise DeclarationError(f"{where} is of type {kind.__name__}, and {value!r} is not.")
    return value
