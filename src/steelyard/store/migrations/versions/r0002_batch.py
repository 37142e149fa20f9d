"""Arrays and changes of jobs; accounts and quotas. Frozen: never imports `tables.py`, which moves on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


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
    op.add_column("job", sa.Column("array_id", sa.Text, nullable=True))
    # SQLite adds a NOT NULL column only with a default, and can't drop that afterwards: the table is copied.
    op.add_column("job", sa.Column("change", sa.Integer, nullable=True))
    op.execute("UPDATE job SET change = seq")
    with op.batch_alter_table("job", recreate="always") as batch:
        batch.alter_column("change", existing_type=sa.Integer, nullable=False)
        batch.create_index("job_by_array", ["array_id", "seq"])
        batch.create_index("job_by_change", ["change"], unique=True)
    _object("account", sa.Column("name", sa.Text, nullable=False))
    op.create_index("account_by_name", "account", ["name"], unique=True)
    _object("quota")
    op.create_index("quota_by_project", "quota", ["project"], unique=True)
