"""May this generation be put over that one? The rule that both variants of the store share."""

from __future__ import annotations

from steelyard.errors import Conflict


def check_generation(what: str, stored: int | None, put: int) -> Conflict | None:
    """None when `put` may follow `stored` (None: no such object): 1 after nothing, else exactly one more."""
    if put == (stored or 0) + 1:
        return None
    if stored is None:
        return Conflict(f"{what} does not exist, so generation {put} of it can't be stored. Read it again.")
    if put == 1:
        return Conflict(f"{what} exists already (generation {stored}).")
    return Conflict(f"{what} is at generation {stored}, so generation {put} can't follow. Read it again and repeat the change.")
