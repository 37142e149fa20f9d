"""What is done by a child, because doing it here would leave copied pages behind? Making code of a file: a compiler writes to
memory all over, and of what it does only the code is wanted.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from typing import Any


def code_apart(fork: Callable[[], int]) -> Callable[[SourceFileLoader, str], Any]:
    """As `SourceFileLoader.get_code`, by a child of `fork`. What can't be had that way is made here, so that an error in the file
    is raised where it is to be."""
    get_code: Any = _get_code
    return get_code.__get__(fork)


def _get_code(fork: Callable[[], int], loader: SourceFileLoader, name: str) -> Any:
    code = _from_child(fork, loader, name)
    return loader.get_code(name) if code is None else code


def _from_child(fork: Callable[[], int], loader: SourceFileLoader, name: str) -> Any:
    """None when there is no child, and when it has nothing."""
    try:
        return marshal.loads(_ask_child(fork, loader, name))
    except (OSError, EOFError, ValueError, TypeError):
        return None


def _ask_child(fork: Callable[[], int], loader: SourceFileLoader, name: str) -> bytes:
    reader, writer = os.pipe()
    try:
        if not fork():
            try:
                _write(writer, marshal.dumps(loader.get_code(name)))
            finally:
                os._exit(0)
    finally:
        os.close(writer)
    try:
        parts = []
        while part := os.read(reader, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(reader)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
