"""What does a Steelyard leave on a machine? Processes below us, control groups, mounts, run folders; before and after are
compared."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
SETTLE_S = 5.0
#: first processes of machines that were made for tests: what runs on them comes and goes as it does on any other machine
other_machines: set[int] = set()


@dataclass(frozen=True)
class Traces:
    processes: frozenset[str]
    cgroups: frozenset[str]
    mounts: frozenset[str]
    run_folders: frozenset[str]

    @staticmethod
    def become_subreaper() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")

    def settled_minus(self, before: Traces) -> str:
        """What is new since `before`, as lines; empty when it all went away within a few seconds."""
        now, strangers = self, set[str]()
        deadline = time.monotonic() + SETTLE_S
        while lines := now._minus(before):
            # theirs come and go while we look: one that was seen once is known
            strangers |= _tags_of_strangers()
            lines = [line for line in lines if not any(tag in line for tag in strangers)]
            if not lines or time.monotonic() > deadline:
                break
            _wait_for_an_end([int(line.split()[0]) for line in now.processes - before.processes])
            now = observe_traces()
        return "\n".join(lines)

    def _minus(self, before: Traces) -> list[str]:
        return sorted(
            [f"process {item}" for item in self.processes - before.processes]
            + [f"cgroup {item}" for item in self.cgroups - before.cgroups]
            + [f"mount {item}" for item in self.mounts - before.mounts]
            + [f"run folder {item}" for item in self.run_folders - before.run_folders]
        )


def observe_traces() -> Traces:
    _reap()
    return Traces(
        processes=frozenset(_descendants(os.getpid())),
        cgroups=frozenset(str(path) for path in _cgroups()),
        mounts=frozenset(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()),
        run_folders=frozenset(str(path) for base in _run_bases() if base.is_dir() for path in base.iterdir()),
    )


def _run_bases() -> list[Path]:
    bases = [Path("/run/steelyard"), Path(f"/tmp/steelyard-{os.getuid()}")]
    if os.environ.get("XDG_RUNTIME_DIR"):
        bases.append(Path(os.environ["XDG_RUNTIME_DIR"]) / "steelyard")
    return bases


def _cgroups() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    if not root.is_dir():
        return []
    places = [root, *(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())]
    return [path for place in places for path in place.glob("steelyard-*") if _may_be_ours(path.name)]


def _may_be_ours(name: str) -> bool:
    """The rig without a whole Steelyard names its control groups by the process that tests: other workers' are not ours."""
    rig = re.match(r"steelyard-rig-(\d+)-", name)
    return rig is None or int(rig.group(1)) == os.getpid()


def _descendants(root: int) -> list[str]:
    below: dict[int, list[int]] = {}
    for pid, (_, parent) in _read_states().items():
        below.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        children = [pid for pid in below.get(queue.pop(), []) if pid not in other_machines]
        found.extend(children)
        queue.extend(children)
    return [f"{pid} {command[:200]}" for pid in found if (command := _read_command(pid)) is not None]


def _read_states() -> dict[int, tuple[str, int]]:
    """State and parent of every process. Asked twice for each test, so it is read in the shortest way."""
    found: dict[int, tuple[str, int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb", buffering=0) as file:
                state, parent = file.read(512).rpartition(b")")[2].split(None, 2)[:2]
        except OSError:
            continue
        found[int(entry)] = (state.decode(), int(parent))
    return found


def _read_command(pid: int) -> str | None:
    """None: it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return words.replace(b"\0", b" ").decode(errors="replace").strip() or "(zombie or kernel)"


def _tags_of_strangers() -> set[str]:
    """Homes whose programs are not below us: somebody else uses this machine at the same time. Tag, and the folder around it, in
    which a test of theirs may mount."""
    ours = {int(line.split()[0]) for line in _descendants(os.getpid())} | {os.getpid()}
    tags: set[str] = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in ours:
            try:
                environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                groups = Path(f"/proc/{entry}/cgroup").read_text()
            except OSError:
                continue
            tags |= {word[18:26].decode() for word in environ if word.startswith(b"STEELYARD_PROGRAM=")}
            tags |= {str(Path(os.fsdecode(word[15:])).parent) for word in environ if word.startswith(b"STEELYARD_HOME=/tmp/sy-")}
            tags |= set(re.findall(r"/steelyard-([^/\s]+)", groups))
    return tags


def _reap() -> None:
    """Orphans that became ours: those a test itself started are waited for by the test, so only strangers are taken."""
    for pid, (state, parent) in _read_states().items():
        if state == "Z" and parent == os.getpid():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _wait_for_an_end(pids: list[int]) -> None:
    import select

    poll = select.poll()
    pidfds: list[int] = []
    for pid in pids:
        try:
            pidfds.append(os.pidfd_open(pid))
            poll.register(pidfds[-1], select.POLLIN)
        except OSError:
            continue
    poll.poll(100)
    for pidfd in pidfds:
        os.close(pidfd)
