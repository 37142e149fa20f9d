"""Preemptible work gets the least of the caches and the memory bus where the processor can hold it to that."""

from __future__ import annotations

from pathlib import Path

from steelyard.host.cgroup_files import CgroupFiles
from steelyard.host.resctrl import Resctrl, render_limits

INFO = {"MB/min_bandwidth": "10", "L3/cbm_mask": "7ff", "L3/min_cbm_bits": "1"}


def test_every_domain_gets_the_least_bandwidth_and_half_of_the_ways() -> None:
    assert render_limits("    MB:0=100;1=100\n    L3:0=7ff;1=7ff", INFO.get) == ["MB:0=10;1=10", "L3:0=1f;1=1f"]


def test_other_resources_and_unknown_limits_are_left_alone() -> None:
    assert render_limits("L2:0=ff\nMB:0=100", {}.get) == []
    assert render_limits("", INFO.get) == render_limits("no schemata", INFO.get) == []


def test_a_cache_of_two_ways_still_gives_one() -> None:
    assert render_limits("L3:0=3", {"L3/cbm_mask": "3", "L3/min_cbm_bits": "1"}.get) == ["L3:0=1"]


def test_without_resctrl_nothing_is_made(tmp_path: Path) -> None:
    resctrl = Resctrl(str(tmp_path), "steelyard-test", CgroupFiles())
    assert not resctrl.available
    assert resctrl.prepare() == []
    assert list(tmp_path.iterdir()) == []
    resctrl.remove()


def test_the_group_is_limited_joined_and_removed(tmp_path: Path) -> None:
    (tmp_path / "schemata").write_text("MB:0=100\n")
    for name, text in INFO.items():
        (tmp_path / "info" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "info" / name).write_text(f"{text}\n")
    resctrl = Resctrl(str(tmp_path), "steelyard-test", _Kernel())
    (joined,) = resctrl.prepare()
    assert joined == f"{tmp_path}/steelyard-test-idle/tasks"
    assert (tmp_path / "steelyard-test-idle/schemata").read_text() == "MB:0=10\n"


class _Kernel(CgroupFiles):
    """Fills a new group as the kernel does."""

    def make(self, folder: str) -> None:
        super().make(folder)
        (Path(folder) / "schemata").write_text("MB:0=100")
        (Path(folder) / "tasks").write_text("")

    def write(self, path: str, text: str) -> None:
        Path(path).write_text(text)
