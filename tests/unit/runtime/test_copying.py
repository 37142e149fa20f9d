"""Files as one stream: they land whole or not at all, and nowhere else."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from steelyard.runtime.copying import END, TOP, CopyFailed, land, send


def sent(path: Path) -> bytes:
    out = io.BytesIO()
    send(str(path), out)
    return out.getvalue()


def archive(*entries: tuple[str, bytes, dict[str, object]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, more in entries:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            for key, value in more.items():
                setattr(entry, key, value)
            tar.addfile(entry, io.BytesIO(b"x" * entry.size))
    return out.getvalue()


def everything(folder: Path) -> dict[str, tuple[int, int, object]]:
    found: dict[str, tuple[int, int, object]] = {}
    for path in sorted(folder.rglob("*")):
        told = path.lstat()
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (told.st_mode, told.st_mtime_ns, what)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "sub" / "a").write_bytes(b"a" * 100_000)
    (root / "sub" / "a").chmod(0o640)
    (root / "program").write_bytes(b"#!/bin/sh\n")
    (root / "program").chmod(0o755)
    (root / "link").symlink_to("/etc/passwd")
    (root / "näme \udcff").write_bytes(b"")
    os.utime(root / "program", ns=(1, 1_234_567_890_123_456_789))
    (root / "sub").chmod(0o555)
    os.utime(root / "sub", ns=(1, 1_000_000_000_000_000_001))
    return root


def test_a_folder_arrives_as_it_was(tree: Path, tmp_path: Path) -> None:
    land(io.BytesIO(sent(tree)), str(tmp_path / "new"), "ignored")
    assert everything(tmp_path / "new") == everything(tree)
    into = tmp_path / "into"
    into.mkdir()
    land(io.BytesIO(sent(tree)), str(into), "named")
    assert everything(into / "named") == everything(tree)


def test_a_file_replaces_the_old_one_at_once(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "f").write_bytes(b"new")
    land(io.BytesIO(sent(tmp_path / "f")), str(tmp_path / "old"), "f")
    assert (tmp_path / "old").read_bytes() == b"new"


def test_what_breaks_off_anywhere_changes_nothing(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    file, folder = sent(tree / "sub" / "a"), sent(tree)
    for cut in (0, 100, 512, 1024, 1536, 5000, len(file) // 2, 100_000, file.index(b"end\0")):
        with pytest.raises(CopyFailed):
            land(io.BytesIO(file[:cut]), str(tmp_path / "old"), "a")
        with pytest.raises(CopyFailed):
            land(io.BytesIO(folder[:cut]), str(tmp_path / "new"), "a")
    assert (tmp_path / "old").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "tree"]


def test_a_folder_that_is_there_keeps_what_else_is_in_it(tree: Path, tmp_path: Path) -> None:
    there = tmp_path / "into" / "tree"
    (there / "sub").mkdir(parents=True)
    (there / "sub" / "mine").write_bytes(b"mine")
    (there / "program").write_bytes(b"older")
    land(io.BytesIO(sent(tree)), str(tmp_path / "into"), "tree")
    assert (there / "sub" / "mine").read_bytes() == b"mine"
    assert (there / "program").read_bytes() == b"#!/bin/sh\n"


def test_devices_sockets_and_pipes_are_refused_on_both_ends(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe")
    out = io.BytesIO()
    with pytest.raises(CopyFailed, match="pipe"):
        send(str(tmp_path / "folder"), out)
    with pytest.raises(CopyFailed, match="pipe"):
        land(io.BytesIO(out.getvalue()), str(tmp_path / "new"), "n")
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.LNKTYPE):
        bad = archive((TOP, tarfile.DIRTYPE, {}), (f"{TOP}/x", kind, {"linkname": "/etc/passwd"}), (END, tarfile.REGTYPE, {}))
        with pytest.raises(CopyFailed):
            land(io.BytesIO(bad), str(tmp_path / "new"), "n")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", ["/etc/x", "../x", "top/../../x", "top/./x", "top//x", "x", "top/..", "end/x"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    bad = archive((TOP, tarfile.DIRTYPE, {}), (name, tarfile.REGTYPE, {"size": 1}), (END, tarfile.REGTYPE, {}))
    (tmp_path / "here").mkdir()
    with pytest.raises(CopyFailed):
        land(io.BytesIO(bad), str(tmp_path / "here" / "new"), "n")
    assert list(tmp_path.rglob("x")) == [] and list((tmp_path / "here").iterdir()) == []


def test_nothing_is_written_through_a_link_that_came_along_or_was_there(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    link = (f"{TOP}/l", tarfile.SYMTYPE, {"linkname": str(tmp_path / "outside")})
    bad = archive((TOP, tarfile.DIRTYPE, {}), link, (f"{TOP}/l/x", tarfile.REGTYPE, {"size": 1}), (END, tarfile.REGTYPE, {}))
    with pytest.raises(CopyFailed):
        land(io.BytesIO(bad), str(tmp_path / "new"), "n")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "l").symlink_to(tmp_path / "outside")
    sub = archive((TOP, tarfile.DIRTYPE, {}), (f"{TOP}/l", tarfile.DIRTYPE, {}), (END, tarfile.REGTYPE, {}))
    with pytest.raises(CopyFailed):
        land(io.BytesIO(sub), str(tmp_path), "there")
    assert list((tmp_path / "outside").iterdir()) == []


def test_rights_that_nobody_decided_on_do_not_travel(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "f").chmod(0o6755)
    land(io.BytesIO(sent(tmp_path / "f")), str(tmp_path / "g"), "f")
    assert (tmp_path / "g").stat().st_mode & 0o7777 == 0o755


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CopyFailed, match="No such file"):
        sent(tmp_path / "none")
    (tmp_path / "f").write_bytes(b"")
    for target in ("none/f", "none/"):
        with pytest.raises(CopyFailed, match=r"no folder|No such file"):
            land(io.BytesIO(sent(tmp_path / "f")), f"{tmp_path}/{target}", "f")
