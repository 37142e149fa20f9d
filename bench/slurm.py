"""A real Slurm of one machine to be measured beside: munged, slurmctld and slurmd from Debian's packages, in a folder of its own.

Started for one measurement and ended after it. Tuned as its guide for high throughput says, so that its defaults for large sites
(jobs scheduled every 3 s) don't decide; without accounting, without cgroups, and as root, who may run all of it in one place.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.installation import free_port

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue")
START_S = 30.0
_PR_SET_CHILD_SUBREAPER = 36

CONF = """
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldDebug=error
SlurmdDebug=error
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000,sched_interval=1,bf_interval=1,default_queue_depth=1000
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000
PartitionName=bench Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:{shared}
"""


class Slurm:
    """Up and idle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def wait_idle(self) -> None:
        """Until its only node has nothing to do."""
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(RuntimeError):
                if self.call("sinfo", "--noheader", "--format", "%T").strip() == "idle":
                    return
            if time.monotonic() > end:
                raise RuntimeError(f"Slurm's node is not idle after {START_S:g} s: {self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The last line of each."""
        lines = [file.read_text().splitlines()[-1:] for file in sorted(self.folder.glob("*.log"))]
        return "; ".join(line for each in lines for line in each)


def install() -> None:
    """Raises RuntimeError with the reason."""
    if all(shutil.which(name) for name in PROGRAMS):
        return
    if os.geteuid() != 0:
        raise RuntimeError(f"Slurm is not installed, and installing it needs root: apt-get install {' '.join(PACKAGES)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=env, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise RuntimeError(f"apt-get {command[0]}: {done.stderr.strip().splitlines()[-1:]}")


def version() -> str:
    return subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, timeout=30, check=False).stdout.split()[-1]


@contextlib.contextmanager
def slurm(shared: int = 50) -> Iterator[Slurm]:
    """`shared`: jobs that may run on one core at a time. Raises RuntimeError where Slurm can't be had here."""
    if os.geteuid() != 0:
        raise RuntimeError("Slurm's programs need root")
    install()
    folder = Path(tempfile.mkdtemp(prefix="sybench-slurm-"))
    folder.chmod(0o755)
    peer, children = Slurm(folder), []
    # its steps leave their parent: they come to us, who end the last of them
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        _write_files(folder, shared)
        for command in (
            ["munged", "--foreground", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
             f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-c"],
        ):  # fmt: skip
            with (folder / f"{command[0]}.out").open("wb") as out:
                children.append(subprocess.Popen(command, env=peer.env, cwd=folder, stdout=out, stderr=out))
            _wait_for(folder / "munge.socket")
        peer.wait_idle()
        yield peer
    finally:
        for child in reversed(children):
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder: Path, shared: int) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    text = CONF.format(
        folder=folder,
        host=socket.gethostname().partition(".")[0],
        ctld_port=free_port(),
        slurmd_port=free_port(),
        cpus=os.cpu_count(),
        shared=shared,
    )
    (folder / "slurm.conf").write_text(text)


def _wait_for(path: Path) -> None:
    end = time.monotonic() + START_S
    while not path.exists():
        if time.monotonic() > end:
            raise RuntimeError(f"{path.name} did not appear: {(path.parent / 'munged.out').read_text()[-300:]}")
        time.sleep(0.02)
