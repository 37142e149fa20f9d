"""The first tables. Frozen: never imports `tables.py`, which moves on."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _ownership(*, known: bool) -> list[sa.Column[object]]:
    return [
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("owner_user", sa.Text, nullable=not known),
        sa.Column("owner_uid", sa.Integer, nullable=not known),
        sa.Column("generation", sa.Integer, nullable=False),
    ]


def _needed(name: str, kind: type[sa.types.TypeEngine[Any]]) -> sa.Column[object]:
    return sa.Column(name, kind, nullable=False)


def _content() -> list[sa.Column[object]]:
    return [_needed("body", sa.Text), _needed("body_crc", sa.Integer)]


def _create(name: str, *columns: sa.Column[object], known: bool) -> None:
    """A table in order of arrival."""
    op.create_table(name, sa.Column("seq", sa.Integer, primary_key=True), *columns[:1], *_ownership(known=known), *columns[1:])


def _create_objects() -> None:
    _create(
        "job",
        sa.Column("id", sa.Text, nullable=False, unique=True),
        _needed("state", sa.Text),
        _needed("submitted_at", sa.Integer),
        *_content(),
        known=True,
    )
    op.create_index("job_by_state", "job", ["state", "seq"])
    _create(
        "function",
        _needed("name", sa.Text),
        _needed("state", sa.Text),
        _needed("revision", sa.Integer),
        _needed("deployed_at", sa.Integer),
        *_content(),
        known=True,
    )
    op.create_index("function_by_name", "function", ["project", "name"], unique=True)
    _create("api_key", _needed("name", sa.Text), _needed("created_at", sa.Integer), *_content(), known=True)
    op.create_index("api_key_by_name", "api_key", ["project", "name"], unique=True)


def _create_history() -> None:
    _create(
        "coldstart",
        sa.Column("id", sa.Text, nullable=False, unique=True),
        _needed("function", sa.Text),
        _needed("at", sa.Integer),
        *_content(),
        known=False,
    )
    op.create_index("coldstart_by_function", "coldstart", ["function", "seq"])
    _create(
        "answer",
        _needed("key", sa.Text),
        _needed("request_hash", sa.Text),
        _needed("status", sa.Integer),
        _needed("body", sa.LargeBinary),
        _needed("at", sa.Integer),
        known=False,
    )
    op.create_index("answer_by_key", "answer", ["project", "key"], unique=True)
    op.create_index("answer_by_age", "answer", ["at"])
    _create(
        "event",
        _needed("at", sa.Integer),
        _needed("kind", sa.Text),
        _needed("subject", sa.Text),
        _needed("text", sa.Text),
        known=False,
    )
    op.create_index("event_by_subject", "event", ["kind", "subject", "seq"])


def _create_site() -> None:
    op.create_table(
        "machine",
        sa.Column("id", sa.Text, primary_key=True),
        *_ownership(known=False),
        _needed("hello", sa.Integer),
        *_content(),
    )
    op.create_index("machine_by_hello", "machine", ["hello"])
    op.create_table("counter", sa.Column("name", sa.Text, primary_key=True), *_ownership(known=False))


def upgrade() -> None:
    _create_objects()
    _create_history()
    _create_site()
