"""A Slurm cluster of machines made of namespaces on this one: each with its own network, host name, processes, control groups,
/etc, /var, /usr, /tmp and sshd, on a bridge that this machine is on too. Needs root and Debian's packages, and says so without.

    with machines(["n1", "n2"]) as bed:         # two bare machines: an ssh away, no Slurm runs
        bed["n1"].run("hostname")
    with slurm() as bed:                        # head (slurmctld) and n1, n2, n3 (slurmd)
        bed.ok("srun", "-N3", "hostname")       # from this machine, as on a login host

Nothing here touches the Slurm, the munge or the sshd of the machine. Everything ends with the process that made it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from traces import other_machines

T = TypeVar("T")

#: program -> Debian's package for it
NEEDED = {
    "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge", "sshd": "openssh-server",
    "ssh-keygen": "openssh-client", "ip": "iproute2", "nft": "nftables", "sudo": "sudo",
}  # fmt: skip
#: an ordinary user of the cluster, known on every machine of it but not on this one
USER, USER_UID = "ada", 64321
READY_S = 60.0
#: root of another Debian, whose Slurm it is then (tools/other_slurm.sh makes one)
OTHER_ROOT = os.environ.get("SLURM_BED_ROOT", "")
PLUGINS = f"usr/lib/{os.uname().machine}-linux-gnu/slurm-wlm"
#: with the process that tests and a letter per bed; names of links have room for 15 characters
BRIDGE = "syb"
_number = itertools.count()

#: pid 1 of a machine. $1 folder of the bed, $2 host name, $3 address, $4 another Debian's root or "", $5.. hierarchies of control
#: groups that this machine has
INIT = (
    """
set -e
bed=$1 name=$2 address=$3 root=$4; shift 4
hostname "$name"
python=$(readlink -f /usr/bin/python3)
mount --make-rprivate /
mount -t tmpfs -o size=512m,mode=755 layers "$bed/layers"
for folder in etc var usr root; do
    mkdir -p "$bed/layers/$folder" "$bed/layers/.$folder"
    below=${root:+$root/$folder:}/$folder
    mount -t overlay -o "lowerdir=$below,upperdir=$bed/layers/$folder,workdir=$bed/layers/.$folder" overlay "/$folder"
done
if [ -n "$root" ]; then
    # not plugins of two versions; and ours runs by the Python that it was installed for
    mkdir "$bed/layers/plugins" "$bed/layers/.plugins"
    mount -t overlay -o "lowerdir=$root/PLUGINS,upperdir=$bed/layers/plugins,workdir=$bed/layers/.plugins" overlay /PLUGINS
    ln -sf "$python" /usr/bin/python3
fi
mount -t tmpfs -o mode=755 run /run
mkdir /run/sshd /run/bed /run/munge
mount --rbind "$bed" /run/bed
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p "$bed" && mount --rbind /run/bed "$bed" && umount -l /run/bed
mount -t sysfs -o ro sysfs /sys
if [ "$1" = unified ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    for hierarchy; do
        place=/sys/fs/cgroup/${hierarchy#name=}
        mkdir "$place" && mount -t cgroup -o "$hierarchy" cgroup "$place"
    done
fi
echo "$name" >/etc/hostname
cp "$bed/hosts" /etc/hosts
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n' >/etc/machine-id
echo "USER:x:UID:UID::$bed/shared/USER:/bin/bash" >>/etc/passwd
echo "USER:x:UID:" >>/etc/group
echo "USER:*:20000:0:99999:7:::" >>/etc/shadow
# where this machine is a container, its apt keeps no cache of its index, and each question would read all of it again
rm -f /etc/apt/apt.conf.d/docker-clean
rm -f /etc/ssh/ssh_host_* && ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
cat >/etc/ssh/sshd_config <<-END
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile $bed/key.pub
StrictModes no
UsePAM no
UseDNS no
MaxStartups 100
Subsystem sftp internal-sftp
END
echo ready
read -r go
ip link set lo up
ip addr add "$address/24" dev eth0
ip link set eth0 up
exec /usr/sbin/sshd -D -E /var/log/sshd.log
""".replace("USER", USER)
    .replace("UID", str(USER_UID))
    .replace("PLUGINS", PLUGINS)
)


#: whatever comes from PEER, or goes there, is dropped; nobody is told
CUT = """
table inet cut {
    chain in { type filter hook input priority 0; iifname eth0 ip saddr PEER drop; }
    chain out { type filter hook output priority 0; oifname eth0 ip daddr PEER drop; }
}
"""


class Machine:
    """One machine of a bed. It runs until `power_off`."""

    def __init__(self, bed: Bed, name: str, number: int) -> None:
        self.bed, self.name, self.address = bed, name, f"{bed.network}.{number}"
        self._link = f"{bed.bridge}-{number}"
        self._cgroups = [Path(place) / f"{bed.bridge}-{name}" for _, place in bed.hierarchies]

    def power_on(self) -> None:
        for folder in self._cgroups:
            folder.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (folder / file).exists() and not (folder / file).read_text().strip():
                    (folder / file).write_text((folder.parent / file).read_text())
        options = ["--net", "--uts", "--mount", "--pid", "--ipc", "--cgroup", "--fork", "--mount-proc", "--kill-child"]
        hierarchies = [name for name, _ in self.bed.hierarchies]
        # the end of whoever tests ends the machines too
        self._init = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *options, "sh", "-c", INIT, "init",
             str(self.bed.folder), self.name, self.address, OTHER_ROOT, *hierarchies],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True,
            preexec_fn=self._join_cgroups,
        )  # fmt: skip
        other_machines.add(self._init.pid)

    def connect(self) -> None:
        """Once it is set up: its card, on the bed's bridge."""
        assert self._init.stdin is not None and self._init.stdout is not None and self._init.stderr is not None
        if self._init.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.name} does not start: {self._init.stderr.read()}")
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        _ip("link", "set", self._link, "master", self.bed.bridge, "up")
        self._init.stdin.write("go\n")
        self._init.stdin.flush()
        wait_until(self._answers, f"sshd of {self.name}")

    @property
    def pid(self) -> int:
        """Of its first process, as this machine counts."""
        return int(Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()[0])

    def command(self, *words: str, user: str | None = None) -> list[str]:
        """The command line, for this machine, that runs `words` on that one."""
        join = " && ".join([*(f"echo 0 >{folder}/cgroup.procs" for folder in self._cgroups), 'exec "$@"'])
        enter = [
            "sh",
            "-c",
            join,
            "join",
            "nsenter",
            f"--target={self.pid}",
            "--net",
            "--uts",
            "--mount",
            "--pid",
            "--ipc",
            "--cgroup",
            "--wd=/",
        ]
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        return [*enter, *as_user, *words]

    def run(self, *words: str, user: str | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        return _run(self.command(*words, user=user), **more)

    def ok(self, *words: str, user: str | None = None, **more: Any) -> str:
        return _ok(self.command(*words, user=user), **more)

    def ssh(self, *words: str, user: str = "root", **more: Any) -> subprocess.CompletedProcess[str]:
        return _run([*self.bed.ssh_command, f"{user}@{self.address}", *words], **more)

    def path(self, place: str) -> Path:
        """Where this machine sees one of its files."""
        return Path(f"/proc/{self.pid}/root{place}")

    def cut(self, peer: str = "0.0.0.0/0") -> None:
        """From that address, or from all others: they hear nothing more, not even that it is cut; its processes live on."""
        self.ok("nft", "-f", "-", input=CUT.replace("PEER", peer))

    def heal(self) -> None:
        self.ok("nft", "delete", "table", "inet", "cut")

    def power_off(self) -> None:
        """All its processes are killed at once; nothing is written back."""
        # its first process ends all others with it, and whoever made it reaps it
        with contextlib.suppress(ProcessLookupError, IndexError, FileNotFoundError):
            os.kill(self.pid, signal.SIGKILL)
        self._init.communicate()
        other_machines.discard(self._init.pid)
        for folder in self._cgroups:
            wait_until(lambda folder=folder: _remove_cgroups(folder), f"control group {folder} to be empty")

    def _answers(self) -> bool:
        if self._init.poll() is not None:
            assert self._init.stderr is not None
            raise RuntimeError(f"{self.name} ended: {self._init.stderr.read()}")
        # a connection before it has its address would be tried again a second later
        if Path(f"/proc/{self.pid}/comm").read_text() == "sshd\n":
            with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=1):
                return True
        return False

    def _join_cgroups(self) -> None:
        for folder in self._cgroups:
            (folder / "cgroup.procs").write_text("0")


class Bed:
    """Machines by name. `folder` (and so `shared`, which everybody may write to) is the same on all of them and here."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.shared = folder, folder / "shared"
        number = next(_number) % 26
        self.bridge = f"{BRIDGE}{os.getpid()}{chr(ord('a') + number)}"
        network = (os.getpid() * 26 + number) % (1 << 14)
        self.network = f"10.{128 + network // 256}.{network % 256}"
        self.hierarchies = _hierarchies()
        self.machines = {name: Machine(self, name, number) for number, name in enumerate(names, 2)}

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines.values())

    @property
    def key(self) -> Path:
        """Opens root and the ordinary user on every machine."""
        return self.folder / "key"

    @property
    def ssh_command(self) -> list[str]:
        quiet = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes")
        return ["ssh", "-F", "none", "-i", str(self.key), *(word for option in quiet for word in ("-o", option))]

    def set_up(self) -> None:
        for folder, mode in ((self.folder, 0o755), (self.folder / "layers", 0o755), (self.shared, 0o1777)):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)
        (self.shared / USER).mkdir()
        os.chown(self.shared / USER, USER_UID, USER_UID)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        hosts = [f"{machine.address} {machine.name}" for machine in self]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"{self.network}.1 outside", *hosts, ""]))
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.network}.1/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        for machine in self:
            machine.power_on()
        for machine in self:
            machine.connect()

    def tear_down(self) -> None:
        for machine in self:
            machine.power_off()
        _ip("link", "del", self.bridge)
        shutil.rmtree(self.folder)


class SlurmBed(Bed):
    """`head` runs slurmctld, all others slurmd; commands of Slurm work from here with `environ`."""

    @property
    def commands(self) -> Path:
        return self.folder / "commands"

    def set_up(self) -> None:
        super().set_up()
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o600)
        self.munge = self.folder / "munge"
        self.munge.mkdir(mode=0o755)
        for machine in self:
            machine.ok("sh", "-c", INSTALL, "install", str(self.folder))
        if OTHER_ROOT:
            self._wrap_commands()
        self.write_conf(render_conf(self.machines))
        self._munged = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "munged", "--foreground", *(f"--{word}={self.munge}/{word}" for word in (
                "socket", "pid-file", "log-file", "seed-file")), f"--key-file={self.folder}/munge.key"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for machine in self:
            self.start(machine.name)
        wait_until(lambda: (self.munge / "socket").exists(), "munge's socket")
        self.wait_idle()

    def tear_down(self) -> None:
        self._munged.terminate()
        self._munged.wait()
        super().tear_down()

    def start(self, name: str) -> None:
        """Slurm's daemon of that machine, in the background."""
        program = "slurmctld" if name == "head" else "slurmd"
        started = self[name].run(program)
        assert started.returncode == 0, f"{program} of {name}: {self[name].ok('tail', f'/var/log/slurm/{program}.log')}"

    def stop(self, name: str, signum: int = signal.SIGKILL) -> None:
        """Kill that machine's daemon and wait until it is gone; the tasks below slurmd live on."""
        file = self[name].path(f"/run/{'slurmctld' if name == 'head' else 'slurmd'}.pid")
        inside = file.read_text().strip()
        self[name].ok("kill", f"-{int(signum)}", inside)
        wait_until(lambda: not self[name].path(f"/proc/{inside}").exists(), f"the daemon of {name} to end")

    def write_conf(self, text: str) -> None:
        """slurm.conf for every machine, and for this one, where munge's socket is elsewhere."""
        # whoever asks from here hears sooner that nobody answers
        here = text.replace("MessageTimeout=10", "MessageTimeout=2")
        here += f"PluginDir={OTHER_ROOT}/{PLUGINS}\n" if OTHER_ROOT else ""
        (self.folder / "slurm.conf").write_text(f"{here}AuthInfo=socket={self.munge}/socket\n")
        for machine in self:
            machine.path("/etc/slurm/slurm.conf").write_text(text)
            machine.path("/etc/slurm/cgroup.conf").write_text("ConstrainCores=yes\nConstrainRAMSpace=yes\n")

    def _wrap_commands(self) -> None:
        """Slurm's commands of the other Debian, for this machine: by its loader and libraries. On its own machines, where jobs
        look for them by our PATH too, they are themselves."""
        self.commands.mkdir(mode=0o755)
        libraries = f"{OTHER_ROOT}/{PLUGINS}:{OTHER_ROOT}/{Path(PLUGINS).parent}"
        loader = next(Path(OTHER_ROOT).glob("usr/lib64/ld-linux*"), None) or next(Path(OTHER_ROOT).glob("usr/lib/ld-linux*"))
        for name in ("sbatch", "scancel", "scontrol", "sdiag", "sinfo", "squeue", "srun", "sacctmgr"):
            file = self.commands / name
            there = f'{loader} --library-path {libraries} {OTHER_ROOT}/usr/bin/{name} "$@"'
            file.write_text(f'#!/bin/sh\n[ -e {loader} ] || exec /usr/bin/{name} "$@"\nexec {there}\n')
            file.chmod(0o755)

    @property
    def environ(self) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**others, **self.led}

    @property
    def led(self) -> dict[str, str]:
        """The variables by which Slurm's commands here find this cluster."""
        path = f"{self.commands}:{os.environ['PATH']}" if OTHER_ROOT else os.environ["PATH"]
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def run(
        self, *words: str, user: bool = False, env: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """A command of Slurm's on this machine; `user`: as the ordinary user."""
        as_user = ["setpriv", f"--reuid={USER_UID}", f"--regid={USER_UID}", "--clear-groups"] if user else []
        return _run([*as_user, *words], env={**self.environ, **(env or {})}, **{"cwd": self.shared, **more})

    def ok(self, *words: str, **more: Any) -> str:
        return _checked(self.run(*words, **more))

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Nothing begins meanwhile: what is submitted waits."""
        self.ok("scontrol", "update", "PartitionName=main", "State=DOWN")
        try:
            yield
        finally:
            self.ok("scontrol", "update", "PartitionName=main", "State=UP")

    def wait_idle(self) -> None:
        """Until every node takes work."""
        nodes = len(self.machines) - 1
        wait_until(
            lambda: self.run("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D").stdout.strip() == str(nodes),
            "all nodes to be idle",
        )


#: munge's key and Slurm's folders on one machine, then its munged. $1: folder of the bed
INSTALL = """
set -e
install -o munge -g munge -m 600 "$1/munge.key" /etc/munge/munge.key
chown munge:munge /run/munge
mkdir -p /var/spool/slurmctld /var/spool/slurmd /var/log/slurm /etc/slurm
rm -rf /etc/slurm/plugstack.conf*
cd /
exec setpriv --reuid=munge --regid=munge --clear-groups munged
"""


def render_conf(machines: Mapping[str, Machine]) -> str:
    """slurm.conf: nodes with this machine's CPUs and a gigabyte each, and a second partition that is root's alone."""
    cpus = os.cpu_count()
    nodes = [machine for name, machine in machines.items() if name != "head"]
    names = ",".join(node.name for node in nodes)
    return "\n".join([
        "ClusterName=bed",
        f"SlurmctldHost=head({machines['head'].address})",
        "SlurmUser=root",
        "StateSaveLocation=/var/spool/slurmctld",
        "SlurmdSpoolDir=/var/spool/slurmd",
        "SlurmctldLogFile=/var/log/slurm/slurmctld.log",
        "SlurmdLogFile=/var/log/slurm/slurmd.log",
        "SlurmctldPidFile=/run/slurmctld.pid",
        "SlurmdPidFile=/run/slurmd.pid",
        "ProctrackType=proctrack/cgroup",
        "TaskPlugin=task/affinity,task/cgroup",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        # at once, not after the usual seconds
        "SchedulerParameters=batch_sched_delay=0,bf_interval=1",
        "SlurmdTimeout=10",
        "MessageTimeout=10",
        "ReturnToService=2",
        "KillWait=2",
        *(f"NodeName={node.name} NodeAddr={node.address} CPUs={cpus} CoresPerSocket={cpus} RealMemory=1024" for node in nodes),
        f"PartitionName=main Nodes={names} Default=YES MaxTime=60 DefMemPerCPU=100",
        f"PartitionName=closed Nodes={names} AllowGroups=root MaxTime=60 DefMemPerCPU=100",
        "",
    ])  # fmt: skip


@contextlib.contextmanager
def machines(names: Sequence[str]) -> Iterator[Bed]:
    """Bare machines with those names. Skips the test where they can't be had."""
    with _made(Bed, names) as bed:
        yield bed


@contextlib.contextmanager
def slurm(nodes: int = 3) -> Iterator[SlurmBed]:
    """A cluster of `head` and n1..nN whose nodes are idle. Skips the test where it can't be had."""
    with _made(SlurmBed, ["head", *(f"n{number}" for number in range(1, nodes + 1))]) as bed:
        yield bed


B = TypeVar("B", bound=Bed)


@contextlib.contextmanager
def _made(kind: type[B], names: Sequence[str]) -> Iterator[B]:
    if os.geteuid() != 0:
        pytest.skip("NO SLURM CLUSTER without root: its machines are namespaces")
    if missing := sorted({package for program, package in NEEDED.items() if shutil.which(program) is None}):
        pytest.skip(f"NO SLURM CLUSTER HERE: install {' '.join(missing)} (`make workloads` does) to try what runs on one")
    _remove_strays()
    bed = kind(Path(tempfile.mkdtemp(prefix="sy-bed-", dir="/tmp")), names)
    with contextlib.ExitStack() as stack:
        stack.callback(bed.tear_down)
        bed.set_up()
        yield bed


def wait_until(seen: Callable[[], T | None], what: str) -> T:
    """What `seen` returns, once it is true. Daemons tell nobody when they are ready, so it is asked again and again."""
    began = time.monotonic()
    while not (found := seen()):
        waited = time.monotonic() - began
        if waited > READY_S:
            raise TimeoutError(f"waited {READY_S:.0f} s for {what}")
        time.sleep(min(max(0.02, waited / 10), 0.1))
    return found


def _hierarchies() -> list[tuple[str, str]]:
    """(options of the mount, where it is) for each hierarchy of control groups with controllers."""
    mounts = [line.split()[:4] for line in Path("/proc/mounts").read_text().splitlines()]
    names = set(Path("/proc/self/cgroup").read_text().replace(":", ",").split(","))
    first = [(",".join(word for word in options.split(",") if word in names), place)
             for _, place, kind, options in mounts if kind == "cgroup"]  # fmt: skip
    return [pair for pair in first if pair[0]] or [("unified", "/sys/fs/cgroup")]


def _remove_cgroups(folder: Path) -> bool:
    try:
        for below, _, _ in sorted(os.walk(folder), reverse=True):
            os.rmdir(below)
    except OSError:
        return False
    return True


def _remove_strays() -> None:
    """Bridges and control groups of beds whose tests were killed: their machines ended with them."""
    for path in Path("/sys/class/net").glob(f"{BRIDGE}*"):
        found = re.fullmatch(rf"{BRIDGE}(\d+)[a-z]", path.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            _run(["ip", "link", "del", path.name])
            for _, place in _hierarchies():
                for folder in Path(place).glob(f"{path.name}-*"):
                    _remove_cgroups(folder)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL)


def _run(words: Iterable[str], **more: Any) -> subprocess.CompletedProcess[str]:
    quiet = {} if "input" in more else {"stdin": subprocess.DEVNULL}
    return subprocess.run(list(words), capture_output=True, text=True, check=False, **{"timeout": 60, **quiet, **more})


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _ok(words: Iterable[str], **more: Any) -> str:
    return _checked(_run(words, **more))
