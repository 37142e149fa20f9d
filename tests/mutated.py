"""What may happen to a file on its way? A text with a few cuts, doubled pieces and foreign words, as a hypothesis strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import strategies as st

from steelyard.errors import Refused

_Read = TypeVar("_Read")

_WORDS = [
    "",
    "0",
    "-1",
    "99999999999",
    "N/A",
    "\t",
    "\n",
    " ",
    "<",
    "/>",
    '"',
    "GPU0",
    "X",
    "\0",
    "é",
    "\ud800",
    "0-99999999",
    "&x;",
    "{",
    "]",
]


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + draw(st.sampled_from([1, 8, 60, 10_000])))))
        middle = draw(st.one_of(st.sampled_from(_WORDS), st.just(text[start:end] * 2), st.text(max_size=8)))
        text = text[:start] + middle + text[end:]
    return text


def read_or_refuse(read: Callable[[str, str], _Read], text: str) -> _Read | str:
    """What a reader makes of a text: its answer, or the sentence of its refusal. Any other error fails the test."""
    try:
        return read(text, "x")
    except Refused as refusal:
        return refusal.public
