"""What a made-up machine shows of specifications, drivers and device files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import gpu_root
from gpu_root import CARD, FOLDER, GPUS, VERSION, make_specification, write, write_specification
from steelyard.host.cdi import CdiReader, observe_own
from steelyard.host.device_nodes import observe_inside
from steelyard.host.nvidia_driver import observe_driver
from steelyard.model.cdi import OwnNode

MACHINE = os.uname().machine


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return gpu_root.make_driver(gpu_root.make_devices(tmp_path))


def test_each_device_has_its_own_files_by_the_drivers_numbers(root: Path) -> None:
    own = observe_own(root)
    assert own[GPUS[0]] == (OwnNode("/dev/nvidia1", (195, 1)),)
    assert own[CARD] == (OwnNode("/dev/infiniband/uverbs0", (1, 5)),)
    caps = [(node.path, node.number, node.part) for node in own[GPUS[2]][1:]]
    assert caps[:2] == [
        ("/dev/nvidia-caps/nvidia-cap30", (237, 30), (1, None)),
        ("/dev/nvidia-caps/nvidia-cap31", (237, 31), (1, 0)),
    ]
    assert len(caps) == 4


def test_the_files_that_all_share_are_known_before_anybody_made_them(root: Path) -> None:
    assert CdiReader(root).observe().shared_nodes == {
        "/dev/nvidiactl": (195, 255), "/dev/nvidia-uvm": (511, 0), "/dev/nvidia-uvm-tools": (511, 1),
        "/dev/infiniband/rdma_cm": (1, 7),
    }  # fmt: skip


def test_the_driver_is_what_its_installer_left(root: Path) -> None:
    seen = observe_driver(root, MACHINE)
    assert seen is not None
    assert seen.version == VERSION
    assert f"/{FOLDER}/libcuda.so.{VERSION}" in seen.libraries and f"/{FOLDER}/libother.so.1" not in seen.libraries
    assert seen.programs == ("/usr/bin/nvidia-smi",)
    assert (seen.persistenced, seen.fabricmanager, seen.mps) == ("", "", "")
    write(root / "run/nvidia-persistenced/socket")
    write(root / "tmp/nvidia-mps/control")
    seen = observe_driver(root, MACHINE)
    assert seen is not None and (seen.persistenced, seen.mps) == ("/run/nvidia-persistenced/socket", "/tmp/nvidia-mps")


@pytest.mark.parametrize("line", [
    f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {VERSION}  Release Build  (root@b)",
    f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Wed Jan 22 2025",
])  # fmt: skip
def test_both_kinds_of_kernel_modules_tell_their_version(root: Path, line: str) -> None:
    write(root / "proc/driver/nvidia/version", f"{line}\nGCC version:  gcc version 12.3.0\n")
    assert observe_driver(root, MACHINE) is not None


def test_a_driver_without_its_libraries_is_none(root: Path) -> None:
    (root / FOLDER / f"libcuda.so.{VERSION}").unlink()
    assert observe_driver(root, MACHINE) is None
    assert observe_driver(root / "empty", MACHINE) is None


def test_names_of_libraries_are_those_of_links_in_their_folder(root: Path) -> None:
    (root / FOLDER / "libstray.so").symlink_to("../../../etc/passwd")
    (root / FOLDER / "libround.so").symlink_to("libround.so")
    assert CdiReader(root).observe().aliases[f"/{FOLDER}/libcuda.so.{VERSION}"] == ("libcuda.so", "libcuda.so.1")


def test_json_files_of_both_folders_are_read_in_order_and_others_are_not(root: Path) -> None:
    write_specification(root, make_specification())
    write_specification(root, make_specification(), "b.json", "var/run/cdi")
    write_specification(root, "not for us", "notes.txt")
    seen = CdiReader(root).observe()
    assert [(file.path, file.priority) for file in seen.files] == [("/etc/cdi/nvidia.json", 0), ("/var/run/cdi/b.json", 1)]
    assert seen.problems == () and seen.missing == frozenset()


def test_what_cannot_be_used_is_named_and_read_again_when_it_is_mended(root: Path) -> None:
    reader = CdiReader(root)
    path = write_specification(root, "{")
    assert "can't be read" in reader.observe().problems[0].text
    write_specification(root, make_specification())
    assert len(reader.observe().files) == 1
    path.chmod(0o666)
    assert [each.path for each in reader.observe().problems] == ["/etc/cdi/nvidia.json"]
    assert "others than root" in reader.observe().problems[0].text


def test_files_that_a_specification_names_are_looked_for(root: Path) -> None:
    made = make_specification()
    made["containerEdits"]["mounts"].append({"hostPath": "/gone", "containerPath": "/gone"})
    made["containerEdits"]["deviceNodes"].append({"path": "/dev/x", "hostPath": "/dev/there"})
    (root / "dev").mkdir()
    write(root / "dev/there")
    write_specification(root, made)
    seen = CdiReader(root).observe()
    assert seen.missing == {"/gone"}
    assert seen.numbers == {}, "no device"


def test_the_device_files_of_a_container_are_those_that_not_every_one_has(tmp_path: Path) -> None:
    dev = tmp_path / "proc/7/root/dev"
    for name in ("nvidia0", "null", "pts/0", "infiniband/uverbs0"):
        write(dev / name)
    assert observe_inside((6, 7), tmp_path) == []  # regular files are no devices
    assert observe_inside((6,), tmp_path) is None
