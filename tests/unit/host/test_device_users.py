"""Who holds a device: a made-up /proc, and a process that really holds one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.host.device_users import observe_device_nodes, observe_users, observe_workload, parse_memory
from steelyard.host.proc import find_workload

GPU, NIC = "0000:0f:00.0", "0000:4b:00.0"


def make_process(root: Path, pid: int, fds: dict[int, str], cgroup: str = "0::/user.slice", environ: bytes = b"") -> None:
    folder = root / "proc" / str(pid)
    (folder / "fd").mkdir(parents=True)
    for fd, target in fds.items():
        (folder / "fd" / str(fd)).symlink_to(target)
    (folder / "comm").write_text("python3\n")
    (folder / "stat").write_text(f"{pid} (python3) S 1 {pid} {pid} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid * 10} 0 0\n")
    (folder / "cgroup").write_text(cgroup + "\n")
    (folder / "environ").write_bytes(environ)


def make_root(root: Path) -> Path:
    gpu = root / "proc/driver/nvidia/gpus" / GPU
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model: NVIDIA H100\nGPU UUID: GPU-x\nDevice Minor: \t 3\n")
    card = root / "sys/devices/pci0000:40" / NIC
    (root / "sys/class/infiniband_verbs/uverbs0").mkdir(parents=True)
    card.mkdir(parents=True)
    (root / "sys/class/infiniband_verbs/uverbs0/device").symlink_to(card)
    return root


def test_device_files_belong_to_pci_addresses(tmp_path: Path) -> None:
    assert observe_device_nodes(make_root(tmp_path)) == {GPU: ("/dev/nvidia3",), NIC: ("/dev/infiniband/uverbs0",)}


def test_holders_are_found_and_traced_to_their_work(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    make_process(root, 100, {3: "/dev/nvidia3", 4: "/dev/nvidiactl"}, "0::/steelyard-0a1b2c3d/job-1.1")
    make_process(root, 101, {3: "/dev/nvidia3 (deleted)"}, environ=b"A=1\x00STEELYARD_ATTEMPT_ID=job-2.1\x00")
    make_process(
        root, 102, {3: "/dev/infiniband/uverbs0"}, "5:cpuset:/steelyard-0a1b2c3d/shared\n4:memory:/steelyard-0a1b2c3d/f.1.0"
    )
    make_process(root, 103, {3: "/dev/nvidia30", 4: "socket:[9]", 5: "/dev/null"})
    make_process(root, 104, {3: "/dev/nvidia3"})
    users = observe_users(observe_device_nodes(root), root)
    assert {each.pid: each.workload for each in users.holders[GPU]} == {100: "job-1.1", 101: "job-2.1", 104: None}
    assert [(each.pid, each.start_time, each.workload) for each in users.holders[NIC]] == [(102, 1020, "f.1.0")]
    assert users.complete


def test_a_zombie_holds_nothing_and_a_process_that_went_is_passed_over(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    make_process(root, 100, {3: "/dev/nvidia3"})
    (root / "proc/100/stat").write_text("100 (python3) Z 1 100 100 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 7 0 0\n")
    make_process(root, 101, {3: "/dev/nvidia3"})
    (root / "proc/101/stat").unlink()
    assert observe_users(observe_device_nodes(root), root).holders[GPU] == ()


def test_a_real_process_that_holds_a_real_device_file_is_found() -> None:
    # /dev/full stands in for a GPU: nothing else has it open.
    code = "import sys; f = open('/dev/full', 'rb'); print('open', flush=True); sys.stdin.read()"
    environ = {**os.environ, "STEELYARD_ATTEMPT_ID": "job-7.1"}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        held = observe_users({GPU: ("/dev/full",)}).holders[GPU]
        assert process.pid in {each.pid for each in held}
        assert observe_workload(process.pid) == "job-7.1"
    assert process.pid not in {each.pid for each in observe_users({GPU: ("/dev/full",)}).holders[GPU]}


def test_memory_in_use_is_read_and_what_is_not_told_is_left_out() -> None:
    assert parse_memory("00000000:19:00.0, 4\n00000000:3B:00.0, [N/A]\nnonsense\n") == {"0000:19:00.0": 4 << 20}


@pytest.mark.parametrize(
    ("line", "workload"),
    [
        ("0::/steelyard-0a1b2c3d/job-1.1", "job-1.1"),
        ("0::/steelyard-0a1b2c3d/shared/job-1.1", "job-1.1"),
        ("0::/steelyard-0a1b2c3d-idle/job-1.1", "job-1.1"),
        ("0::/machine.slice/steelyard-0a1b2c3d/shared/f.1.5af3", "f.1.5af3"),
        ("5:cpuset:/steelyard-0a1b2c3d/shared", None),
        ("0::/steelyard-0a1b2c3d/shared/", None),
        ("0::/steelyard-0a1b2c3d", None),
        ("0::/steelyard-0a1b2c3d/job-1.1/inner/deep", "job-1.1"),
        ("0::/user.slice", None),
    ],
)
def test_every_place_where_a_workload_may_stand_is_traced_to_it(line: str, workload: str | None) -> None:
    assert find_workload(line) == workload
