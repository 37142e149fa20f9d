"""Which control groups are found, from fake /proc trees."""

from __future__ import annotations

from pathlib import Path

from steelyard.host.cgroup import find_mounts, parse_mounts

V1 = "{n} 31 0:{n} / /sys/fs/cgroup/{c} rw,relatime - cgroup cgroup rw,{c}\n"
V2 = "41 31 0:38 / {at} rw,relatime - cgroup2 cgroup2 rw\n"


def make_tree(root: Path, mountinfo: str, folders: list[str], cgroups: str = "") -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    (root / "proc/cgroups").write_text(cgroups)
    for folder in folders:
        (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    return root


def test_hybrid_machines_keep_the_v1_controllers(tmp_path: Path) -> None:
    names = ["cpu", "cpuset", "memory", "freezer", "pids"]
    info = "".join(V1.format(n=32 + at, c=name) for at, name in enumerate(names)) + V2.format(at="/sys/fs/cgroup/unified")
    root = make_tree(tmp_path, info, [f"sys/fs/cgroup/{name}" for name in [*names, "unified"]])
    found = find_mounts(root)
    assert (found.flavour, found.controllers, found.missing) == ("hybrid", frozenset(names), ())
    assert found.v1["cpuset"] == str(root / "sys/fs/cgroup/cpuset")
    assert found.v2 == str(root / "sys/fs/cgroup/unified")


def test_controllers_that_share_a_mount_are_found_there(tmp_path: Path) -> None:
    info = "33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    found = find_mounts(make_tree(tmp_path, info, ["sys/fs/cgroup/cpu,cpuacct"]))
    assert found.flavour == "v1"
    assert found.v1 == {"cpu": str(tmp_path / "sys/fs/cgroup/cpu,cpuacct")}


def test_what_is_missing_is_named_with_its_cause(tmp_path: Path) -> None:
    switched_off = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t1\t1\nmemory\t0\t1\t0\n"
    root = make_tree(tmp_path, V2.format(at="/sys/fs/cgroup"), ["sys/fs/cgroup"], switched_off)
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpu pids\n")
    found = find_mounts(root)
    assert (found.flavour, found.controllers) == ("v2", {"cpu", "pids", "freezer"})
    assert found.missing == (
        "The cpuset controller is not available to us: work is pinned by affinity only, which it may change itself.",
        "The memory controller is switched off in this kernel: memory limits are not enforced.",
    )


def test_a_cpuset_tree_shared_with_another_controller_is_left_alone(tmp_path: Path) -> None:
    info = "33 31 0:29 / /cg rw - cgroup cgroup rw,cpu,cpuset\n"
    found = find_mounts(make_tree(tmp_path, info, ["cg"]))
    assert found.controllers == {"cpu"}
    assert any("cpuset" in sentence for sentence in found.missing)


def test_no_mounts_at_all_says_what_to_do(tmp_path: Path) -> None:
    found = find_mounts(tmp_path)
    assert (found.flavour, found.controllers) == ("none", frozenset())
    assert "mount cgroup2" in found.missing[0]


def test_mount_points_with_blanks_and_broken_lines_are_read() -> None:
    info = "nonsense\n1 2\n33 31 0:29 / /my\\040groups rw - cgroup2 cgroup2 rw\n34 31 0:30 / /later rw - cgroup2 cgroup2 rw\n"
    assert parse_mounts(info, Path("/root")) == ({}, "/root/my groups")
