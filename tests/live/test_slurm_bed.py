"""What tests on real Slurm stand on: machines that are apart from each other and from this one, and leave nothing behind."""

from __future__ import annotations

import ctypes.util
import os
import signal
from collections.abc import Iterator

import pytest
from mpi_ring import RING
from traces import observe_traces

from slurm_bed import USER_UID, SlurmBed, machines, slurm, wait_until


@pytest.fixture(scope="module")
def bed() -> Iterator[SlurmBed]:
    with slurm() as made:
        yield made


def test_three_nodes_run_one_step(bed: SlurmBed) -> None:
    assert sorted(bed.ok("srun", "-N3", "hostname").split()) == ["n1", "n2", "n3"]


def test_a_job_of_an_ordinary_user_runs_as_that_user(bed: SlurmBed) -> None:
    folder = bed.shared / "ada"
    bed.ok("sbatch", "--wait", "--output=out", "--wrap", "id -u; srun -n1 hostname", user=True, cwd=folder)
    uid, host = (folder / "out").read_text().split()
    assert uid == str(USER_UID) and host.startswith("n")
    assert "not permitted to use this partition" in bed.run("srun", "-p", "closed", "true", user=True, cwd=folder).stderr


def test_every_machine_has_files_and_processes_of_its_own(bed: SlurmBed) -> None:
    for machine in bed:
        machine.path("/etc/motd").write_text(machine.name)
        machine.path("/tmp/mine").write_text(machine.name)
    assert [machine.ok("cat", "/etc/motd", "/tmp/mine") for machine in bed] == [machine.name * 2 for machine in bed]
    assert not os.path.exists("/tmp/mine")
    assert bed["n1"].ok("pgrep", "-cx", "slurmd") == "1\n"
    assert bed["n1"].run("pgrep", "slurmctld").returncode == 1
    # the shared folder is one
    (bed.shared / "told").write_text("everybody")
    assert bed["n3"].ok("cat", str(bed.shared / "told")) == "everybody"


def test_steps_are_held_by_control_groups_of_their_node(bed: SlurmBed) -> None:
    seen = bed.ok("srun", "-w", "n2", "-n1", "sh", "-c", "cat /proc/self/cgroup; grep Cpus_allowed_list: /proc/self/status")
    assert "/slurm_n2/uid_0/job_" in seen or "slurmstepd" in seen
    assert len(seen.rsplit(":", 1)[1].split(",")) == 1 and "-" not in seen.rsplit(":", 1)[1]


def test_root_and_the_user_come_in_by_ssh(bed: SlurmBed) -> None:
    assert bed["n1"].ssh("id -u; hostname").stdout == "0\nn1\n"
    assert bed["n2"].ssh("id -u; squeue -h; pwd", user="ada").stdout == f"{USER_UID}\n{bed.shared}/ada\n"
    # and by name from machine to machine
    assert bed["n1"].ok(*bed.ssh_command, "root@n3", "hostname") == "n3\n"


def test_an_mpi_program_spans_the_nodes(bed: SlurmBed) -> None:
    if ctypes.util.find_library("mpi") is None:
        pytest.skip("NO MPI HERE: install openmpi-bin to try programs that span nodes")
    (bed.shared / "ring.py").write_text(RING)
    found = bed.ok("srun", "-N3", "--mpi=pmix", "/usr/bin/python3", "ring.py")
    assert sorted(found.splitlines()) == [f"rank {rank}, sum 6" for rank in range(3)]


def test_daemons_are_killed_and_started_again(bed: SlurmBed) -> None:
    bed.stop("n3")
    bed.start("n3")
    # not killed: it writes its state down now and then, and would believe jobs to run that ended since
    bed.stop("head", signal.SIGTERM)
    bed.start("head")
    bed.wait_idle()


def test_beds_side_by_side_leave_nothing_behind() -> None:
    before = observe_traces()
    with machines(["a", "b"]) as two:
        assert two["a"].ssh("hostname").stdout == "a\n"
        two["b"].power_off()
        assert two["a"].run(*two.ssh_command, "-o", "ConnectTimeout=1", "root@b", "true").returncode == 255
    assert not observe_traces().settled_minus(before)
    assert not two.folder.exists() and not os.path.exists(f"/sys/class/net/{two.bridge}")
    assert wait_until(lambda: two.bridge not in str(list(os.walk("/sys/fs/cgroup"))), "its control groups to go")
