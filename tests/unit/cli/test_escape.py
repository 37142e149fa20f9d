"""`~.` at the beginning of a line is ours, everything else the program's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.cli.escape import Escape


@pytest.mark.parametrize(
    ("typed", "passed", "over"),
    [
        (b"~.", b"", True),
        (b"ls\r~.rest", b"ls\r", True),
        (b"a~.", b"a~.", False),
        (b"~~.", b"~.", False),
        (b"~", b"", False),
        (b"~x\r~y", b"~x\r~y", False),
        (b"\n~~\n~.", b"\n~\n", True),
        (b"~\r~.", b"~\r", True),
    ],
)
def test_only_a_tilde_and_a_dot_at_the_beginning_of_a_line_hang_up(typed: bytes, passed: bytes, over: bool) -> None:
    assert Escape().feed(typed) == (passed, over)


@given(st.binary(max_size=40).map(lambda data: data.replace(b"~", b"")))
def test_what_has_no_tilde_passes_unchanged(typed: bytes) -> None:
    assert Escape().feed(typed) == (typed, False)


@given(st.text(alphabet="~.a\r", max_size=30), st.integers(1, 5))
def test_it_does_not_matter_in_which_pieces_keys_come(typed: str, size: int) -> None:
    whole, data = Escape().feed(typed.encode()), typed.encode()
    pieces, passed, over = Escape(), b"", False
    for at in range(0, len(data), size):
        more, over = pieces.feed(data[at : at + size])
        passed += more
        if over:
            break
    assert (passed, over) == whole
