"""How does nothing stay behind? Ends a workload by its cgroup and removes cgroup, records and page; what the kernel has not let
go of yet is tried again by `retry` until it is gone (I6)."""

from __future__ import annotations

from pathlib import Path

from steelyard.model.ids import WorkloadId
from steelyard.runtime.process import ProcessRuntime


class Cleanup:
    def __init__(self, runtime: ProcessRuntime, pages: Path) -> None:
        self._runtime, self._pages = runtime, pages
        self._left: set[WorkloadId] = set()

    def remove(self, workload: WorkloadId) -> bool:
        """True when nothing of it is left."""
        self._runtime.kill(workload)
        return self.forget(workload)

    def forget(self, workload: WorkloadId) -> bool:
        """For a workload that never had a process, or has none any more."""
        (self._pages / workload).unlink(missing_ok=True)
        if not self._runtime.forget(workload):
            self._left.add(workload)
            return False
        self._left.discard(workload)
        return True

    def retry(self) -> None:
        for workload in list(self._left):
            self.remove(workload)
