"""A model of the kernel's control groups in memory, v1 and v2. What the kernel refuses, it refuses, with the same errno."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable

from steelyard.clock import VirtualClock
from steelyard.host.cgroup_files import CgroupFiles
from steelyard.host.sysfs import format_cpus, parse_cpus

UNLIMITED = "9223372036854771712"
V1_FILES = {
    "cpu": {"cpu.shares": "1024", "cpu.idle": "0"},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
    "memory": {
        "memory.limit_in_bytes": UNLIMITED,
        "memory.memsw.limit_in_bytes": UNLIMITED,
        "memory.max_usage_in_bytes": "4096",
        "memory.usage_in_bytes": "2048",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3",
    },
    "freezer": {"freezer.state": "THAWED"},
    "pids": {"pids.max": "max"},
    "cpuacct": {"cpuacct.usage": "1500000000"},
    "blkio": {"blkio.throttle.read_bps_device": "", "blkio.throttle.write_bps_device": ""},
}
V2_FILES = {
    "cpu": {"cpu.weight": "100", "cpu.idle": "0"},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": "", "cpuset.cpus.effective": "", "cpuset.mems.effective": ""},
    "memory": {
        "memory.max": "max",
        "memory.swap.max": "max",
        "memory.peak": "4096",
        "memory.current": "2048",
        "memory.events": "low 0\nhigh 0\nmax 7\noom 3\noom_kill 3\noom_group_kill 0",
    },
    "pids": {"pids.max": "max"},
    "io": {"io.max": ""},
}
#: every v2 group has these
V2_ALWAYS = {"cgroup.freeze": "0", "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000"}


class ModelKernel(CgroupFiles):
    """`forks` says how many processes are born in a group between a look at it and the kill, unless it is frozen: a fork bomb."""

    def __init__(self, cpus: str = "0-7", mems: str = "0-1") -> None:
        self.clock = VirtualClock()
        self.files: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.members: dict[str, set[int]] = {}
        self.forks: dict[str, int] = {}
        self.disks = ["254:0", "259:0"]
        self.signals: list[tuple[int, int]] = []
        self.immortal: set[int] = set()
        self.stopped_pids: set[int] = set()
        self.descriptors: dict[int, str] = {}
        self.writes: list[tuple[str, str]] = []
        self._cpus, self._mems = cpus, mems
        self._next = 1000

    def mount_v1(self, controller: str) -> str:
        root = f"/model/{controller}"
        self.kinds[root] = controller
        self.members[root] = set()
        self.files.update({f"{root}/{name}": text for name, text in V1_FILES[controller].items()})
        if controller == "cpuset":
            self.files.update({f"{root}/cpuset.cpus": self._cpus, f"{root}/cpuset.mems": self._mems})
            self.files.update({f"{root}/cpuset.effective_cpus": self._cpus, f"{root}/cpuset.effective_mems": self._mems})
        return root

    def mount_v2(self, controllers: str, *, kill: bool = True) -> str:
        root = "/model/unified"
        self.kinds[root] = "unified" if kill else "unified without kill"
        self.members[root] = set()
        self.files.update({f"{root}/cgroup.controllers": controllers, f"{root}/cgroup.subtree_control": ""})
        return root

    def make(self, folder: str) -> bool:
        parent = os.path.dirname(folder)
        if parent not in self.members:
            raise OSError(errno.ENOENT, "no such group", folder)
        if folder in self.members:
            return False
        self.kinds[folder], self.members[folder] = self.kinds[parent], set()
        if not self.kinds[folder].startswith("unified"):
            self.files.update({f"{folder}/{name}": text for name, text in V1_FILES[self.kinds[folder]].items()})
            return True
        enabled = self.files[f"{parent}/cgroup.subtree_control"]
        self.files.update({f"{folder}/cgroup.controllers": enabled, f"{folder}/cgroup.subtree_control": ""})
        self.files.update({f"{folder}/{name}": text for name, text in V2_ALWAYS.items()})
        if self.kinds[folder] == "unified":
            self.files[f"{folder}/cgroup.kill"] = ""
        for controller in enabled.split():
            self.files.update({f"{folder}/{name}": text for name, text in V2_FILES[controller].items()})
        return True

    def remove(self, folder: str) -> bool:
        if folder not in self.members:
            return True
        if self.members[folder] or self.groups(folder):
            return False
        del self.members[folder], self.kinds[folder]
        self.files = {path: text for path, text in self.files.items() if os.path.dirname(path) != folder}
        return True

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.members

    def groups(self, folder: str) -> list[str]:
        return sorted(os.path.basename(path) for path in self.members if os.path.dirname(path) == folder)

    def read(self, path: str) -> str | None:
        folder, name = os.path.split(path)
        if name in ("cpuset.cpus.effective", "cpuset.mems.effective") and path in self.files:
            own = self.files[path.removesuffix(".effective")]
            above = self.read(f"{os.path.dirname(folder)}/{name}")
            return own or (above if above is not None else self._cpus if "cpus" in name else self._mems)
        if name == "cgroup.events" and f"{folder}/cgroup.freeze" in self.files:
            return f"populated {int(bool(self.pids(folder)))}\nfrozen {self.files[f'{folder}/cgroup.freeze']}"
        return self.files.get(path)

    def pids(self, folder: str) -> list[int]:
        found = set(self.members.get(folder, ()))
        for name in self.groups(folder):
            found.update(self.pids(f"{folder}/{name}"))
        return sorted(found)

    def _frozen(self, folder: str) -> bool:
        return self.files.get(f"{folder}/freezer.state") == "FROZEN" or self.files.get(f"{folder}/cgroup.freeze") == "1"

    def write(self, path: str, text: str) -> None:
        folder, name = os.path.split(path)
        if path not in self.files:
            raise OSError(errno.ENOENT, "no such file", path)
        text = text.strip()
        self.writes.append((path, text))
        if name == "cgroup.kill":
            self._end(self.pids(folder))
            return
        if name == "cgroup.subtree_control":
            self._enable(folder, text.removeprefix("+"))
            return
        self.files[path] = self._checked(folder, name, text)

    def _checked(self, folder: str, name: str, text: str) -> str:
        if name in ("cpuset.cpus", "cpuset.mems") and not self.kinds[folder].startswith("unified"):
            wanted = set(parse_cpus(text))
            if not wanted <= set(parse_cpus(self.files[f"{os.path.dirname(folder)}/{name}"])):
                raise OSError(errno.EACCES, "not in the parent's set", folder)
            for child in self.groups(folder):
                if not set(parse_cpus(self.files[f"{folder}/{child}/{name}"])) <= wanted:
                    raise OSError(errno.EBUSY, "a child holds it", folder)
            return format_cpus(wanted)
        if name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
            limit = UNLIMITED if text == "-1" else str(int(text) // 4096 * 4096)
            both = {**self.files, f"{folder}/{name}": limit}
            if int(both[f"{folder}/memory.limit_in_bytes"]) > int(both[f"{folder}/memory.memsw.limit_in_bytes"]):
                raise OSError(errno.EINVAL, "memory above memory + swap", folder)
            return limit
        if name == "memory.max" and text != "max":
            return str(int(text) // 4096 * 4096)
        if name == "io.max" or name.startswith("blkio.throttle."):
            return self._with_disk(folder, name, text)
        return text

    def _with_disk(self, folder: str, name: str, text: str) -> str:
        """A line per disk that has a limit; the kernel drops a line that limits nothing."""
        disk, _, limit = text.partition(" ")
        if disk not in self.disks:
            raise OSError(errno.ENODEV, "no such disk", folder)
        lines = dict(line.split(" ", 1) for line in self.files[f"{folder}/{name}"].splitlines())
        lines[disk] = f"{limit} riops=max wiops=max" if name == "io.max" else limit
        nothing = ("0", "rbps=max wbps=max riops=max wiops=max")
        return "\n".join(f"{disk} {limit}" for disk, limit in lines.items() if limit not in nothing)

    def _enable(self, folder: str, controller: str) -> None:
        if controller not in self.files[f"{folder}/cgroup.controllers"].split():
            raise OSError(errno.ENOENT, "no such controller here", folder)
        if self.members[folder]:
            raise OSError(errno.EBUSY, "the group holds processes itself", folder)
        self.files[f"{folder}/cgroup.subtree_control"] += f" {controller}"
        for child in self.groups(folder):
            self.files[f"{folder}/{child}/cgroup.controllers"] += f" {controller}"
            self.files.update({f"{folder}/{child}/{name}": text for name, text in V2_FILES[controller].items()})

    def open(self, path: str) -> int:
        folder = os.path.dirname(path)
        if folder not in self.members:
            raise OSError(errno.ENOENT, "no such group", path)
        fd = 100_000 + len(self.descriptors)
        self.descriptors[fd] = folder
        return fd

    def join(self, fds: Iterable[int]) -> int:
        """A new process writes 0 to each."""
        self._next += 1
        for fd in fds:
            folder = self.descriptors[fd]
            if self.kinds[folder] == "cpuset" and not (
                self.files[f"{folder}/cpuset.cpus"] and self.files[f"{folder}/cpuset.mems"]
            ):
                raise OSError(errno.ENOSPC, "the cpuset is empty", folder)
            if self.files.get(f"{folder}/cgroup.subtree_control"):
                raise OSError(errno.EBUSY, "no process beside children", folder)
            self.members[folder].add(self._next)
        return self._next

    def send(self, pids: Iterable[int], signum: int) -> None:
        for folder, count in self.forks.items():
            if self.members.get(folder) and not self._frozen(folder):
                self.members[folder].update(range(self._next + 1, self._next + 1 + count))
                self._next += count
        self.signals.extend((pid, signum) for pid in pids)
        if signum == signal.SIGSTOP:
            self.stopped_pids.update(pids)
        elif signum == signal.SIGCONT:
            self.stopped_pids.difference_update(pids)
        if signum == 9:
            self._end(pids)

    def _end(self, pids: Iterable[int]) -> None:
        for members in self.members.values():
            members.difference_update(set(pids) - self.immortal)

    def stopped(self, pid: int) -> bool:
        return pid in self.stopped_pids

    def wait(self) -> None:
        self.clock.advance(0.001)
