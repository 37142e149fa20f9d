"""How does a frame that says everything cost no more than what changed? What did not change since the one before is neither
encoded nor decoded again.

Both sides know it by themselves: a `PartWriter` by the object, a `PartReader` by the bytes. On the wire every frame stands for
itself, so that a lost one costs nothing. One of each per connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class PartWriter(Generic[T]):
    """The parts are frozen: the same object says the same."""

    def __init__(self, encode: Callable[[T], bytes]) -> None:
        self._encode = encode
        #: by identity; each is held, so that none is another's
        self._written: dict[int, tuple[T, msgspec.Raw]] = {}

    def write(self, parts: Iterable[T]) -> tuple[msgspec.Raw, ...]:
        before, self._written = self._written, {}
        for part in parts:
            self._written[id(part)] = before.get(id(part)) or (part, msgspec.Raw(self._encode(part)))
        return tuple(raw for _, raw in self._written.values())


class PartReader(Generic[T]):
    """What is told in the same words is the same object."""

    def __init__(self, decode: Callable[[bytes], T]) -> None:
        self._decode = decode
        self._read: dict[bytes, T] = {}

    def read(self, raws: Iterable[msgspec.Raw]) -> tuple[T, ...]:
        """Raises msgspec.MsgspecError."""
        before, self._read = self._read, {}
        for raw in raws:
            words = bytes(raw)
            self._read[words] = before.get(words) or self._decode(words)
        return tuple(self._read.values())
