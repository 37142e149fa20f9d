"""Where do records of what is over and done with go? They are written over for what comes next, instead of being removed.

Making a file means finding an inode, and a file system may pass by those that were freed within the last minutes: on ext4 a file
made while many are being removed costs 0.3 ms of CPU, one that is written over 0.05. A spare stands beside the records with a dot
before its name, which readers pass over. None is written over before the rename that made it one is on disk: a power loss may
bring a record back, and then with its own content.

Not for two processes at once: whoever writes into a folder writes over its spares.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from steelyard.config import write_files

#: in all folders of one process; what comes on top of them is removed
SPARES_MAX = 512
SUFFIX = ".spare"
_numbers = itertools.count()


class SpareFiles:
    """`add` may be called while another thread is in `write`."""

    def __init__(self) -> None:
        self._ready: dict[Path, list[Path]] = {}
        #: renamed, and their folder not synced since
        self._unsynced: list[Path] = []

    def add(self, path: Path) -> None:
        """`path` leaves its name at once, also when there is no such file."""
        try:
            if len(self._unsynced) + sum(map(len, self._ready.values())) >= SPARES_MAX:
                path.unlink()
            else:
                self._unsynced.append(hide(path))
        except FileNotFoundError:
            pass

    def find(self, folder: Path) -> None:
        """Spares that another process made, of records that this one writes or once wrote."""
        known = {*self._unsynced, *self._ready.get(folder, ())}
        found = [folder / name for name in os.listdir(folder) if name.endswith(SUFFIX)]
        fresh = [path for path in found if path not in known]
        room = max(0, SPARES_MAX - len(known))
        self._unsynced += fresh[:room]
        for path in fresh[room:]:
            path.unlink(missing_ok=True)

    def write(self, files: Sequence[tuple[Path, bytes]]) -> list[OSError | None]:
        """As `config.write_files`."""
        # only those that were renamed before the folder is synced
        unsynced, self._unsynced = self._unsynced, []
        results = write_files(files, spare=self._take)
        synced = {path.parent for (path, _), error in zip(files, results, strict=True) if error is None}
        for path in unsynced:
            if path.parent in synced:
                self._ready.setdefault(path.parent, []).append(path)
            else:
                self._unsynced.append(path)
        return results

    def _take(self, folder: Path) -> Path | None:
        ready = self._ready.get(folder)
        return ready.pop() if ready else None


def hide(path: Path) -> Path:
    """Make a spare of it. Raises FileNotFoundError."""
    spare = path.with_name(f".{os.getpid()}-{next(_numbers)}{SUFFIX}")
    os.rename(path, spare)
    return spare
