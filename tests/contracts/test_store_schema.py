"""Do the migrations lead to the tables that the code uses?"""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
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
