"""A device that went away between plan and start is named, kept out of use, and taken back when it returns."""

from __future__ import annotations

from pathlib import Path

import pytest

from machines import make_hgx
from steelyard.agent.presence import GONE, Presence
from steelyard.errors import EdgeFailed
from steelyard.model.job import Plan


def make_tree(root: Path) -> None:
    for device in (*make_hgx().gpus, *make_hgx().nics):
        (root / "sys/bus/pci/devices" / device.id).mkdir(parents=True)
    (root / "sys/devices/system/cpu").mkdir(parents=True)
    (root / "sys/devices/system/cpu/online").write_text("0-3\n")


def test_what_is_there_may_start(tmp_path: Path) -> None:
    make_tree(tmp_path)
    presence = Presence(make_hgx(), tmp_path)
    presence.check(Plan(cpus=(0, 3), gpus=(make_hgx().gpus[0].id,), nics=(make_hgx().nics[0].id,)))
    assert presence.missing == ()


def test_a_gpu_that_fell_off_the_bus_is_named_and_back_when_it_is_back(tmp_path: Path) -> None:
    make_tree(tmp_path)
    presence, gpu = Presence(make_hgx(), tmp_path), make_hgx().gpus[2].id
    (tmp_path / "sys/bus/pci/devices" / gpu).rmdir()
    with pytest.raises(EdgeFailed, match=gpu) as caught:
        presence.check(Plan(gpus=(make_hgx().gpus[0].id, gpu)))
    assert (caught.value.code, presence.missing) == (GONE, (gpu,))
    (tmp_path / "sys/bus/pci/devices" / gpu).mkdir()
    assert presence.missing == ()


def test_a_cpu_that_went_offline_is_missed(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-1,3\n")
    presence = Presence(None, tmp_path)
    with pytest.raises(EdgeFailed, match="cpu:2"):
        presence.check(Plan(cpus=(1, 2)))
    assert presence.missing == ("cpu:2",)


def test_a_device_that_was_never_seen_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EdgeFailed, match="GPU-of-another-machine"):
        Presence(make_hgx(), tmp_path).check(Plan(gpus=("GPU-of-another-machine",)))
