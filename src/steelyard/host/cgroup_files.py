"""How are a control group's files read and written? The few operations every variant is built on.

Tests put a model of the kernel in `CgroupFiles`' place. Folders and files are plain strings: these calls are in the wake path,
and pathlib would cost more than the kernel does. Never creates a control file: a missing one is the kernel saying "not here".
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterable

from steelyard.clock import Clock
from steelyard.host.proc import observe_process
from steelyard.host.sysfs import read_text

#: a kill gives up after this long; what is left is stuck in the kernel
KILL_NS = 2_000_000_000
#: between looks at a group that is dying
POLL_S = 0.001
#: looks between two rounds of killing
LOOKS = 50
#: looks (1 ms apart) until all is frozen; a process stuck in the kernel is killed unfrozen
FREEZE_LOOKS = 100


class CgroupFiles:
    """The real ones."""

    def make(self, folder: str) -> bool:
        """Make the group; one that exists is fine. True when it was not there."""
        try:
            os.mkdir(folder, 0o755)
        except FileExistsError:
            return False
        return True

    def remove(self, folder: str) -> bool:
        """True when the group is gone, False while it holds a process or another group."""
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return True
        except OSError as err:
            if err.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise
        return True

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def read(self, path: str) -> str | None:
        """The content, or None where there is no such file or it can't be read."""
        return read_text(path)

    def write(self, path: str, text: str) -> None:
        """One write, as the kernel wants it. Raises OSError."""
        fd = self.open(path)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def try_write(self, path: str, text: str) -> bool:
        """For groups that may have gone meanwhile."""
        try:
            self.write(path, text)
        except OSError:
            return False
        return True

    def open(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def groups(self, folder: str) -> list[str]:
        """Names of the groups directly below; none where the folder itself is missing."""
        try:
            # A group without children has exactly two links: that spares the listing of its dozens of files.
            if os.stat(folder).st_nlink == 2:
                return []
            with os.scandir(folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            return []

    def pids(self, folder: str) -> list[int]:
        """Processes in the group and in groups below it (a job that runs as root may have made some)."""
        text = self.read(f"{folder}/cgroup.procs")
        if text is None:
            return []
        found = [int(line) for line in text.split()]
        for name in self.groups(folder):
            found.extend(self.pids(f"{folder}/{name}"))
        return found

    def remove_tree(self, folder: str) -> bool:
        """Remove the group and the groups below it. False as soon as one is in use."""
        if self.remove(folder):  # as a rule there are none below it, and looking would cost as much as removing
            return True
        for name in self.groups(folder):
            if not self.remove_tree(f"{folder}/{name}"):
                return False
        return self.remove(folder)

    def wait(self) -> None:
        """Between two looks at something the kernel is busy with."""
        time.sleep(POLL_S)  # noqa: TID251 - the kernel tells nobody that a v1 group is frozen or empty

    def send(self, pids: Iterable[int], signum: int) -> None:
        """Processes that have ended meanwhile are passed over."""
        for pid in pids:
            try:
                os.kill(pid, signum)
            except (ProcessLookupError, PermissionError):
                continue

    def stopped(self, pid: int) -> bool:
        """By a signal; also true of one that is gone."""
        seen = observe_process(pid)
        return seen is None or seen.state in "TtZX"


def stop_all(files: CgroupFiles, pids: Callable[[], list[int]]) -> bool:
    """SIGSTOP to whatever `pids` lists until all of it stands still: the freezer's work where there is none. False when something
    still moves after `FREEZE_LOOKS`."""
    for _ in range(FREEZE_LOOKS):
        moving = [pid for pid in pids() if not files.stopped(pid)]
        if not moving:
            return True
        files.send(moving, signal.SIGSTOP)
        files.wait()
    return False


def freeze_group(files: CgroupFiles, folder: str, frozen: bool) -> bool:
    """By `cgroup.freeze` of a v2 group; the kernel says in `cgroup.events` when it is done."""
    wanted = "1" if frozen else "0"
    if not files.try_write(f"{folder}/cgroup.freeze", wanted):
        return not frozen
    for _ in range(FREEZE_LOOKS):
        events = (files.read(f"{folder}/cgroup.events") or "").split()
        if "frozen" not in events or events[events.index("frozen") + 1] == wanted:
            return True
        files.wait()
    return False


def kill_until_empty(
    files: CgroupFiles,
    clock: Clock,
    pids: Callable[[], list[int]],
    *,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
) -> None:
    """SIGKILL whatever `pids` lists until it lists nothing, for at most `KILL_NS`. `before` and `after` each round: freeze
    and thaw, so that nothing can fork away between listing and killing."""
    deadline = clock.mono_ns() + KILL_NS
    while pids():
        if before is not None:
            before()
        try:
            files.send(pids(), signal.SIGKILL)
        finally:
            if after is not None:
                after()
        # A round is repeated after some looks: enough for most to die, few enough to catch soon what slipped through.
        for _ in range(LOOKS):
            if not pids():
                return
            if clock.mono_ns() > deadline:
                return
            files.wait()
