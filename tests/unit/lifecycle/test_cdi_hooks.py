"""What hooks would have done is had without them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steelyard.lifecycle.cdi_hooks import Effects, find_libraries, read_hooks
from steelyard.model.cdi import CdiHook, CdiMount

LIB = "/usr/lib64"


def hook(*args: str, path: str = "/usr/bin/nvidia-cdi-hook") -> CdiHook:
    return CdiHook("createContainer", path, args)


def test_links_and_folders_are_read_as_either_tool_is_told_them() -> None:
    new = hook("nvidia-cdi-hook", "create-symlinks", "--link", "a.so.1::/l/a.so", "--link=../x::/l/y/z")
    old = hook("nvidia-ctk", "hook", "update-ldcache", "--folder", "/l", "--folder=/m/", path="/usr/bin/nvidia-ctk")
    effects = read_hooks([new, old])
    assert effects.links == {"/l/a.so": "a.so.1", "/l/y/z": "../x"}
    assert effects.lib_folders == {"/l", "/m"}
    assert (effects.done, effects.not_done) == (("create-symlinks", "update-ldcache"), ())


def test_what_is_not_needed_is_done_and_what_nobody_knows_is_not() -> None:
    effects = read_hooks([
        hook("x", "chmod", "--mode", "755", "--path", "/dev/dri"), hook("x", "disable-device-node-modification"),
        hook("x", "enable-cuda-compat"), hook("sh", "-c", "rm -rf /", path="/bin/sh"), CdiHook("poststop", "/opt/clean"), hook(),
    ])  # fmt: skip
    assert effects.done == ("chmod", "disable-device-node-modification")
    assert effects.not_done == ("enable-cuda-compat", "sh", "clean", "nvidia-cdi-hook")


def test_libraries_have_the_names_that_links_give_them() -> None:
    mounts = [CdiMount(f"/h/{name}", f"{LIB}/{name}") for name in ("libcuda.so.5", "tool", "vdpau/libv.so.5")]
    effects = Effects({f"{LIB}/libcuda.so": "libcuda.so.1", f"{LIB}/gbm/d.so": "../libcuda.so.1"}, frozenset({LIB}))
    libraries, links = find_libraries(
        effects, mounts, {"/h/libcuda.so.5": ("libcuda.so.1",), "/h/vdpau/libv.so.5": ("libv.so.1",)}
    )
    assert libraries == dict.fromkeys(("libcuda.so.5", "libcuda.so.1", "libcuda.so"), "/h/libcuda.so.5")
    assert links == {f"{LIB}/libcuda.so": "/h/libcuda.so.5", f"{LIB}/gbm/d.so": "/h/libcuda.so.5"}


def test_a_link_into_a_mounted_folder_leads_into_it_and_one_to_nothing_is_left_out() -> None:
    effects = Effects({"/a": "/d/x/y", "/b": "/nowhere", "/c": "/c"}, frozenset())
    assert find_libraries(effects, [CdiMount("/h", "/d")], {}) == ({}, {"/a": "/h/x/y"})


def test_a_mount_at_a_links_path_stays() -> None:
    effects = Effects({"/d": "/e"}, frozenset())
    assert find_libraries(effects, [CdiMount("/h", "/d"), CdiMount("/i", "/e")], {})[1] == {}


PATHS = st.sampled_from(["/a", "/b", "/c", "/d/e", "/d"])


@given(
    st.dictionaries(PATHS, PATHS | st.sampled_from(["..", "b", "../c"])), st.lists(st.builds(CdiMount, PATHS, PATHS), max_size=4)
)
def test_links_in_circles_end_and_lead_to_what_is_mounted_alone(links: dict[str, str], mounts: list[CdiMount]) -> None:
    _, found = find_libraries(Effects(links, frozenset()), mounts, {})
    assert all(any(source.startswith(mount.host_path) for mount in mounts) for source in found.values())


@given(st.lists(st.lists(st.text(max_size=12), max_size=6), max_size=4))
def test_no_arguments_make_it_raise(told: list[list[str]]) -> None:
    effects = read_hooks([hook(*args) for args in told])
    assert set(effects.not_done) | set(effects.done) or not told
