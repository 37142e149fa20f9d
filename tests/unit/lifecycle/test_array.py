"""An array's text says which elements there are, and nothing too large is ever made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Refused
from steelyard.lifecycle.array import make_places, parse_array
from steelyard.model.batch import ARRAY_MAX
from steelyard.model.ids import JobId


@pytest.mark.parametrize(
    ("text", "indices", "at_once"),
    [
        ("0-3", (0, 1, 2, 3), None),
        ("7", (7,), None),
        ("0-9:4%2", (0, 4, 8), 2),
        ("5,1,3-4,4", (1, 3, 4, 5), None),
        (" 1-2 ", (1, 2), None),
    ],
)
def test_what_an_array_is(text: str, indices: tuple[int, ...], at_once: int | None) -> None:
    demand = parse_array(text)
    assert (demand.indices, demand.at_once) == (indices, at_once)


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "1-", "-1", "1-5:0", "1%0", "1%", "1%x", "1,,2", "0-9999999", "0-4999,0-5000", "١-٣", "1" * 20]
)
def test_anything_else_is_refused_and_costs_nothing(text: str) -> None:
    with pytest.raises(Refused):
        parse_array(text)


@given(st.text("0123456789-,:% ", max_size=30))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        demand = parse_array(text)
    except Refused:
        return
    assert 1 <= len(demand.indices) <= ARRAY_MAX
    assert list(demand.indices) == sorted(set(demand.indices))


def test_places_tell_the_whole_array() -> None:
    places = make_places(JobId("j-000012"), parse_array("2-8:3%1"))
    assert [job for job, _ in places] == ["j-000012_2", "j-000012_5", "j-000012_8"]
    assert {(place.count, place.index_min, place.index_max, place.index_step, place.at_once) for _, place in places} == {
        (3, 2, 8, 3, 1)
    }
    assert [place.index for _, place in places] == [2, 5, 8]
