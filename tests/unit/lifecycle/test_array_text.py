"""Slurm's array expressions: counted before they are made, and written in their shortest form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Refused
from steelyard.lifecycle.array import INDEX_MAX, ArrayDemand, parse_array
from steelyard.model.batch import ARRAY_MAX


@pytest.mark.parametrize(
    ("text", "indices", "at_once", "shortest"),
    [
        ("0-99%8", tuple(range(100)), 8, "0-99%8"),
        ("7", (7,), None, "7"),
        ("1,3,7", (1, 3, 7), None, "1,3,7"),
        ("1,3,5-9:2%4", (1, 3, 5, 7, 9), 4, "1-9:2%4"),
        ("0-15:4", (0, 4, 8, 12), None, "0-12:4"),
        ("3,1,2,2", (1, 2, 3), None, "1-3"),
        ("1,2", (1, 2), None, "1-2"),
        (" 1 , 5-5 ", (1, 5), None, "1,5"),
    ],
)
def test_arrays_are_understood(text: str, indices: tuple[int, ...], at_once: int | None, shortest: str) -> None:
    assert parse_array(text) == ArrayDemand(indices, at_once)
    assert parse_array(text).text == shortest


@pytest.mark.parametrize(
    "text",
    ["", "a", "1-", "-1", "9-1", "1-9:0", "1%0", "1%", "1%x", "%4", "1,,2", "1;2", "0-9999999", f"{INDEX_MAX + 1}", "1-3%2%1",
     "٣", "1," * 20_000 + "1", f"0-{ARRAY_MAX}"],
)  # fmt: skip
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_array(text)
    assert refused.value.code == "bad-array"
    assert len(refused.value.public) < 400


def test_ten_million_are_counted_and_not_made() -> None:
    with pytest.raises(Refused, match="4194304 jobs"):
        parse_array("0-4194303")


@given(st.sets(st.integers(0, 500), min_size=1, max_size=60), st.none() | st.integers(1, 50))
def test_the_shortest_form_is_read_back(indices: set[int], at_once: int | None) -> None:
    demand = ArrayDemand(tuple(sorted(indices)), at_once)
    assert parse_array(demand.text) == demand


@given(st.text(alphabet="0123456789-,:% ", max_size=20))
def test_any_text_is_an_array_or_refused(text: str) -> None:
    try:
        demand = parse_array(text)
    except Refused:
        return
    assert demand.indices and parse_array(demand.text) == demand
