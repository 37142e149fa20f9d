"""How punctual must a workload be? The three classes of timing, from what everybody gets to what a machine must promise."""

from __future__ import annotations

from enum import StrEnum

#: SCHED_FIFO priority of a realtime workload: before all ordinary work, not before the kernel's own watchdogs and timers
FIFO_PRIORITY = 50


class Timing(StrEnum):
    #: a share of the common cores
    BEST_EFFORT = "best-effort"
    #: physical cores of its own with all their siblings, memory of their NUMA nodes only
    DEDICATED = "dedicated"
    #: dedicated, and first on its cores: FIFO priority, interrupts and kernel threads elsewhere, no page faults, no deep sleep
    REALTIME = "realtime"
