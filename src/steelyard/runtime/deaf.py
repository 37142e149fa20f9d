"""Which processes of a container does a signal not reach, and what then?

The first process of a pid namespace gets no signal that it has no handler for, while any other would end: so it is ended, as the
signal would have ended it outside.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Mapping
from pathlib import Path

#: whose default action ends nothing
_HARMLESS = frozenset({signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGSTOP, signal.SIGTSTP,
                       signal.SIGTTIN, signal.SIGTTOU})  # fmt: skip


def find_deaf(statuses: Mapping[int, str], signum: int) -> list[int]:
    """Which of these processes the kernel keeps this signal from: the first of a pid namespace gets none that it has no handler
    for, while any other process would end. `statuses`: pid -> the text of /proc/<pid>/status."""
    if signum in _HARMLESS or not 1 <= signum <= 64:
        return []
    return [pid for pid, text in statuses.items() if _is_init(text) and not _handles(text, signum)]


def _is_init(status: str) -> bool:
    ids = _line(status, "NSpid").split()
    return len(ids) > 1 and ids[-1] == "1"


def _handles(status: str, signum: int) -> bool:
    """By a handler, or by ignoring it on purpose."""
    return any(int(_line(status, name) or "0", 16) >> (signum - 1) & 1 for name in ("SigCgt", "SigIgn", "SigBlk"))


def _line(status: str, name: str) -> str:
    return next((line.partition(":")[2].strip() for line in status.splitlines() if line.startswith(f"{name}:")), "")


def end_deaf(pids: Collection[int], signum: int) -> None:
    """End what a signal can't reach, as the signal would end any other process."""
    statuses: dict[int, str] = {}
    for pid in pids:
        try:
            statuses[pid] = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
    for pid in find_deaf(statuses, signum):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
