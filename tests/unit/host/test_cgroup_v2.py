from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.clock import SystemClock
from steelyard.errors import EdgeFailed
from steelyard.host import cgroup_v2
from steelyard.host.cgroup_files import CgroupFiles
from steelyard.host.cgroup_v2 import CgroupsV2
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan


def test_a_kernel_that_refuses_the_device_filter_is_asked_once_and_no_work_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(group: str, nodes: tuple[str, ...]) -> None:
        asked.append(Path(group).name)
        raise EdgeFailed("The device filter could not be loaded: Operation not permitted.")

    monkeypatch.setattr(cgroup_v2, "deny_devices", refuse)
    nodes = {"0000:0f:00.0": ("c 195:0",)}
    groups = CgroupsV2("12345678", str(tmp_path), missing=(), files=CgroupFiles(), clock=SystemClock(), gpu_nodes=nodes)
    groups.prepare((0,), (0,))
    for name in ("a", "b"):
        groups.make(WorkloadId(name), Plan())
    assert asked == ["a"] and groups.workloads() == ["a", "b"]
    assert len(groups.missing) == 1 and "not permitted" in groups.missing[0] and "can open all" in groups.missing[0]
