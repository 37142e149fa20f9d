"""Which process is this, does it still live, and what did it really get? Read back from /proc and the scheduler.

A process is (boot id, pid, start time): a pid alone is re-used. Affinities are asked of the scheduler thread by thread (1 us
each, against 20 us to read a thread's status file), the rest once per process. Never changes anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from steelyard.host import UNLIMITED_BYTES, CgroupReading
from steelyard.host.sysfs import format_cpus, names, parse_cpus, read_text

#: controllers whose leaf is the workload's own; the cpuset's may be the common one
OWN_LEAF = ("freezer", "memory", "cpu", "pids")
_WORKLOAD = re.compile(r"/steelyard-[0-9a-f]{8}(?:-idle)?/(?:shared/)?(?!shared(?:/|$))([A-Za-z0-9._-]+)(?:/|$)")
#: processes of one workload that are asked for what they used
USAGE_PIDS_MAX = 512
#: kinds of namespaces, by their names in /proc/<pid>/ns
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
#: what a process sees as `/` unless it has files of its own
MACHINE_ROOT = "of the machine"
#: different thread affinities that a proof lists
APART_MAX = 16


class ProcessStat(msgspec.Struct, frozen=True):
    """The fields of /proc/<pid>/stat that identify a process."""

    state: str
    parent: int
    session: int
    #: field 22, clock ticks since boot
    start_time: int


def boot_id(root: Path = Path("/")) -> str:
    """A new one with every boot; "" where the kernel does not say."""
    return read_text(root / "proc/sys/kernel/random/boot_id") or ""


def observe_process(pid: int, root: Path = Path("/")) -> ProcessStat | None:
    """None when there is no such process. A zombie is one still: its state says `Z`."""
    return parse_stat(read_text(f"{root}/proc/{pid}/stat"))


def observe_processes(root: Path = Path("/")) -> dict[int, ProcessStat]:
    """All live processes, zombies left out."""
    found: dict[int, ProcessStat] = {}
    for name in names(root / "proc"):
        if name.isdigit():
            stat = observe_process(int(name), root)
            if stat is not None and stat.state not in ("Z", "X"):
                found[int(name)] = stat
    return found


def parse_stat(text: str | None) -> ProcessStat | None:
    """The command name stands in parentheses and may hold any character, so the fields are counted from its last one."""
    if text is None or ")" not in text:
        return None
    fields = text[text.rindex(")") + 1 :].split()
    if len(fields) < 20:
        return None
    return ProcessStat(state=fields[0], parent=int(fields[1]), session=int(fields[3]), start_time=int(fields[19]))


def start_time(pid: int) -> int | None:
    """Clock ticks since boot; None when there is no such process."""
    stat = observe_process(pid)
    return None if stat is None else stat.start_time


def alive(pid: int, start_time: int) -> bool:
    """Is it this very process, and does it run (a zombie does not)?"""
    stat = observe_process(pid)
    return stat is not None and stat.start_time == start_time and stat.state not in ("Z", "X")


def rss_bytes(pid: int) -> int | None:
    """Resident memory of one process, shared pages included; None when it is gone."""
    text = read_text(f"/proc/{pid}/statm")
    return int(text.split()[1]) * os.sysconf("SC_PAGESIZE") if text else None


class MemoryShare(msgspec.Struct, frozen=True):
    """Resident memory of one process, in bytes, by whom it is shared with."""

    resident: int = 0
    #: proportional: a page that n processes have counts for an n-th
    proportional: int = 0
    #: pages that nobody else has
    private: int = 0

    @property
    def shared(self) -> int:
        return self.resident - self.private


def observe_memory(pid: int, root: Path = Path("/")) -> MemoryShare | None:
    """None when it is gone. The kernel walks its whole address space for this: some ms for a large process."""
    text = read_text(f"{root}/proc/{pid}/smaps_rollup")
    if not text:
        return None
    resident, proportional, clean, dirty = (
        int((_field(text, f"\n{name}:") or "0 kB").split()[0]) * 1024 for name in ("Rss", "Pss", "Private_Clean", "Private_Dirty")
    )
    return MemoryShare(resident, proportional, clean + dirty)


def read_got(pids: Sequence[int], reading: CgroupReading, *, realtime: bool = False) -> dict[str, object]:
    """What the processes got, for `Proof.got`. A value of None could not be read. Realtime work may be in another cpu group than
    its own (see cgroup_v1), so that its place is told by the other controllers.

    cpus: every logical CPU that any thread of any process may run on (the union: one thread that strayed shows).
    threads: how many threads that covers. threads_apart: when they differ, `{"0-1": 3, "0": 1}`, affinity -> threads.
    cgroup_cpus, memory_nodes, memory_bytes ("unlimited" without a limit), share: from the control group.
    uid, no_new_privs, cgroup: of all processes; a list where they differ, and False where one may still gain privileges.
    """
    affinities = _affinities(pids)
    states = [state for pid in pids if (state := _state(pid)) is not None]
    masks = {mask for _, mask in states}
    nodes = sorted({node for mask in masks for node in parse_cpus(mask)})
    got: dict[str, object] = {
        "cpus": sorted({cpu for cpus in affinities for cpu in cpus}) if affinities else None,
        "cgroup_cpus": None if reading.cpus is None else list(reading.cpus),
        "memory_nodes": nodes if nodes else None if reading.memory_nodes is None else list(reading.memory_nodes),
        "memory_bytes": "unlimited" if reading.memory_bytes == UNLIMITED_BYTES else reading.memory_bytes,
        "share": reading.share,
        "uid": _one_or_all({fields[0] for fields, _ in states}),
        "no_new_privs": all(fields[1] == 1 for fields, _ in states) if states else None,
        "cgroup": _one_or_all({name for pid in pids if (name := _cgroup(pid, realtime or reading.gives_way)) is not None}),
        "gives_way": reading.gives_way,
        "threads": sum(affinities.values()),
    }
    if len(affinities) > 1:
        listed = sorted(affinities.items(), key=lambda item: (-item[1], sorted(item[0])))[:APART_MAX]
        got["threads_apart"] = {format_cpus(cpus): count for cpus, count in listed}
    return got


def observe_walls(pids: Sequence[int], root: Path = Path("/")) -> dict[str, object]:
    """What keeps these processes apart from the machine, as the kernel tells of each; a list where they differ.

    namespaces: kinds in which they are not where we are. seccomp: `filter` or `none`. capabilities: `none`, or the hexadecimal
    set of those that a process has or could get. All None when none of them is there any more.
    """
    ours = {name: _link(f"{root}/proc/self/ns/{name}") for name in NAMESPACES}
    kinds: set[str] = set()
    filters: set[str] = set()
    capabilities: set[str] = set()
    for pid in pids:
        text = read_text(f"{root}/proc/{pid}/status")
        theirs = {name: _link(f"{root}/proc/{pid}/ns/{name}") for name in NAMESPACES}
        if not text or None in theirs.values():
            continue
        kinds.add(" ".join(name for name in NAMESPACES if theirs[name] != ours[name]))
        filters.add("filter" if _field(text, "\nSeccomp:\t") == "2" else "none")
        held = max(int(_field(text, f"\n{name}:\t") or "0", 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"))
        capabilities.add(f"{held:x}" if held else "none")
    same = _one_or_all(kinds)
    return {
        "namespaces": same.split() if isinstance(same, str) else same,
        "seccomp": _one_or_all(filters),
        "capabilities": _one_or_all(capabilities),
    }


def observe_root(pids: Sequence[int], root: Path = Path("/")) -> str | None:
    """What these processes see as `/`: the machine's files, or the type of the file system that is there instead; several joined
    by commas. None when none of them is there any more."""
    found: set[str] = set()
    ours = _file(f"{root}/proc/self/root/")
    for pid in pids:
        theirs = _file(f"{root}/proc/{pid}/root/")
        if theirs is None:
            continue
        if theirs == ours:
            found.add(MACHINE_ROOT)
        elif text := read_text(f"{root}/proc/{pid}/mountinfo"):
            # fields: id, parent, device, root, mount point, options, ..., "-", type
            lines = (line.partition(" - ") for line in text.splitlines())
            types = [behind.split(" ", 1)[0] for before, _, behind in lines if before.split(" ")[4:5] == ["/"]]
            found.update(types[-1:])
    return ", ".join(sorted(found)) or None


def _file(path: str) -> tuple[int, int] | None:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_dev, seen.st_ino


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def read_environment(pid: int) -> dict[str, str]:
    """The variables that a process was started with; empty where they can't be read."""
    pairs = [line.partition("=") for line in (read_text(f"/proc/{pid}/environ") or "").split("\0")]
    return {name: value for name, equals, value in pairs if equals}


def observe_io(pids: Sequence[int], root: Path = Path("/")) -> tuple[int, int] | None:
    """(bytes read from disks, bytes written) by these processes and the children that they waited for; None where it can't be
    read. Of very many processes only the first are looked at."""
    read = written = 0
    known = False
    for pid in pids[:USAGE_PIDS_MAX]:
        text = read_text(f"{root}/proc/{pid}/io")
        if text:
            known = True
            read += int(_field(text, "\nread_bytes: ") or 0)
            written += int(_field(text, "\nwrite_bytes: ") or 0)
    return (read, written) if known else None


def observe_cpu(pids: Sequence[int], root: Path = Path("/")) -> float | None:
    """Seconds of CPU time of these processes and of the children that they waited for. See proc_pid_stat(5), fields 14 to 17."""
    ticks: int | None = None
    for pid in pids[:USAGE_PIDS_MAX]:
        text = read_text(f"{root}/proc/{pid}/stat")
        fields = text[text.rindex(")") + 1 :].split() if text and ")" in text else []
        if len(fields) >= 15:
            ticks = (ticks or 0) + sum(map(int, fields[11:15]))
    return None if ticks is None else ticks / os.sysconf("SC_CLK_TCK")


def _affinities(pids: Iterable[int]) -> dict[frozenset[int], int]:
    """Affinity -> number of threads, over all threads of all processes."""
    found: dict[frozenset[int], int] = {}
    for pid in pids:
        for thread in names(f"/proc/{pid}/task"):
            try:
                cpus = frozenset(os.sched_getaffinity(int(thread)))
            except OSError:
                continue
            found[cpus] = found.get(cpus, 0) + 1
    return found


def _state(pid: int) -> tuple[tuple[int, int], str] | None:
    """((uid, no_new_privs), allowed memory nodes) from the status file."""
    text = read_text(f"/proc/{pid}/status")
    if not text:
        return None
    uid, privileges = _field(text, "\nUid:\t"), _field(text, "\nNoNewPrivs:\t")
    return (int(uid.split()[0]) if uid else -1, int(privileges or "0")), _field(text, "\nMems_allowed_list:\t")


def _field(text: str, label: str) -> str:
    """Found directly: cutting all 60 lines of a status file costs more than the kernel takes to write them."""
    at = text.find(label)
    if at < 0:
        return ""
    end = text.find("\n", at + 1)
    return text[at + len(label) : end if end >= 0 else len(text)].strip()


def _cgroup(pid: int, realtime: bool) -> str | None:
    """The process's group below the mount without the leading slash; several joined by commas where the trees disagree."""
    text = read_text(f"/proc/{pid}/cgroup")
    return (
        None if text is None else find_cgroup(text, tuple(name for name in OWN_LEAF if name != "cpu") if realtime else OWN_LEAF)
    )


def find_cgroup(text: str, own_leaf: tuple[str, ...] = OWN_LEAF) -> str:
    """From the lines `id:controllers:path` of /proc/<pid>/cgroup. v2's only line has no controllers."""
    own: set[str] = set()
    unified = ""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            unified = path.lstrip("/")
        elif any(controller in own_leaf for controller in controllers.split(",")):
            own.add(path.lstrip("/"))
    return ", ".join(sorted(own)) if own else unified


def find_workload(line: str) -> str | None:
    """The workload that a line of /proc/<pid>/cgroup speaks of: its own group may stand below `shared` (v2) or in the folder of
    preemptible work; `shared` alone is the common cpuset of v1."""
    match = _WORKLOAD.search(line)
    return match[1] if match is not None else None


def _one_or_all(values: set[int] | set[str]) -> object:
    """The value all share, a sorted list where they differ, None without any."""
    if not values:
        return None
    ordered = sorted(values, key=str)
    return ordered[0] if len(ordered) == 1 else ordered
