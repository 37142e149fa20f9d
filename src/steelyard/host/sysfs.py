"""What does a file of /proc or /sys say? Readers that answer None for what is missing or odd, so that any recorded tree reads.

Never raises for a missing, unreadable or malformed file. Never writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

#: Above every CPU and node number that Linux can have. Recorded trees may claim anything; a range must not fill our memory.
NUMBER_MAX = 65_535
#: `0000:0f:00.0`, as the kernel writes it
PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


def read_text(path: Path | str) -> str | None:
    """The content without surrounding white space and trailing NULs; None when it can't be read."""
    # Plain descriptors: a buffered file object costs more than the kernel does, and proofs read many.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # The kernel may hand out less than asked for in the middle of a file; only nothing is the end.
        data = b""
        while part := os.read(fd, 65536):
            data += part
    except OSError:
        return None
    finally:
        os.close(fd)
    return data.decode(errors="replace").strip().rstrip("\x00")


def read_int(path: Path | str) -> int | None:
    """A number in decimal or, with 0x, in hexadecimal."""
    text = read_text(path)
    if not text:
        return None
    try:
        number = int(text, 0)
    except ValueError:
        return None
    return number if abs(number) < 2**63 else None


def read_cpus(path: Path | str) -> tuple[int, ...] | None:
    """A list such as `0-3,8`; None when it can't be read."""
    text = read_text(path)
    return None if text is None else parse_cpus(text)


def read_cpu_mask(path: Path | str) -> tuple[int, ...] | None:
    """A mask such as `00000000,0000000f`, as older kernels have where newer ones have lists."""
    text = read_text(path)
    if not text or len(text) > NUMBER_MAX // 3:
        return None
    try:
        mask = int(text.replace(",", ""), 16)
    except ValueError:
        return None
    return tuple(bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def parse_cpus(text: str) -> tuple[int, ...]:
    """`0-3,8` -> (0, 1, 2, 3, 8). Parts that are no numbers are passed over."""
    found: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", part)
        if match and max(int(match[1]), int(match[2] or 0)) <= NUMBER_MAX:
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(found))


def format_cpus(cpus: Iterable[int]) -> str:
    """(0, 1, 2, 3, 8) -> `0-3,8`, the way the kernel writes it."""
    ordered = sorted(set(cpus))
    runs: list[list[int]] = []
    for cpu in ordered:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def names(folder: Path | str) -> list[str]:
    """Sorted entries of a folder; none where there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def numbered(folder: Path | str, prefix: str) -> list[int]:
    """The numbers N of all entries `<prefix>N`, in order."""
    found = (re.fullmatch("[0-9]{1,9}", name[len(prefix) :]) for name in names(folder) if name.startswith(prefix))
    return sorted(int(match[0]) for match in found if match)
