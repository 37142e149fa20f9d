"""What the machine shows of folders and paths is seen as it is; what is missing is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from steelyard.errors import EdgeFailed
from steelyard.host.volumes import VolumeFolders, check_source, observe_mounted, observe_point
from steelyard.model.mount import Bind, MountedVolume


def test_a_point_is_the_nearest_folder_that_is_there_and_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    real = str((tmp_path / "real").resolve())
    assert observe_point(f"{tmp_path}/link") == observe_point(real)
    assert observe_point(real).nearest == real and not observe_point(real).missing
    seen = observe_point(f"{tmp_path}/link/a/b")
    assert (seen.nearest, seen.missing, seen.blocked, seen.entries) == (real, ("a", "b"), False, 0)
    assert observe_point(f"{tmp_path}/file").blocked and observe_point(f"{tmp_path}/file/x").blocked
    assert observe_point(f"{tmp_path}/dangling").blocked
    assert not seen.roots_own  # everybody may write /tmp


def test_the_roots_own_folders_are_told_apart() -> None:
    seen = observe_point("/surely-not-there/x")
    assert (seen.nearest, seen.missing) == ("/", ("surely-not-there", "x"))
    assert seen.entries == len(os.listdir("/"))


def test_a_volumes_folder_is_made_once_and_goes_with_what_is_in_it(tmp_path: Path) -> None:
    folders = VolumeFolders(tmp_path / "volumes", ())
    path = Path(folders.make("data", None))
    assert path.stat().st_mode & 0o777 == 0o700
    (path / "file").write_text("kept")
    assert folders.make("data", None) == str(path) and (path / "file").exists()
    folders.retire("data")
    folders.retire("data")
    assert not path.exists() and len(list((tmp_path / "volumes").iterdir())) == 1
    VolumeFolders(tmp_path / "volumes", ()).sweep()  # whoever comes after a death
    assert list((tmp_path / "volumes").iterdir()) == []


def test_what_is_gone_is_said_before_anything_starts(tmp_path: Path) -> None:
    folders = VolumeFolders(tmp_path, (str(tmp_path / "home"),))
    (tmp_path / "here").mkdir()
    here = MountedVolume("data", str(tmp_path / "here"), f"{tmp_path}/here")
    assert folders.prepare([here], (), as_root=False).binds == (Bind(here.source, here.path),)  # type: ignore[union-attr]
    for wrong, words in {
        MountedVolume("data", ""): "volumes create data",
        MountedVolume("data", str(tmp_path / "gone")): "is not there",
        MountedVolume("data", here.source, str(tmp_path)): "would hide",
        MountedVolume("data", here.source, f"{tmp_path}/none"): "mkdir -p",
    }.items():
        with pytest.raises(EdgeFailed, match=words) as refused:
            folders.prepare([wrong], (), as_root=False)
        assert refused.value.detail == "volumes"
    assert folders.prepare([MountedVolume("data", here.source)], (), as_root=False) is None


def test_a_file_is_no_volume(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is no folder" in str(check_source(MountedVolume("data", str(tmp_path / "file"))))


OURS = "27 1 254:0 / / rw - ext4 /dev/vda rw\n30 27 0:41 /export /nfs rw - nfs4 server:/export rw\n"


def test_what_is_mounted_is_told_by_the_tables_alone(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/7").mkdir()
    (tmp_path / "proc/self/mountinfo").write_text(OURS)
    theirs = "46 63 254:0 /srv/my\\040data /data rw,nosuid - ext4 /dev/vda rw\n"
    theirs += "47 63 0:41 /export/m /disk/m ro - nfs4 server:/export rw\n"
    (tmp_path / "proc/7/mountinfo").write_text(OURS + theirs)
    volumes = [
        MountedVolume("data", "/srv/my data", "/data"),
        MountedVolume("models", "/nfs/m", "/models"),  # a link leads to /disk/m
        MountedVolume("other", "/srv/other", "/other"),
        MountedVolume("told", "/srv/my data"),
    ]
    assert observe_mounted(7, volumes, tmp_path) == ["data at /data", "models at /models (read-only)"]


def test_what_is_not_mounted_is_not_proved(tmp_path: Path) -> None:
    assert observe_mounted(os.getpid(), [MountedVolume("data", str(tmp_path), str(tmp_path))]) == []
    assert observe_mounted(2**22 + 1, [MountedVolume("data", str(tmp_path), "/data")]) is None
