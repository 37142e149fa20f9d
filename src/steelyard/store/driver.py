"""Which SQLite do we talk to, and how is a connection to it set up?

Python's own `sqlite3` may link a SQLite that can lose commits (the WAL-reset bug), so the bundled one of `pysqlite3` is used
and anything older than the floor is refused. Never retries, never creates folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from steelyard.errors import Refused

SQLITE_MIN = (3, 51, 3)
#: "STLY", in the database's header: tells a store from any other SQLite file
APPLICATION_ID = 0x53544C59
BUSY_TIMEOUT_S = 5.0

#: synchronous FULL: a COMMIT that returned is on disk. The WAL is cut back to this size after a checkpoint.
_WRITER = {
    "journal_mode": "WAL",
    "synchronous": "FULL",
    "foreign_keys": "ON",
    "wal_autocheckpoint": 2000,
    "journal_size_limit": 64 * 1024 * 1024,
}
_READER = {"query_only": "ON"}


def load_sqlite() -> ModuleType:
    """The DBAPI module; `pysqlite3` where it exists, else the standard library's. Refused when it is below the floor."""
    try:
        from pysqlite3 import dbapi2 as sqlite
    except ImportError:
        from sqlite3 import dbapi2 as sqlite
    check_version(sqlite.sqlite_version_info, sqlite.__name__)
    return sqlite


def check_version(version: tuple[int, ...], module: str) -> None:
    """Raises Refused for a SQLite that can lose commits."""
    if version >= SQLITE_MIN:
        return
    have, want = (".".join(map(str, numbers)) for numbers in (version, SQLITE_MIN))
    raise Refused(
        f"The SQLite of `{module}` is {have}; Steelyard needs {want} or newer, because older ones can lose a committed write. "
        "Install a newer `pysqlite3` into Steelyard's environment. Nothing was changed.",
        code="sqlite-old",
    )


def connect(path: Path, *, readonly: bool) -> sa.Connection:
    """One connection, not pooled, usable from another thread. Transactions are begun by us, never by the driver.

    Raises the driver's and SQLAlchemy's errors; callers translate them (faults.py).
    """
    sqlite = load_sqlite()

    def make() -> Any:
        # A URI, since only it carries mode=ro; Path.as_uri escapes '?', '#' and '%' in folder names.
        uri = f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}"
        raw = sqlite.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        settings: Mapping[str, object] = _READER if readonly else _WRITER
        for name, value in settings.items():
            raw.execute(f"PRAGMA {name}={value}").fetchall()
        return raw

    return sa.create_engine("sqlite+pysqlite://", module=sqlite, creator=make, poolclass=NullPool).connect()
