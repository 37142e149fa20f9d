"""What functions and jobs are given: volumes, secrets and images. Extended in place until it is released, and frozen then: never
imports `tables.py`, which moves on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


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
    _object("volume", sa.Column("name", sa.Text, nullable=False))
    op.create_index("volume_by_name", "volume", ["project", "name"], unique=True)
    _object("image", sa.Column("id", sa.Text, nullable=False))
    op.create_index("image_by_owner", "image", ["owner_uid", "id"], unique=True)
    _object("secret", sa.Column("name", sa.Text, nullable=False))
    op.create_index("secret_by_name", "secret", ["project", "name"], unique=True)
