"""What a pipe gets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steelyard.cli.functions import render_bar
from steelyard.cli.output import choose_kept, render_plain
from steelyard.model.coldstart import PLATFORM_PHASES


def test_columns_are_aligned_by_blanks() -> None:
    assert render_plain(("id", "name"), [("1", "a long name"), ("12345", "x")]).splitlines() == [
        "ID     NAME",
        "1      a long name",
        "12345  x",
    ]


def test_an_empty_cell_keeps_its_place_so_that_columns_can_be_counted() -> None:
    assert render_plain(("id", "reason", "exit"), [("1", "", "0")]).splitlines()[1].split() == ["1", "-", "0"]


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=4))
def test_one_line_per_row_and_no_tabs_whatever_is_in_a_cell(rows: list[tuple[str, str]]) -> None:
    text = render_plain(("a", "b"), rows)
    assert text.count("\n") == len(rows)
    assert "\t" not in text


@given(
    st.dictionaries(
        st.sampled_from(["held", "plan", "fork", "join", "import", "enter", "serve", "first_byte"]), st.floats(0, 1e4), max_size=8
    )
)
def test_a_bar_is_as_long_as_asked_whatever_is_rounded(phases: dict[str, float]) -> None:
    bar = render_bar(phases, 30)
    assert len(bar) == (30 if sum(phases.values()) > 0 else 0)


def test_a_bar_shows_the_share_of_the_platform() -> None:
    bar = render_bar({"held": 1.0, "fork": 2.0, "enter": 3.0}, 12)
    assert bar == "█" * 6 + "░" * 6
    assert {"held", "fork"} <= set(PLATFORM_PHASES)


def test_what_must_not_be_folded_is_kept_while_the_rest_can_be_read() -> None:
    widths = {"name": 30, "id": 12, "state": 5, "built": 20}
    assert choose_kept(widths, ("name", "id"), 120) == {"name", "id"}
    assert choose_kept(widths, ("name", "id"), 63) == {"name", "id"}
    assert choose_kept(widths, ("name", "id"), 60) == {"id"}, "one column in two lines is better than all in letters"
    assert choose_kept(widths, ("name", "id"), 20) == set()
