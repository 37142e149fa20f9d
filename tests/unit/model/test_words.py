from __future__ import annotations

import pytest

from steelyard.model.words import count, exact_size, size


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [(1, "leaf", "1 leaf"), (3, "leaf", "3 leaves"), (0, "switch", "0 switches"), (2, "free GPU", "2 free GPUs")],
)
def test_things_are_counted_in_english(number: int, noun: str, said: str) -> None:
    assert count(number, noun) == said


@pytest.mark.parametrize(
    ("size_bytes", "said", "exactly"),
    [
        (0, "0 B", "0 B"),
        (512 << 10, "512 KiB", "512 KiB"),
        (25_239_000_000, "24 GiB", "23.51 GiB"),
        (3 << 39, "1.5 TiB", "1.5 TiB"),
    ],
)
def test_two_sizes_that_are_close_can_be_told_apart(size_bytes: int, said: str, exactly: str) -> None:
    assert (size(size_bytes), exact_size(size_bytes)) == (said, exactly)
