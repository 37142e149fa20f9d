"""May this generation be put over that one?"""

from __future__ import annotations

import pytest

from steelyard.store.generation import check_generation


@pytest.mark.parametrize(
    ("stored", "put", "words"),
    [
        (None, 1, None),
        (1, 2, None),
        (7, 8, None),
        (None, 2, "does not exist"),
        (None, 0, "does not exist"),
        (1, 1, "exists already"),
        (5, 1, "exists already"),
        (5, 5, "is at generation 5"),
        (5, 7, "is at generation 5"),
        (5, 4, "is at generation 5"),
    ],
)
def test_only_the_next_generation_may_follow(stored: int | None, put: int, words: str | None) -> None:
    conflict = check_generation("Job x", stored, put)
    assert (conflict is None) == (words is None)
    if conflict is not None and words is not None:
        assert words in conflict.public and "Job x" in conflict.public
