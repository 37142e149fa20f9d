"""How does nothing stay behind? Ends a workload by its cgroup and removes cgroup, records, page and relay folder; what the kernel
has not let go of yet is tried again by `retry` until it is gone (I6)."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from steelyard.config import Paths
from steelyard.model.ids import WorkloadId
from steelyard.runtime.container import Containers
from steelyard.runtime.process import ProcessRuntime


class Cleanup:
    def __init__(self, runtime: ProcessRuntime, paths: Paths, containers: Containers) -> None:
        self._runtime, self._paths, self._containers = runtime, paths, containers
        self._left: set[WorkloadId] = set()

    def remove(self, workload: WorkloadId) -> bool:
        """True when nothing of it is left."""
        self._runtime.kill(workload)
        return self.forget(workload)

    def forget(self, workload: WorkloadId) -> bool:
        """For a workload that never had a process, or has none any more."""
        (self._paths.pages / workload).unlink(missing_ok=True)
        relay = self.relay_folder(workload)
        if relay.exists():
            shutil.rmtree(relay, ignore_errors=True)
        if not self._runtime.forget(workload):
            self._left.add(workload)
            return False
        self._containers.forget(workload)
        self._left.discard(workload)
        return True

    def relay_folder(self, workload: WorkloadId) -> Path:
        """Where its relay may make a socket. Hashed, because the socket's path has 107 bytes."""
        return self._paths.relays / hashlib.sha256(workload.encode()).hexdigest()[:16]

    def retry(self) -> None:
        for workload in list(self._left):
            self.remove(workload)
