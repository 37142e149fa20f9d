"""What does a failure of the database mean to a caller of the store?"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from steelyard.errors import Conflict, EdgeFailed, NoRoom, SteelyardError, StoreDamaged
from steelyard.store.faults import translate

PATH = Path("/home/server/steelyard.db")


class DriverError(Exception):
    def __init__(self, code: int | None, text: str = "words of SQLite") -> None:
        super().__init__(text)
        if code is not None:
            self.sqlite_errorcode = code


@pytest.mark.parametrize(
    ("err", "kind", "code"),
    [
        (DriverError(13), NoRoom, "disk-full"),  # SQLITE_FULL
        (DriverError(10 | 19 << 8), NoRoom, "disk-full"),  # SQLITE_IOERR_SHMSIZE
        (OSError(errno.ENOSPC, "No space left"), NoRoom, "disk-full"),
        (OSError(errno.EDQUOT, "Quota"), NoRoom, "disk-full"),
        (DriverError(11), StoreDamaged, "store-damaged"),  # SQLITE_CORRUPT
        (DriverError(11 | 1 << 8), StoreDamaged, "store-damaged"),  # an extended code of it
        (DriverError(26), StoreDamaged, "store-damaged"),  # SQLITE_NOTADB
        (DriverError(None, "Could not decode to UTF-8 column 'body'"), StoreDamaged, "store-damaged"),
        (DriverError(10 | 4 << 8), EdgeFailed, "store-failed"),  # SQLITE_IOERR_FSYNC
        (DriverError(5), EdgeFailed, "store-failed"),  # SQLITE_BUSY
        (DriverError(8), EdgeFailed, "store-failed"),  # SQLITE_READONLY
        (OSError(errno.EACCES, "Permission denied"), EdgeFailed, "store-failed"),
        (ZeroDivisionError("a bug"), EdgeFailed, "store-failed"),
    ],
)
def test_each_failure_has_one_meaning_whoever_raised_it(err: Exception, kind: type[SteelyardError], code: str) -> None:
    for raised in (err, OperationalError("SELECT 1", {}, err)):
        fault = translate(raised, PATH, "writing")
        assert (type(fault), fault.code) == (kind, code)
        assert str(PATH) in fault.public and "writing" in fault.detail


def test_an_error_of_ours_stays_as_it_is() -> None:
    conflict = Conflict("x")
    assert translate(conflict, PATH, "writing") is conflict
