"""JSON values become what annotations say, or an error that names the field."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import enum
import json
import typing
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.sdk.convert import FieldError, Shapes, read_text
from steelyard.sdk.to_json import NoJson, dumps, loads


class Color(enum.Enum):
    RED = "red"
    ONE = 1


@dataclasses.dataclass
class Item:
    name: str
    price: float
    tags: list[str] = dataclasses.field(default_factory=list)
    parent: Item | None = None


@dataclasses.dataclass
class Positive:
    value: int

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise ValueError("must be positive")


class Options(TypedDict):
    size: int
    deep: NotRequired[bool]


class Point(NamedTuple):
    x: int
    y: int = 0


class Model(pydantic.BaseModel):
    age: int
    item: Item | None = None


class Struct(msgspec.Struct):
    count: int
    names: list[str] = []


Money = typing.NewType("Money", int)


def read(annotation: Any, value: Any) -> Any:
    return Shapes().of(annotation).read(value, "x")


FITS = [
    (int, 5, 5),
    (int, 5.0, 5),
    (float, 5, 5.0),
    (str, "a", "a"),
    (bool, True, True),
    (None, None, None),
    (Any, {"a": [1]}, {"a": [1]}),
    (bytes, "aGk=", b"hi"),
    (int | None, None, None),
    (float | int, 3, 3),
    (int | float, 3.5, 3.5),
    (int | str, "7", "7"),
    (Literal["a", 1], 1, 1),
    (Color, "red", Color.RED),
    (list[int], [1, 2], [1, 2]),
    (list, [1, "a"], [1, "a"]),
    (tuple[int, str], [1, "a"], (1, "a")),
    (tuple[int, ...], [1, 2], (1, 2)),
    (set[int], [1, 1, 2], {1, 2}),
    (Sequence[float], [1], [1.0]),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (dict[int, str], {"1": "a"}, {1: "a"}),
    (Mapping[str, list[int]], {"a": [1]}, {"a": [1]}),
    (datetime.datetime, "2026-01-31T12:00:00Z", datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)),
    (datetime.date, "2026-01-31", datetime.date(2026, 1, 31)),
    (datetime.timedelta, 1.5, datetime.timedelta(seconds=1.5)),
    (uuid.UUID, "12345678123456781234567812345678", uuid.UUID("12345678123456781234567812345678")),
    (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
    (decimal.Decimal, 0.1, decimal.Decimal("0.1")),
    (Money, 3, 3),
    (Annotated[int, "of coins"], 3, 3),
    (Item, {"name": "a", "price": 2}, Item("a", 2.0)),
    (Item, {"name": "a", "price": 2, "parent": {"name": "b", "price": 1}}, Item("a", 2.0, [], Item("b", 1.0))),
    (Options, {"size": 1}, {"size": 1}),
    (Point, {"x": 1}, Point(1)),
    (Point, [1, 2], Point(1, 2)),
    (Model, {"age": 3}, Model(age=3)),
    (Struct, {"count": 3}, Struct(3)),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), FITS)
def test_a_value_that_fits_is_read(annotation: Any, value: Any, expected: Any) -> None:
    found = read(annotation, value)
    assert found == expected and type(found) is type(expected)


MISFITS = [
    (int, "5", "x", "must be a whole number, not \"5\""),
    (int, True, "x", "whole number"),
    (int, 1.5, "x", "whole number"),
    (float, "1", "x", "must be a number"),
    (float, True, "x", "must be a number"),
    (float, 10**400, "x", "out of the range"),
    (str, 5, "x", "must be a text, not 5"),
    (bool, 1, "x", "true or false"),
    (bytes, "é", "x", "base64"),
    (int | None, "a", "x", "a whole number or null"),
    (Literal["a", 1], True, "x", 'one of "a", 1'),
    (Color, "blue", "x", 'one of "red", 1'),
    (list[int], {"a": 1}, "x", "must be a list"),
    (list[int], [1, "b"], "x[1]", "whole number"),
    (set[Any], [[1]], "x", "set"),
    (tuple[int, str], [1], "x", "a list of 2"),
    (dict[str, int], {"a b": "c"}, 'x."a b"', "whole number"),
    (dict[int, str], {"q": "a"}, "x.q", "whole number"),
    (datetime.datetime, "yesterday", "x", "a date and time such as"),
    (datetime.timedelta, 1e30, "x", "out of the range"),
    (decimal.Decimal, "NaN", "x", "decimal"),
    (Item, {"name": "a"}, "x.price", "is missing"),
    (Item, {"name": "a", "price": 1, "prise": 2}, "x.prise", "is unknown; Item has name, price, tags, parent"),
    (Item, {"name": "a", "price": 1, "tags": ["b", 3]}, "x.tags[1]", "a text"),
    (Item | None, {"name": "a"}, "x.price", "is missing"),
    (Item, {"name": "a", "price": 1, "parent": {"name": 1, "price": 1}}, "x.parent.name", "a text"),
    (Options, {"deep": True}, "x.size", "is missing"),
    (Point, [1, 2, 3], "x", "an object"),
    (Model, {"age": "old"}, "x.age", "integer"),
    (Struct, {"count": 1, "names": ["a", 2]}, "x.names[1]", "Expected `str`"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value", "field", "problem"), MISFITS)
def test_a_value_that_does_not_fit_names_its_field(annotation: Any, value: Any, field: str, problem: str) -> None:
    with pytest.raises(FieldError) as caught:
        read(annotation, value)
    assert caught.value.field == field
    assert problem in caught.value.problem


def test_what_a_class_refuses_itself_is_told_too() -> None:
    with pytest.raises(FieldError, match="x: must be positive"):
        read(Positive, {"value": 0})


@pytest.mark.parametrize("annotation", [complex, type, list[complex], typing.Callable[[], int]])
def test_a_type_without_a_json_form_is_refused_by_name(annotation: Any) -> None:
    with pytest.raises(NoJson, match="has no JSON form"):
        Shapes().of(annotation)


@pytest.mark.parametrize(
    ("annotation", "texts", "expected"),
    [
        (str, ["5"], "5"),
        (int, ["5"], 5),
        (bool, ["true"], True),
        (bool, ["False"], False),
        (float | None, ["null"], None),
        (list[int], ["1"], [1]),
        (list[str], ["1", "b"], ["1", "b"]),
        (list[int], ["1", "2"], [1, 2]),
        (Item, ['{"name": "a", "price": 1}'], Item("a", 1.0)),
        (datetime.date, ["2026-01-31"], datetime.date(2026, 1, 31)),
    ],
)
def test_texts_of_a_query_are_read_by_annotation(annotation: Any, texts: list[str], expected: Any) -> None:
    assert read_text(Shapes().of(annotation), texts, "x") == expected


def test_a_query_with_a_wrong_text_says_so() -> None:
    with pytest.raises(FieldError, match='x: must be a whole number, not "abc"'):
        read_text(Shapes().of(int), ["abc"], "x")


def test_schemas_name_records_once_and_recursion_ends() -> None:
    shapes = Shapes()
    assert shapes.of(list[Item]).schema == {"type": "array", "items": {"$ref": "#/components/schemas/Item"}}
    shapes.of(Model)
    assert shapes.components["Item"]["required"] == ["name", "price"]
    assert set(shapes.components) == {"Item", "Model"}
    json.dumps(shapes.components)


VALUES = [
    (Item("a", 1.0), {"name": "a", "price": 1.0, "tags": [], "parent": None}),
    ({"c": Color.RED, "when": datetime.date(2026, 1, 31)}, {"c": "red", "when": "2026-01-31"}),
    (b"hi", "aGk="),
    ({1}, [1]),
    (Point(1, 2), [1, 2]),
    (Model(age=1), {"age": 1, "item": None}),
    (Struct(1), {"count": 1, "names": []}),
    (decimal.Decimal("1.10"), "1.10"),
    (datetime.timedelta(seconds=2), 2.0),
]


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_results_are_written_by_what_they_are(value: Any, expected: Any) -> None:
    assert json.loads(dumps(value)) == expected


def test_arrays_are_lists() -> None:
    numpy = pytest.importorskip("numpy")
    assert json.loads(dumps({"a": numpy.ones((2, 2)), "b": numpy.float32(1)})) == {"a": [[1, 1], [1, 1]], "b": 1}


def test_results_without_a_json_form_are_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value, problem in [(object(), "object has"), (float("nan"), "NaN"), (loop, "holds itself"), ({(1, 2): 3}, "keys")]:
        with pytest.raises(NoJson, match=problem):
            dumps(value)


def test_deep_or_odd_texts_are_no_json() -> None:
    for text in ("[" * 100_000, "NaN", "{", ""):
        with pytest.raises(ValueError):
            loads(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_any_json_is_read_or_refused_by_every_annotation(value: Any) -> None:
    for annotation, _, _ in FITS:
        with contextlib.suppress(FieldError):
            read(annotation, value)
