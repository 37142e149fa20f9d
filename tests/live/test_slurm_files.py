"""Does the real Slurm take what is rendered from recorded machines? slurmd reads each through hwloc and compares.

Needs Debian's slurmd and the recorded machines. No cluster is started: slurmd is ended when it has read everything.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from machines import make_topology
from recorded import recorded
from slurm_machines import seen_host, spec_of
from steelyard.engine.bringup.plan import plan_bring_up
from steelyard.host.fabric.read import read_fabric
from steelyard.host.topology.read import read_topology
from steelyard.model.cluster import StepKind
from steelyard.model.fabric import Fabric
from steelyard.model.topology import PathClass, Topology

SLURMD = shutil.which("slurmd") or shutil.which("slurmd", path="/usr/sbin")
pytestmark = pytest.mark.skipif(
    SLURMD is None or os.geteuid() != 0, reason="Debian's slurmd and root are needed: Slurm's files are NOT VERIFIED without"
)

#: recorded machine -> what Slurm should call a socket, and how many there are
MACHINES = {
    "hwloc-AMD-2xEpyc-7763.xml": ("l3cache_as_socket", 16),
    "fluxsched-amd_gpu_corona11.xml": ("numa_node_as_socket", 8),
    "fluxcore-tuo.SPX.xml": ("l3cache_as_socket", 12),
    "fluxcore-sierra.xml": ("", 2),
    "hwloc-nvidia-dgx-gb10.xml": ("l3cache_as_socket", 2),
    "hwloc-Intel-Corei7-1370P.xml": ("", 1),
    "hwloc-Intel-2xXeonMax9460.xml": ("", 2),
    "hwloc-16em64t-4s2c2t-offlines.xml": ("", 4),
    "hwloc-power8gpudistances.xml": ("", 2),
    "hwloc-64intel64-fakeKNL-SNC4-hybrid.xml": ("l3cache_as_socket", 4),
    "hwloc-nvidiaDGX2.xml": ("", 2),
}


@pytest.mark.parametrize("name", MACHINES)
def test_slurmd_finds_the_recorded_machine_as_its_line_says(name: str, tmp_path: Path) -> None:
    socketing, sockets = MACHINES[name]
    machine = read_topology([recorded(f"hwloc-xml/{name}")])
    if not machine.memory_bytes:
        machine = msgspec.structs.replace(machine, memory_bytes=64 << 30)
    files = _files(tmp_path, machine)
    conf = files["slurm.conf"]
    assert f"SlurmdParameters={socketing}" in conf if socketing else "SlurmdParameters" not in conf
    assert f"SocketsPerBoard={sockets} " in conf
    said = _start_slurmd(tmp_path, files, HWLOC_XMLFILE=str(recorded(f"hwloc-xml/{name}")), HWLOC_THISSYSTEM="1")
    # (an irregular machine is an error to slurmd, which goes on with whole numbers)
    assert not re.search(r"(error|fatal): (?!(Thread|Core) count \(\d+\) not multiple)", said), said
    assert f" Sockets:{sockets} " in said, said


def test_slurmd_takes_the_tree_of_a_recorded_fabric(tmp_path: Path) -> None:
    fabric = read_fabric([recorded("fabric/ibnetdiscover-gb200-nvl72-ndr.out")])
    names = [host.name for host in fabric.hosts if host.ports][:8]
    machine = make_topology([], lambda a, b: (PathClass.SYS, 0, None))
    files = _files(tmp_path, machine, ["n1", *names], fabric)
    assert "TopologyPlugin=topology/tree" in files["slurm.conf"] and files["topology.conf"].count("SwitchName=") > 1
    said = _start_slurmd(tmp_path, files)
    assert "topology/tree: init" in said
    # (this machine is not the one of the file, and the first node is on no switch)
    complaints = re.findall(r"(?:error|fatal): (.*)", said)
    assert all("differs from hardware" in each or each.endswith("lack access to 1 nodes: n1") for each in complaints), said


def _files(folder: Path, machine: Topology, names: Sequence[str] = ("n1",), fabric: Fabric | None = None) -> dict[str, str]:
    """As rendered for nodes like that, with this test's paths, without what needs a running munge or makes control groups."""
    old = Path("/sys/fs/cgroup/cpuset").is_dir()
    controllers = frozenset({"freezer", "memory"} if old else ())
    hosts = {name: seen_host(name, machine, cgroups="v1" if old else "v2", controllers=controllers) for name in names}
    plan = plan_bring_up(spec_of(*names), hosts, {}, fabric)
    files = {Path(step.subject).name: step.content for step in plan.steps if step.kind is StepKind.WRITE}
    return {name: _moved(content, folder) for name, content in files.items()}


def _moved(content: str, folder: Path) -> str:
    for old, new in (
        ("auth/munge", "auth/none"), ("proctrack/cgroup", "proctrack/linuxproc"), ("task/cgroup,task/affinity", "task/none"),
        ("jobacct_gather/cgroup", "jobacct_gather/none"), ("SlurmUser=slurm", "SlurmUser=root"),
    ):  # fmt: skip
        content = content.replace(old, new)
    return re.sub(r"=/(etc|var|run|dev)/", rf"={folder}/", content)


def _start_slurmd(folder: Path, files: dict[str, str], **environ: str) -> str:
    """What it says until it has read all there is to read about its machine."""
    for name, content in files.items():
        (folder / name).write_text(content)
    for gpu in re.findall(r"File=(\S+)", files["gres.conf"]):
        os.mknod(gpu, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    for path in ("lib/slurm/slurmd", "log/slurm"):
        (folder / path).mkdir(parents=True)
    conf = str(folder / "slurm.conf")
    command = [str(SLURMD), "-D", "-vv", "-N", "n1", "-f", conf]
    said: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "SLURM_CONF": conf, **environ}
    ) as slurmd:
        assert slurmd.stdout is not None
        try:
            for line in slurmd.stdout:
                said.append(line)
                if "route/default: init" in line or "fatal" in line:
                    break
        finally:
            slurmd.kill()
    return "".join(said)
