from __future__ import annotations

import pytest

from steelyard.model.words import count


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [(1, "leaf", "1 leaf"), (3, "leaf", "3 leaves"), (0, "switch", "0 switches"), (2, "free GPU", "2 free GPUs")],
)
def test_things_are_counted_in_english(number: int, noun: str, said: str) -> None:
    assert count(number, noun) == said
