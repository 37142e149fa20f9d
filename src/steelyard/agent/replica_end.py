"""Why did a replica end that nobody had told to, and who is told? The agent keeps the newest ends of each revision, callers ask
for them when a call was lost, and the function's own log gets a line.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from steelyard.agent.attempt import explain_end
from steelyard.agent.edges import Edges
from steelyard.errors import SteelyardError
from steelyard.host import CgroupReading
from steelyard.model.function import FunctionSpec, ReplicaEnd
from steelyard.model.ids import WorkloadId
from steelyard.model.job import Plan
from steelyard.wire.spawn import Exited

log = logging.getLogger(__name__)

#: of one revision
ENDS_KEPT = 32


def explain_replica_end(edges: Edges, workload: WorkloadId, exited: Exited, spec: FunctionSpec) -> ReplicaEnd:
    """Call it while the replica's control group is there: that knows whether the kernel ended it for its memory."""
    try:
        reading = edges.cgroups.read(workload)
    except (SteelyardError, OSError):
        reading = CgroupReading()
    plan = Plan(memory_bytes=spec.resources.memory_bytes)
    end = explain_end(exited, reading.oom_kills, reading.memory_peak_bytes, plan, edges.clock.now_us())
    detail = end.detail or f"It ended with exit code {end.exit_code}."
    return ReplicaEnd(workload, end.ended_at, end.reason, detail, end.exit_code, end.signum, end.peak_memory_bytes)


def say_in_log(folder: Path, end: ReplicaEnd) -> None:
    """A line in the function's stderr, where its author looks."""
    peak = f" It had {end.memory_peak_bytes / 1e6:.0f} MB at most." if end.memory_peak_bytes else ""
    line = f"[steelyard: replica {end.replica} is gone: {end.reason}. {end.detail}{peak}]\n"
    try:
        fd = os.open(folder / "stderr", os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # it never wrote anything there
    try:
        os.write(fd, line.encode())
    except OSError as err:
        log.warning("the end of %s could not be written to its log: %s", end.replica, err)
    finally:
        os.close(fd)
