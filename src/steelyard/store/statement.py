"""How does a statement get to the driver without being built anew each time? Compiled once, then run by the driver itself.

SQLAlchemy writes the SQL and knows the tables. Going through its execution for each of the twenty small statements of a job's
life cost more than the rest of the server: 36 us each against 1.3 us, for a look-up by primary key. Transactions stay those of
SQLAlchemy's connection. What has to be written anew for its values (lists of states, many rows at once) still goes its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler


class Compiled(NamedTuple):
    sql: str
    #: names of the parameters in the order of their places
    names: tuple[str, ...]
    #: of those that the statement brings along
    constants: Mapping[str, object]


class Statement:
    """A Core statement whose parameters are single values, by name."""

    def __init__(self, core: sa.Executable) -> None:
        self._core = core
        self._compiled: dict[str, Compiled | None] = {}

    def rows(self, connection: sa.Connection, values: Mapping[str, object]) -> Sequence[Any]:
        compiled = self._compile(connection)
        if compiled is None:
            return connection.execute(self._core, dict(values)).all()
        return _run(connection, compiled, values).fetchall()

    def change(self, connection: sa.Connection, values: Mapping[str, object] | list[dict[str, object]]) -> int:
        """Rows changed."""
        compiled = self._compile(connection)
        if compiled is None or isinstance(values, list):
            return connection.execute(self._core, values).rowcount
        return _run(connection, compiled, values).rowcount

    def __str__(self) -> str:
        return str(self._core)

    def _compile(self, connection: sa.Connection) -> Compiled | None:
        """None where its text depends on its values."""
        name = connection.dialect.name
        if name not in self._compiled:
            self._compiled[name] = self._write(connection)
        return self._compiled[name]

    def _write(self, connection: sa.Connection) -> Compiled | None:
        assert isinstance(self._core, sa.ClauseElement)
        done = self._core.compile(dialect=connection.dialect)
        assert isinstance(done, SQLCompiler)
        if any(bind.expanding for bind in done.binds.values()):
            return None
        constants = {name: bind.value for name, bind in done.binds.items() if not bind.required}
        return Compiled(str(done), tuple(done.positiontup or ()), constants)


def _run(connection: sa.Connection, compiled: Compiled, values: Mapping[str, object]) -> Any:
    """The driver's cursor. KeyError for a parameter that nobody gave: a defect of ours."""
    constants = compiled.constants
    places = [values[name] if name in values else constants[name] for name in compiled.names]
    driver = connection.connection.dbapi_connection
    assert driver is not None
    cursor = driver.cursor()
    cursor.execute(compiled.sql, places)
    return cursor
