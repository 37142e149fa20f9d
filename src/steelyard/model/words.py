"""How are numbers of things and bytes said in a sentence? Pure, English only."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """(1, "leaf") -> "1 leaf"; (2, "leaf") -> "2 leaves"; (2, "switch") -> "2 switches"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1] + 'ves' if noun.endswith('leaf') else noun + 'es' if noun.endswith('ch') else noun + 's'}"


def size(size_bytes: int) -> str:
    """Memory and caches in powers of 1024, as they are built: 24 GiB, 1.5 TiB, 512 KiB."""
    amount, unit = _scale(size_bytes, 1023.5)
    return f"{amount:.0f} {unit}" if amount >= 9.95 else f"{f'{amount:.1f}'.removesuffix('.0')} {unit}"


def exact_size(size_bytes: int) -> str:
    """To four digits, where two sizes are compared that may be close: 23.51 GiB."""
    amount, unit = _scale(size_bytes, 1024)
    return f"{amount:.4g} {unit}"


def _scale(size_bytes: int, limit: float) -> tuple[float, str]:
    amount, unit = float(size_bytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < limit:
            break
        amount, unit = amount / 1024, bigger
    return amount, unit
