from __future__ import annotations

from steelyard.host.cgroup_none import find_members
from steelyard.host.proc import ProcessStat, find_cgroup, parse_stat
from steelyard.host.sysfs import format_cpus, parse_cpus


def test_a_command_name_with_blanks_and_brackets_does_not_shift_the_fields() -> None:
    fields = "S 12 34 56 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2"
    assert parse_stat(f"77 (a) b (c) {fields}") == ProcessStat(state="S", parent=12, session=56, start_time=987654)


def test_a_cut_or_missing_stat_is_no_process() -> None:
    assert parse_stat(None) is None
    assert parse_stat("") is None
    assert parse_stat("77 (sh) S 1 2") is None


def test_cpu_lists_are_written_as_the_kernel_writes_them() -> None:
    assert parse_cpus("0-3,8\n") == (0, 1, 2, 3, 8)
    assert parse_cpus("") == ()
    assert parse_cpus("x,2,-") == (2,)
    assert format_cpus((8, 0, 1, 2, 3, 3)) == "0-3,8"
    assert format_cpus(()) == ""


def test_a_v1_group_is_named_once_and_the_common_cpuset_is_not_it() -> None:
    text = "5:pids:/sy/j1\n4:cpuset:/sy/shared\n3:memory:/sy/j1\n2:cpu,cpuacct:/sy/j1\n1:name=systemd:/init\n0::/"
    assert find_cgroup(text) == "sy/j1"


def test_a_process_moved_out_of_one_v1_tree_shows_both_groups() -> None:
    assert find_cgroup("3:memory:/elsewhere\n2:cpu:/sy/j1\n0::/") == "elsewhere, sy/j1"


def test_a_v2_group_is_the_only_line() -> None:
    assert find_cgroup("0::/sy/shared/j1") == "sy/shared/j1"


def process(parent: int, session: int, start_time: int) -> ProcessStat:
    return ProcessStat(state="S", parent=parent, session=session, start_time=start_time)


def test_without_groups_a_workload_is_its_session_and_the_descendants_of_its_members() -> None:
    processes = {
        10: process(1, 10, 100),  # the leader
        11: process(10, 10, 101),  # in its session
        12: process(11, 12, 102),  # left the session, its parent lives
        13: process(12, 12, 103),
        20: process(1, 20, 100),  # somebody else
    }
    assert sorted(find_members(processes, (10, 100), {}, own_pid=1)) == [10, 11, 12, 13]


def test_without_groups_an_orphan_seen_before_is_still_a_member_but_a_reused_pid_is_not() -> None:
    processes = {12: process(1, 12, 102), 13: process(1, 13, 999)}
    assert find_members(processes, (10, 100), {10: 100, 12: 102, 13: 103}, own_pid=1) == {12: 102}


def test_without_groups_an_older_session_with_the_same_number_is_not_ours() -> None:
    assert find_members({11: process(1, 10, 50)}, (10, 100), {}, own_pid=1) == {}
