"""What are the arguments of a function in a JSON body, or in a query?

A body is an object of the function's parameters: {"x": 1, "name": "a"}; or {"args": [1], "kwargs": {"name": "a"}}; or, where the
function has one parameter that is an object itself (a model, a dataclass, a dict), that object. An empty body is no arguments.
FieldError names the field that doesn't fit. Pure.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from steelyard.sdk import look
from steelyard.sdk.convert import FieldError, Shape, Shapes, join_path, read_text
from steelyard.sdk.look import hints_of, parameters_of
from steelyard.sdk.to_json import NoJson, loads, show

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Parameter(NamedTuple):
    name: str
    shape: Shape
    required: bool
    #: can't be given by name
    positional_only: bool
    #: of a required one that JSON can't give: why
    never: str = ""


class Signature:
    """Of a function, or of a method that is bound. With `batched`, each parameter is a list of which a caller gives one item."""

    def __init__(self, function: Callable[..., Any], batched: bool = False) -> None:
        self.shapes = Shapes()
        self.parameters: list[Parameter] = []
        self._rest: Shape | None = None
        self._others: Shape | None = None
        hints = read_hints(function)
        self._by_name: dict[str, Parameter] = {}
        self._positional: list[Parameter] = []
        for name, kind, has_default in parameters_of(function):
            hint = hints.get(name, object)
            if batched:
                hint = next(iter(typing.get_args(hint)), object)
            shape, never = self._shape(hint)
            if kind == look.ARGS:
                self._rest = shape
            elif kind == look.KWARGS:
                self._others = shape
            elif not has_default or (not never and not batched):  # what has a default and can't be given keeps it
                parameter = Parameter(name, shape, not has_default, kind == look.POSITIONAL_ONLY, never)
                self.parameters.append(parameter)
                self._by_name[name] = parameter
                if kind != look.KEYWORD_ONLY:
                    self._positional.append(parameter)
        self.result, _ = self._shape(hints.get("return", object))

    @property
    def whole_body(self) -> Parameter | None:
        """The only parameter, when it is an object itself."""
        if len(self.parameters) != 1 or self._rest or self._others:
            return None
        only = self.parameters[0]
        schema = self.shapes.components.get(only.shape.schema.get("$ref", "").rpartition("/")[2], only.shape.schema)
        return only if schema.get("type") == "object" else None

    def read_body(self, body: bytes) -> Arguments:
        if not body.strip():
            return self._read({}, [])
        try:
            given = loads(body)
        except ValueError as err:
            raise FieldError("", f"The body is no JSON: {err}") from None
        if not isinstance(given, dict):
            raise FieldError("", f"The body must be an object of arguments, not {show(given)}")
        if given and set(given) <= {"args", "kwargs"} and not set(given) & set(self._by_name):
            args, kwargs = given.get("args", []), given.get("kwargs", {})
            if not isinstance(args, list):
                raise FieldError("args", f"must be a list, not {show(args)}")
            if not isinstance(kwargs, dict):
                raise FieldError("kwargs", f"must be an object, not {show(kwargs)}")
            return self._read(kwargs, args)
        whole = self.whole_body
        if whole is not None and set(given) != {whole.name}:
            return self._place({whole.name: whole.shape.read(given, "")}, [])
        return self._read(given, [])

    def read_query(self, query: Sequence[tuple[str, str]]) -> Arguments:
        """Pairs of the query; several of one name are a list."""
        texts: dict[str, list[str]] = {}
        for name, text in query:
            texts.setdefault(name, []).append(text)
        read = {name: read_text(self._shape_of(name), values, name) for name, values in texts.items()}
        return self._place(read, [])

    def _shape(self, hint: Any) -> tuple[Shape, str]:
        if isinstance(hint, Exception):
            return self.shapes.of(Any), str(hint)
        try:
            return self.shapes.of(hint), ""
        except NoJson as err:
            return self.shapes.of(Any), str(err)
        except Exception as err:  # a class of the user's whose own annotations or schema can't be read
            return self.shapes.of(Any), f"{type(err).__name__}: {err}"

    def _shape_of(self, name: str) -> Shape:
        if name in self._by_name:
            return self._by_name[name].shape
        if self._others is None:
            offered = ", ".join(self._by_name) or "none"
            raise FieldError(name, f"is unknown. Parameters: {offered}")
        return self._others

    def _read(self, kwargs: dict[str, Any], args: list[Any]) -> Arguments:
        read_args: list[Any] = []
        for number, value in enumerate(args):
            if number < len(self._positional):
                parameter = self._positional[number]
                if parameter.name in kwargs:
                    raise FieldError(parameter.name, "is given twice")
                read_args.append(parameter.shape.read(value, parameter.name))
            elif self._rest is not None:
                read_args.append(self._rest.read(value, f"args[{number}]"))
            else:
                raise FieldError(f"args[{number}]", f"is one too many: the function takes {len(self._positional)}")
        return self._place(
            {name: self._shape_of(name).read(value, join_path("", name)) for name, value in kwargs.items()}, read_args
        )

    def _place(self, read: dict[str, Any], args: list[Any]) -> Arguments:
        given = {parameter.name for parameter in self._positional[: len(args)]}
        for parameter in self.parameters:
            there = parameter.name in read or parameter.name in given
            if parameter.required and not there:
                why = f"is missing, and can't be given here: {parameter.never}" if parameter.never else "is missing"
                raise FieldError(parameter.name, why)
            if there and parameter.never:
                raise FieldError(parameter.name, f"can't be given here: {parameter.never}")
            if parameter.positional_only and parameter.name in read:
                if len(args) < self._positional.index(parameter):
                    raise FieldError(parameter.name, "can only be given with those before it")
                args = [*args, read.pop(parameter.name)]
        return tuple(args), read


def read_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations as types; for one that can't be looked up, the error that says so."""
    try:
        return hints_of(function)
    except Exception:
        pass
    bare = inspect.unwrap(function)
    names = {**getattr(bare, "__globals__", {})}
    hints: dict[str, Any] = {}
    for name, hint in getattr(bare, "__annotations__", {}).items():
        try:
            hints[name] = eval(hint, names) if isinstance(hint, str) else hint
        except Exception as err:
            hints[name] = NoJson(f"its annotation {hint!r} can't be looked up when the program runs ({err})")
    return hints
