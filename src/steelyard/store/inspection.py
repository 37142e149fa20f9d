"""Can this database file be trusted, and what version is it? Reads through a read-only connection, so that a file which turns out
damaged, foreign or newer is left as it was found (closing a writing connection would already change it)."""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from steelyard.errors import Refused, StoreDamaged
from steelyard.store.driver import APPLICATION_ID
from steelyard.store.faults import damaged, translate
from steelyard.store.tables import SCHEMA

#: findings of quick_check that reach the text for people; all go to the detail
_SHOWN = 3
_PAGE = re.compile(r"\bpage (\d+)", re.IGNORECASE)


def inspect(connection: sa.Connection, path: Path) -> str | None:
    """The schema revision, None for a database without tables. Raises StoreDamaged or Refused."""
    try:
        if (short := _shortfall(path)) and not _has_wal(path):
            raise damaged(path, short)
        findings = _quick_check(connection)
        if findings != ["ok"]:
            raise _broken(connection, path, findings)
        tables = set(connection.exec_driver_sql("SELECT name FROM sqlite_schema WHERE type = 'table'").scalars())
        if not tables:
            return None
        ours = connection.exec_driver_sql("PRAGMA application_id").scalar_one() == APPLICATION_ID
        if not ours or "alembic_version" not in tables:
            raise damaged(path, "it is a SQLite database, but not one of Steelyard")
        return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())
    except (SQLAlchemyError, OSError) as err:
        raise translate(err, path, "checking it at the start") from err
    finally:
        connection.rollback()


def _quick_check(connection: sa.Connection) -> list[str]:
    """SQLite's findings. It names the page in a row and may then fail outright: the rows before the failure are what helps."""
    findings: list[str] = []
    try:
        for row in connection.exec_driver_sql("PRAGMA quick_check(100)"):
            findings.append(str(row[0]))
    except SQLAlchemyError:
        if not findings:
            raise
    return findings


def check_schema(revision: str | None, path: Path) -> None:
    """Raises Refused for a schema newer than this code. Revisions are zero-padded numbers."""
    if revision is not None and revision > SCHEMA:
        raise Refused(
            f"The store {path} has schema {revision}, written by a newer Steelyard; this one knows schemas up to {SCHEMA}. "
            "Nothing was changed. Use the newer version, or another --home.",
            code="store-newer",
        )


def _broken(connection: sa.Connection, path: Path, findings: list[str]) -> StoreDamaged:
    page_bytes = int(connection.exec_driver_sql("PRAGMA page_size").scalar_one())
    where = ""
    lines = [line for finding in findings for line in finding.splitlines() if not line.startswith("***")]
    for line in lines:
        if found := _PAGE.search(line):
            page = int(found.group(1))
            where = f"at page {page} (byte offset {(page - 1) * page_bytes}): "
            break
    more = f" (and {len(lines) - _SHOWN} more)" if len(lines) > _SHOWN else ""
    return damaged(path, where + "; ".join(lines[:_SHOWN]) + more, detail="\n".join(findings))


def _shortfall(path: Path) -> str | None:
    """Where the file ends against where its header says it does. Layout: https://sqlite.org/fileformat.html, section 1.3."""
    with path.open("rb") as file:
        header = file.read(100)
    length = path.stat().st_size
    if len(header) < 100 or not header.startswith(b"SQLite format 3\x00"):
        return f"byte offset 0 holds no SQLite header (the file has {length} bytes)"
    page_bytes = int.from_bytes(header[16:18], "big")
    if header[24:28] != header[92:96]:
        # The page count is only valid while the change counter beside it is.
        return None
    wanted = (65536 if page_bytes == 1 else page_bytes) * int.from_bytes(header[28:32], "big")
    return f"it ends at byte offset {length}, its header says {wanted}" if length < wanted else None


def _has_wal(path: Path) -> bool:
    """After a crash during a checkpoint the file may be short, and what it lacks is in the WAL; SQLite judges that."""
    wal = path.with_name(f"{path.name}-wal")
    return wal.exists() and wal.stat().st_size > 0
