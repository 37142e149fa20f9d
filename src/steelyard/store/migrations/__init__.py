"""How does an older (or empty) database become one that this version understands?

`migrate` runs Alembic inside one exclusive transaction: DDL is transactional in SQLite, so a migration that is killed half-way
is rolled back by the next start and begun anew. Imported only when the version row differs, because Alembic costs 12 MB.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from steelyard.store.driver import APPLICATION_ID
from steelyard.store.tables import SCHEMA


def migrate(connection: sa.Connection) -> None:
    """Bring the database to `SCHEMA`. Raises the driver's errors; nothing is left half-done."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    connection.exec_driver_sql("BEGIN EXCLUSIVE")
    try:
        connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
        command.upgrade(config, SCHEMA)
        connection.exec_driver_sql("COMMIT")
    finally:
        connection.rollback()
