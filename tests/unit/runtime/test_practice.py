"""A way is practised: what ran on it lies together afterwards and does what it did before."""

from __future__ import annotations

import sys
import traceback
from types import FunctionType, ModuleType
from typing import Any

import pytest

from steelyard.runtime.runner.holes import SMALL_MAX
from steelyard.runtime.runner.practice import practise

#: small and large functions, one that makes another, and functions that only a table knows
SOURCE = """
def small(x): return x + 1
def other(x, y=2, *, z=3): return small(x) + y + z
def outer(x):
    def inner(y): return x * y
    return inner(3)
def failing(): raise KeyError("lost")
def in_table(x): return -x
TABLE = {"minus": in_table}
del in_table
def idle(): return None
"""


@pytest.fixture
def module() -> Any:
    """It counts as ours."""
    name = "steelyard.practised_here"
    made = ModuleType(name)
    made.__file__ = f"/{name}.py"
    exec(compile(SOURCE, made.__file__, "exec"), vars(made))
    sys.modules[name] = made
    yield made
    del sys.modules[name]


def waste(_: object) -> None:
    """What a way gives is nobody's."""


def go(module: Any) -> list[int]:
    return [module.other(1), module.outer(5), module.TABLE["minus"](4)]


def test_what_ran_is_no_small_block_any_more_and_gives_the_same(module: Any) -> None:
    before = go(module)
    names = ("small", "other", "outer", "idle")
    codes = {name: getattr(module, name).__code__ for name in names}
    practise([lambda _: waste(go(module))], everything=False)
    assert go(module) == before == [7, 15, -4]
    moved = {name: getattr(module, name).__code__ for name in names}
    assert [name for name in names if moved[name] is not codes[name]] == ["small", "other", "outer"]
    ran = [moved["small"], moved["other"], moved["outer"], moved["outer"].co_consts[1], module.TABLE["minus"].__code__]
    assert all(sys.getsizeof(code) > SMALL_MAX for code in ran), [(code.co_name, sys.getsizeof(code)) for code in ran]
    assert [code.co_firstlineno for code in ran] == [2, 3, 4, 5, 8]


def test_everything_is_found_where_names_do_not_lead(module: Any) -> None:
    hidden = FunctionType(module.small.__code__.replace(co_name="hidden"), vars(module))
    before = hidden.__code__
    practise([lambda at: waste(hidden(at))], everything=True)
    assert hidden.__code__ is not before and hidden(1) == 2


def test_an_error_in_what_was_moved_tells_its_line(module: Any) -> None:
    def way(_: int) -> None:
        with pytest.raises(KeyError):
            module.failing()

    practise([way], everything=False)
    with pytest.raises(KeyError) as raised:
        module.failing()
    assert traceback.extract_tb(raised.tb)[-1].lineno == 7
