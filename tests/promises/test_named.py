"""PROMISES.md names tests: each of them must be there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_a_promise_names_exists() -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", (ROOT / "PROMISES.md").read_text())
    assert named
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert missing == []


def test_every_promise_says_what_holds_it() -> None:
    rows = [line for line in (ROOT / "PROMISES.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert all(re.search(r"tests/|bench: |\[test pending\]", row.split("|")[3]) for row in rows)
