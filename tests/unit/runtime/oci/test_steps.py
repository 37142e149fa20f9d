"""What a step wrote is laid over the files below: replaced, removed, emptied; links in it lead nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from steelyard.runtime.oci.steps import lay_over

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT VERIFIED without root: whiteouts are devices")


def fill(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, 0o020000, os.makedev(0, 0))


def read(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_are_added_replaced_and_removed(tmp_path: Path) -> None:
    below = fill(tmp_path / "below", {"a": "1", "d/b": "1", "d/c": "1", "gone/x": "1"})
    upper = fill(tmp_path / "upper", {"d/b": "22", "new/y": "333"})
    whiteout(upper / "d/c")
    whiteout(upper / "gone")
    assert lay_over(below, upper, tmp_path / "out") == (4, 5)
    assert read(tmp_path / "out") == {"a": "1", "d/b": "22", "new/y": "333"}
    assert read(below) == {"a": "1", "d/b": "1", "d/c": "1", "gone/x": "1"}
    assert (tmp_path / "out/a").stat().st_ino == (below / "a").stat().st_ino


def test_a_folder_that_was_made_anew_shows_nothing_of_the_old_one(tmp_path: Path) -> None:
    below, upper = fill(tmp_path / "below", {"d/a": "1"}), fill(tmp_path / "upper", {"d/b": "2"})
    try:
        os.setxattr(upper / "d", "trusted.overlay.opaque", b"y")
    except OSError:
        pytest.skip("NOT VERIFIED: this file system has no trusted attributes")
    lay_over(below, upper, tmp_path / "out")
    assert read(tmp_path / "out") == {"d/b": "2"}


def test_a_file_becomes_a_folder_and_a_folder_a_file(tmp_path: Path) -> None:
    below, upper = fill(tmp_path / "below", {"a": "1", "b/x": "1"}), fill(tmp_path / "upper", {"a/x": "2", "b": "2"})
    lay_over(below, upper, tmp_path / "out")
    assert read(tmp_path / "out") == {"a/x": "2", "b": "2"}


@pytest.mark.parametrize("where", ["below", "upper"])
def test_links_are_files_like_others_and_never_followed(tmp_path: Path, where: str) -> None:
    outside = fill(tmp_path / "outside", {"a": "mine"})
    below, upper = fill(tmp_path / "below", {"z": "1"}), fill(tmp_path / "upper", {"y": "2"})
    if where == "below":
        (below / "d").symlink_to(outside)
        (upper / "d").mkdir()
        (upper / "d/a").write_text("evil")
    else:
        (below / "d").mkdir()
        (below / "d/a").write_text("1")
        (upper / "d").symlink_to(outside)
    lay_over(below, upper, tmp_path / "out")
    assert read(outside) == {"a": "mine"}
    assert (tmp_path / "out/d").is_symlink() == (where == "upper")


def test_owners_modes_and_times_of_folders_are_those_of_the_newer(tmp_path: Path) -> None:
    below, upper = fill(tmp_path / "below", {"d/a": "1"}), fill(tmp_path / "upper", {"d/b": "2"})
    os.chown(upper / "d", 5, 6)
    (upper / "d").chmod(0o2750)
    os.utime(upper / "d", (1, 2))
    lay_over(below, upper, tmp_path / "out")
    told = (tmp_path / "out/d").stat()
    assert (told.st_uid, told.st_gid, told.st_mode & 0o7777, told.st_mtime) == (5, 6, 0o2750, 2)
    assert (below / "d").stat().st_uid == 0
