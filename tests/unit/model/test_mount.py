"""What `--volume` says is read as it was meant, or refused with the grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Refused
from steelyard.model.mount import VolumeMount, parse_mount, variable_of


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("data:/data", VolumeMount("data", "/data")),
        ("data:/data/:ro", VolumeMount("data", "/data", True)),
        ("data:/a//b:rw", VolumeMount("data", "/a/b")),
        ("data", VolumeMount("data")),
        ("data:/data/..", VolumeMount("data", "/data/..")),  # refused at the door, as it was written
    ],
)
def test_what_a_volume_is(text: str, mount: VolumeMount) -> None:
    assert parse_mount(text) == mount


@pytest.mark.parametrize("text", ["", ":/data", "data:", "data:/data:read", "data:/data:ro:x", "data::ro"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_mount(text)


@given(st.text("ab-:/.row", max_size=20))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        mount = parse_mount(text)
    except Refused:
        return
    assert mount.name and ":" not in mount.name + mount.path


def test_variables_are_told_apart() -> None:
    assert variable_of("my-data") == "STEELYARD_VOLUME_MY_DATA"
