"""Volumes are mounted where they were asked, over nothing of the machine's, and what can't be is said in a sentence."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.lifecycle.mounts import (
    ENTRIES_MAX,
    SYSTEM,
    PointSeen,
    check_mounts,
    check_path,
    is_within,
    plan_mounts,
    to_machine,
    to_workload,
)
from steelyard.model.mount import Bind, MountedVolume, Mounts, Rebuilt, VolumeMount

DATA = MountedVolume("data", "/srv/volumes/data", "/data")
WORDS = st.sampled_from(["data", "models", "mnt", "etc", "usr", "proc", "run", "..", ".", "", "home", "x" * 5])
PATHS = st.lists(WORDS, max_size=5).map(lambda parts: "/" + "/".join(parts))


def codes(*mounts: VolumeMount) -> list[str]:
    return [code for code, _ in check_mounts(mounts)]


@pytest.mark.parametrize(
    "path", ["data", "../data", "/data/..", "/data/../etc", "/", "/etc", "/etc/x", "/proc/self", "/usr/share/x", "/run/a",
             "/lib64", "/data/", "//data", "/a//b", "/./a", "/a\nb", "/a:b", "/" + "x" * 2000]
)  # fmt: skip
def test_paths_that_no_machine_would_take_are_refused(path: str) -> None:
    assert codes(VolumeMount("data", path)) == ["bad-volume-path"]


@pytest.mark.parametrize("path", ["/data", "/mnt/a", "/etcetera", "/home/ann/data", "/usrx", "/tmp/x", ""])
def test_other_paths_are_not(path: str) -> None:
    assert codes(VolumeMount("data", path)) == []


def test_no_volume_is_at_or_inside_anothers_path() -> None:
    assert codes(VolumeMount("a", "/data"), VolumeMount("b", "/data")) == ["volumes-overlap"]
    assert codes(VolumeMount("a", "/data/in"), VolumeMount("b", "/data")) == ["volumes-overlap"]
    assert codes(VolumeMount("a", "/data"), VolumeMount("b", "/data2"), VolumeMount("c"), VolumeMount("d")) == []


def test_a_volume_is_named_once_by_a_good_name() -> None:
    assert codes(VolumeMount("a", "/x"), VolumeMount("a", "/y")) == ["volume-twice"]
    assert codes(VolumeMount("A_b", "/x")) == ["bad-volume"]
    assert codes(VolumeMount("a", "", read_only=True)) == ["bad-volume"]
    assert codes(*(VolumeMount(f"v{n}") for n in range(40))) == ["too-many-volumes"]


@given(PATHS)
def test_no_accepted_path_reaches_what_is_the_machines(path: str) -> None:
    if check_path(path) is None:
        assert os.path.normpath(path) == path != "/"
        assert not any(is_within(path, system) for system in SYSTEM)


@given(st.lists(PATHS, max_size=4, unique=True))
def test_accepted_paths_never_overlap(paths: list[str]) -> None:
    if not check_mounts([VolumeMount(f"v{at}", path) for at, path in enumerate(paths)]):
        assert not any(is_within(a, b) for a in paths for b in paths if a is not b)


def plan(point: PointSeen, *needed: str, as_root: bool = False) -> Mounts | str:
    return plan_mounts([DATA], {"/data": point}, needed, as_root=as_root)


def test_a_path_that_is_there_is_mounted_over_where_links_lead() -> None:
    assert plan(PointSeen("/data")) == Mounts((), (Bind("/srv/volumes/data", "/data"),))
    assert plan(PointSeen("/disk2/data")) == Mounts((), (Bind("/srv/volumes/data", "/disk2/data"),))


def test_a_path_that_is_not_there_is_made_in_a_copy_of_the_folder_above() -> None:
    missing = PointSeen("/", ("data",), roots_own=True, entries=22)
    assert plan(missing) == Mounts((Rebuilt("/", ("/data",)),), (Bind("/srv/volumes/data", "/data"),))
    assert plan(missing, as_root=True) == plan(missing)
    two = [DATA, MountedVolume("models", "/nfs/m", "/srv/ai/models", read_only=True)]
    points = {"/data": missing, "/srv/ai/models": PointSeen("/srv", ("ai", "models"), roots_own=True, entries=1)}
    assert plan_mounts(two, points, (), as_root=False) == Mounts(
        (Rebuilt("/", ("/data",)), Rebuilt("/srv", ("/srv/ai/models",))),
        (Bind("/srv/volumes/data", "/data"), Bind("/nfs/m", "/srv/ai/models", read_only=True)),
    )


@pytest.mark.parametrize(
    ("point", "as_root"),
    [
        (PointSeen("/home/ann", ("data",), entries=3), False),
        (PointSeen("/opt", ("data",), roots_own=True, entries=3), True),
        (PointSeen("/opt", ("data",), roots_own=True, entries=ENTRIES_MAX + 1), False),
    ],
)
def test_no_folder_is_made_unwritable_that_the_work_could_write(point: PointSeen, as_root: bool) -> None:
    said = plan(point, as_root=as_root)
    assert isinstance(said, str) and "mkdir -p /data" in said


def test_what_the_work_needs_is_not_hidden() -> None:
    said = plan(PointSeen("/data"), "/code", "/data/env/bin/python")
    assert isinstance(said, str) and "would hide /data/env/bin/python" in said


def test_a_link_to_the_machines_own_is_followed_before_it_is_judged() -> None:
    assert "belongs to the machine" in str(plan(PointSeen("/etc/data")))
    assert "belongs to the machine" in str(plan(PointSeen("/run", ("x",), roots_own=True)))


def test_a_file_on_the_way_is_named() -> None:
    assert "/data is no folder" in str(plan(PointSeen("/", ("data", "in"), blocked=True, roots_own=True)))


def test_a_volume_without_a_path_is_not_mounted() -> None:
    assert plan_mounts([MountedVolume("a", "/srv/a")], {}, (), as_root=False) == Mounts()


def test_paths_are_told_as_the_machine_and_as_the_work_names_them() -> None:
    assert to_machine("/data/run/7", [DATA]) == "/srv/volumes/data/run/7"
    assert to_machine("/data", [DATA]) == "/srv/volumes/data"
    assert to_machine("/data2/x", [DATA]) == "/data2/x"
    assert to_workload("/srv/volumes/data/run/7", [DATA]) == "/data/run/7"
    assert to_workload("/elsewhere", [DATA]) == "/elsewhere"
