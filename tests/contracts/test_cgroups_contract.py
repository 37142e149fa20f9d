"""What every variant of `host.Cgroups` does: on a model of the kernel (v1, hybrid without a freezer, v2 old and new) and, where
this machine has them, on the real groups. Then what only one variant does, by content, on the model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contracts.kernel_model import ModelKernel
from steelyard.clock import SystemClock
from steelyard.errors import EdgeFailed
from steelyard.host import UNLIMITED_BYTES, Cgroups
from steelyard.host.cgroup import find_mounts, open_cgroups
from steelyard.host.cgroup_files import KILL_NS, CgroupFiles
from steelyard.host.cgroup_none import CgroupsNone
from steelyard.host.cgroup_v1 import CgroupsV1
from steelyard.host.cgroup_v2 import CgroupsV2
from steelyard.host.proc import start_time
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.model.timing import Timing

# freezing and thawing real processes: nothing else runs meanwhile
pytestmark = pytest.mark.alone

CONTROLLERS = ("cpu", "cpuset", "memory", "freezer", "pids")
JOIN_THEN_SLEEP = (
    "import os, sys; [os.write(int(fd), b'0') for fd in sys.argv[1:]]; os.close(1); os.execvp('sleep', ['sleep', '600'])"
)
JOB, OTHER = WorkloadId("j1.1"), WorkloadId("fn.3.7")


class Stage:
    """A variant, and a way to put a process under it."""

    def __init__(self, cgroups: Cgroups, start: Callable[[WorkloadId], int], *, real: bool = False) -> None:
        self.real = real
        self.cgroups = cgroups
        self.start = start


def model_v1(kernel: ModelKernel, controllers: tuple[str, ...] = CONTROLLERS, unified: str | None = None) -> CgroupsV1:
    mounts = {controller: kernel.mount_v1(controller) for controller in controllers}
    return CgroupsV1(
        "test",
        mounts,
        flavour="v1",
        missing=(),
        files=kernel,
        clock=kernel.clock,
        unified=unified,
        cpuacct=kernel.mount_v1("cpuacct"),
        blkio=kernel.mount_v1("blkio"),
        disks=lambda: kernel.disks,
    )


def model_v2(kernel: ModelKernel, controllers: str = "cpu cpuset memory pids io", *, kill: bool = True) -> CgroupsV2:
    mount = kernel.mount_v2(controllers, kill=kill)
    return CgroupsV2("test", mount, missing=(), files=kernel, clock=kernel.clock, disks=lambda: kernel.disks)


MODELS: dict[str, Callable[[ModelKernel], Cgroups]] = {
    "model-v1": model_v1,
    "model-v1-cpu-only": lambda kernel: model_v1(kernel, ("cpu",)),
    "model-hybrid-no-freezer": lambda kernel: model_v1(kernel, ("cpu", "cpuset", "memory"), kernel.mount_v2("")),
    "model-v2": model_v2,
    "model-v2-before-kill": lambda kernel: model_v2(kernel, kill=False),
    "model-v2-no-controllers": lambda kernel: model_v2(kernel, ""),
}


def await_empty(cgroups: Cgroups, workload: WorkloadId) -> None:
    """A group tells nobody that it is empty."""
    clock = SystemClock()
    deadline = clock.mono_ns() + 5_000_000_000
    while cgroups.pids(workload):
        assert clock.mono_ns() < deadline, "it did not end"
        CgroupFiles().wait()


def open_real(name: str) -> Cgroups:
    tag = f"contract-{os.getpid()}"
    mounts = find_mounts()
    if name == "real-none":
        return CgroupsNone(missing=(), files=CgroupFiles(), clock=SystemClock())
    if mounts.flavour == "none":
        pytest.skip(f"no control groups that we may write: {mounts.missing}")
    if name == "real-v2":
        if mounts.v2 is None:
            pytest.skip("cgroup2 is not mounted on this machine")
        return CgroupsV2(tag, mounts.v2, missing=(), files=CgroupFiles(), clock=SystemClock())
    return open_cgroups(tag)


@pytest.fixture(params=[*MODELS, "real", "real-v2", "real-none"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    name: str = request.param
    if name in MODELS:
        kernel = ModelKernel()
        cgroups = MODELS[name](kernel)
        cgroups.prepare((0, 1), (0,))
        yield Stage(cgroups, lambda workload: kernel.join(cgroups.open_join(workload)))
        return
    cgroups = open_real(name)
    children: list[subprocess.Popen[bytes]] = []

    def start(workload: WorkloadId) -> int:
        fds = cgroups.open_join(workload)
        # It joins, then becomes the sleeper: the way of a child of the spawner. Its closed stdout tells that it did.
        command = [sys.executable, "-Sc", JOIN_THEN_SLEEP, *map(str, fds)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=fds, start_new_session=True)
        children.append(child)
        for fd in fds:
            os.close(fd)
        assert child.stdout is not None
        assert child.stdout.read() == b""
        cgroups.track(workload, child.pid, start_time(child.pid) or 0)
        return child.pid

    try:
        cgroups.prepare(tuple(sorted(os.sched_getaffinity(0))), (0,))
        yield Stage(cgroups, start, real=True)
    finally:
        cgroups.destroy()
        for child in children:
            child.kill()
            child.communicate()
        assert cgroups.workloads() == []


def test_a_workload_is_listed_signalled_killed_and_removed(stage: Stage) -> None:
    cgroups = stage.cgroups
    cgroups.make(JOB, Plan(share=0.5, memory_bytes=64 << 20))
    first, second = stage.start(JOB), 0
    assert cgroups.pids(JOB) == [first]
    if cgroups.flavour != "none":
        second = stage.start(JOB)
        assert set(cgroups.pids(JOB)) == {first, second}
    assert cgroups.workloads() == [JOB]
    assert cgroups.remove(JOB) is False
    cgroups.signal(JOB, signal.SIGCONT)
    assert set(cgroups.read(JOB).pids) == {first, second} - {0}
    cgroups.kill(JOB)
    assert cgroups.pids(JOB) == []
    assert cgroups.remove(JOB) is True
    assert cgroups.workloads() == []


def test_killing_one_leaves_the_other_alone(stage: Stage) -> None:
    for workload in (JOB, OTHER):
        stage.cgroups.make(workload, Plan())
    stage.start(JOB)
    spared = stage.start(OTHER)
    stage.cgroups.kill(JOB)
    assert stage.cgroups.pids(OTHER) == [spared]
    assert stage.cgroups.workloads() == sorted([JOB, OTHER])


def test_what_is_asked_is_read_back(stage: Stage) -> None:
    stage.cgroups.make(JOB, Plan(share=0.5, memory_bytes=64 << 20))
    stage.cgroups.make(OTHER, Plan(share=0.25))
    reading, other = stage.cgroups.read(JOB), stage.cgroups.read(OTHER)
    enforced = stage.cgroups.controllers
    assert reading.share == (0.5 if "cpu" in enforced else None)
    assert reading.memory_bytes == (64 << 20 if "memory" in enforced else None)
    assert other.memory_bytes == (UNLIMITED_BYTES if "memory" in enforced else None)
    assert (reading.oom_kills is not None) == ("memory" in enforced)
    assert (reading.cpus is not None) == ("cpuset" in enforced)


def test_what_it_has_used_is_read_and_an_unknown_workload_has_used_nothing(stage: Stage) -> None:
    stage.cgroups.make(JOB, Plan(memory_bytes=64 << 20))
    stage.start(JOB)
    usage = stage.cgroups.read_usage(JOB)
    assert usage.cpu_s is not None and usage.cpu_s >= 0
    assert usage.memory_bytes is not None or "memory" not in stage.cgroups.controllers
    assert stage.cgroups.read_usage(OTHER).memory_bytes is None


def test_a_limit_of_disk_traffic_goes_with_its_workload_and_others_have_none(stage: Stage) -> None:
    cgroups = stage.cgroups
    cgroups.make(JOB, Plan(io_max_bytes_s=64 << 20))
    cgroups.make(OTHER, Plan())
    assert cgroups.read(JOB).io_max_bytes_s in (64 << 20, None)
    assert cgroups.read(OTHER).io_max_bytes_s is None
    stage.start(JOB)
    cgroups.kill(JOB)
    assert cgroups.remove(JOB) is True
    assert cgroups.read(JOB).io_max_bytes_s is None


def test_everything_may_be_said_twice(stage: Stage) -> None:
    cgroups = stage.cgroups
    for _ in range(2):
        cgroups.prepare((0,), (0,))
        cgroups.make(JOB, Plan(share=0.5, memory_bytes=64 << 20))
    for _ in range(2):
        cgroups.kill(JOB)
        assert cgroups.remove(JOB) is True
    cgroups.destroy()
    cgroups.destroy()
    assert cgroups.workloads() == []


def test_limits_can_be_raised_and_lowered(stage: Stage) -> None:
    for megabytes in (64, 128, 32):
        stage.cgroups.make(JOB, Plan(memory_bytes=megabytes << 20))
        assert stage.cgroups.read(JOB).memory_bytes in (megabytes << 20, None)


def test_an_unknown_workload_is_empty_and_raises_nothing(stage: Stage) -> None:
    assert stage.cgroups.pids(JOB) == []
    assert stage.cgroups.read(JOB).pids == ()
    assert stage.cgroups.read(JOB).cpus is None
    stage.cgroups.signal(JOB, signal.SIGTERM)
    stage.cgroups.kill(JOB)
    assert stage.cgroups.remove(JOB) is True


def test_a_frozen_workload_stands_still_goes_on_when_told_and_is_killed_all_the_same(stage: Stage) -> None:
    cgroups = stage.cgroups
    for workload in (JOB, OTHER):
        cgroups.make(workload, Plan())
        stage.start(workload)
    assert cgroups.frozen(JOB) is False
    for _ in range(2):
        assert cgroups.freeze(JOB, True) is True
        assert (cgroups.frozen(JOB), cgroups.frozen(OTHER)) == (True, False)
    for _ in range(2):
        assert cgroups.freeze(JOB, False) is True
        assert cgroups.frozen(JOB) is False
    assert cgroups.pids(JOB) != []
    assert cgroups.freeze(JOB, True) is True
    cgroups.kill(JOB)
    assert cgroups.pids(JOB) == []
    assert cgroups.remove(JOB) is True


def test_a_signal_to_a_frozen_workload_takes_effect_once_it_goes_on(stage: Stage) -> None:
    stage.cgroups.make(JOB, Plan())
    stage.start(JOB)
    stage.cgroups.freeze(JOB, True)
    stage.cgroups.signal(JOB, signal.SIGTERM)
    assert stage.cgroups.pids(JOB) != []
    stage.cgroups.freeze(JOB, False)
    if stage.real:
        await_empty(stage.cgroups, JOB)


def test_nothing_is_frozen_of_a_workload_that_is_not_there(stage: Stage) -> None:
    assert stage.cgroups.freeze(JOB, True) is False
    assert stage.cgroups.frozen(JOB) is False
    assert stage.cgroups.freeze(JOB, False) is True


def test_destroy_ends_what_runs(stage: Stage) -> None:
    for workload in (JOB, OTHER):
        stage.cgroups.make(workload, Plan())
        stage.start(workload)
    stage.cgroups.destroy()
    assert stage.cgroups.pids(JOB) == stage.cgroups.pids(OTHER) == []
    assert stage.cgroups.workloads() == []


# --- one variant each, by content, on the model ---


def test_v1_best_effort_joins_the_common_cpuset_and_exclusive_work_its_own() -> None:
    kernel = ModelKernel()
    cgroups = model_v1(kernel)
    cgroups.prepare((0, 1), (0, 1))
    cgroups.make(JOB, Plan(share=2.0))
    cgroups.make(OTHER, Plan(cpus=(2, 3), memory_nodes=(1,)))
    assert [kernel.descriptors[fd] for fd in cgroups.open_join(JOB)] == [
        "/model/freezer/steelyard-test/j1.1",
        "/model/cpu/steelyard-test/j1.1",
        "/model/memory/steelyard-test/j1.1",
        "/model/pids/steelyard-test/j1.1",
        "/model/cpuacct/steelyard-test/j1.1",
        "/model/cpuset/steelyard-test/shared",
    ]
    assert kernel.descriptors[cgroups.open_join(OTHER)[-1]] == "/model/cpuset/steelyard-test/fn.3.7"
    assert (cgroups.read(JOB).cpus, cgroups.read(OTHER).cpus, cgroups.read(OTHER).memory_nodes) == ((0, 1), (2, 3), (1,))
    assert kernel.files["/model/cpu/steelyard-test/j1.1/cpu.shares"] == "2048"
    cgroups.prepare((0,), (0, 1))
    assert cgroups.read(JOB).cpus == (0,)
    assert cgroups.path(JOB) == "steelyard-test/j1.1"


def test_v1_preemptible_work_gives_way_in_a_tree_of_its_own_and_all_of_it_is_found_and_removed() -> None:
    kernel = ModelKernel()
    cgroups = model_v1(kernel)
    cgroups.prepare((0, 1), (0, 1))
    cgroups.make(JOB, Plan(preemptible=True))
    assert "/model/cpu/steelyard-test-idle/j1.1" in [kernel.descriptors[fd] for fd in cgroups.open_join(JOB)]
    assert kernel.files["/model/cpu/steelyard-test-idle/cpu.idle"] == "1"
    assert "/model/cpu/steelyard-test/j1.1" not in kernel.members
    assert (cgroups.read(JOB).gives_way, cgroups.read(JOB).cpus) == (True, (0, 1))
    assert cgroups.workloads() == [JOB]
    assert cgroups.remove(JOB)
    cgroups.destroy()
    assert not [group for group in kernel.members if "steelyard" in group]


def test_v2_preemptible_work_gives_way_and_follows_the_common_cpuset() -> None:
    kernel = ModelKernel()
    cgroups = model_v2(kernel)
    cgroups.prepare((0, 1), (0,))
    cgroups.make(JOB, Plan(preemptible=True))
    assert cgroups.path(JOB) == "steelyard-test-idle/j1.1"
    assert kernel.files["/model/unified/steelyard-test-idle/cpu.idle"] == "1"
    assert (cgroups.read(JOB).gives_way, cgroups.read(JOB).cpus) == (True, (0, 1))
    cgroups.prepare((0,), (0,))
    assert cgroups.read(JOB).cpus == (0,)
    cgroups.destroy()
    assert not [group for group in kernel.members if "steelyard" in group]


def test_v1_limits_every_disk_both_ways_and_only_limited_work_joins_the_group() -> None:
    kernel = ModelKernel()
    cgroups = model_v1(kernel)
    cgroups.prepare((0, 1), (0,))
    cgroups.make(OTHER, Plan())
    assert not [group for group in kernel.members if "blkio/" in group]
    cgroups.make(JOB, Plan(io_max_bytes_s=1000))
    leaf = "/model/blkio/steelyard-test/j1.1"
    for way in ("read", "write"):
        assert kernel.files[f"{leaf}/blkio.throttle.{way}_bps_device"] == "254:0 1000\n259:0 1000"
    assert leaf in [kernel.descriptors[fd] for fd in cgroups.open_join(JOB)]
    assert cgroups.read(JOB).io_max_bytes_s == 1000
    kernel.disks.append("8:0")
    assert cgroups.read(JOB).io_max_bytes_s is None, "a disk without the limit"
    cgroups.make(JOB, Plan())
    assert leaf not in kernel.members
    cgroups.make(JOB, Plan(io_max_bytes_s=1000))
    cgroups.destroy()
    assert not [group for group in kernel.members if "steelyard" in group]


def test_v2_enables_the_io_controller_when_the_first_limit_is_asked_for() -> None:
    kernel = ModelKernel()
    cgroups = model_v2(kernel)
    cgroups.prepare((0, 1), (0,))
    cgroups.make(OTHER, Plan())
    assert "io" not in kernel.files["/model/unified/steelyard-test/shared/cgroup.subtree_control"]
    cgroups.make(JOB, Plan(io_max_bytes_s=1000))
    leaf = "/model/unified/steelyard-test/shared/j1.1"
    assert kernel.files[f"{leaf}/io.max"].splitlines()[0] == "254:0 rbps=1000 wbps=1000 riops=max wiops=max"
    assert (cgroups.read(JOB).io_max_bytes_s, cgroups.read(OTHER).io_max_bytes_s) == (1000, None)
    cgroups.make(JOB, Plan())
    assert kernel.files[f"{leaf}/io.max"] == ""
    assert cgroups.missing == ()


def test_v2_names_that_disk_traffic_can_not_be_limited() -> None:
    cgroups = model_v2(ModelKernel(), "cpu cpuset memory pids")
    cgroups.prepare((0, 1), (0,))
    cgroups.make(JOB, Plan(io_max_bytes_s=1000))
    assert cgroups.read(JOB).io_max_bytes_s is None
    assert any("io controller can't be enabled" in sentence for sentence in cgroups.missing)


def test_cpu_time_is_counted_by_the_group_and_memory_is_told_now_and_at_most() -> None:
    for cgroups in (model_v1(ModelKernel()), model_v2(ModelKernel())):
        cgroups.prepare((0, 1), (0,))
        cgroups.make(JOB, Plan())
        usage = cgroups.read_usage(JOB)
        assert (usage.cpu_s, usage.memory_bytes, usage.memory_peak_bytes) == (1.5, 2048, 4096)


def test_v1_finds_cpu_time_in_the_cpu_tree_where_both_share_a_mount_also_of_work_that_gives_way() -> None:
    kernel = ModelKernel()
    mounts = {controller: kernel.mount_v1(controller) for controller in CONTROLLERS}
    cgroups = CgroupsV1(
        "test", mounts, flavour="v1", missing=(), files=kernel, clock=kernel.clock, cpuacct=mounts["cpu"], blkio=None
    )
    cgroups.prepare((0, 1), (0,))
    cgroups.make(JOB, Plan(preemptible=True))
    kernel.files["/model/cpu/steelyard-test-idle/j1.1/cpuacct.usage"] = "2000000000"
    assert cgroups.read_usage(JOB).cpu_s == 2.0
    assert cgroups.path(JOB) == "steelyard-test/j1.1"
    assert cgroups.read(JOB).gives_way


def test_v1_realtime_work_stays_out_of_groups_without_a_realtime_budget() -> None:
    kernel = ModelKernel()
    cgroups = model_v1(kernel)
    kernel.files["/model/cpu/cpu.rt_runtime_us"] = "950000"
    cgroups.prepare((0, 1), (0,))
    cgroups.make(JOB, Plan(cpus=(3,), timing=Timing.REALTIME))
    cgroups.make(OTHER, Plan(cpus=(2,), timing=Timing.DEDICATED))
    assert [kernel.descriptors[fd] for fd in cgroups.open_join(JOB)][:2] == ["/model/freezer/steelyard-test/j1.1", "/model/cpu"]
    assert kernel.descriptors[cgroups.open_join(OTHER)[1]] == "/model/cpu/steelyard-test/fn.3.7"
    assert cgroups.remove(JOB)


def test_v1_refuses_cores_that_are_not_there_and_says_which_workload() -> None:
    cgroups = model_v1(ModelKernel(cpus="0-1"))
    cgroups.prepare((0, 1), (0,))
    with pytest.raises(EdgeFailed, match=r"j1\.1"):
        cgroups.make(JOB, Plan(cpus=(5,)))


def test_v1_swap_is_limited_together_with_memory() -> None:
    kernel = ModelKernel()
    cgroups = model_v1(kernel)
    cgroups.prepare((0,), (0,))
    cgroups.make(JOB, Plan(memory_bytes=8192))
    assert kernel.files["/model/memory/steelyard-test/j1.1/memory.memsw.limit_in_bytes"] == "8192"


def test_joining_a_workload_that_was_not_made_is_an_edge_failure() -> None:
    for cgroups in (model_v1(ModelKernel()), model_v2(ModelKernel())):
        cgroups.prepare((0,), (0,))
        with pytest.raises(EdgeFailed, match=r"j1\.1"):
            cgroups.open_join(JOB)


@pytest.mark.parametrize("kill", [True, False])
def test_v2_enables_controllers_down_the_path_and_puts_best_effort_under_shared(*, kill: bool) -> None:
    kernel = ModelKernel()
    cgroups = model_v2(kernel, kill=kill)
    cgroups.prepare((0, 1), (0,))
    for folder in ("", "/steelyard-test", "/steelyard-test/shared"):
        enabled = set(kernel.files[f"/model/unified{folder}/cgroup.subtree_control"].split())
        assert enabled == {"cpu", "cpuset", "memory", "pids"}, folder
    cgroups.make(JOB, Plan(share=0.3, memory_bytes=64 << 20))
    cgroups.make(OTHER, Plan(cpus=(2, 3), memory_nodes=(1,)))
    assert cgroups.path(JOB) == "steelyard-test/shared/j1.1"
    assert cgroups.path(OTHER) == "steelyard-test/fn.3.7"
    assert (cgroups.read(JOB).cpus, cgroups.read(OTHER).cpus, cgroups.read(OTHER).memory_nodes) == ((0, 1), (2, 3), (1,))
    reading = cgroups.read(JOB)
    assert (reading.share, reading.memory_peak_bytes, reading.oom_kills) == (0.3, 4096, 3)
    assert kernel.files["/model/unified/steelyard-test/shared/j1.1/memory.swap.max"] == "0"
    cgroups.prepare((0,), (0,))
    assert cgroups.read(JOB).cpus == (0,)
    assert cgroups.missing == ()


def test_v2_names_a_controller_that_processes_in_the_way_keep_from_being_enabled() -> None:
    kernel = ModelKernel()
    cgroups = model_v2(kernel)
    kernel.members["/model/unified"].add(1)
    cgroups.prepare((0, 1), (0,))
    assert cgroups.controllers == {"freezer"}
    assert len(cgroups.missing) == 4
    assert all("controller can't be enabled" in sentence for sentence in cgroups.missing)
    cgroups.make(JOB, Plan(share=0.3, memory_bytes=64 << 20))
    pid = kernel.join(cgroups.open_join(JOB))
    assert cgroups.pids(JOB) == [pid]


@pytest.mark.parametrize("name", ["model-v1", "model-v2", "model-v2-before-kill"])
def test_a_fork_bomb_dies_because_it_is_frozen_first(name: str) -> None:
    kernel = ModelKernel()
    cgroups = MODELS[name](kernel)
    cgroups.prepare((0,), (0,))
    cgroups.make(JOB, Plan())
    fds = cgroups.open_join(JOB)
    kernel.join(fds)
    kernel.forks[kernel.descriptors[fds[0]]] = 3
    cgroups.kill(JOB)
    assert cgroups.pids(JOB) == []


def test_a_process_that_will_not_die_bounds_the_kill_and_blocks_the_removal() -> None:
    kernel = ModelKernel()
    cgroups = model_v1(kernel)
    cgroups.prepare((0,), (0,))
    cgroups.make(JOB, Plan())
    kernel.immortal.add(kernel.join(cgroups.open_join(JOB)))
    before = kernel.clock.mono_ns()
    cgroups.kill(JOB)
    assert KILL_NS <= kernel.clock.mono_ns() - before < KILL_NS * 1.1
    assert cgroups.remove(JOB) is False
    assert cgroups.workloads() == [JOB]
    assert kernel.files["/model/freezer/steelyard-test/j1.1/freezer.state"] == "THAWED"


def test_v1_a_child_that_died_half_way_through_joining_is_killed_too() -> None:
    kernel = ModelKernel()
    cgroups = model_v1(kernel)
    cgroups.prepare((0,), (0,))
    cgroups.make(JOB, Plan())
    kernel.join(cgroups.open_join(JOB)[1:2])
    assert cgroups.pids(JOB) == []
    cgroups.kill(JOB)
    assert cgroups.remove(JOB) is True


def test_the_variant_fits_what_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    cgroups = open_cgroups("test", tmp_path)
    assert isinstance(cgroups, CgroupsV2)
    assert cgroups.controllers == {"cpu", "cpuset", "memory", "pids", "freezer"}
    (tmp_path / "proc/self/mountinfo").write_text("")
    assert isinstance(open_cgroups("test", tmp_path), CgroupsNone)
