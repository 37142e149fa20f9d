"""Values travel by reference where they have a name, by value where they must, and say what is wrong with them otherwise."""

from __future__ import annotations

import array
import json
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.sdk import payload
from steelyard.sdk.errors import PayloadError, RemoteError, RemoteTraceback
from steelyard.sdk.frames import RAISED

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(st.tuples(VALUES), st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
def test_arguments_come_back_as_they_were(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert payload.loads(payload.dumps_call(args, kwargs, "f")) == (args, kwargs)


def test_large_arrays_are_segments_of_their_own_and_writable_again() -> None:
    value = {"big": np.arange(100_000), "small": np.arange(3), "strided": np.arange(200_000)[::2]}
    segments = payload.dumps(value, "it")
    assert len(segments) == 2
    back = payload.loads([bytearray(segment) for segment in segments])
    assert all((back[name] == value[name]).all() for name in value)
    back["big"][0] = 7


def test_functions_with_a_name_are_named_and_others_go_by_value() -> None:
    assert b"json" in payload.dumps(json.dumps, "it")[0]
    assert len(payload.dumps(json.dumps, "it")[0]) < 60
    bonus = 3
    assert payload.loads(payload.dumps(lambda x: x + bonus, "it"))(4) == 7


class Holder:
    def __init__(self, inside: Any) -> None:
        self.inside = inside


GLOBAL_LOCK = threading.Lock()


def make_bad() -> dict[str, tuple[Any, str]]:
    lock, connection = threading.Lock(), socket.socket()
    connection.close()
    return {
        "a closure over a lock": (lambda: lock, "the variable 'lock' that 'make_bad.<locals>.<lambda>' holds on to is a lock"),
        "a closure over a socket": (lambda: connection.fileno(), "the variable 'connection'"),
        "a global lock": (lambda: GLOBAL_LOCK.locked(), "the global 'GLOBAL_LOCK' that"),
        "an attribute": (Holder(lock), "its attribute 'inside' is a lock"),
        "deep inside": ([1, {"a": Holder([connection])}], "[1]['a'].inside[0] is a socket"),
        "a generator": ((x for x in ()), "it is a generator"),
        "a closure in a closure": (lambda: (lambda: lock)(), "'lock'"),
        "an open file": (open(__file__), "an open file"),
    }


@pytest.mark.parametrize("case", list(make_bad()))
def test_what_cannot_travel_is_named_with_its_place(case: str) -> None:
    value, words = make_bad()[case]
    with pytest.raises(PayloadError) as caught:
        payload.dumps_call((1, value), {}, "f")
    assert str(caught.value).startswith("Argument 1 of f can't travel: ")
    assert words in str(caught.value)
    with pytest.raises(PayloadError, match="Argument 'x' of f"):
        payload.dumps_call((), {"x": value}, "f")
    if hasattr(value, "close"):
        value.close()


class Odd(Exception):
    """Can be pickled and not read again: its __init__ wants two arguments."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def fail(err: BaseException) -> list[Any]:
    try:
        raise err
    except BaseException as caught:
        return payload.dumps_error(caught, RAISED)


def test_exceptions_come_back_as_themselves_with_the_remote_traceback() -> None:
    told, pickled = fail(KeyError("nothing"))
    err = payload.loads_error(json.loads(told), pickled)
    assert isinstance(err, KeyError) and err.args == ("nothing",)
    assert isinstance(err.__cause__, RemoteTraceback)
    assert "in fail" in str(err.__cause__) and "KeyError: 'nothing'" in str(err.__cause__)


@pytest.mark.parametrize("err", [Odd(1, 2), SystemExit(3), KeyboardInterrupt()])
def test_exceptions_that_cannot_be_themselves_become_remote_errors(err: BaseException) -> None:
    told, pickled = fail(err)
    found = payload.loads_error(json.loads(told), pickled)
    assert isinstance(found, RemoteError)
    assert found.type_name.endswith(type(err).__qualname__)
    assert "Traceback" in found.traceback
    again = pickle.loads(pickle.dumps(found))
    assert (str(again), again.type_name, again.traceback) == (str(found), found.type_name, found.traceback)


def test_an_exception_whose_class_is_not_here_becomes_a_remote_error() -> None:
    told = {"type": "lib.Missing", "text": "gone", "traceback": "Traceback ..."}
    err = payload.loads_error(told, b"\x80\x04\x8c\x07missing\x8c\x01X\x93.")
    assert isinstance(err, RemoteError) and str(err) == "lib.Missing: gone"


MAIN = """
import sys
from array import array
from steelyard.sdk import payload

class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x

def helper(x): return Point(x)

to_home = payload.dumps([Point(3), helper], "it", home_is_main=True)
by_value = payload.dumps([Point(3), helper], "it")
sys.stdout.write(repr((to_home[0], by_value[0])))
sys.stdout.flush()
back = sys.stdin.buffer.read()
found = payload.loads([back], "there")
assert type(found) is Point and found.x == 5, found
"""


def test_the_program_that_declares_a_function_and_the_replica_mean_the_same_classes(tmp_path: Path) -> None:
    """A class of `__main__` is the class of that file's module in the replica, and the other way round."""
    program = tmp_path / "there.py"
    program.write_text(MAIN)
    there: Any = type(sys)("there")
    code = textwrap.dedent(MAIN.partition("to_home")[0])
    exec(code, vars(there))
    sys.modules["there"] = there
    payload.home = there
    child = subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdin is not None and child.stdout is not None
        answer = pickle.dumps(there.Point(5))
        out, _ = child.communicate(answer, timeout=30)
        assert child.returncode == 0
        to_home, by_value = eval(out)
        point, helper = payload.loads([to_home])
        assert type(point) is there.Point and helper is there.helper
        point, helper = payload.loads([by_value])
        assert type(point) is not there.Point and point.x == 3 and helper(4).x == 4
    finally:
        payload.home = None
        del sys.modules["there"]


def test_buffers_of_the_standard_library_travel_too() -> None:
    big = array.array("d", range(50_000))
    assert payload.loads(payload.dumps(big, "it")) == big
