"""Arguments of a call in a JSON body or a query."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from steelyard.sdk.convert import FieldError
from steelyard.sdk.signature import Signature

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]


@dataclass
class User:
    name: str
    age: int = 0


def add(x: int, y: int = 2, *, scale: float = 1.0) -> float: ...
def save(user: User) -> None: ...
def many(first: str, *rest: int, **others: bool) -> None: ...
def odd(x: Unknown, y: Unknown = None, z: int = 1) -> None: ...
def strict(a: int, b: int = 0, /) -> None: ...
def embed(texts: list[str]) -> list[list[float]]: ...


@pytest.mark.parametrize(
    ("function", "body", "expected"),
    [
        (add, {"x": 1}, ((), {"x": 1})),
        (add, {"args": [1, 3], "kwargs": {"scale": 2}}, ((1, 3), {"scale": 2.0})),
        (add, {"kwargs": {"x": 1}}, ((), {"x": 1})),
        (save, {"name": "a"}, ((), {"user": User("a")})),
        (save, {"user": {"name": "a"}}, ((), {"user": User("a")})),
        (many, {"first": "a", "b": True}, ((), {"first": "a", "b": True})),
        (many, {"args": ["a", 1, 2]}, (("a", 1, 2), {})),
        (strict, {"a": 1, "b": 2}, ((1, 2), {})),
        (strict, {"args": [1], "kwargs": {"b": 2}}, ((1, 2), {})),
    ],
)
def test_a_body_gives_the_arguments(function: Any, body: Any, expected: Any) -> None:
    assert Signature(function).read_body(json.dumps(body).encode()) == expected


@pytest.mark.parametrize(
    ("function", "body", "field", "problem"),
    [
        (add, "", "x", "is missing"),
        (add, {"x": "1"}, "x", "must be a whole number"),
        (add, {"x": 1, "z": 2}, "z", "is unknown. Parameters: x, y, scale"),
        (add, {"args": [1, 2, 3]}, "args[2]", "one too many: the function takes 2"),
        (add, {"args": [1], "kwargs": {"x": 2}}, "x", "given twice"),
        (add, {"args": 1}, "args", "must be a list"),
        (add, {"kwargs": 1}, "kwargs", "must be an object"),
        (add, [1], "", "must be an object of arguments"),
        (save, {"name": 1}, "name", "must be a text"),
        (save, {"user": {"name": "a", "age": "b"}}, "user.age", "whole number"),
        (odd, {"x": 1}, "x", "can't be given here: its annotation 'Unknown' can't be looked up"),
        (strict, {"b": 1}, "a", "is missing"),
    ],
)  # fmt: skip
def test_a_body_that_does_not_fit_names_the_field(function: Any, body: Any, field: str, problem: str) -> None:
    with pytest.raises(FieldError) as caught:
        Signature(function).read_body(json.dumps(body).encode() if body else b"")
    assert caught.value.field == field
    assert problem in caught.value.problem


def test_a_body_that_is_no_json_says_so() -> None:
    with pytest.raises(FieldError, match="The body is no JSON"):
        Signature(add).read_body(b"{x:1}")


def test_a_query_gives_the_arguments() -> None:
    assert Signature(add).read_query([("x", "1"), ("scale", "0.5")]) == ((), {"x": 1, "scale": 0.5})
    with pytest.raises(FieldError, match="x: must be a whole number"):
        Signature(add).read_query([("x", "one")])


def test_a_parameter_with_a_default_that_json_cannot_give_keeps_it() -> None:
    signature = Signature(odd)
    assert [parameter.name for parameter in signature.parameters] == ["x", "z"]


def test_callers_of_a_batched_function_give_one_item_of_each_list() -> None:
    assert Signature(embed, batched=True).read_body(b'{"texts": "hi"}') == ((), {"texts": "hi"})
