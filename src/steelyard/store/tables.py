"""How do desired state and its history lie in SQL?

The schema as the code of this version uses it; `migrations/` brings any older database here, and a test compares the two.
What is asked for by value stands in columns, the whole object stands beside it as JSON in `body`. Every row has a project, an
owner and a generation. `seq` is the order of arrival: lists go by it, because wall clocks step back.
"""

from __future__ import annotations

import sqlalchemy as sa

#: the newest migration, which this code needs; revisions are numbers, so that newer and older can be told apart
SCHEMA = "0006"

metadata = sa.MetaData()


def _ownership(*, known: bool) -> list[sa.Column[object]]:
    """Project, owner, generation. The uid is NULL where the object does not tell (history, ledger rows of gone functions)."""
    return [
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("owner_user", sa.Text, nullable=not known),
        sa.Column("owner_uid", sa.Integer, nullable=not known),
        sa.Column("generation", sa.Integer, nullable=False),
    ]


def _content() -> list[sa.Column[object]]:
    """The object, and the CRC-32 of its UTF-8: SQLite's own check finds damage to the file's structure, not to what rows say."""
    return [sa.Column("body", sa.Text, nullable=False), sa.Column("body_crc", sa.Integer, nullable=False)]


job = sa.Table(
    "job",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    *_ownership(known=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("submitted_at", sa.Integer, nullable=False),
    #: the array that it is an element of
    sa.Column("array_id", sa.Text, nullable=True),
    #: goes up with every change of any job: what changed since a reader looked last is found by it
    sa.Column("change", sa.Integer, nullable=False),
    *_content(),
    sa.Index("job_by_state", "state", "seq"),
    sa.Index("job_by_array", "array_id", "seq"),
    sa.Index("job_by_change", "change", unique=True),
)

function = sa.Table(
    "function",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    *_ownership(known=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("deployed_at", sa.Integer, nullable=False),
    *_content(),
    sa.Index("function_by_name", "project", "name", unique=True),
)

revision = sa.Table(
    "revision",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("function", sa.Text, nullable=False),
    *_ownership(known=True),
    sa.Column("revision", sa.Integer, nullable=False),
    *_content(),
    sa.Index("revision_by_number", "project", "function", "revision", unique=True),
)

api_key = sa.Table(
    "api_key",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    *_ownership(known=True),
    sa.Column("created_at", sa.Integer, nullable=False),
    *_content(),
    sa.Index("api_key_by_name", "project", "name", unique=True),
)

secret = sa.Table(
    "secret",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    *_ownership(known=True),
    *_content(),
    sa.Index("secret_by_name", "project", "name", unique=True),
)

account = sa.Table(
    "account",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    *_ownership(known=True),
    *_content(),
    sa.Index("account_by_name", "name", unique=True),
)

quota = sa.Table(
    "quota",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    *_ownership(known=True),
    *_content(),
    sa.Index("quota_by_project", "project", unique=True),
)

schedule = sa.Table(
    "schedule",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    *_ownership(known=True),
    *_content(),
    sa.Index("schedule_by_name", "project", "name", unique=True),
)

call = sa.Table(
    "call",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    *_ownership(known=True),
    sa.Column("function", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("ended_at", sa.Integer, nullable=True),
    #: goes up with every change of any call
    sa.Column("change", sa.Integer, nullable=False),
    *_content(),
    sa.Index("call_by_state", "state", "seq"),
    sa.Index("call_by_function", "function", "seq"),
    sa.Index("call_by_end", "ended_at"),
    sa.Index("call_by_change", "change", unique=True),
)

volume = sa.Table(
    "volume",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    *_ownership(known=True),
    *_content(),
    sa.Index("volume_by_name", "project", "name", unique=True),
)

pool = sa.Table(
    "pool",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    *_ownership(known=True),
    *_content(),
    sa.Index("pool_by_name", "name", unique=True),
)

pilot = sa.Table(
    "pilot",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    *_ownership(known=True),
    sa.Column("pool", sa.Text, nullable=False),
    sa.Column("ended_at", sa.Integer, nullable=True),
    *_content(),
    sa.Index("pilot_by_end", "ended_at"),
)

image = sa.Table(
    "image",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False),
    *_ownership(known=True),
    *_content(),
    sa.Index("image_by_owner", "owner_uid", "id", unique=True),
)

coldstart = sa.Table(
    "coldstart",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    *_ownership(known=False),
    sa.Column("function", sa.Text, nullable=False),
    sa.Column("at", sa.Integer, nullable=False),
    *_content(),
    sa.Index("coldstart_by_function", "function", "seq"),
)

answer = sa.Table(
    "answer",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    *_ownership(known=False),
    sa.Column("request_hash", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.Integer, nullable=False),
    sa.Index("answer_by_key", "project", "key", unique=True),
    sa.Index("answer_by_age", "at"),
)

event = sa.Table(
    "event",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    *_ownership(known=False),
    sa.Column("at", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Index("event_by_subject", "kind", "subject", "seq"),
)

machine = sa.Table(
    "machine",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    *_ownership(known=False),
    #: goes up with every hello of any machine: the highest said hello last
    sa.Column("hello", sa.Integer, nullable=False),
    #: "" for the home's own
    sa.Column("pool", sa.Text, nullable=False),
    *_content(),
    sa.Index("machine_by_pool", "pool", "hello"),
)

counter = sa.Table(
    "counter",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # A counter's generation is its value: both go up by one with every change.
    *_ownership(known=False),
)
