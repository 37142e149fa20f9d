"""Which process is this pid right now? One read of /proc/<pid>/stat: state, parent and start time.

A pid alone is never an identity (R6): the start time, in clock ticks since boot, tells a reused one apart.
"""

from __future__ import annotations

import os

import msgspec


class ProcessStat(msgspec.Struct, frozen=True):
    #: one letter; Z is a zombie, X dead
    state: str
    parent: int
    session: int
    start_time: int


def observe_process(pid: int) -> ProcessStat | None:
    """None when no such process is there."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.read(fd, 4096)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name in parentheses may itself hold spaces and parentheses: count from the last one
    fields = raw[raw.rindex(b")") + 2 :].split()
    return ProcessStat(state=fields[0].decode(), parent=int(fields[1]), session=int(fields[3]), start_time=int(fields[19]))


def process_runs(pid: int, start_time: int) -> bool:
    """This very process exists and has not ended (a zombie has)."""
    stat = observe_process(pid)
    return stat is not None and stat.start_time == start_time and stat.state not in "ZX"
