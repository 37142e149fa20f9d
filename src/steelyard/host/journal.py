"""Who changed which setting of this machine, and what stood there before? One journal on disk, machine-wide, for all homes.

`hold` saves what it is about to do (temp, fsync, rename), then changes settings, then saves what was read back. `restore` puts
back what nobody alive wants any more, in the same order. Killed anywhere in between, the next `restore` finishes it. The
journal lies on /run beside the homes' sockets: settings do not outlive a restart of the machine, and neither does /run. What to
do is decided by `lifecycle/settings.py`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from steelyard.config import write_file
from steelyard.host.sysfs import format_cpus, parse_cpus, read_text
from steelyard.host.timing import thread_cpus, thread_start
from steelyard.lifecycle.settings import (
    Entry,
    Foreign,
    Journal,
    Setting,
    Write,
    find_unheld,
    note_written,
    plan_hold,
    plan_restore,
)

log = logging.getLogger(__name__)

THREAD = "thread/"
#: what it means when the kernel refuses to have an interrupt moved (older kernels say EIO)
_MANAGED = "the kernel manages it by itself"


class SettingFiles:
    """Reads and writes single settings below a root. Kernel threads (`thread/<pid>/<start time>`) by the scheduler."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, setting: Setting) -> str | None:
        if not setting.place.startswith(THREAD):
            return read_text(self._root / setting.place)
        pid = self._thread(setting.place)
        cpus = None if pid is None else thread_cpus(pid, self._root)
        return None if cpus is None else format_cpus(cpus)

    def write(self, place: str, text: str) -> None:
        """Raises OSError."""
        if place.startswith(THREAD):
            pid = self._thread(place)
            if pid is None or self._root != Path("/"):
                raise ProcessLookupError(errno.ESRCH, "it has ended")
            os.sched_setaffinity(pid, parse_cpus(text))
            return
        fd = os.open(self._root / place, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def _thread(self, place: str) -> int | None:
        """Its pid, while it is still that very thread."""
        _, pid, start = place.split("/")
        return int(pid) if thread_start(int(pid), self._root) == int(start) else None


class SettingsJournal:
    """`folder` holds the journal; it is made when something is held for the first time."""

    def __init__(self, folder: Path, boot_id: str, files: SettingFiles | None = None) -> None:
        self._folder, self._boot_id, self._files = folder, boot_id, files or SettingFiles()
        self._path = folder / "settings.json"

    def hold(self, holder: str, settings: tuple[Setting, ...]) -> tuple[Entry, ...]:
        """Everything in `settings`, for `holder` until `release`. What the machine refused comes back. Raises OSError where the
        journal can't be written; nothing was changed then."""
        if not settings:
            return ()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        with self._locked():
            journal, writes = plan_hold(self.load(), holder, settings, self._files.read)
            return find_unheld(self._carry_out(journal, writes), holder)

    def release(self, holder: str) -> tuple[Foreign, ...]:
        return self.restore(lambda other: other != holder)

    def restore(self, living: Callable[[str], bool]) -> tuple[Foreign, ...]:
        """Put back what was held only by those for whom `living` is false. Returns what somebody else had changed meanwhile."""
        if not self._path.exists():
            return ()
        with self._locked():
            before = self.load()
            journal, writes = plan_restore(before, living, self._files.read)
            if journal == before and not writes:
                return ()
            self._carry_out(journal, writes)
            known = set(before.foreign)
            found = tuple(change for change in journal.foreign if change not in known)
        for change in found:
            log.warning("%s was changed by somebody else from %r to %r; left so", change.label, change.ours, change.found)
        return found

    def load(self) -> Journal:
        """What is held now; empty when nothing is, or when the machine has been restarted since."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return Journal(self._boot_id)
        try:
            journal = msgspec.json.decode(raw, type=Journal)
        except (msgspec.MsgspecError, UnicodeDecodeError) as err:
            kept = self._path.with_name("settings.damaged.json")
            os.rename(self._path, kept)
            log.error("the journal of settings was damaged (%s) and is kept as %s: what it held stays changed", err, kept)
            return Journal(self._boot_id)
        return journal if journal.boot_id == self._boot_id else Journal(self._boot_id)

    def _carry_out(self, journal: Journal, writes: tuple[Write, ...]) -> Journal:
        self._save(journal)
        if not writes:
            return journal
        results: dict[str, tuple[str | None, str]] = {}
        for write in writes:
            error = ""
            try:
                self._files.write(write.place, write.text)
            except OSError as err:
                managed = write.place.startswith("proc/irq/") and err.errno in (errno.EIO, errno.EPERM)
                error = _MANAGED if managed else err.strerror or str(err)
            results[write.place] = (self._files.read(journal.entries[write.place].setting), error)
        journal = note_written(journal, results)
        self._save(journal)
        return journal

    def _save(self, journal: Journal) -> None:
        if journal.entries or journal.foreign:
            write_file(self._path, msgspec.json.format(msgspec.json.encode(journal), indent=1))
        else:
            self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One program at a time, whichever home it belongs to. The kernel lets go when it is killed."""
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for left in self._folder.glob(f".{self._path.name}.*.tmp"):  # of one that was killed while it wrote
                left.unlink(missing_ok=True)
            yield
        finally:
            os.close(fd)
