"""Words of a command line as a function's arguments."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.sdk.arguments import ArgumentError, parse, render_help


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


def train(data: str, epochs: int = 3, *, fast: bool = False, rate: float = 0.1, layers: list[int] | None = None) -> None: ...
def anything(first, second=2, *rest, **more): ...  # type: ignore[no-untyped-def]
def typed(
    colour: Colour = Colour.RED,
    mode: Literal["a", "b", 3] = "a",
    folder: Path = Path(),
    pair: tuple[int, str] = (1, "x"),
    options: dict[str, int] = {},  # noqa: B006
    either: int | str = 0,
) -> None: ...


GOOD: list[tuple[Callable[..., Any], list[str], list[Any], dict[str, Any]]] = [
    (train, ["x.csv"], ["x.csv"], {}),
    (train, ["x.csv", "5", "--fast"], ["x.csv", 5], {"fast": True}),
    (train, ["--data", "x.csv", "--rate=2"], ["x.csv"], {"rate": 2.0}),
    (train, ["--epochs", "5", "x.csv"], ["x.csv", 5], {}),
    (train, ["--no-fast", "--", "--odd"], ["--odd"], {"fast": False}),
    (train, ["x", "--layers", "1", "--layers", "2"], ["x"], {"layers": [1, 2]}),
    (train, ["x", "--layers", "[3, 4]"], ["x"], {"layers": [3, 4]}),
    (train, ["x", "-5"], ["x", -5], {}),
    (anything, ["a"], ["a"], {}),
    (anything, ["a", "3", "b", "c", "--x-y", "1"], ["a", 3, "b", "c"], {"x_y": "1"}),
    (typed, ["--colour", "BLUE", "--mode", "3"], [Colour.BLUE, 3], {}),
    (typed, ["--colour", "b"], [Colour.BLUE], {}),
    (typed, ["--folder", "/tmp/x", "--pair", "4", "--pair", "y"], [], {"folder": Path("/tmp/x"), "pair": (4, "y")}),
    (typed, ["--options", '{"a": 1}'], [], {"options": {"a": 1}}),
]

BAD: list[tuple[Callable[..., Any], list[str], str]] = [
    (train, [], "needs --data"),
    (train, ["x", "many"], "--epochs: 'many' is not INT"),
    (train, ["x", "--rate", "fast"], "--rate: 'fast' is not NUMBER"),
    (train, ["x", "--fast=perhaps"], "--fast"),
    (train, ["x", "1", "2"], "'2' is one word too many"),
    (train, ["x", "--nope", "1"], "no argument --nope; the function takes --data, --epochs"),
    (train, ["--data"], "--data needs a value"),
    (train, ["x", "--rate", "1", "--rate", "2"], "given 2 times"),
    (train, ["x", "--layers", "[1, x]"], "--layers"),
    (train, ["x", "--layers", "y"], "'y' is not INT"),
    (typed, ["--colour", "green"], "not RED|BLUE"),
    (typed, ["--mode", "c"], "not a|b|3"),
    (typed, ["--pair", "1"], "takes 2 values"),
    (typed, ["--options", "{"], "--options"),
    (anything, ["--second", "3"], "needs --first"),
]


@pytest.mark.parametrize(("target", "words", "args", "kwargs"), GOOD)
def test_words_become_what_the_annotations_say(
    target: Callable[..., Any], words: list[str], args: list[Any], kwargs: dict[str, Any]
) -> None:
    assert parse(target, words) == (args, kwargs)


@pytest.mark.parametrize(("target", "words", "said"), BAD)
def test_a_word_that_does_not_fit_is_named(target: Callable[..., Any], words: list[str], said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse(target, words)
    assert said in str(caught.value)


@given(st.lists(st.text(max_size=8), max_size=6))
def test_any_words_are_either_read_or_refused(words: list[str]) -> None:
    for target in (train, anything, typed):
        try:
            args, kwargs = parse(target, words)
        except ArgumentError:
            continue
        target(*args, **kwargs)


@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.integers(), min_size=1))
def test_what_was_written_is_what_is_read(epochs: int, rate: float, layers: list[int]) -> None:
    words = ["x", "--epochs", str(epochs), "--rate", repr(rate), "--layers", json.dumps(layers)]
    assert parse(train, words) == (["x", epochs], {"rate": rate, "layers": layers})


def test_methods_are_without_their_first_parameter() -> None:
    class Model:
        def predict(self, x: int) -> int:
            return x

    assert parse(Model.predict, ["4"], skip=1) == ([4], {})


def test_help_shows_kinds_and_defaults() -> None:
    shown = render_help(train, "train.py:train")
    assert shown.splitlines()[0].startswith("Usage: train.py:train --data TEXT [--epochs]")
    assert "--fast / --no-fast" in shown
    assert "default: 0.1" in shown
