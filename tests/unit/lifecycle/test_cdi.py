"""Which files are specifications, and which of several counts."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_root import UUIDS, make_specification
from steelyard.lifecycle.cdi import VERSIONS, read_specification, resolve
from steelyard.model.cdi import CdiDevice, CdiEdits, Problem, Specification, SpecificationFile

PATH = "/etc/cdi/x.json"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


def read(typed: bool = True, **fields: Any) -> Specification | Problem:
    return read_specification(json.loads(json.dumps(make_specification(**fields))), PATH, typed=typed)


def wrong(**fields: Any) -> str:
    made = read(**fields)
    assert isinstance(made, Problem), made
    assert made.path == PATH
    return made.text


def edits(**fields: Any) -> dict[str, Any]:
    return {"containerEdits": fields}


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_of_the_standard_is_read(version: str) -> None:
    made = read(cdiVersion=version)
    assert isinstance(made, Specification)
    assert [device.name for device in made.devices] == ["0", "1", UUIDS[0], UUIDS[1], "all"]
    assert made.vendor == "nvidia.com"


def test_scalars_of_yaml_are_text_and_mean_the_same() -> None:
    def to_text(value: object) -> object:
        if isinstance(value, dict):
            return {key: to_text(each) for key, each in value.items()}
        return [to_text(each) for each in value] if isinstance(value, list) else str(value)

    text = to_text(json.loads(json.dumps(make_specification())))
    assert read_specification(text, PATH, typed=False) == read()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cdiVersion": "1.1.0"}, "'1.1.0' is not known"),
        ({"cdiVersion": 1}, "cdiVersion"),
        ({"kind": "gpu"}, "is not vendor/class"),
        ({"kind": "nvidia.com/gpu/x"}, "is not vendor/class"),
        ({"devices": []}, "names 0 devices"),
        ({"devices": [{"name": "a"}, {"name": "a"}]}, "names the device a twice"),
        ({"devices": [{"name": "-a"}]}, "can't be the name"),
        ({"devices": [{"name": "a", "containerEdit": {}}]}, "containerEdit"),
        (edits(env=["=x"]), "is not NAME=VALUE"),
        (edits(env=["X"]), "is not NAME=VALUE"),
        (edits(deviceNodes=[{"path": "/dev/../etc/x"}]), "is not a path below /dev"),
        (edits(deviceNodes=[{"path": "/etc/x"}]), "is not a path below /dev"),
        (edits(deviceNodes=[{"path": "/dev/pts/0"}]), "is not a path below /dev"),
        (edits(deviceNodes=[{"path": "/dev/x", "hostPath": "x"}]), "not an absolute path"),
        (edits(deviceNodes=[{"path": "/dev/x", "permissions": "rwx"}]), "unknown permissions"),
        (edits(deviceNodes=[{"path": "/dev/x", "major": -1}]), "numbers that no device has"),
        (edits(mounts=[{"hostPath": "/x", "containerPath": "/"}]), "can't be mounted"),
        (edits(mounts=[{"hostPath": "/x", "containerPath": "/proc/x"}]), "can't be mounted"),
        (edits(mounts=[{"hostPath": "x", "containerPath": "/x"}]), "can't be mounted"),
        (edits(mounts=[{"hostPath": "/x", "containerPath": "/x", "type": "tmpfs"}]), "type 'tmpfs'"),
        (edits(hooks=[{"hookName": "sometime", "path": "/x"}]), "the hook 'sometime'"),
        (edits(hooks=[{"hookName": "poststop", "path": "x"}]), "the hook"),
        (edits(netDevices=[]), "netDevices"),
        (edits(additionalGids=[-1]), "no group's number"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_file(fields: dict[str, Any], words: str) -> None:
    assert words in wrong(**fields)


@given(JSON)
def test_no_content_makes_it_raise(content: object) -> None:
    for typed in (True, False):
        assert isinstance(read_specification(content, PATH, typed=typed), Problem)


def make_file(path: str, priority: int, *names: str) -> SpecificationFile:
    devices = tuple(CdiDevice(name, container_edits=CdiEdits(env=(f"FROM={path}",))) for name in names)
    return SpecificationFile(path, priority, Specification("1.0.0", "a.com/gpu", devices))


def test_the_later_folder_wins_device_by_device() -> None:
    found, problems = resolve([make_file("/etc/cdi/a", 0, "x", "y"), make_file("/var/run/cdi/a", 1, "y")])
    assert {each.name: each.file.path for each in found} == {"a.com/gpu=x": "/etc/cdi/a", "a.com/gpu=y": "/var/run/cdi/a"}
    assert problems == ()


def test_two_files_of_one_folder_that_name_a_device_make_it_unusable_and_are_named() -> None:
    found, problems = resolve([make_file("/etc/cdi/a", 0, "x", "y"), make_file("/etc/cdi/b", 0, "y")])
    assert [each.device.name for each in found] == ["x"]
    assert [each.path for each in problems] == ["/etc/cdi/a", "/etc/cdi/b"]
    assert "so does /etc/cdi/b" in problems[0].text and "so does /etc/cdi/a" in problems[1].text


def test_a_conflict_below_a_file_that_wins_is_none() -> None:
    low = [make_file("/etc/cdi/a", 0, "x"), make_file("/etc/cdi/b", 0, "x")]
    found, problems = resolve([*low, make_file("/var/run/cdi/a", 1, "x")])
    assert ([each.file.path for each in found], problems) == (["/var/run/cdi/a"], ())


FILES = st.lists(
    st.builds(
        lambda name, priority, devices: make_file(f"/{priority}/{name}", priority, *devices),
        st.sampled_from("abc"), st.integers(0, 2), st.lists(st.sampled_from("uvwxyz"), min_size=1, unique=True),
    ),
    max_size=6, unique_by=lambda file: file.path,
)  # fmt: skip


@given(FILES, st.randoms())
def test_each_device_is_used_from_the_highest_folder_or_named_as_a_conflict_of_it_in_any_order(
    files: list[SpecificationFile], random: Any
) -> None:
    found, problems = resolve(files)
    again = files.copy()
    random.shuffle(again)
    assert resolve(again) == (found, problems)
    by_name = {each.device.name: each.file for each in found}
    for name in {device.name for file in files for device in file.specification.devices}:
        naming = [file for file in files if name in {device.name for device in file.specification.devices}]
        top = [file for file in naming if file.priority == max(each.priority for each in naming)]
        assert by_name.get(name) == (top[0] if len(top) == 1 else None)
        said = {each.path for each in problems if f"a.com/gpu={name}," in each.text}
        assert said == ({file.path for file in top} if len(top) > 1 else set())


def test_a_specification_survives_being_written_and_read() -> None:
    made = read()
    assert read_specification(json.loads(msgspec.json.encode(made)), PATH, typed=True) == made
