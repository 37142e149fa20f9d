"""Which machine is asked for a replica of a function in a pool?"""

from __future__ import annotations

import pytest

from steelyard.api.visits import choose_machines
from steelyard.model.function import Function, FunctionSpec, Place, Routes, Share
from steelyard.model.ids import DEFAULT_PROJECT, FunctionName, MachineId
from steelyard.model.job import Owner

READY = Routes((Share(1, 100),))
ALL = ("a", "b", "c")


def place(name: str, replicas: int = 0, ready: bool = True, leaving: bool = False) -> Place:
    return Place(MachineId(name), routes=READY if ready else Routes(), replicas=replicas, leaving=leaving)


@pytest.mark.parametrize(
    ("places", "heard", "asked"),
    [
        ((), ALL, []),
        ((place("a"), place("b")), ALL, ["a"]),
        ((place("a"), place("b", 2)), ALL, ["b"]),
        ((place("a"), place("b", 2, leaving=True)), ALL, ["a"]),
        ((place("a", ready=False), place("b")), ALL, ["b"]),
        ((place("a", 2), place("b")), ("b",), ["b"]),
        # nobody is heard: the answer says so
        ((place("a"), place("b", 1)), (), ["b"]),
    ],
)
def test_anybody_is_led_where_requests_go_and_a_replica_is_awake(
    places: tuple[Place, ...], heard: tuple[str, ...], asked: list[str]
) -> None:
    row = Function(
        FunctionName("f"), DEFAULT_PROJECT, Owner("ann", 7), 1, 1, FunctionSpec(argv=("x",), pool="train"), 0, places=places
    )
    assert choose_machines(row, "", heard.__contains__) == asked
    assert choose_machines(row, "abc", heard.__contains__) == [each.machine for each in places], "one by its id may be anywhere"
