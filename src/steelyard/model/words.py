"""How is a number of things said in a sentence? Pure, English only."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """(1, "leaf") -> "1 leaf"; (2, "leaf") -> "2 leaves"; (2, "switch") -> "2 switches"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1] + 'ves' if noun.endswith('leaf') else noun + 'es' if noun.endswith('ch') else noun + 's'}"
