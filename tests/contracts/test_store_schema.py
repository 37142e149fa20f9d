"""Do the migrations lead to the tables that the code uses?"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from steelyard.store import migrations
from steelyard.store.driver import connect
from steelyard.store.tables import SCHEMA, metadata


def test_a_migrated_database_is_what_the_tables_say(tmp_path: Path) -> None:
    connection = connect(tmp_path / "x.db", readonly=False)
    try:
        migrations.migrate(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA
    finally:
        connection.close()


def test_the_newest_migration_is_the_one_the_code_needs() -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert script.get_heads() == [SCHEMA]
    for revision in script.walk_revisions():
        assert revision.revision.isdigit() and len(revision.revision) == 4, "revisions are compared as text"


def test_jobs_of_the_first_schema_are_kept_and_counted_as_changed_in_their_order(tmp_path: Path) -> None:
    connection = connect(tmp_path / "x.db", readonly=False)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    row = "(id, project, owner_user, owner_uid, generation, state, submitted_at, body, body_crc)"
    try:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        command.upgrade(config, "0001")
        for name in ("a", "b"):
            connection.exec_driver_sql(f"INSERT INTO job {row} VALUES ('{name}', 'default', 'ann', 1, 1, 'QUEUED', 5, '', 0)")
        connection.exec_driver_sql("COMMIT")
        migrations.migrate(connection)
        rows = connection.exec_driver_sql("SELECT id, array_id, change FROM job ORDER BY seq").all()
        assert [tuple(row) for row in rows] == [("a", None, 1), ("b", None, 2)]
    finally:
        connection.close()
