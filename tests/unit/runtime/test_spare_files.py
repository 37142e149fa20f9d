"""Records that nobody needs any more are written over, and never before their own end is on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.runtime import spare_files
from steelyard.runtime.spare_files import SpareFiles


def inode(path: Path) -> int:
    return path.stat().st_ino


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_what_is_dropped_becomes_the_next_file_but_one(tmp_path: Path) -> None:
    """The next one is not written into it: until then a power loss could bring the dropped one back."""
    spares = SpareFiles()
    spares.write([(tmp_path / "a", b"a long one")])
    dropped = inode(tmp_path / "a")
    spares.add(tmp_path / "a")
    assert names(tmp_path) == []
    spares.write([(tmp_path / "b", b"b")])
    assert inode(tmp_path / "b") != dropped
    spares.write([(tmp_path / "c", b"c")])
    assert inode(tmp_path / "c") == dropped
    assert (tmp_path / "c").read_bytes() == b"c", "nothing is left of what was longer"
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_was_not_synced_keeps_its_spares_untouched(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    spares = SpareFiles()
    spares.write([(here / "a", b"a"), (there / "a", b"a")])
    dropped = inode(here / "a")
    spares.add(here / "a")
    spares.write([(there / "b", b"b")])
    spares.write([(here / "b", b"b")])
    assert inode(here / "b") != dropped
    spares.write([(here / "c", b"c")])
    assert inode(here / "c") == dropped


def test_what_another_process_dropped_is_found(tmp_path: Path) -> None:
    mine = SpareFiles()
    mine.write([(tmp_path / "a", b"a")])
    dropped = inode(tmp_path / "a")
    spare_files.hide(tmp_path / "a")
    mine.find(tmp_path)
    mine.find(tmp_path)
    mine.write([(tmp_path / "b", b"b")])
    mine.write([(tmp_path / "c", b"c"), (tmp_path / "d", b"d")])
    assert inode(tmp_path / "b") != dropped and dropped in (inode(tmp_path / "c"), inode(tmp_path / "d"))
    assert [(tmp_path / name).read_bytes() for name in "bcd"] == [b"b", b"c", b"d"]


def test_there_are_never_more_than_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_files, "SPARES_MAX", 3)
    spares = SpareFiles()
    paths = [tmp_path / f"{number}" for number in range(10)]
    spares.write([(path, b"x") for path in paths])
    for path in paths[:6]:
        spares.add(path)
    assert len(list(tmp_path.iterdir())) == 4 + 3
    for path in paths[6:]:
        spare_files.hide(path)
    spares.find(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_dropping_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    spares = SpareFiles()
    spares.add(tmp_path / "a")
    spares.write([(tmp_path / "b", b"b")])
    assert names(tmp_path) == ["b"]
