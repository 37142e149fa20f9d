"""What is captured of a folder. (Files are read here: a bundle is about files. The folder is pytest's own.)"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from steelyard.cli import bundle
from steelyard.cli.bundle import capture_folder
from steelyard.errors import Refused


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    captured = capture_folder(folder)
    with captured.file, tarfile.open(fileobj=captured.file) as tar:
        return tar.getnames()


def test_the_same_content_has_the_same_name_whatever_its_times_and_order(tmp_path: Path) -> None:
    one = write(tmp_path / "one", a="1", b="2", sub__c="3")
    two = write(tmp_path / "two", sub__c="3", b="2", a="1")
    os.utime(two / "a", (0, 0))
    (two / "b").chmod(0o600)
    assert capture_folder(one).sha256 == capture_folder(two).sha256


def test_other_content_has_another_name(tmp_path: Path) -> None:
    before = capture_folder(write(tmp_path, a="1")).sha256
    assert capture_folder(write(tmp_path, a="2")).sha256 != before
    (tmp_path / "a").rename(tmp_path / "b")
    assert capture_folder(write(tmp_path)).sha256 != before


def test_what_gitignore_names_is_left_out_and_what_it_takes_back_is_kept(tmp_path: Path) -> None:
    write(
        tmp_path,
        _dot_gitignore="*.log\n!kept.log\n/data/\n",
        app_dot_py="",
        a_dot_log="",
        kept_dot_log="",
        data__x="",
        sub__data__y="",
    )
    assert names(tmp_path) == [".gitignore", "app.py", "kept.log", "sub/data/y"]


def test_a_home_of_steelyard_in_the_folder_is_never_code(tmp_path: Path) -> None:
    write(tmp_path, app_dot_py="", home__admin_dot_token="secret", home__code__x="")
    captured = capture_folder(tmp_path)
    with captured.file, tarfile.open(fileobj=captured.file) as tar:
        assert tar.getnames() == ["app.py"]
    assert captured.notes == ("home is a home of Steelyard, with its keys, and was left out.",)


def test_an_inner_gitignore_decides_about_its_own_folder(tmp_path: Path) -> None:
    write(tmp_path, _dot_gitignore="*.txt\n", a_dot_txt="", sub___dot_gitignore="!b.txt\n", sub__b_dot_txt="", sub__c_dot_txt="")
    assert names(tmp_path) == [".gitignore", "sub/.gitignore", "sub/b.txt"]


def test_the_repository_around_the_folder_speaks_too(tmp_path: Path) -> None:
    write(tmp_path, _dot_git__config="", _dot_gitignore="secret\n", app__secret="", app__main="")
    assert names(tmp_path / "app") == ["main"]


def test_caches_environments_and_git_are_never_code(tmp_path: Path) -> None:
    write(tmp_path, app="", _dot_git__x="", _dot_venv__x="", sub__a="")
    (tmp_path / "sub" / "__pycache__").mkdir()
    (tmp_path / "sub" / "__pycache__" / "a.pyc").write_bytes(b"")
    assert names(tmp_path) == ["app", "sub/a"]


def test_links_stay_links_inside_and_are_named_when_they_lead_out(tmp_path: Path) -> None:
    write(tmp_path, a="1", sub__x="")
    (tmp_path / "sub" / "in").symlink_to("../a")
    (tmp_path / "out").symlink_to("/etc/passwd")
    (tmp_path / "up").symlink_to("../elsewhere")
    os.mkfifo(tmp_path / "pipe")
    captured = capture_folder(tmp_path)
    with tarfile.open(fileobj=captured.file) as tar:
        assert tar.getnames() == ["a", "sub/in", "sub/x"]
        assert tar.getmember("sub/in").linkname == "../a"
    assert sorted(note.split()[0] for note in captured.notes) == ["out", "pipe", "up"]


def test_owners_times_and_modes_of_this_machine_do_not_travel(tmp_path: Path) -> None:
    write(tmp_path, a="1", run="x")
    (tmp_path / "a").chmod(0o640)
    (tmp_path / "run").chmod(0o700)
    with tarfile.open(fileobj=capture_folder(tmp_path).file) as tar:
        seen = {member.name: (member.mode, member.mtime, member.uid, member.uname) for member in tar}
    assert seen == {"a": (0o644, 0, 0, ""), "run": (0o755, 0, 0, "")}


def test_too_much_is_refused_with_the_largest_files_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "RAW_MAX_BYTES", 1000)
    write(tmp_path, small="1", model="x" * 2000)
    with pytest.raises(Refused, match="model"):
        capture_folder(tmp_path)
