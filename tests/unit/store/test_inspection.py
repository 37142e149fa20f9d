"""Which schemas does this version accept?"""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.errors import Refused
from steelyard.store.inspection import check_schema
from steelyard.store.tables import SCHEMA, metadata

PATH = Path("/home/server/steelyard.db")


def test_only_a_newer_schema_is_refused() -> None:
    for known in (None, "0000", SCHEMA):
        check_schema(known, PATH)
    newer = f"{int(SCHEMA) + 1:04}"
    with pytest.raises(Refused, match=f"{newer}.*{SCHEMA}"):
        check_schema(newer, PATH)


def test_every_row_has_a_project_an_owner_and_a_generation() -> None:
    for table in metadata.tables.values():
        assert {"project", "owner_user", "owner_uid", "generation"} <= set(table.c.keys()), table.name
