"""What people name is read within bounds, and nothing makes us wait."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from steelyard.errors import Refused
from steelyard.host.bounded import read_bounded


def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="pipe is not a regular file"):
        read_bounded(tmp_path / "pipe", 100)


def test_a_file_is_read_up_to_its_bound_and_refused_beyond(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"x" * 100)
    assert read_bounded(tmp_path / "text", 100) == b"x" * 100
    with pytest.raises(Refused, match="larger"):
        read_bounded(tmp_path / "text", 99)


@pytest.mark.parametrize("name", ["gone", "."])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused):
        read_bounded(tmp_path / name, 100)
