from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard.store.memory import MemoryStore
from steelyard.store.sql import open_store
from stores import Held


@pytest.fixture(params=["memory", "sql"])
def held(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Held]:
    opened = Held(MemoryStore() if request.param == "memory" else open_store(tmp_path / "server" / "steelyard.db"))
    yield opened
    opened.close()
