"""When was something in a folder saved, and what? One event per save, however many the kernel makes of it.

What is never code is not looked at. Which of the rest belongs to the code the capture decides, by .gitignore.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import NamedTuple

from steelyard.clock import Clock
from steelyard.errors import EdgeFailed

#: a save is several events: so long after the last of them it is taken as one, and after so long at the latest
QUIET_MS, GATHER_MS = 5, 50


class Save(NamedTuple):
    #: monotonic: when its events had been gathered
    at_ns: int
    files: frozenset[Path]


class Saves:
    """Watches from now on, on a thread of its own, for as long as the process lives."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self._root = root
        self._clock = clock
        self._came: queue.SimpleQueue[Save | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._watch, name="saves", daemon=True).start()

    @property
    def waiting(self) -> bool:
        """Has one come since the last was taken?"""
        return not self._came.empty()

    def take(self) -> Save:
        """Waits for the next; all that have come meanwhile are one. Raises EdgeFailed when the folder can't be watched."""
        files: set[Path] = set()
        while True:
            came = self._came.get()
            if isinstance(came, Exception):
                raise EdgeFailed(
                    f"{self._root} can't be watched: {came}. Where it has very many folders, raise fs.inotify.max_user_watches."
                ) from came
            files |= came.files
            if self._came.empty():
                return Save(came.at_ns, frozenset(files))

    def _watch(self) -> None:
        import watchfiles

        try:
            for changes in watchfiles.watch(self._root, step=QUIET_MS, debounce=GATHER_MS, rust_timeout=0, raise_interrupt=False):
                self._came.put(Save(self._clock.mono_ns(), frozenset(Path(path) for _, path in changes)))
        except Exception as err:
            # told to whoever takes; nobody hears it here
            self._came.put(err)
