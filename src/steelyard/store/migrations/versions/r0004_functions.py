"""Durable calls, revisions of functions. Frozen: never imports `tables.py`, which moves on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


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
    _object(
        "call",
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("function", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("ended_at", sa.Integer, nullable=True),
        sa.Column("change", sa.Integer, nullable=False),
    )
    op.create_index("call_by_state", "call", ["state", "seq"])
    op.create_index("call_by_function", "call", ["function", "seq"])
    op.create_index("call_by_end", "call", ["ended_at"])
    op.create_index("call_by_change", "call", ["change"], unique=True)
    _object(
        "revision",
        sa.Column("function", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.create_index("revision_by_number", "revision", ["project", "function", "revision"], unique=True)
