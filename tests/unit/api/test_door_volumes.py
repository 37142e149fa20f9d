"""A volume is mounted by its owner's work alone, and only while there is one."""

from __future__ import annotations

from msgspec.structs import replace

from steelyard.api.door_volumes import check_volumes
from steelyard.control.assignment import find_volumes
from steelyard.model.ids import DEFAULT_PROJECT
from steelyard.model.mount import MountedVolume, VolumeMount
from steelyard.model.owner import Owner
from steelyard.model.volume import Volume

ANN, BOB = Owner("ann", 1000), Owner("bob", 1001)
DATA = Volume("data", DEFAULT_PROJECT, ANN, 1, "/srv/data", 5)
ASKED = [VolumeMount("data", "/data")]


def test_what_is_there_and_ones_own_is_let_in() -> None:
    assert check_volumes(ASKED, [DATA], ANN) == []
    assert check_volumes([], [DATA], BOB) == []


def test_what_is_not_is_named_with_what_to_do() -> None:
    assert [(found.code, "volumes create data" in found.text) for found in check_volumes(ASKED, [], ANN)] == [
        ("no-such-volume", True)
    ]
    assert [found.code for found in check_volumes(ASKED, [DATA], BOB)] == ["not-your-volume"]
    assert [found.code for found in check_volumes(ASKED, [replace(DATA, deleting=True)], ANN)] == ["volume-deleting"]
    assert [found.code for found in check_volumes([VolumeMount("data", "/etc")], [DATA], ANN)] == ["bad-volume-path"]


def test_a_start_is_told_the_folder_and_none_of_somebody_elses() -> None:
    stored = {(DATA.name, DATA.owner.uid): DATA}
    assert find_volumes(stored, ASKED, ANN) == (MountedVolume("data", "/srv/data", "/data"),)
    assert find_volumes(stored, ASKED, BOB) == (MountedVolume("data", "", "/data"),)
