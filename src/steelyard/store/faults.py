"""What does a failure of the database mean to a caller of the store?

Every error of SQLAlchemy, the driver and the file system is translated here, so that none leaves this folder. The texts name
the file and what to do next.
"""

from __future__ import annotations

import errno
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from steelyard.errors import EdgeFailed, NoRoom, SteelyardError, StoreDamaged

#: SQLite's primary result codes (https://sqlite.org/rescode.html)
_READONLY, _CORRUPT, _FULL, _NOTADB = 8, 11, 13, 26
#: extended: the shared-memory index could not grow, which on a full disk comes before SQLITE_FULL
_IOERR_SHMSIZE = 10 | (19 << 8)


def translate(err: BaseException, path: Path, doing: str) -> SteelyardError:
    """NoRoom for a full disk, StoreDamaged for content that can't be trusted, EdgeFailed for the rest."""
    if isinstance(err, SteelyardError):
        return err
    cause = err.orig if isinstance(err, DBAPIError) and err.orig is not None else err
    detail = f"{doing}: {type(cause).__name__}: {cause}"
    code = getattr(cause, "sqlite_errorcode", None)
    full = code in (_FULL, _IOERR_SHMSIZE)
    if full or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)):
        return NoRoom(
            f"The disk that holds {path} is full, so nothing was changed. Free some space there and try again; "
            "Steelyard need not be restarted.",
            code="disk-full",
            detail=detail,
        )
    # The driver reports text that is no UTF-8 without a code: only damage puts such text there.
    if (code is not None and code & 0xFF in (_CORRUPT, _NOTADB)) or "Could not decode to UTF-8" in str(cause):
        return damaged(path, f"SQLite says: {cause}", detail=detail)
    if code is not None and code & 0xFF == _READONLY:
        return EdgeFailed(f"The store {path} refused a write ({cause}).", code="store-failed", detail=detail)
    return EdgeFailed(f"The store {path} could not be used while {doing}: {cause}.", code="store-failed", detail=detail)


def damaged(path: Path, what: str, *, detail: str = "") -> StoreDamaged:
    """The store can't be trusted; says how to go on."""
    return StoreDamaged(f"The store {path} is damaged: {what}. {restore_advice(path)}", detail=detail)


def restore_advice(path: Path) -> str:
    """What a person does next about a damaged file, as commands."""
    aside = f"{path}.aside"
    return (
        "Nothing was changed and running work goes on. To restore a backup: stop Steelyard, "
        f"`mkdir {aside}; mv {path} {path}-wal {path}-shm {aside}/`, `cp BACKUP {path}`, `touch {accept_path(path)}` "
        "(newer changes are given up; numbering goes on after the newest, so no id is used twice), and start again. "
        "Without a backup leave out the `cp`: Steelyard then starts empty."
    )


def accept_advice(path: Path) -> str:
    """What a person does next about a store that is older than it was, or gone."""
    return (
        "Nothing was changed and running work goes on. Put the newest files back (the database with its -wal), or, to go on with "
        f"what is there on purpose (a restored backup, or nothing), `touch {accept_path(path)}` and start again: newer changes "
        "are given up; numbering goes on after the newest, so no id is used twice."
    )


def accept_path(path: Path) -> Path:
    """The file by which a person accepts that the store lost something. Consumed by the next start. A file, not an option, so
    that it works the same however the server is started."""
    return path.with_name(f"{path.name}.accept-loss")
