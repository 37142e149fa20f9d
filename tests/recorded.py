"""Where are the recorded machines? Beside the checkout or where STEELYARD_FIXTURES says; tests that need them skip without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared/fixtures"


def recorded(name: str = "") -> Path:
    """The path of a recorded file (or the folder of all); skips the test where there is none."""
    folder = Path(os.environ.get("STEELYARD_FIXTURES") or BESIDE)
    path = folder / name
    if not path.exists():
        pytest.skip(f"recorded machines are needed: {name or 'the folder'} is not at {folder} (set STEELYARD_FIXTURES)")
    return path
