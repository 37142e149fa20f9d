"""Pools and their pilots; machines of pools beside the home's own. Extended in place until it is released, and frozen then: never
imports `tables.py`, which moves on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def _object(name: str, *columns: sa.Column[object]) -> None:
    op.create_table(
        name,
        sa.Column("seq", sa.Integer, primary_key=True),
        *columns,
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("owner_user", sa.Text, nullable=False),
        sa.Column("owner_uid", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("body_crc", sa.Integer, nullable=False),
    )


def upgrade() -> None:
    _object("pool", sa.Column("name", sa.Text, nullable=False))
    op.create_index("pool_by_name", "pool", ["name"], unique=True)
    _object(
        "pilot",
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("ended_at", sa.Integer, nullable=True),
    )
    op.create_index("pilot_by_end", "pilot", ["ended_at"])
    op.add_column("machine", sa.Column("pool", sa.Text, nullable=True))
    op.execute("UPDATE machine SET pool = ''")
    # SQLite adds a NOT NULL column only with a default, and can't drop that afterwards: the table is copied.
    with op.batch_alter_table("machine", recreate="always") as batch:
        batch.alter_column("pool", existing_type=sa.Text, nullable=False)
        batch.drop_index("machine_by_hello")
        batch.create_index("machine_by_pool", ["pool", "hello"])
