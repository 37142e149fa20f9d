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
        findings = connection.exec_driver_sql("PRAGMA quick_check(100)").scalars().all()
        if findings != ["ok"]:
            raise _broken(connection, path, [str(finding) for finding in findings])
        tables = set(connection.exec_driver_sql("SELECT name FROM sqlite_schema WHERE type = 'table'").scalars())
        if not tables:
            return None
        ours = connection.exec_driver_sql("PRAGMA application_id").scalar_one() == APPLICATION_ID
        if not ours or "alembic_version" not in tables:
            raise damaged(path, "it is a SQLite database, but not one of Steelyard")
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        return str(revision)
    except SQLAlchemyError as err:
        fault = translate(err, path, "checking it at the start")
        if not isinstance(fault, StoreDamaged):
            raise fault from err
        raise damaged(path, _lengths(path) or f"SQLite says: {getattr(err, 'orig', err)}", detail=fault.detail) from err
    finally:
        connection.rollback()


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
    length = _lengths(path)
    more = f" (and {len(lines) - _SHOWN} more)" if len(lines) > _SHOWN else ""
    what = where + "; ".join(lines[:_SHOWN]) + more + (f"; {length}" if length else "")
    return damaged(path, what, detail="\n".join(findings))


def _lengths(path: Path) -> str | None:
    """Where a file ends against where its header says it does. Only asked once SQLite found damage: after a crash during a
    checkpoint a sound file may be shorter than its header says, until the WAL is replayed."""
    with path.open("rb") as file:
        header = file.read(100)
    length = path.stat().st_size
    if not header.startswith(b"SQLite format 3\x00") or len(header) < 32:
        return f"byte offset 0 holds no SQLite header (the file has {length} bytes)"
    page_bytes = int.from_bytes(header[16:18], "big")
    wanted = (65536 if page_bytes == 1 else page_bytes) * int.from_bytes(header[28:32], "big")
    return f"it ends at byte offset {length}, its header says {wanted}" if length < wanted else None
