"""The store on SQLite: one writing thread with group commit, one reading thread with snapshots.

`open_store` checks the file before it is trusted (R14), migrates it when it is older, and returns a `Store`. It never starts
empty where a store has been, and never opens one that another program has open.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from steelyard.config import sync_folder
from steelyard.errors import Refused, SteelyardError, StoreDamaged
from steelyard.store import Tx
from steelyard.store.driver import connect
from steelyard.store.faults import accept_advice, accept_path, translate
from steelyard.store.inspection import check_schema, inspect
from steelyard.store.lane import Function, Lane, Outcome
from steelyard.store.mark import COMMITS, Mark, check_rollback, load_mark, save_mark
from steelyard.store.statement import run_text
from steelyard.store.tables import SCHEMA
from steelyard.store.transaction import SqlTx

T = TypeVar("T")


class SqlStore:
    """Made by `open_store`. Owns both connections and the lock."""

    def __init__(self, path: Path, writing: sa.Connection, reading: sa.Connection, lock: int) -> None:
        self.path = path
        self._writing = writing
        self._reading = reading
        self._lock = lock
        self._commits = 0
        self._marked = 0
        self._closed = False
        self._writer = Lane("store-writer", self._carry_out_writes, self._mark)
        self._reader = Lane("store-reader", self._carry_out_reads)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        return await self._writer.submit(fn)

    async def read(self, fn: Callable[[Tx], T]) -> T:
        return await self._reader.submit(fn)

    async def close(self) -> None:
        """Finish what waits, then let go of the file. Harmless when called twice."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._reader.close()
        self._writer.close()
        # The writer goes last: the last one out moves the WAL into the file.
        _shut(self._reading, self._writing)
        os.close(self._lock)

    def _carry_out_writes(self, fns: Sequence[Function]) -> list[Outcome]:
        """One transaction, a savepoint per function, one COMMIT. When the database itself fails (disk full, I/O error) nobody's
        changes are kept and everybody is told, for SQLite may have rolled back all of them."""
        connection = self._writing
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            outcomes = []
            wrote = False
            for fn in fns:
                outcome, changed = self._in_savepoint(fn)
                outcomes.append(outcome)
                wrote = wrote or changed
            if wrote:
                SqlTx(connection, self.path).bump(COMMITS)
                # By hand: SQLAlchemy forgets a transaction whose commit failed, and could then not roll it back.
                connection.exec_driver_sql("COMMIT")
                self._commits += 1
            return outcomes
        except Exception as err:
            fault = translate(err, self.path, "committing")
            return [Outcome(error=fault)] * len(fns)
        finally:
            self._end(connection)

    def _in_savepoint(self, fn: Function) -> tuple[Outcome, bool]:
        """What became of `fn`, and whether its changes are to be committed. Raises when the whole transaction is lost."""
        connection = self._writing
        run_text(connection, "SAVEPOINT one")
        tx = SqlTx(connection, self.path)
        try:
            outcome, keep = Outcome(fn(tx)), tx.wrote
        except BaseException as err:
            if tx.fault is not None:
                raise tx.fault from err
            outcome, keep = Outcome(error=err), False
            run_text(connection, "ROLLBACK TO one")
        if tx.fault is not None:
            # Swallowed by `fn`; what it did is in doubt all the same.
            raise tx.fault
        run_text(connection, "RELEASE one")
        return outcome, keep

    def _carry_out_reads(self, fns: Sequence[Function]) -> list[Outcome]:
        """One snapshot for all: it begins after each of them was asked for, so each sees what was committed before."""
        connection = self._reading
        outcomes: list[Outcome] = []
        try:
            connection.exec_driver_sql("BEGIN")
            tx = SqlTx(connection, self.path)
            for fn in fns:
                try:
                    outcomes.append(Outcome(fn(tx)))
                except BaseException as err:
                    outcomes.append(Outcome(error=err))
        except Exception as err:
            fault = translate(err, self.path, "beginning to read")
            outcomes += [Outcome(error=fault)] * (len(fns) - len(outcomes))
        finally:
            self._end(connection)
        return outcomes

    def _end(self, connection: sa.Connection) -> None:
        """Leave no transaction open, whatever happened. After a COMMIT there is nothing left to roll back."""
        try:
            connection.rollback()
        except SQLAlchemyError:
            # SQLite has rolled back by itself, or the next BEGIN fails and is reported to its caller.
            return

    def _mark(self) -> None:
        """Note how far the store has come. A full disk must not stop it: the mark stays behind until after the next work."""
        if self._marked == self._commits:
            return
        try:
            save_mark(self.path, SqlTx(self._writing, self.path).counters())
            self._marked = self._commits
        except (OSError, SteelyardError):
            return
        finally:
            self._end(self._writing)


def open_store(path: Path) -> SqlStore:
    """Open, check and if need be create or migrate the store at `path` (and its folder). Blocks; call it before serving.

    Raises StoreDamaged (damaged, lost, rolled back), Refused (newer schema, in use, SQLite too old), NoRoom (disk full) or
    EdgeFailed. `<path>.accept-loss` makes a loss accepted, once.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _take_lock(path)
    except OSError as err:
        raise translate(err, path, "opening it") from err
    opened: list[sa.Connection] = []
    try:
        _open_checked(path, opened)
        return SqlStore(path, opened[0], opened[1], lock)
    except BaseException as err:
        _shut(*opened)
        os.close(lock)
        if isinstance(err, (OSError, SQLAlchemyError)):
            raise translate(err, path, "opening it") from err
        raise


def _open_checked(path: Path, opened: list[sa.Connection]) -> None:
    """Appends the writing and the reading connection to `opened`, in this order."""
    accepted = accept_path(path).exists()
    mark = load_mark(path)
    revision = None
    if _has_content(path):
        checking = connect(path, readonly=True)
        opened.append(checking)
        revision = inspect(checking, path)
        check_schema(revision, path)
        counters = SqlTx(checking, path).counters() if revision else {}
        lost = check_rollback(mark, counters)
        if lost and not accepted:
            raise StoreDamaged(f"The store {path} was rolled back: {lost}. {accept_advice(path)}", code="store-rolled-back")
        checking.close()
        opened.clear()
    elif mark is not None and not accepted:
        found = "is empty (0 bytes)" if path.exists() else "is missing"
        raise StoreDamaged(
            f"The store {path} {found}, but there was one; Steelyard never starts empty by itself. {accept_advice(path)}",
            code="store-lost",
        )
    _open_sound(path, opened, revision)
    _renew_mark(path, opened[0], mark, accepted=accepted)
    opened.append(connect(path, readonly=True))


def _open_sound(path: Path, opened: list[sa.Connection], revision: str | None) -> None:
    """The writing connection, on the schema that this code knows."""
    # Made here with its mode; SQLite gives the WAL and its index the same one. It holds API keys.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    sync_folder(path.parent)
    writing = connect(path, readonly=False)
    opened.append(writing)
    if revision != SCHEMA:
        # Not at the top: Alembic costs 12 MB and is needed once per version.
        from steelyard.store.migrations import migrate

        migrate(writing)


def _renew_mark(path: Path, writing: sa.Connection, mark: Mark | None, *, accepted: bool) -> None:
    """From here on this store's counters are what a later start compares with."""
    tx = SqlTx(writing, path)
    if accepted and mark is not None:
        writing.exec_driver_sql("BEGIN IMMEDIATE")
        tx.raise_counters(mark.counters)
        writing.exec_driver_sql("COMMIT")
    counters = tx.counters()
    writing.rollback()
    try:
        if mark is None or mark.counters != counters:
            save_mark(path, counters)
    except OSError:
        # On a full disk a store that has a mark starts all the same, for reads and for what is stored once there is room.
        if mark is None:
            raise
    accept_path(path).unlink(missing_ok=True)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _take_lock(path: Path) -> int:
    """Held until closed, or until the process ends however it ends. Raises Refused when another program holds it."""
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        os.close(lock)
        raise Refused(f"The store {path} is open in another Steelyard server. Nothing was changed.", code="store-in-use") from err
    except OSError:
        os.close(lock)
        raise
    return lock


def _shut(*connections: sa.Connection) -> None:
    for connection in connections:
        try:
            connection.close()
        except SQLAlchemyError:
            # Closing is only tidying up; what was acknowledged is on disk already.
            continue
