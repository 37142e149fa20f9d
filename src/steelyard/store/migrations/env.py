"""Alembic's entry: run the migrations on the connection that `migrate` (or a developer's `alembic` command) brought along.

Never opens a database of its own and never commits: the transaction belongs to whoever began it.
"""

from __future__ import annotations

from alembic import context

from steelyard.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
