"""What is a JSON value in Python, when an annotation says what it should be?

`Shapes.of(annotation)` gives a `Shape`: how to read a value (as `json.loads` gives it), and its JSON Schema. Known are the plain
types, None, Any, Literal, Enum, unions, lists, sets, tuples, dicts, dataclasses, NamedTuples, TypedDicts, dates, times,
durations (seconds), UUID, Decimal, paths, bytes (base64), and models of pydantic and Structs of msgspec, which read themselves.
Numbers are never taken for texts or the other way round, nor are true and false for numbers. Unknown fields are refused.

A value that doesn't fit raises FieldError, which names the field: "items[2].price". Pure; imports nothing of the user's.
"""

from __future__ import annotations

import base64
import binascii
import collections.abc
import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from steelyard.sdk.to_json import NoJson, loads, name_of, show

Reader = Callable[[Any, str], Any]
#: of Python 3.11
_REQUIRED, _NOT_REQUIRED = getattr(typing, "Required", object()), getattr(typing, "NotRequired", object())


class FieldError(ValueError):
    """`field`: where in the input; `problem`: what is wrong with it, for a sentence that begins with the field."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


class Shape(NamedTuple):
    #: (value, its path) -> Python value; FieldError
    read: Reader
    schema: dict[str, Any]
    #: for "must be ..."
    words: str


class Shapes:
    """Shapes of one function. `components` are the schemas of its named types, which the others refer to."""

    def __init__(self) -> None:
        self.components: dict[str, dict[str, Any]] = {}
        self._records: dict[Any, Shape] = {}

    def of(self, annotation: Any) -> Shape:
        """NoJson for a type that JSON can't give."""
        # the plainest come first, without detours: what runs on them costs each template memory
        plain = _PLAIN.get(annotation) if type(annotation) is type or annotation is None else None
        if plain is not None:
            return plain
        if type(annotation) is types.GenericAlias:
            return self._container(annotation.__origin__, annotation.__args__) or self._record(annotation)
        if type(annotation) is types.UnionType:
            return _union(list(map(self.of, annotation.__args__)))
        if annotation is Any or isinstance(annotation, typing.TypeVar):
            return self.of(object)
        for alias in ("__supertype__", "__value__"):  # NewType, and `type X = ...`
            if hasattr(annotation, alias):
                return self.of(getattr(annotation, alias))
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            return self.of(args[0])
        if origin is typing.Literal:
            return _literal(args)
        if origin in (typing.Union, types.UnionType):
            return _union([self.of(one) for one in args])
        if origin in (_REQUIRED, _NOT_REQUIRED):
            return self.of(args[0])
        return self._container(origin or annotation, args) or self._record(annotation)

    def _container(self, kind: Any, args: tuple[Any, ...]) -> Shape | None:
        if kind is tuple and args and args[-1] is not Ellipsis:
            return _tuple([self.of(one) for one in args if one != ()])
        if kind in _LISTS:
            return _list(_LISTS[kind], self.of(args[0] if args else Any))
        if kind in _DICTS:
            key, value = args if len(args) == 2 else (str, Any)
            return _dict(self.of(key), self.of(value))
        return None

    def _record(self, kind: Any) -> Shape:
        if not isinstance(kind, type):
            raise NoJson(f"{name_of(kind)} has no JSON form")
        if kind in self._records:
            return self._records[kind]
        make = next((make for fits, make in _RECORDS if fits(kind)), None)
        if make is None:
            raise NoJson(f"{name_of(kind)} has no JSON form")
        # a type may hold others of its own kind: they find this one, which finds the real one when it is made
        made: list[Shape] = []
        name = kind.__name__
        while name in self.components:
            name += "_"
        ref = {"$ref": f"#/components/schemas/{name}"}
        self.components[name] = {}
        self._records[kind] = Shape(lambda value, path: made[0].read(value, path), ref, name)
        made.append(make(kind, self))
        self.components[name] = made[0].schema
        return Shape(made[0].read, ref, made[0].words)


# -- plain values


def _refuse(value: Any, path: str, words: str) -> typing.NoReturn:
    raise FieldError(path, f"must be {words}, not {show(value)}")


def _exactly(kind: type, words: str, schema: dict[str, Any]) -> Shape:
    def read(value: Any, path: str) -> Any:
        return value if type(value) is kind else _refuse(value, path, words)

    return Shape(read, schema, words)


def _read_int(value: Any, path: str) -> int:
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    _refuse(value, path, "a whole number")


def _read_float(value: Any, path: str) -> float:
    if type(value) not in (int, float):
        _refuse(value, path, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise FieldError(path, "is out of the range of numbers")
    return number


def _read_decimal(value: Any, path: str) -> decimal.Decimal:
    if type(value) in (int, float, str):
        try:
            number = decimal.Decimal(str(value))
        except decimal.InvalidOperation:
            number = decimal.Decimal("NaN")
        if number.is_finite():
            return number
    _refuse(value, path, "a decimal number")


def _read_bytes(value: Any, path: str) -> bytes:
    if type(value) is str:
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
    _refuse(value, path, "bytes in base64")


def _read_datetime(value: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(value[:-1] + "+00:00" if value[-1:] in "zZ" else value)


def _from_text(parse: Callable[[str], Any], words: str, **schema: Any) -> Shape:
    def read(value: Any, path: str) -> Any:
        if type(value) is str:
            try:
                return parse(value)
            except ValueError:
                pass
        _refuse(value, path, words)

    return Shape(read, {"type": "string", **schema}, words)


def _read_duration(value: Any, path: str) -> datetime.timedelta:
    try:
        return datetime.timedelta(seconds=_read_float(value, path))
    except OverflowError:
        raise FieldError(path, "is out of the range of durations") from None


_NONE = _exactly(type(None), "null", {"type": "null"})
_PLAIN: dict[Any, Shape] = {
    None: _NONE,
    type(None): _NONE,
    bool: _exactly(bool, "true or false", {"type": "boolean"}),
    str: _exactly(str, "a text", {"type": "string"}),
    int: Shape(_read_int, {"type": "integer"}, "a whole number"),
    float: Shape(_read_float, {"type": "number"}, "a number"),
    bytes: Shape(_read_bytes, {"type": "string", "contentEncoding": "base64"}, "bytes in base64"),
    decimal.Decimal: Shape(_read_decimal, {"type": ["string", "number"]}, "a decimal number"),
    datetime.timedelta: Shape(_read_duration, {"type": "number"}, "a number of seconds"),
    datetime.datetime: _from_text(_read_datetime, "a date and time such as 2026-01-31T12:00:00Z", format="date-time"),
    datetime.date: _from_text(datetime.date.fromisoformat, "a date such as 2026-01-31", format="date"),
    datetime.time: _from_text(datetime.time.fromisoformat, "a time such as 12:30:00", format="time"),
    uuid.UUID: _from_text(uuid.UUID, "a UUID", format="uuid"),
    **{kind: _from_text(kind, "a path") for kind in (pathlib.Path, pathlib.PurePath)},
    dict: Shape(lambda value, path: _read_object(value, path), {"type": "object"}, "an object"),
    object: Shape(lambda value, _: value, {}, "anything"),
}


def _literal(allowed: tuple[Any, ...]) -> Shape:
    words = "one of " + ", ".join(show(one) for one in allowed)

    def read(value: Any, path: str) -> Any:
        for one in allowed:
            if type(one) is type(value) and one == value:
                return one
        _refuse(value, path, words)

    return Shape(read, {"enum": list(allowed)}, words)


def _enum(kind: type[enum.Enum], _: Shapes) -> Shape:
    allowed = {member: getattr(member, "value", member) for member in kind}
    words = "one of " + ", ".join(show(value) for value in allowed.values())

    def read(value: Any, path: str) -> Any:
        for member, its_value in allowed.items():
            if type(its_value) is type(value) and its_value == value:
                return member
        _refuse(value, path, words)

    return Shape(read, {"enum": list(allowed.values())}, words)


def _union(shapes: list[Shape]) -> Shape:
    """The first that fits, but of int and float the one that the number is, whatever their order."""
    all_words: list[str] = []
    schemas: list[dict[str, Any]] = []
    for shape in shapes:
        all_words.append(shape.words)
        schemas.append(shape.schema)
    words = " or ".join(all_words)

    def read(value: Any, path: str) -> Any:
        last = _read_int if type(value) is float else _read_float
        inside: FieldError | None = None
        for shape in sorted(shapes, key=lambda shape: shape.read is last):
            try:
                return shape.read(value, path)
            except FieldError as err:
                if err.field != path:
                    inside = inside or err
        if inside is not None:  # it looked like one of them
            raise inside
        _refuse(value, path, words)

    return Shape(read, {"anyOf": schemas}, words)


# -- containers

_LISTS: dict[Any, Callable[[Iterable[Any]], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    collections.deque: collections.deque,
    **dict.fromkeys((collections.abc.Set, collections.abc.MutableSet), set),
    **dict.fromkeys(
        (
            collections.abc.Sequence,
            collections.abc.MutableSequence,
            collections.abc.Collection,
            collections.abc.Iterable,
        ),
        list,
    ),
}
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def _list(make: Callable[[Iterable[Any]], Any], item: Shape) -> Shape:
    schema = {"type": "array", "items": item.schema}
    if make in (set, frozenset):
        schema["uniqueItems"] = True

    def read(value: Any, path: str) -> Any:
        if type(value) is not list:
            _refuse(value, path, "a list")
        try:
            return make(item.read(one, f"{path}[{number}]") for number, one in enumerate(value))
        except TypeError:
            raise FieldError(path, "holds something that can't be in a set") from None

    return Shape(read, schema, "a list")


def _tuple(items: list[Shape]) -> Shape:
    words = f"a list of {len(items)}"
    schema = {"type": "array", "prefixItems": [item.schema for item in items], "minItems": len(items), "maxItems": len(items)}

    def read(value: Any, path: str) -> Any:
        if type(value) is not list or len(value) != len(items):
            _refuse(value, path, words)
        return tuple(item.read(one, f"{path}[{n}]") for n, (item, one) in enumerate(zip(items, value, strict=True)))

    return Shape(read, schema, words)


def _read_object(value: Any, path: str) -> dict[str, Any]:
    return value if type(value) is dict else _refuse(value, path, "an object")


def _dict(key: Shape, item: Shape) -> Shape:
    def read(value: Any, path: str) -> Any:
        return {
            read_text(key, [name], join_path(path, name)): item.read(one, join_path(path, name))
            for name, one in _read_object(value, path).items()
        }

    return Shape(read, {"type": "object", "additionalProperties": item.schema}, "an object")


def join_path(path: str, name: str) -> str:
    shown = name if name.isidentifier() else json.dumps(name, ensure_ascii=False)
    return f"{path}.{shown}" if path else shown


def read_text(shape: Shape, texts: list[str], path: str) -> Any:
    """A value that came as text, such as in a query: a text where one is wanted, else what the text is in JSON; several are a
    list."""
    parsed = [_parse(text) for text in texts]
    first: FieldError | None = None
    ways: list[Any] = [texts, parsed] if len(texts) != 1 else [texts[0], parsed[0], texts, parsed]
    for value in ways:
        try:
            return shape.read(value, path)
        except FieldError as err:
            first = first or err
    assert first is not None
    raise first


def _parse(text: str) -> Any:
    try:
        return loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


# -- types with fields


class _Field(NamedTuple):
    shape: Shape
    required: bool


def _object(kind: type, fields: dict[str, _Field], make: Callable[..., Any]) -> Shape:
    schema = {
        "type": "object",
        "properties": {name: field.shape.schema for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.required],
        "additionalProperties": False,
    }

    def read(value: Any, path: str) -> Any:
        given = _read_object(value, path)
        for name in given:
            if name not in fields:
                raise FieldError(join_path(path, name), f"is unknown; {kind.__name__} has {', '.join(fields) or 'no fields'}")
        for name, field in fields.items():
            if field.required and name not in given:
                raise FieldError(join_path(path, name), "is missing")
        read = {name: fields[name].shape.read(one, join_path(path, name)) for name, one in given.items()}
        try:
            return make(**read)
        except (ValueError, TypeError) as err:  # its own __init__ or __post_init__ checks further
            raise FieldError(path, str(err) or f"can't be a {kind.__name__}") from None

    return Shape(read, schema, f"an object ({kind.__name__})")


def _dataclass(kind: Any, shapes: Shapes) -> Shape:
    hints = typing.get_type_hints(kind)
    fields = {
        field.name: _Field(
            shapes.of(hints[field.name]), field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        for field in dataclasses.fields(kind)
        if field.init
    }
    return _object(kind, fields, kind)


def _typed_dict(kind: Any, shapes: Shapes) -> Shape:
    """`__required_keys__` does not know what annotations say that were kept as texts."""
    fields: dict[str, _Field] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        origin = typing.get_origin(hint)
        required = name in kind.__required_keys__ and origin is not _NOT_REQUIRED
        fields[name] = _Field(shapes.of(hint), required or origin is _REQUIRED)
    return _object(kind, fields, dict)


def _named_tuple(kind: Any, shapes: Shapes) -> Shape:
    """An object, or a list of its fields, as which it is written."""
    hints = typing.get_type_hints(kind)
    fields = {name: _Field(shapes.of(hints.get(name, Any)), name not in kind._field_defaults) for name in kind._fields}
    by_name = _object(kind, fields, kind)

    def read(value: Any, path: str) -> Any:
        if type(value) is not list or len(value) > len(fields):
            return by_name.read(value, path)
        return by_name.read(dict(zip(fields, value, strict=False)), path)

    return Shape(read, {"anyOf": [by_name.schema, {"type": "array"}]}, by_name.words)


def _pydantic(kind: Any, shapes: Shapes) -> Shape:
    """Version 2 or 1."""
    validate = getattr(kind, "model_validate", None) or kind.parse_obj
    schema = kind.model_json_schema() if hasattr(kind, "model_json_schema") else kind.schema()

    def read(value: Any, path: str) -> Any:
        try:
            return validate(value)
        except ValueError as err:  # its ValidationError is one
            found = getattr(err, "errors", list)()
            if not found:
                raise FieldError(path, str(err)) from None
            for step in found[0]["loc"]:
                path = f"{path}[{step}]" if isinstance(step, int) else join_path(path, step)
            raise FieldError(path, found[0]["msg"]) from None

    return Shape(read, _hoist(schema, shapes), f"an object ({kind.__name__})")


def _hoist(schema: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Definitions beside a schema come to the others of the function."""
    text = json.dumps(schema)
    schema = json.loads(text.replace('"#/$defs/', '"#/components/schemas/').replace('"#/definitions/', '"#/components/schemas/'))
    for place in ("$defs", "definitions"):
        shapes.components.update(schema.pop(place, {}))
    return schema


def _struct(kind: Any, shapes: Shapes) -> Shape:
    msgspec: Any = sys.modules["msgspec"]
    schema = msgspec.json.schema(kind, ref_template="#/components/schemas/{name}")

    def read(value: Any, path: str) -> Any:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as err:
            text, _, where = str(err).partition(" - at `$")
            raise FieldError(f"{path}{where.rstrip('`')}".lstrip("."), text) from None

    definitions = _hoist(schema, shapes)
    own = definitions.get("$ref", "").rpartition("/")[2]
    return Shape(read, shapes.components.get(own, definitions), f"an object ({kind.__name__})")


_RECORDS: list[tuple[Callable[[Any], bool], Callable[[Any, Shapes], Shape]]] = [
    (lambda kind: issubclass(kind, enum.Enum), _enum),
    (lambda kind: hasattr(kind, "model_validate") or hasattr(kind, "parse_obj"), _pydantic),
    (lambda kind: hasattr(kind, "__struct_fields__") and "msgspec" in sys.modules, _struct),
    (dataclasses.is_dataclass, _dataclass),
    (lambda kind: issubclass(kind, dict) and hasattr(kind, "__required_keys__"), _typed_dict),
    (lambda kind: issubclass(kind, tuple) and hasattr(kind, "_fields"), _named_tuple),
]
