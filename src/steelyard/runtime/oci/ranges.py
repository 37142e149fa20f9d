"""Which ids of the machine are a user's containers made of? Root inside is the user outside, all others come from a range of
theirs.

<images>/owners.json says who has which range, for good: files outlive containers.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from steelyard.config import write_file
from steelyard.errors import NoRoom
from steelyard.lifecycle.bundle import IdMap
from steelyard.runtime.oci import RANGE_FIRST, RANGE_SIZE

#: the first two are those of images on disk and of who fetches them
_FIRST, _COUNT = 2, 4096
#: (inside -> machine, on disk -> machine) of containers that make images: what they write lies on disk as images do
BUILD_MAPS: tuple[IdMap, IdMap] = (((0, RANGE_FIRST, RANGE_SIZE),), ((RANGE_FIRST, RANGE_FIRST, RANGE_SIZE),))
BUILD_IDS = (RANGE_FIRST, RANGE_FIRST)


def owner_range(folder: Path, uid: int) -> int:
    """The first id of the range; given out once. Raises NoRoom when 4,094 users have one."""
    path = folder / "owners.json"
    fd = os.open(folder / "owners.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            numbers = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            numbers = {}
        if str(uid) not in numbers:
            if len(numbers) >= _COUNT - _FIRST:
                raise NoRoom("All ranges of ids for users' containers are given out. Nothing was started.", code="no-ids-left")
            numbers[str(uid)] = _FIRST + len(numbers)
            write_file(path, msgspec.json.encode(numbers), 0o644)
    finally:
        os.close(fd)
    return RANGE_FIRST + numbers[str(uid)] * RANGE_SIZE


def make_maps(range_first: int, owner: int) -> tuple[IdMap, IdMap]:
    """(inside -> machine, on disk -> machine): 0 is the owner, the rest their range."""
    return (
        ((0, owner, 1), (1, range_first + 1, RANGE_SIZE - 1)),
        ((RANGE_FIRST, owner, 1), (RANGE_FIRST + 1, range_first + 1, RANGE_SIZE - 1)),
    )
