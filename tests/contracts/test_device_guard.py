"""A workload opens the device files of its own GPUs and of no others: on the kernel's real groups, with /dev/zero as the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.kernel_model import ModelKernel
from steelyard.clock import SystemClock
from steelyard.errors import EdgeFailed
from steelyard.host import Cgroups
from steelyard.host.cgroup import find_mounts, open_cgroups
from steelyard.host.cgroup_files import CgroupFiles
from steelyard.host.cgroup_v1 import CgroupsV1
from steelyard.host.cgroup_v2 import CgroupsV2
from steelyard.host.device_nodes import observe_gpu_nodes
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.topology import Gpu

NODES = {"gpu-a": ("c 1:5",), "gpu-b": ("c 1:8",)}  # /dev/zero, /dev/random
JOB = WorkloadId("j1.1")
TRY = """
import os, sys
for fd in sys.argv[1:]:
    os.write(int(fd), b"0")
for path in ("/dev/zero", "/dev/random", "/dev/null"):
    try:
        os.close(os.open(path, os.O_RDONLY))
        print(path, "opened")
    except PermissionError:
        print(path, "denied")
"""


@pytest.fixture(params=["v1", "v2"])
def cgroups(request: pytest.FixtureRequest) -> Iterator[Cgroups]:
    mounts, tag = find_mounts(), f"guard-{os.getpid()}"
    if os.geteuid() != 0:
        pytest.skip("only root may deny devices")
    if request.param == "v2":
        if mounts.v2 is None:
            pytest.skip("cgroup2 is not mounted on this machine")
        made: Cgroups = CgroupsV2(tag, mounts.v2, missing=(), files=CgroupFiles(), clock=SystemClock(), gpu_nodes=NODES)
    elif mounts.devices is None:
        pytest.skip("this machine has no devices controller of cgroup v1")
    else:
        made = open_cgroups(tag, gpu_nodes=NODES)
    made.prepare(tuple(os.sched_getaffinity(0)), (0,))
    try:
        yield made
    finally:
        made.destroy()


def opened(cgroups: Cgroups, plan: Plan) -> str:
    cgroups.make(JOB, plan)
    cgroups.make(JOB, plan)  # what is made twice is guarded once
    joins = cgroups.open_join(JOB)
    done = subprocess.run(
        [sys.executable, "-c", TRY, *map(str, joins)], pass_fds=joins, capture_output=True, text=True, check=True
    )
    for fd in joins:
        os.close(fd)
    return done.stdout


def test_only_the_given_gpu_opens(cgroups: Cgroups) -> None:
    assert opened(cgroups, Plan(gpus=("gpu-a",))) == "/dev/zero opened\n/dev/random denied\n/dev/null opened\n"


def test_work_without_gpus_opens_none(cgroups: Cgroups) -> None:
    assert opened(cgroups, Plan()) == "/dev/zero denied\n/dev/random denied\n/dev/null opened\n"


def test_without_a_devices_controller_it_is_said_that_gpus_are_not_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "proc/self/mountinfo").write_text("30 23 0:26 / /cpu rw shared:9 - cgroup cgroup rw,cpu\n")
    made = open_cgroups("test", tmp_path, gpu_nodes=NODES)
    assert isinstance(made, CgroupsV1)
    assert "can open all" in made.missing[-1]


def test_a_group_that_can_not_be_opened_for_its_filter_fails_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel = ModelKernel()
    made = CgroupsV2("t", kernel.mount_v2("cpu"), missing=(), files=kernel, clock=kernel.clock, gpu_nodes=NODES)
    made.prepare((0,), (0,))
    with pytest.raises(EdgeFailed, match=r"j1\.1"):
        made.make(JOB, Plan())  # the model's folder is no cgroup to BPF


def test_device_numbers_come_from_the_drivers_files(tmp_path: Path) -> None:
    nvidia = tmp_path / "proc/driver/nvidia/gpus/0000:0f:00.0"
    nvidia.mkdir(parents=True)
    (nvidia / "information").write_text("Model: \t\t NVIDIA H100\nDevice Minor: \t 3\nGPU Excluded:\t No\n")
    for name, number in (("card1", "226:1"), ("renderD129", "226:129")):
        node = tmp_path / "sys/class/drm" / name
        node.mkdir(parents=True)
        (node / "dev").write_text(f"{number}\n")
        (node / "device").symlink_to(tmp_path / "sys/devices/pci0000:20/0000:23:00.0")
    gpus = [Gpu("0000:0f:00.0", pci="0000:0f:00.0"), Gpu("0000:23:00.0", pci="0000:23:00.0"), Gpu("GPU9")]
    assert observe_gpu_nodes(tmp_path, gpus) == {"0000:0f:00.0": ("c 195:3",), "0000:23:00.0": ("c 226:1", "c 226:129")}
